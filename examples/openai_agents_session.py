"""An agent of the OpenAI Agents SDK that keeps its session in callboard, and one of callboard's that goes on with it.

With a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/openai_agents_session.py
"""

import asyncio
import os
import sys

from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner
from openai import AsyncOpenAI

import callboard
from callboard.openai_agents import AgentsSession


async def main(path: str) -> None:
    key = os.environ.get("OPENAI_API_KEY", "none")
    async with callboard.Runtime(path) as runtime, AsyncOpenAI(api_key=key) as client:
        session = callboard.Session(runtime, "user-123")
        model = OpenAIChatCompletionsModel(os.environ["OPENAI_MODEL"], openai_client=client)
        agent = Agent("Assistant", instructions="Be brief.", model=model)
        config = RunConfig(tracing_disabled=True)

        # In place of SQLiteSession("user-123", "sessions.db").
        result = await Runner.run(agent, "I live in Lisbon.", session=AgentsSession(session), run_config=config)
        print(result.final_output)

        ours = callboard.Agent("Clerk", instructions="Be brief.", model=callboard.OpenAIChat(), session=session)
        print((await ours.chat("Where do I live?")).text)
        items = await AgentsSession(session).get_items()
        print(f"{len(items)} items, of which the last is by {items[-1]['role']}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "support.lmdb"))

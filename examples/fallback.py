"""Several models in a row: when the first one is down or out of quota, the next one answers, and the first one rests.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/fallback.py
"""

import os
import sys

import trio

from callboard import Agent, FallbackMember, FallbackModel, ModelSettings, OpenAIChat, RetryPolicy, Runtime, Session

IMPATIENT = RetryPolicy(retries_max=0, rate_limit_patience_s=0)
"""Others can answer, so there is no use in waiting for the first."""


async def main(path: str) -> None:
    first = OpenAIChat(model="large-model-of-another-house", retries=IMPATIENT)
    second = OpenAIChat(model=os.environ["OPENAI_MODEL"])
    # What is set for a member goes before the agent's settings: here, less is asked of a smaller model.
    model = FallbackModel([first, FallbackMember(second, ModelSettings(max_tokens=200))], cooldown_s=30)

    async with Runtime(path) as runtime:
        session = Session(runtime, "fallback-4711")
        agent = Agent("Helper", model=model, session=session, settings=ModelSettings(temperature=0.2, seed=7))
        for question in ("Are you there?", "Still?"):
            reply = await agent.chat(question)
            print(f"{question} {reply.text}")
        for run in await session.runs():
            print(f"{run.model}: {run.status} after {run.attempts} attempt")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

"""An agent with session memory: the second question is understood because of the first, also in the next process.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/quickstart.py
"""

import sys

import trio

from callboard import Agent, OpenAIChat, Runtime, Session


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        model = OpenAIChat()
        session = Session(runtime, "user-123")
        agent = Agent("Support Agent", instructions="Be brief.", model=model, session=session)
        await agent.chat("My name is John and I need help with billing")
        reply = await agent.chat("What was my issue again?")
        print(reply.text)
        print(f"{await session.message_count()} messages are stored")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

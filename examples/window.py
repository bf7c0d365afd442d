"""A conversation that is longer than its model should see: a window, a view by hand, and a summary of what came before.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/window.py
"""

import sys

import trio

from callboard import Agent, NotCompacted, OpenAIChat, Runtime, Session, Window


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        model = OpenAIChat()
        session = Session(runtime, "diary", max_messages=12)
        clerk = Agent("Clerk", instructions="Answer in one sentence.", model=model, session=session)
        for day in range(1, 11):
            await clerk.chat(f"Day {day}: note that {day * 3} parcels came.")

        view = await session.view(max_messages=12)
        print(f"shown: {view.shown} of {view.shown + view.left_out} messages, from message {view.cut} on")
        latest = await session.messages_for_llm(max_tokens=120)
        print(f"in 120 tokens: {len(latest)} messages, the first of them by the {latest[0]['role']}")

        try:
            await session.compact(model, keep_messages=4)
        except NotCompacted as error:
            print(error)
        historian = Agent("Historian", model=model, session=session, window=Window(max_messages=8, strategy="summary"))
        reply = await historian.chat("How many parcels came on the first day?")
        print(reply.text)
        print(f"kept: all {await session.message_count()} messages")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "diary.lmdb")

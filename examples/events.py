"""Reading along: what happens in a session, as it happens, and after a restart from where the reader was.

Whoever shows a conversation (a web page, a second screen, a job that files tickets) reads its events. What lasts comes
once and in order; the reader keeps the number of the last one that it has dealt with, and goes on behind it.

Run it twice with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/events.py
"""

import sys

import anyio

from callboard import Agent, Delta, EventStream, MessageAdded, OpenAIChat, RunChanged, RunProgress, Runtime, Session


async def show(events: EventStream, bookmark: anyio.Path) -> None:
    """What a screen does: pieces of an answer while they come, then what is stored."""
    async for event in events:
        match event:
            case RunProgress(_, _, agent, Delta("text", text)):
                print(f"      {agent} types {text!r}")  # gone when the reader comes too late, or is too slow
            case MessageAdded(number, message):
                print(f"{number:4}  {message.author or message.role}: {message.text}")
                await bookmark.write_text(str(number))
            case RunChanged(number, _, status, agent):
                print(f"{number:4}  {agent} is {status}")
                await bookmark.write_text(str(number))  # once it is dealt with, not before
                if status == "completed":
                    return
            case _:
                pass  # kinds that this screen does not show, or does not know yet


async def main(path: str) -> None:
    bookmark = anyio.Path(path).with_suffix(".bookmark")
    seen = int(await bookmark.read_text()) if await bookmark.exists() else 0
    async with Runtime(path) as runtime:
        session = Session(runtime, "case-4711")
        agent = Agent("Support", model=OpenAIChat(), session=session)
        await session.add_message("user", "I am back, and nobody was reading.")
        async with session.events(after=seen) as events, anyio.create_task_group() as tasks:
            tasks.start_soon(show, events, bookmark)
            await agent.chat("My order 88 has not arrived.")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

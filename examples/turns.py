"""Input that comes while a turn runs: merged, stopping what runs, steering it; and a turn made by hand.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/turns.py
"""

import sys

import anyio
import trio

from callboard import Agent, Delivered, OpenAIChat, RunFailed, Runtime, Session, SessionManager


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        await SessionManager(runtime).delete("lunch")  # of an earlier run of this program
        session = Session(runtime, "lunch", overlap="merge")
        waiter = Agent("Waiter", instructions="One sentence.", model=OpenAIChat(), session=session)

        async def say(text: str) -> None:
            async with waiter.stream(text) as stream:
                async for event in stream:
                    if isinstance(event, Delivered) and event.run_id == stream.run_id:
                        print(f"{text!r} was {event.how}")
            print(f"{text!r} was answered in turn {stream.reply.turn}")

        # Three messages in a row: the first begins a turn, the others are answered together in the next.
        async with anyio.create_task_group() as tasks:
            for text in ("Hello!", "A table for two,", "by the window."):
                tasks.start_soon(say, text)
                await anyio.sleep(0.01)

        # A turn of one's own: both messages are stored, or none.
        async with session.turn() as turn:
            turn.add("user", "By phone: we shall be three.", author="Dana")
            turn.add("assistant", "Noted.", author="Dana")
        print(f"{await session.message_count()} messages before the last one")

        async def be_stopped() -> None:
            try:
                await waiter.chat("Read me the whole menu.")
            except RunFailed as stopped:
                print("stopped:", stopped.reason)

        # Somebody changes their mind: the turn that runs leaves nothing.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(be_stopped)
            await anyio.sleep(0.01)
            await waiter.chat("No, just the soup.", overlap="rollback")
        asked, _ = await session.messages(limit=2)
        print(asked.text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

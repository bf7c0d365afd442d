"""A process is killed in the middle of a turn; the next one goes on with it, and repeats no tool call that was made.

The first process orders a part and is killed (SIGKILL) while it does the second half of the turn. The second finds the
run "interrupted", resumes it, and reads the order's result from the journal.

With a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/crash_and_resume.py
"""

import os
import signal
import subprocess
import sys

import trio

from callboard import Agent, OpenAIChat, Runtime, Session, tool

TASK = "Order part 7, then book a courier for it."


async def order(part: int) -> str:
    """Order a part."""
    print(f"ordering part {part}", flush=True)
    return "ordered"


@tool(repeatable=True)
async def book_courier(part: int) -> str:
    """Book a courier."""
    if "--crash" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)  # what a crash does: no line of code runs any more
    print(f"booking a courier for part {part}", flush=True)
    return "booked"


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "repairs")
        agent = Agent("Repairs", model=OpenAIChat(), session=session, tools=[order, book_courier])
        interrupted = [run for run in await session.runs() if run.status == "interrupted"]
        if not interrupted:
            await agent.chat(TASK)
            return
        for run in interrupted:
            print(f"the run was {run.status}: {run.error}")
            reply = await agent.resume(run.id)
            print(reply.text)


if __name__ == "__main__":
    store = sys.argv[1] if len(sys.argv) > 1 else "support.lmdb"
    if "--crash" not in sys.argv:
        done = subprocess.run([sys.executable, __file__, store, "--crash"])
        print(f"the first process has ended by signal {-done.returncode}", flush=True)
    trio.run(main, store)

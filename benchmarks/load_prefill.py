"""Fills the store of `load.py` with sessions of earlier days, through the public API; it prints how many it has made.

load_prefill.py PLAN_JSON STORE trio|asyncio
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
from load_plan import Plan, Said, conversation, session_name

from callboard import Message, Runtime, Session, ToolCall

AT_ONCE = 500
"""Sessions that are made side by side share their commits."""
ACTORS_MAX = 2 * AT_ONCE


def as_message(said: Said) -> Message:
    role, text, answers, calls = said
    return Message(
        role="user" if role == "user" else "tool" if role == "tool" else "assistant",
        content=text or None,
        tool_calls=tuple(ToolCall(id, "lookup", arguments) for id, arguments in calls),
        tool_call_id=answers or None,
    )


async def make(runtime: Runtime, plan: Plan, numbers: Iterator[int]) -> None:
    for number in numbers:
        session = Session(runtime, session_name(number), owner=f"user-{number % plan.sessions}", tags=["stored"])
        turns = range(1, plan.stored_turns + 1)
        await session.add_messages([as_message(said) for turn in turns for said in conversation(number, turn)])
        if number % 1_000 == 999:
            print(number + 1, flush=True)


async def fill(plan: Plan, store: Path) -> None:
    # "async": what the machine might lose now is not yet anybody's; closing the runtime syncs the store.
    async with Runtime(store, durability="async", actors_max=ACTORS_MAX) as runtime:
        numbers = iter(range(plan.stored))
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(make, runtime, plan, numbers)


if __name__ == "__main__":
    anyio.run(fill, msgspec.json.decode(sys.argv[1], type=Plan), Path(sys.argv[2]), backend=sys.argv[3])

"""Tools: what a model may do. Calls side by side, one that fails, one whose effect is to happen once and no more.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/tools.py
"""

import sys
from typing import Annotated

import trio
from msgspec import Meta

from callboard import Agent, Delta, OpenAIChat, RunPolicy, Runtime, Session, ToolContext, ToolFinished, tool

STOCK = {"lamp": 3, "chair": 0}
RESERVED: dict[str, str] = {}  # stands for a service that does a thing once a key, however often it is asked to


def in_stock(article: Annotated[str, Meta(description="in the singular")]) -> int:
    """How many of an article there are."""
    return STOCK[article]  # an article that is not there is a KeyError: the model reads that, and may react


@tool(timeout_s=5.0, on_error="fail")
async def reserve(article: str, context: ToolContext, count: Annotated[int, Meta(ge=1)] = 1) -> str:
    """Put articles aside for the customer."""
    # The key is the same whenever this call is repeated, also after a crash and in another process.
    RESERVED.setdefault(context.idempotency_key, f"{count} x {article}")
    context.state["reserved"] = count  # of the turn; stored with the result
    return f"{count} x {article} put aside for {context.metadata['customer']}"


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "shop-4711", metadata={"customer": "Dana Fox"})
        clerk = Agent(
            "Clerk",
            instructions="Look before you reserve.",
            model=OpenAIChat(),
            session=session,
            tools=[in_stock, reserve],
            policy=RunPolicy(model_calls_max=8, tool_calls_at_once=4),
        )
        async with clerk.stream("A lamp, a chair and a sofa, please. Put aside what there is.") as stream:
            async for event in stream:
                if isinstance(event, ToolFinished):
                    print(f"{event.name}: {'failed: ' if event.is_error else ''}{event.content}")
                elif isinstance(event, Delta) and event.kind == "text":
                    print(event.text, end="")
        print()
        print("put aside:", ", ".join(RESERVED.values()))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

"""Runs and their spans: those of agents, with a tool's own work in them, and a run that is driven by hand.

What a run did is stored with its turn, so that it can be read later and in another process: `session.spans(run_id)`.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/tracing.py
"""

import sys

import trio

from callboard import Agent, OpenAIChat, Runtime, Session, SpanRecord, ToolContext


async def find_order(order: str, context: ToolContext) -> str:
    """Find an order."""
    with context.span("database") as span:
        await trio.sleep(0.01)
        span.set(rows=1)
    with context.span("carrier"):
        await trio.sleep(0.01)
    return f"{order} is on its way"


def show(spans: list[SpanRecord]) -> None:
    depths = {0: 0}
    for span in spans:
        depths[span.number] = depths[span.parent] + 1
        facts = {name: value for name, value in span.attributes.items() if name in ("rows", "pages", "error")}
        print("  " * depths[span.number] + f"{span.kind} {span.name} {span.status}", *(facts and [facts]))


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "support")
        agent = Agent("Support", model=OpenAIChat(), session=session, tools=[find_order])
        reply = await agent.chat("Where is order A-17?")
        print(reply.text)
        show(await session.spans(reply.run_id))

        run = await session.create_run(agent="Nightly report")
        await run.start()
        async with run.trace("report") as report:
            async with run.trace("read history") as span:
                messages = await session.messages()
                span.set(rows=len(messages))
            report.set(pages=1 + len(messages) // 40)
        await run.complete(tokens_used=150)
        print(f"{run.record.agent}: {run.status}")
        show(await run.spans())

        done = await session.runs(status="completed", agent="Support")
        print(f"{len(done)} answered so far" if len(done) > 1 else "answered for the first time")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tracing.lmdb")

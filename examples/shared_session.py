"""Two agents on one session: instructions over its metadata, a tool, streaming, and what is stored afterwards.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/shared_session.py
"""

import sys

import trio

from callboard import Agent, Delta, OpenAIChat, Runtime, Session, Template, ToolContext


async def order_status(order: int, context: ToolContext) -> str:
    """Look up where an order is."""
    return f"Order {order} of {context.metadata['customer']} left the warehouse on Monday."


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        model = OpenAIChat()
        session = Session(runtime, "case-4711", metadata={"customer": "Dana Fox", "plan": "pro"}, tags=["shipping"])
        intake = Agent("Intake", instructions=Template("Greet ${customer}."), model=model, session=session)
        solution = Agent("Solution", instructions="Solve it.", model=model, session=session, tools=[order_status])

        await intake.chat("My order 88 has not arrived.")
        async with solution.stream("Where is the order?") as stream:
            async for event in stream:
                if isinstance(event, Delta) and event.kind == "text":
                    print(event.text, end="", flush=True)
        print()

        for message in await session.messages():
            print(f"{message.seq:3} {message.author or message.role}: {message.text}")
        for run in await session.runs():
            print(f"{run.agent}: {run.status} in {run.duration_ms} ms, {run.usage.total_tokens} tokens")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

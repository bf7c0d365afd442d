"""Approvals: a tool call that waits until a person has agreed, however long that takes and wherever they do it.

First it runs to the call that must be approved, and ends. The second time it finds the run that waits, and goes on.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/approval.py
"""

import sys

import trio

from callboard import Agent, ApprovalRequired, OpenAIChat, Runtime, Session, ToolContext, tool

LIMIT_CENTS = 1_000


@tool(approval=lambda arguments: arguments["cents"] > LIMIT_CENTS)
async def refund(order: str, cents: int, context: ToolContext) -> str:
    """Pay money back for an order."""
    print(f"paying {cents} cents for {order}, once for the key {context.idempotency_key[-6:]}")
    return "paid"


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "refund-4711")
        agent = Agent("Refunds", model=OpenAIChat(), session=session, tools=[refund])

        waiting = [run for run in await session.runs() if run.status == "waiting"]
        if not waiting:
            try:
                await agent.chat("Order A-17 came broken. I want my 12.50 back.")
            except ApprovalRequired as pause:
                for call in pause.calls:
                    print(f"{call.tool}({call.arguments}) waits for an approval; run me again")
            return

        for run in waiting:
            reply = await agent.resume(run.id, approve=True)  # or False, Denied("why"), {call_id: ...}
            print(reply.text)
        for message in await session.messages():
            print(f"{message.seq:3} {message.author or message.role}: {message.text}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

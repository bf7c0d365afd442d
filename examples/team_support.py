"""A support case with several agents: each has the conversation until it hands it over; the next chat goes on there.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/team_support.py
"""

import sys

import trio

from callboard import (
    Agent,
    Budget,
    Delta,
    Handoff,
    OpenAIChat,
    Runtime,
    Session,
    Team,
    Template,
    ToolContext,
    ToolFinished,
    TurnCompleted,
)


async def find_invoice(number: int, context: ToolContext) -> str:
    """Look an invoice up."""
    return f"Invoice {number} of {context.metadata['customer']}: 40 EUR, paid twice."


async def restart_router(serial: str) -> str:
    """Restart the customer's router."""
    return f"Router {serial} is up again."


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        model = OpenAIChat()
        session = Session(runtime, "case-4711", metadata={"customer": "Dana Fox"}, tags=["support"])
        desk = Agent("Desk", model=model, runtime=runtime, instructions=Template("Hear what ${customer} wants."))
        billing = Agent("Billing", model=model, runtime=runtime, instructions="Mend bills.", tools=[find_invoice])
        network = Agent("Network", model=model, runtime=runtime, instructions="Mend lines.", tools=[restart_router])
        about = {"Billing": "For invoices and refunds.", "Network": "For lines and routers."}
        team = Team(
            [desk, billing, network],
            session=session,
            flow=Handoff(desk, to={desk: [billing, network]}, about=about),  # who is not in `to` may hand over to all
            budget=Budget(tokens=50_000),  # of one chat, all agents together
        )

        for text in ("Invoice 88 is wrong.", "Thank you. And when will I have the money?"):
            print(f"> {text}")
            async with team.stream(text) as stream:  # the events of all agents, each with its agent and its run
                async for event in stream:
                    match event.event:
                        case Delta(kind="text", text=piece):
                            print(piece, end="", flush=True)
                        case ToolFinished(name=name, content=content):
                            print(f"[{event.agent}] {name}: {content}")
                        case TurnCompleted(reply=reply) if reply.text:
                            print()
                        case _:
                            pass
            print("  by", ", then ".join(turn.agent for turn in stream.reply.turns))

        for run in await session.runs():
            print(f"{run.agent}: {run.status}, {run.usage.requests} model calls")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

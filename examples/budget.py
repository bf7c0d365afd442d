"""Budgets: what a run may spend, or several together; what a run that was stopped leaves, and how it is tried again.

A budget is looked at before each model call, so nothing is cut in two: what has begun is finished.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/budget.py
"""

import sys

import trio

from callboard import (
    Agent,
    Budget,
    BudgetExceeded,
    OpenAIChat,
    Price,
    Prices,
    RunPolicy,
    Runtime,
    Session,
    SessionManager,
    Spending,
)

PRICES = Prices({"gpt-4o": Price(input=2.50, output=10.00, cached=1.25)}, default=Price(input=1.00, output=4.00))
"""Of a million tokens, in dollars."""

PAGES = {"callboard": "see theatre", "theatre": "see stage", "stage": "where a play is given"}


async def look_up(word: str) -> str:
    """Look a word up in the encyclopedia."""
    return PAGES.get(word, "no such page")


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session, model = Session(runtime, "research"), OpenAIChat()
        hasty = RunPolicy(budget=Budget(model_calls=2, prices=PRICES))
        patient = RunPolicy(budget=Budget(cost=0.50, seconds=60, prices=PRICES))
        agent = Agent("Researcher", model=model, session=session, tools=[look_up], policy=hasty)
        try:
            reply = await agent.chat("What is a callboard?", keep_input=True)
        except BudgetExceeded as stop:
            print(f"stopped: {stop.exceeded}; history has {await session.message_count()} message")
            again = Agent("Researcher", model=model, session=session, tools=[look_up], policy=patient)
            reply = await again.retry(stop.run_id)
        print(f"{reply.text} ({reply.usage.requests} model calls, ${reply.usage.cost:.6f})")

        together = Spending(Budget(model_calls=3, prices=PRICES))
        for name in ("Ann", "Bob", "Cleo", "Dan"):
            speaker = Agent(name, model=model, session=Session(runtime, f"table of {name}"))
            try:
                await speaker.chat("Say hello.", spending=together)
            except BudgetExceeded:
                print(f"{name} has nothing left to spend: {together.model_calls} calls, ${together.usage.cost:.6f}")

        for run in (await SessionManager(runtime).runs(status="failed", agent="Researcher", limit=1)).runs:
            print(f"{run.session_id}: {run.agent} {run.status}, {run.error}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "budget.lmdb")

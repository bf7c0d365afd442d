"""Examples of runs, budgets and spans that mypy and pyright must accept. `make check` reads them; none runs."""

from typing import TypedDict, assert_type

from callboard import (
    Agent,
    Budget,
    BudgetExceeded,
    Exceeded,
    LiveSpan,
    Price,
    Prices,
    Reply,
    ResumedRuns,
    RunPage,
    RunPolicy,
    RunRecord,
    Session,
    SessionManager,
    SpanRecord,
    Spending,
    ToolContext,
    Usage,
)


class Order(TypedDict):
    number: int


def policies(prices: Prices) -> list[RunPolicy]:
    return [
        RunPolicy(budget=Budget(tokens=50_000)),
        RunPolicy(budget=Budget(cost=0.5, seconds=60, model_calls=8, prices=prices, keep_partial=True)),
    ]


async def budgets(agent: Agent, session: Session) -> None:
    prices = Prices({"gpt-4o": Price(input=2.5, output=10.0, cached=1.25)}, default=Price(input=5.0, output=20.0))
    together = Spending(Budget(cost=5.0, prices=prices), usage=Usage(total_tokens=7))
    try:
        reply = await agent.chat("Hello", spending=together, keep_input=True)
        assert_type(reply.usage.cost, float)
        assert_type(reply.usage.estimated, int)
    except BudgetExceeded as stop:
        assert_type(stop.exceeded, Exceeded)
        assert_type(await agent.retry(stop.run_id, spending=together, session=session), Reply)
    assert_type(together.exceeded, Exceeded | None)
    assert_type(together.usage, Usage)


async def retries(agent: Agent[Order], run_id: str) -> None:
    assert_type((await agent.retry(run_id)).output, Order)
    assert_type((await agent.retry(run_id, output=list[int])).output, list[int])
    assert_type((await agent.resume(run_id, spending=Spending(Budget(tokens=100)))).output, Order)


async def queries(session: Session, manager: SessionManager, agent: Agent[Order]) -> None:
    assert_type(await session.runs(status="failed", agent="Intake", since_ms=0, limit=5), list[RunRecord])
    assert_type(await session.runs(status=["running", "waiting"]), list[RunRecord])
    page = await manager.runs(status={"failed", "interrupted"}, session_id="user-123")
    assert_type(page, RunPage)
    assert_type(page.cursor, str | None)
    assert_type(await manager.resume_interrupted([agent], since_ms=0), ResumedRuns)


async def spans(session: Session, context: ToolContext) -> None:
    with context.span("database") as span:
        assert_type(span, LiveSpan)
        span.set(rows=3)
    run = await session.create_run()
    async with run.trace("gpt-4o", kind="model") as call:
        assert_type(call, LiveSpan)
        call.usage = Usage(total_tokens=7)
    assert_type(await run.spans(), list[SpanRecord])

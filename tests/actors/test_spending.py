"""Runs with a budget: looked at before each model call, of one run alone or of several together."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from tool_turns import World, agent_of, results_of

from callboard import (
    Agent,
    ApprovalRequired,
    Budget,
    BudgetExceeded,
    FallbackModel,
    ModelUnavailable,
    Price,
    Prices,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    Spending,
    ToolCall,
    Usage,
)
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

PRICES = Prices({"scripted": Price(input=10.0, output=20.0)})
ONE = Usage(prompt_tokens=80, completion_tokens=20, total_tokens=100, requests=1)
CALL = model_answer(tool_calls=[ToolCall("c", "look", "{}")], usage=ONE)


async def look() -> str:
    return "seen"


def agent_with(budget: Budget | None, session: Session, script: Any = None, **options: Any) -> Agent:
    policy = RunPolicy(budget=budget, backoff=Backoff(first_s=0.01, max_s=0.02))
    model = ScriptedModel(script if script is not None else lambda _request: CALL, **options)
    return Agent("Agent", model=model, session=session, tools=[look], policy=policy)


@pytest.mark.parametrize(
    ("budget", "limit", "calls", "spent"),
    [
        (Budget(model_calls=3), "model_calls", 3, 3),
        (Budget(tokens=250), "tokens", 3, 300),
        (Budget(tokens=300), "tokens", 3, 300),
        (Budget(cost=0.003, prices=PRICES), "cost", 3, 0.0036),
        (Budget(tokens=1, cost=0.0001, prices=PRICES), "tokens", 1, 100),
    ],
)
def test_a_run_stops_before_the_call_that_its_budget_does_not_allow(
    run: Run, *, budget: Budget, limit: str, calls: int, spent: float
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_with(budget, session)
            with pytest.raises(BudgetExceeded, match=r"budget of .* is spent") as caught:
                await agent.chat("go")

            (record,) = await session.runs()
            assert (record.id, record.status, record.error) == (caught.value.run_id, "failed", caught.value.reason)
            assert (caught.value.exceeded.limit, caught.value.partial, record.partial) == (limit, False, False)
            assert caught.value.exceeded.spent == pytest.approx(spent)
            assert (record.usage.requests, record.usage.total_tokens) == (calls, calls * 100)
            assert await session.messages() == []

    run(body)


def test_seconds_of_a_budget_cut_nothing_off_and_do_not_count_the_queue(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_with(Budget(seconds=0.25), session, [CALL, CALL, "end", CALL, CALL, CALL], delay_s=0.1)
            outcomes: list[str] = []

            async def chat() -> None:
                try:
                    outcomes.append((await agent.chat("go")).text)
                except BudgetExceeded as error:
                    outcomes.append(error.exceeded.limit)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat)
                tasks.start_soon(chat)

            assert outcomes == ["end", "seconds"]
            assert [record.usage.requests for record in await session.runs()] == [3, 3]

    run(body)


def test_an_answer_that_ends_the_run_stands_whatever_it_cost(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            script = [model_answer("fine", usage=ONE)]
            reply = await agent_with(Budget(tokens=5, cost=0.0001, prices=PRICES), session, script).chat("go")

            assert (reply.text, reply.usage.total_tokens) == ("fine", 100)
            assert reply.usage.cost == pytest.approx(0.0012)
            assert (await session.run(reply.run_id)).usage == reply.usage
            assert [span.usage.cost for span in await session.spans(reply.run_id)] == [reply.usage.cost]

    run(body)


def test_failed_attempts_count_as_model_calls(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_with(Budget(model_calls=2), session, [ModelUnavailable("busy")] * 3)
            with pytest.raises(BudgetExceeded):
                await agent.chat("go")

            (record,) = await session.runs()
            assert (record.attempts, record.usage.requests) == (3, 0)

    run(body)


def test_what_a_run_has_done_becomes_history_where_the_budget_says_so(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_with(Budget(model_calls=2, keep_partial=True), session)
            with pytest.raises(BudgetExceeded) as caught:
                await agent.chat("go")

            messages = await session.messages()
            (record,) = await session.runs()
            assert caught.value.partial
            assert (record.status, record.partial, record.first_seq, record.last_seq) == ("failed", True, 1, 5)
            assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]
            assert {message.author for message in messages[1:]} == {"Agent"}
            assert {message.run_id for message in messages} == {record.id}
            assert results_of(messages) == {"c": "seen"}

            reply = await agent_with(None, session, ["and on"]).chat("go on")
            assert [message.seq for message in reply.messages] == [6, 7]

    run(body)


def test_a_run_that_has_done_nothing_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            spending = Spending(Budget(tokens=1, keep_partial=True), usage=Usage(total_tokens=1))
            with pytest.raises(BudgetExceeded) as caught:
                await agent_with(None, session).chat("go", spending=spending)

            assert not caught.value.partial
            assert await session.messages() == []
            assert (spending.model_calls, (await session.runs())[0].usage) == (0, Usage())

    run(body)


def test_agents_side_by_side_share_one_spending_and_never_begin_a_call_too_many(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            spending = Spending(Budget(model_calls=7, prices=PRICES))
            failed: list[BudgetExceeded] = []
            agents = [agent_with(None, Session(runtime, f"s-{number}"), delay_s=0.01) for number in range(3)]

            async def chat(agent: Agent) -> None:
                with pytest.raises(BudgetExceeded) as caught:
                    await agent.chat("go", spending=spending)
                failed.append(caught.value)

            async with anyio.create_task_group() as tasks:
                for agent in agents:
                    tasks.start_soon(chat, agent)

            assert (spending.model_calls, spending.usage.requests) == (7, 7)
            assert spending.usage.cost == pytest.approx(7 * 0.0012)
            assert {error.exceeded.limit for error in failed} == {"model_calls"}
            assert spending.exceeded == failed[0].exceeded

    run(body)


def test_a_stream_spends_too_and_ends_with_the_error(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            spending = Spending(Budget(model_calls=1))
            async with agent_with(None, Session(runtime, "s")).stream("go", spending=spending) as stream:
                with pytest.raises(BudgetExceeded):
                    [event async for event in stream]

            assert spending.model_calls == 1

    run(body)


def test_a_run_that_goes_on_counts_what_it_spent_before(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            policy = RunPolicy(budget=Budget(model_calls=2))
            agent = agent_of(World(), session, approval=True, policy=policy)
            with pytest.raises(ApprovalRequired) as pause:
                await agent.chat("go")
            with pytest.raises(ApprovalRequired):
                await agent.resume(pause.value.run_id, approve=True)
            with pytest.raises(BudgetExceeded) as caught:
                await agent.resume(pause.value.run_id, approve=True)

            assert caught.value.exceeded.spent == 2
            assert (await session.run(pause.value.run_id)).status == "failed"

    run(body)


def test_a_bound_on_cost_wants_a_price_for_every_model_that_may_answer(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            budget = Budget(cost=1.0, prices=PRICES)
            chain = FallbackModel([ScriptedModel(), ScriptedModel(name="other")])
            for model, names in ((ScriptedModel(name="mine"), "'mine'"), (chain, "'other'")):
                with pytest.raises(ValueError, match=f"have none for {names}: add it"):
                    Agent("A", model=model, runtime=runtime, policy=RunPolicy(budget=budget))
                with pytest.raises(ValueError, match=f"have none for {names}: add it"):
                    await Agent("A", model=model, runtime=runtime).chat("go", spending=Spending(budget))
            wrong: Any = budget
            with pytest.raises(TypeError, match="must be a Spending"):
                await agent_with(None, Session(runtime, "s")).chat("go", spending=wrong)

    run(body)


def test_a_run_without_a_session_has_a_budget_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(lambda _request: CALL)
            agent = Agent("A", model=model, runtime=runtime, tools=[look])
            with pytest.raises(RunFailed, match="the budget of 2 model calls is spent"):
                await agent.chat("go", spending=Spending(Budget(model_calls=2)))

            assert len(model.requests) == 2

    run(body)


def test_what_a_server_does_not_report_is_estimated_and_marked_so_and_counts(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            silent = Usage(requests=1, estimated=1)
            call = model_answer(tool_calls=[ToolCall("c", "look", "{}")], usage=silent)
            script = [call, model_answer("word " * 300, usage=silent), model_answer("told", usage=ONE)]
            agent = agent_with(Budget(prices=PRICES), session, script)
            reply = await agent.chat("word " * 1000)
            told = await agent.chat("and now?")

            assert (reply.usage.requests, reply.usage.estimated, told.usage.estimated) == (2, 2, 0)
            assert 1_700 <= reply.usage.prompt_tokens <= 2_700
            assert 250 <= reply.usage.completion_tokens <= 450
            assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
            assert reply.usage.cost > 0
            model_spans = [span for span in await session.spans(reply.run_id) if span.kind == "model"]
            assert sum((span.usage for span in model_spans), Usage()) == reply.usage
            with pytest.raises(BudgetExceeded, match="budget of 100 tokens"):
                await agent_with(Budget(tokens=100), session, [call, call]).chat("word " * 1000)

    run(body)


def test_seconds_count_from_the_beginning_of_a_turn_also_of_one_that_begins_with_tool_calls(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(wait_s=10.0), session, approval=True, policy=RunPolicy(budget=Budget(seconds=5.0)))
            with pytest.raises(ApprovalRequired) as pause:
                await agent.chat("go")
            await anyio.sleep(100.0)
            with pytest.raises(BudgetExceeded) as caught:
                await agent.resume(pause.value.run_id, approve=True)

            assert (caught.value.exceeded.limit, caught.value.exceeded.spent) == ("seconds", 10.0)

    run(body)

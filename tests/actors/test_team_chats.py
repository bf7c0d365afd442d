"""Chats of teams from outside: events, cancellation, the line, circles, approvals, turns in one row."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import anyio
import pytest
from team_cast import agent, model_of, said, statuses, transfer

from callboard import (
    GO_ON,
    ApprovalRequired,
    BadRequest,
    CyclicAsk,
    Handoff,
    Parallel,
    Runtime,
    Session,
    SessionManager,
    Team,
    TeamFailed,
    ToolCall,
    tool,
)
from callboard.store import MemoryStore
from callboard.testing import model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


# Events -------------------------------------------------------------------------------------------------------------


def test_events_of_all_agents_come_in_one_stream_with_their_agent_and_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Team([agent(session, "Ann", ["one two"]), agent(session, "Bob", ["three"])], session=session)
            seen: list[tuple[str, str]] = []
            runs: dict[str, set[str]] = {"Ann": set(), "Bob": set()}
            async with team.stream("go") as stream:
                with pytest.raises(RuntimeError, match="has ended by itself"):
                    _ = stream.reply
                async for event in stream:
                    seen.append((event.agent, type(event.event).__name__))
                    runs[event.agent].add(event.run_id)

            assert stream.reply.text == "three"
            assert seen == [
                ("Ann", "RunStarted"),
                ("Ann", "Delta"),
                ("Ann", "Delta"),
                ("Ann", "TurnCompleted"),
                ("Bob", "RunStarted"),
                ("Bob", "Delta"),
                ("Bob", "TurnCompleted"),
            ]
            assert [{record.id} for record in await session.runs()] == [runs["Ann"], runs["Bob"]]

    run(body)


def test_a_failed_turn_is_an_event_and_then_an_error(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Team([agent(session, "Ann", [BadRequest("no")])], session=session)
            async with team.stream("go") as stream:
                seen = [await anext(stream), await anext(stream)]
                for _ in range(2):
                    with pytest.raises(TeamFailed, match="'Ann'"):
                        await anext(stream)

            assert [type(event.event).__name__ for event in seen] == ["RunStarted", "TurnFailed"]
            assert len({event.run_id for event in seen} - {""}) == 1

    run(body)


def test_leaving_a_stream_early_cancels_what_is_under_way(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            slow = agent(session, "Bob", delay_s=30)
            team = Team([agent(session, "Ann"), slow], session=session)

            async def read() -> None:
                async with team.stream("go") as stream:
                    async for event in stream:
                        if event.agent == "Bob":
                            raise KeyError("the reader's own")

            with pytest.raises(KeyError, match="the reader's own"):
                await read()
            await session.add_message("user", "next")  # stands behind the turn that was cancelled
            assert await said(session) == [(None, "go"), ("Ann", "Ann 1"), (None, "next")]
            assert await statuses(session) == [("Ann", "completed"), ("Bob", "cancelled")]
            assert model_of(slow).in_flight == 0

    run(body)


def test_a_stream_is_entered_once_and_read_inside(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            stream = Team([agent(session, "Ann")], session=session).stream("go")
            with pytest.raises(RuntimeError, match="enter the stream first"):
                await anext(stream)
            async with stream:
                pass
            with pytest.raises(RuntimeError, match="entered once"):
                async with stream:
                    pass

    run(body)


# Cancellation, order, circles ---------------------------------------------------------------------------------------


def test_cancelling_a_chat_cancels_its_run_and_nobody_speaks_any_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            slow, never = agent(session, "Bob", delay_s=30), agent(session, "Cid")
            team = Team([agent(session, "Ann"), slow, never], session=session)
            with anyio.move_on_after(1) as scope:
                await team.chat("go")

            assert scope.cancelled_caught
            await session.add_message("user", "next")
            assert await said(session) == [(None, "go"), ("Ann", "Ann 1"), (None, "next")]
            assert await statuses(session) == [("Ann", "completed"), ("Bob", "cancelled")]
            assert model_of(never).requests == []

    run(body)


def test_chats_of_teams_on_one_session_come_one_after_the_other_in_order(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, done = Session(runtime, "s"), list[str]()
            teams = [
                Team([agent(session, "Ann", delay_s=0.01), agent(session, "Bob", delay_s=0.01)], session=session)
                for _ in range(2)
            ]

            async def chat(number: int, sent: anyio.Event) -> None:
                sent.set()
                await teams[number % 2].chat(f"question {number}")
                done.append(f"question {number}")

            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    sent = anyio.Event()
                    tasks.start_soon(chat, number, sent)
                    await sent.wait()

            history = await said(session)
            assert [author for author, _ in history] == [None, "Ann", "Bob"] * 6
            assert [text for author, text in history if author is None] == [f"question {n}" for n in range(6)]
            assert done == [f"question {number}" for number in range(6)]
            assert runtime.waits() == []

    run(body)


def test_a_chat_that_waited_and_was_cancelled_leaves_no_trace(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Team([agent(session, "Ann", delay_s=5)], session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(team.chat, "first")
                await anyio.sleep(0.1)
                with anyio.move_on_after(0.1):
                    await team.chat("given up")
                await team.chat("last")

            assert [text for author, text in await said(session) if author is None] == ["first", "last"]

    run(body)


def test_a_tool_that_asks_its_own_team_on_its_own_session_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, other = Session(runtime, "s"), Session(runtime, "other")
            caught: list[str] = []

            async def ask(where: str) -> str:
                try:
                    return (await inner.chat("help", session=Session(runtime, where))).text
                except CyclicAsk as error:
                    caught.append(str(error))
                    return "not here"

            inner = Team([agent(session, "Inner")], session=other)
            calls = [ToolCall("1", "ask", '{"where": "s"}'), ToolCall("2", "ask", '{"where": "other"}')]
            outer = agent(session, "Outer", [model_answer(tool_calls=calls), "done"], tools=[ask])
            reply = await Team([outer], session=session).chat("go")

            assert reply.text == "done"
            assert len(caught) == 1
            assert "of session 's', from within a turn of it" in caught[0]
            assert await said(other) == [(None, "help"), ("Inner", "Inner 1")]

    run(body)


def test_teams_that_would_wait_for_each_other_are_refused_instead(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            sessions = {name: Session(runtime, name) for name in ("a", "b")}
            refused: list[str] = []

            async def ask(other: str) -> str:
                await anyio.sleep(0.1)
                try:
                    return (await teams[other].chat("help")).text
                except CyclicAsk:
                    refused.append(other)
                    return "not now"

            def made(name: str, other: str) -> Team:
                call = model_answer(tool_calls=[ToolCall("1", "ask", f'{{"other": "{other}"}}')])
                worker = agent(sessions[name], f"Agent {name}", [call, "done", "helped"], tools=[ask])
                return Team([worker], session=sessions[name])

            teams = {"a": made("a", "b"), "b": made("b", "a")}
            async with anyio.create_task_group() as tasks:
                for team in teams.values():
                    tasks.start_soon(team.chat, "go")

            assert len(refused) == 1
            assert runtime.waits() == []

    run(body)


# Approvals ----------------------------------------------------------------------------------------------------------


def test_a_call_that_must_be_approved_stops_the_chat_and_its_run_can_be_resumed_in_the_team(run: Run) -> None:
    paid: list[str] = []

    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        paid.append("5")
        return "paid"

    async def body() -> None:
        paid.clear()
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            script = [model_answer(tool_calls=[ToolCall("c", "pay")]), model_answer(tool_calls=[transfer("bob")])]
            team = Team(
                [agent(session, "Ann", script, tools=[pay]), agent(session, "Bob")], session=session, flow=Handoff()
            )
            with pytest.raises(ApprovalRequired) as pause:
                await team.chat("go")
            await team.agent("Ann").resume(pause.value.run_id, approve=True, session=session)
            reply = await team.chat(GO_ON)

            assert paid == ["5"]
            assert (reply.text, [turn.agent for turn in reply.turns]) == ("Bob 1", ["Bob"])
            assert [each.name for each in team.agents] == ["Ann", "Bob"]

    run(body)


# At once, on the session --------------------------------------------------------------------------------------------


def test_in_one_row_all_ask_at_once_and_nobody_comes_between(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, name, delay_s=0.1) for name in ("Ann", "Bob", "Cid")]
            team, later = Team(agents, session=session, flow=Parallel(on="shared")), agent(session, "Dot")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(team.chat, "go")
                await anyio.sleep(0.05)
                await later.chat("later", session=session)

            texts = [text for _, text in await said(session)]
            assert texts == ["go", "Ann 1", "Bob 1", "Cid 1", "later", "Dot 1"]
            assert [m.name for m in model_of(agents[2]).requests[0].messages] == [None, "Ann", "Bob", None]

    run(body)


def test_in_one_row_a_failure_stops_those_behind_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [
                agent(session, "Ann"),
                agent(session, "Bob", [BadRequest("no")]),
                agent(session, "Cid", delay_s=9),
            ]
            with pytest.raises(TeamFailed, match="'Bob'"):
                await Team(agents, session=session, flow=Parallel(on="shared")).chat("go")

            await session.add_message("user", "next")
            assert await said(session) == [(None, "go"), ("Ann", "Ann 1"), (None, "next")]
            assert await statuses(session) == [("Ann", "completed"), ("Bob", "failed"), ("Cid", "cancelled")]

    run(body)


def test_in_one_row_who_fails_may_be_skipped_and_the_question_stands_all_the_same(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, "Ann", [BadRequest("no")]), agent(session, "Bob"), agent(session, "Cid")]
            flow = Parallel(on="shared", on_failure="skip")
            reply = await Team(agents, session=session, flow=flow).chat("go")

            assert await said(session) == [(None, "go"), ("Bob", "Bob 1"), ("Cid", "Cid 1")]
            assert (reply.text, list(reply.by_agent)) == ("Cid 1", ["Bob", "Cid"])

    run(body)


# Another process ----------------------------------------------------------------------------------------------------


def test_a_team_goes_on_in_another_process_where_it_was_cut_off(run: Run) -> None:
    def team_on(runtime: Runtime, *, delay_s: float = 0.0) -> Team:
        session = Session(runtime, "s")
        desk = agent(session, "Desk", [model_answer(tool_calls=[transfer("bob")])])
        return Team([desk, agent(session, "Bob", delay_s=delay_s)], session=session, flow=Handoff())

    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store, drain_timeout_s=0.1) as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(_ignoring_its_failure, team_on(runtime, delay_s=600))
            await anyio.sleep(1)
            store = store.reopened()
            tasks.cancel_scope.cancel()
        async with Runtime.on(lambda: store) as runtime:
            team, session = team_on(runtime), Session(runtime, "s")
            assert await statuses(session) == [("Desk", "completed"), ("Bob", "interrupted")]
            await SessionManager(runtime).resume_interrupted(team.agents)
            reply = await team.chat("and now?")

            assert [turn.agent for turn in reply.turns] == ["Bob"]
            texts = [text for _, text in await said(session)]
            assert texts == ["go", "", "Bob is asked to go on.", "Bob 1", "and now?", "Bob 2"]

    run(body)


async def _ignoring_its_failure(team: Team) -> None:
    with suppress(TeamFailed):
        await team.chat("go")

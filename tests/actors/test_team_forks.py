"""Teams whose agents work side by side, each on a fork of the session. In real time: forks are read by a thread."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    Budget,
    Message,
    ModelRequest,
    Parallel,
    RunPolicy,
    Runtime,
    Session,
    SessionManager,
    Team,
    TeamFailed,
    Template,
    ToolCall,
    TurnCompleted,
    tool,
)
from callboard.actors.conversation import units
from callboard.actors.team_chat import FORK_TAG
from callboard.store import Batch, MemoryStore, Refusal, StoreUnavailable
from callboard.testing import ModelScript, ScriptedModel, fail_commit, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def agent(session: Session, name: str, script: ModelScript = (), *, delay_s: float = 0.0, **options: Any) -> Agent:
    model = ScriptedModel(script or [f"{name} says"], delay_s=delay_s)
    return Agent(name, model=model, runtime=session.runtime, policy=RunPolicy(attempts_max=1), **options)


async def texts(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


async def forks(runtime: Runtime) -> list[str]:
    return [head.id for head in (await SessionManager(runtime).list(tag=FORK_TAG)).sessions]


async def begun(session: Session) -> Session:
    await session.add_messages([{"role": "user", "content": "before"}, {"role": "assistant", "content": "so"}])
    return session


def test_all_work_side_by_side_and_their_answers_become_history_together(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = await begun(Session(runtime, "s"))
            model = ScriptedModel(lambda request: f"answer {len(request.messages)}", delay_s=0.1)
            agents = [Agent(name, model=model, runtime=runtime) for name in ("Ann", "Bob", "Cid")]
            reply = await Team(agents, session=session, flow=Parallel()).chat("a question")

            assert model.in_flight_max == 3
            assert [[m.text for m in r.messages] for r in model.requests] == [["before", "so", "a question"]] * 3
            history = await session.messages()
            assert [m.text for m in history] == ["before", "so", "a question", *["answer 3"] * 3]
            assert [m.author for m in history[2:]] == [None, "Ann", "Bob", "Cid"]
            assert [m.seq for m in history] == [1, 2, 3, 4, 5, 6]
            assert [turn.agent for turn in reply.turns] == ["Ann", "Bob", "Cid"]
            assert (reply.stopped_by, reply.usage.requests) == ("done", 3)
            assert (await SessionManager(runtime).list()).sessions[0].id == "s"
            assert await forks(runtime) == []

    run_in_real_time(body)


def test_answers_stand_in_the_order_of_the_list_however_long_each_takes(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "new")  # of which nothing is stored yet
            agents = [agent(session, "Ann", delay_s=0.1), agent(session, "Bob")]
            await Team(agents, session=session, flow=Parallel()).chat("go")

            assert await texts(session) == ["go", "Ann says", "Bob says"]
            assert await forks(runtime) == []
            assert (await session.head()).tags == ()

    run_in_real_time(body)


def test_a_failure_stops_the_others_and_nothing_becomes_history(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = await begun(Session(runtime, "s"))
            slow = agent(session, "Cid", delay_s=60)
            team = Team([agent(session, "Ann"), agent(session, "Bob", [BadRequest("no")], delay_s=0.1), slow])
            with pytest.raises(TypeError, match="answers in a session"):
                await team.chat("go")
            agents = [agent(session, "Ann"), agent(session, "Bob", [BadRequest("no")], delay_s=0.1), slow]
            with pytest.raises(TeamFailed, match="'Bob'") as caught:
                await Team(agents, session=session, flow=Parallel()).chat("go")

            assert [(turn.agent, turn.error is None) for turn in caught.value.turns] == [("Ann", True), ("Bob", False)]
            assert await texts(session) == ["before", "so"]
            assert await forks(runtime) == []

    run_in_real_time(body)


def test_who_fails_may_be_skipped_and_if_all_fail_nothing_is_left(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, flow = await begun(Session(runtime, "s")), Parallel(on_failure="skip")
            agents = [agent(session, "Ann", [BadRequest("no")] * 2), agent(session, "Bob", ["yes", BadRequest("no")])]
            team = Team(agents, session=session, flow=flow)
            reply = await team.chat("go")

            assert await texts(session) == ["before", "so", "go", "yes"]
            assert [turn.error is None for turn in reply.turns] == [False, True]
            with pytest.raises(TeamFailed):
                await team.chat("again")
            assert await session.message_count() == 4
            assert await forks(runtime) == []

    run_in_real_time(body)


def test_cancelled_in_the_middle_a_chat_leaves_neither_messages_nor_forks(
    run_in_real_time: Run, tmp_path: Path
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:  # whose commits take a while, as those of memory do not
            session = await begun(Session(runtime, "s"))
            slow = [agent(session, name, delay_s=60) for name in ("Ann", "Bob")]
            for delay_s in (0.0, 0.001, 0.002, 0.005, 0.1):
                with anyio.move_on_after(delay_s):
                    await Team(slow, session=session, flow=Parallel()).chat("go")

                assert await texts(session) == ["before", "so"]
                assert await forks(runtime) == []
            assert (await agent(session, "Cid").chat("next", session=session)).text == "Cid says"

    run_in_real_time(body)


def test_forks_may_be_kept_with_their_runs_and_tool_calls(run_in_real_time: Run) -> None:
    async def look() -> str:
        return "seen"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = await begun(Session(runtime, "s", tags=["case"]))
            script = [model_answer(tool_calls=[ToolCall("c", "look")]), "I have looked"]
            agents = [agent(session, "Ann", script, tools=[look]), agent(session, "Bob")]
            reply = await Team(agents, session=session, flow=Parallel(keep_forks=True)).chat("go")

            kept = {each.session_id: each for each in reply.replies}
            assert sorted(await forks(runtime)) == sorted(map(str, kept))
            fork = Session(runtime, str(reply.by_agent["Ann"].session_id))
            assert [m.role for m in await fork.messages()] == [
                "user",
                "assistant",
                "user",
                "assistant",
                "tool",
                "assistant",
            ]
            assert [record.agent for record in await fork.runs()] == ["Ann"]
            head = await fork.head()
            assert head.tags == ("case", FORK_TAG)
            assert head.forked_from is not None
            assert head.forked_from.session_id == "s"
            assert await texts(session) == ["before", "so", "go", "I have looked", "Bob says"]

    run_in_real_time(body)


def test_an_agent_in_a_fork_has_the_sessions_metadata(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for id in ("stored", "new"):
                session = Session(runtime, id, metadata={"customer": "Dana"})
                if id == "stored":
                    await session.add_message("user", "before")
                seen: list[Message] = []

                def note(request: ModelRequest, seen: list[Message] = seen) -> str:
                    seen.append(request.messages[0])
                    return "ok"

                model = ScriptedModel(note)
                ann = Agent("Ann", model=model, runtime=runtime, instructions=Template("For ${customer}."))
                await Team([ann], session=session, flow=Parallel()).chat("go")

                assert [message.text for message in seen] == ["For Dana."]

    run_in_real_time(body)


def test_a_run_that_would_have_to_wait_for_an_approval_has_failed_in_a_fork(run_in_real_time: Run) -> None:
    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = await begun(Session(runtime, "s"))
            call = model_answer(tool_calls=[ToolCall("c", "pay")])
            for on_failure in ("stop", "skip"):
                flow = Parallel(on_failure=on_failure)
                team = Team([agent(session, "Ann", [call], tools=[pay])], session=session, flow=flow)
                with pytest.raises(TeamFailed, match="'Ann'") as caught:
                    await team.chat("go")
                assert isinstance(caught.value.__cause__, ApprovalRequired)

            assert await forks(runtime) == []

    run_in_real_time(body)


def test_an_answer_that_ended_with_a_call_becomes_history_with_its_result(run_in_real_time: Run) -> None:
    @tool(ends_run=True)
    async def vote(choice: str) -> str:
        """Vote."""
        return f"voted {choice}"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            answer = model_answer(tool_calls=[ToolCall("c", "vote", '{"choice": "A"}')])
            agents = [agent(session, name, [answer], tools=[vote]) for name in ("Ann", "Bob")]
            await Team(agents, session=session, flow=Parallel()).chat("vote")

            assert await texts(session) == ["vote", "", "voted A", "", "voted A"]
            assert len(units(await session.messages())) == 3  # raises where a call and its result are parted

    run_in_real_time(body)


def test_events_of_runs_side_by_side_come_in_one_stream(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, "Ann", ["a b c"], delay_s=0.1), agent(session, "Bob", ["d e"])]
            seen: dict[str, list[object]] = {"Ann": [], "Bob": []}
            ended: list[str] = []
            async with Team(agents, session=session, flow=Parallel()).stream("go") as stream:
                async for event in stream:
                    seen[event.agent].append(type(event.event).__name__)
                    if isinstance(event.event, TurnCompleted):
                        ended.append(event.agent)

            assert seen["Ann"] == ["RunStarted", "Delta", "Delta", "Delta", "TurnCompleted"]
            assert seen["Bob"] == ["RunStarted", "Delta", "Delta", "TurnCompleted"]
            assert ended == ["Bob", "Ann"]
            assert stream.reply.text == "d e"

    run_in_real_time(body)


def test_one_budget_is_for_all_forks(run_in_real_time: Run) -> None:
    async def look() -> str:
        return "seen"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            busy = agent(session, "Bob", lambda r: model_answer(tool_calls=[ToolCall("c", "look")]), tools=[look])
            flow = Parallel(on_failure="skip")
            team = Team([agent(session, "Ann"), busy], session=session, flow=flow, budget=Budget(model_calls=4))
            reply = await team.chat("go")

            assert (reply.stopped_by, reply.text, reply.usage.requests) == ("budget", "Ann says", 4)

    run_in_real_time(body)


def test_a_commit_that_fails_costs_nobody_an_answer(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = await begun(Session(runtime, "s"))
            for faults in (1, 3):
                agents = [agent(session, name, delay_s=0.01) for name in ("Ann", "Bob")]
                for _ in range(faults):
                    fail_commit(runtime)
                await Team(agents, session=session, flow=Parallel()).chat(f"question {faults}")

                assert (await texts(session))[-3:] == [f"question {faults}", "Ann says", "Bob says"]
                assert await forks(runtime) == []

    run_in_real_time(body)


class RefusesToForget(MemoryStore):
    """A store that fails the first time that it is to drop a session."""

    refused = 0

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        if not self.refused and any(batch.erase for batch in batches):
            self.refused += 1
            raise StoreUnavailable("not now")
        return super().commit(batches)


def test_a_fork_that_the_store_would_not_drop_is_dropped_all_the_same(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = RefusesToForget()
        async with Runtime.on(lambda: store) as runtime:
            session = await begun(Session(runtime, "s"))
            await Team([agent(session, "Ann"), agent(session, "Bob")], session=session, flow=Parallel()).chat("go")

            assert store.refused == 1
            assert await forks(runtime) == []

    run_in_real_time(body)

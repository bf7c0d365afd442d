"""Teams: several agents on one session, by each flow, on both backends. Flows themselves: test_team_flows.py."""

from collections.abc import Awaitable, Callable, Sequence as Row
from typing import Any, TypeAlias

import anyio
import pytest
from team_cast import agent, model_of, said, statuses, transfer

from callboard import (
    GO_ON,
    Agent,
    Agents,
    BadRequest,
    Budget,
    BudgetExceeded,
    Flow,
    Handoff,
    Message,
    Reply,
    Review,
    RoundRobin,
    Router,
    RunFailed,
    RunPolicy,
    Runtime,
    Sequence,
    Session,
    Spending,
    Stop,
    Team,
    TeamFailed,
    TeamTurn,
    ToolCall,
)
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


# Sequence -----------------------------------------------------------------------------------------------------------


def test_each_goes_on_from_what_those_before_said_and_knows_who_said_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, name) for name in ("Ann", "Bob", "Cid")]
            reply = await Team(agents, session=session).chat("a question")

            assert await said(session) == [(None, "a question"), ("Ann", "Ann 1"), ("Bob", "Bob 1"), ("Cid", "Cid 1")]
            assert (reply.text, reply.stopped_by) == ("Cid 1", "done")
            assert [each.text for each in reply.replies] == ["Ann 1", "Bob 1", "Cid 1"]
            assert reply.by_agent["Ann"].turn == 1
            sent = model_of(agents[2]).requests[0].messages
            assert [(m.role, m.name, m.text) for m in sent[:-1]] == [
                ("user", None, "a question"),
                ("assistant", "Ann", "Ann 1"),
                ("assistant", "Bob", "Bob 1"),
            ]
            assert sent[-1].role == "user"  # the cue, of which nothing is stored
            assert reply.usage.requests == 3
            assert await statuses(session) == [("Ann", "completed"), ("Bob", "completed"), ("Cid", "completed")]

    run(body)


def test_a_team_goes_on_from_a_history_without_an_input(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Agents([agent(session, "Ann"), agent(session, "Bob")], session=session)
            await session.add_message("user", "a question")
            await team.chat(GO_ON)
            await team.chat([{"role": "user", "content": "one"}, Message(role="user", content="two", author="Dot")])

            assert await said(session) == [
                (None, "a question"),
                ("Ann", "Ann 1"),
                ("Bob", "Bob 1"),
                (None, "one"),
                ("Dot", "two"),
                ("Ann", "Ann 2"),
                ("Bob", "Bob 2"),
            ]

    run(body)


def test_a_failure_stops_the_chat_and_what_was_said_before_stands(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            never = agent(session, "Cid")
            team = Team([agent(session, "Ann"), agent(session, "Bob", [BadRequest("no")]), never], session=session)
            with pytest.raises(TeamFailed, match=r"stopped at agent 'Bob': .*no") as caught:
                await team.chat("hello")

            failed = caught.value
            assert failed.agent == "Bob"
            assert isinstance(failed.__cause__, RunFailed)
            assert isinstance(failed.__cause__.__cause__, BadRequest)
            assert [(turn.agent, turn.reply is not None) for turn in failed.turns] == [("Ann", True), ("Bob", False)]
            assert await said(session) == [(None, "hello"), ("Ann", "Ann 1")]
            assert model_of(never).requests == []
            assert await statuses(session) == [("Ann", "completed"), ("Bob", "failed")]

    run(body)


def test_who_fails_may_be_skipped_and_the_input_goes_to_the_next_one(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, "Ann", [BadRequest("no")]), agent(session, "Bob"), agent(session, "Cid")]
            reply = await Team(agents, session=session, flow=Sequence(on_failure="skip")).chat("hello")

            assert await said(session) == [(None, "hello"), ("Bob", "Bob 1"), ("Cid", "Cid 1")]
            assert [turn.error is None for turn in reply.turns] == [False, True, True]
            with pytest.raises(TeamFailed, match="stopped at agent 'Ann'"):
                await Team(
                    [agent(session, "Ann", [BadRequest("no")])], session=session, flow=Sequence(on_failure="skip")
                ).chat("hello")

    run(body)


# Round robin --------------------------------------------------------------------------------------------------------


def test_agents_speak_in_rounds_until_one_says_the_word(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, "Ann"), agent(session, "Bob", ["not yet", "agreed"])]
            flow = RoundRobin(rounds=5, until=lambda reply: reply.text == "agreed")
            reply = await Team(agents, session=session, flow=flow).chat("discuss")

            texts = [text for _, text in await said(session)]
            assert texts == ["discuss", "Ann 1", "not yet", "Ann 2", "agreed"]
            assert (reply.text, reply.stopped_by) == ("agreed", "until")

    run(body)


def test_a_chat_has_no_more_turns_than_it_may(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, "Ann"), agent(session, "Bob")]
            team = Team(agents, session=session, flow=RoundRobin(rounds=50), turns_max=3)

            assert [(r.text, r.stopped_by) for r in [await team.chat("go")]] == [("Ann 2", "turns_max")]
            assert len(await session.runs()) == 3

    run(body)


# Router -------------------------------------------------------------------------------------------------------------


def test_a_function_chooses_who_answers(run: Run) -> None:
    seen: list[list[str]] = []

    def by_topic(messages: Row[Message]) -> list[str]:
        seen.append([message.text for message in messages])
        return ["Bob", "Ann"] if "bill" in messages[-1].text else ["Ann"]

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Team([agent(session, "Ann"), agent(session, "Bob")], session=session, flow=Router(by_topic))
            await team.chat("hello")
            reply = await team.chat("my bill")

            assert [turn.agent for turn in reply.turns] == ["Bob", "Ann"]
            assert seen == [["hello"], ["hello", "Ann 1", "my bill"]]
            assert [text for _, text in await said(session)] == ["hello", "Ann 1", "my bill", "Bob 1", "Ann 2"]
            seen.clear()

    run(body)


def test_an_agent_chooses_who_answers_and_leaves_nothing_in_history(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            chooser = agent(session, "Desk", ['{"value": "Bob"}', '{"value": "Dan"}'] + ['{"value": "Dan"}'] * 9)
            team = Team([agent(session, "Ann"), agent(session, "Bob")], session=session, flow=Router(chooser))
            reply = await team.chat("hello")

            assert await said(session) == [(None, "hello"), ("Bob", "Bob 1")]
            assert reply.usage.requests == 2
            with pytest.raises(RunFailed, match="not the output asked for"):
                await team.chat("again")
            assert await session.message_count() == 2

    run(body)


def test_a_chooser_may_be_async_and_what_it_raises_comes_out(run: Run) -> None:
    async def choose(messages: Row[Message]) -> str:
        await anyio.sleep(0.001)
        if messages[-1].text == "bad":
            raise LookupError("no such desk")
        return "Bob" if messages[-1].text == "good" else "Dan"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            team = Team([agent(session, "Ann"), agent(session, "Bob")], session=session, flow=Router(choose))

            assert (await team.chat("good")).text == "Bob 1"
            with pytest.raises(LookupError, match="no such desk"):
                await team.chat("bad")
            with pytest.raises(ValueError, match="no agent 'Dan'"):
                await team.chat("strange")
            async with team.stream("bad") as stream:
                with pytest.raises(LookupError, match="no such desk"):
                    await anext(stream)
            assert (await team.chat("good")).text == "Bob 2"  # the line is free

    run(body)


# Hand-off -----------------------------------------------------------------------------------------------------------


def test_an_agent_hands_over_by_a_tool_call_and_the_next_chat_begins_there(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            desk = agent(session, "Desk", [model_answer(tool_calls=[transfer("billing_team", message="wants 5 EUR")])])
            billing = agent(session, "Billing Team")
            team = Team([desk, billing], session=session, flow=Handoff(about={"Billing Team": "Refunds."}))
            reply = await team.chat("my bill")
            again = await team.chat("and now?")

            history = await session.messages()
            assert [(m.role, m.author) for m in history] == [
                ("user", None),
                ("assistant", "Desk"),
                ("tool", "Desk"),
                ("assistant", "Billing Team"),
                ("user", None),
                ("assistant", "Billing Team"),
            ]
            assert [turn.agent for turn in reply.turns] == ["Desk", "Billing Team"]
            assert (reply.text, again.text) == ("Billing Team 1", "Billing Team 2")
            assert [turn.agent for turn in again.turns] == ["Billing Team"]
            (schema,) = model_of(desk).requests[0].tools
            assert schema.name == "transfer_to_billing_team"
            assert "Refunds." in schema.description
            sent = model_of(billing).requests[0].messages
            assert [(m.role, m.name) for m in sent] == [("user", None), ("assistant", "Desk"), ("tool", None)]
            assert "wants 5 EUR" in sent[1].tool_calls[0].arguments

    run(body)


def test_a_hand_over_outlives_the_failure_of_whom_it_went_to(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            desk = agent(session, "Desk", [model_answer(tool_calls=[transfer("bob")])])
            team = Team([desk, agent(session, "Bob", [BadRequest("no"), "here"])], session=session, flow=Handoff())
            with pytest.raises(TeamFailed, match="'Bob'"):
                await team.chat("hello")

            assert (await team.chat(GO_ON)).text == "here"
            assert [m.role for m in await session.messages()] == ["user", "assistant", "tool", "assistant"]

    run(body)


def test_two_agents_that_send_a_customer_back_and_forth_are_stopped(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            ann = agent(session, "Ann", lambda request: model_answer("not me", tool_calls=[transfer("bob")]))
            bob = agent(session, "Bob", lambda request: model_answer("nor me", tool_calls=[transfer("ann")]))
            reply = await Team([ann, bob], session=session, flow=Handoff(), turns_max=5).chat("hello")

            assert (len(reply.turns), reply.stopped_by) == (5, "turns_max")
            assert reply.text == "not me"

    run(body)


# Review -------------------------------------------------------------------------------------------------------------


def test_a_draft_is_written_until_the_reviewer_approves_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            approve = model_answer(tool_calls=[ToolCall("c", "approve")])
            writer = agent(session, "Writer", ["draft", "better"])
            critic = agent(session, "Critic", ["too long", approve])
            reply = await Team([writer, critic], session=session, flow=Review(writer, critic)).chat("write")

            assert (reply.text, reply.stopped_by) == ("better", "approved")
            assert reply.reply.message.author == "Writer"
            assert [text for _, text in await said(session)] == ["write", "draft", "too long", "better", "", "approved"]
            assert [schema.name for schema in model_of(critic).requests[0].tools] == ["approve"]
            assert [schema.name for schema in model_of(writer).requests[0].tools] == []

    run(body)


# Budgets ------------------------------------------------------------------------------------------------------------


def test_one_budget_is_for_all_and_what_was_said_within_it_counts(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agents = [agent(session, name) for name in ("Ann", "Bob", "Cid")]
            team = Team(agents, session=session, flow=RoundRobin(rounds=9), budget=Budget(model_calls=4))
            reply = await team.chat("go")

            assert (len(reply.turns), reply.stopped_by, reply.text) == (4, "budget", "Ann 2")
            assert reply.usage.requests == 4
            assert len((await team.chat("again")).turns) == 4  # each chat has one of its own

    run(body)


def test_a_budget_that_ends_within_a_turn_leaves_that_turn_out(run: Run) -> None:
    async def look() -> str:
        return "seen"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            busy = agent(session, "Bob", lambda r: model_answer(tool_calls=[ToolCall("c", "look")]), tools=[look])
            spending = Spending(Budget(model_calls=3))
            team = Team([agent(session, "Ann"), busy], session=session)
            reply = await team.chat("go", spending=spending)

            assert (reply.text, reply.stopped_by, spending.model_calls) == ("Ann 1", "budget", 3)
            assert (reply.usage.requests, spending.usage.requests) == (1, 3)
            assert isinstance(reply.turns[1].error, BudgetExceeded)
            assert await said(session) == [(None, "go"), ("Ann", "Ann 1")]
            with pytest.raises(TeamFailed) as caught:  # nothing was left of it
                await team.chat("more", spending=spending)
            assert isinstance(caught.value.__cause__, BudgetExceeded)

    run(body)


def test_a_budget_of_an_agents_own_is_a_failure_of_that_agent(run: Run) -> None:
    async def look() -> str:
        return "seen"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            policy = RunPolicy(attempts_max=1, budget=Budget(model_calls=1))
            model = ScriptedModel(lambda request: model_answer(tool_calls=[ToolCall("c", "look")]))
            poor = Agent("Bob", model=model, runtime=runtime, policy=policy, tools=[look])
            with pytest.raises(TeamFailed, match="'Bob'"):
                await Team([agent(session, "Ann"), poor], session=session).chat("go")

    run(body)


# The door -----------------------------------------------------------------------------------------------------------


def test_what_is_no_team_is_refused_with_what_would_be(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, Runtime.in_memory() as elsewhere:
            session = Session(runtime, "s")
            ann, bob = agent(session, "Ann"), agent(session, "Bob")
            host: Any = Agent("Desk", model=ScriptedModel(), session=session)
            cases: list[tuple[Callable[[], object], str]] = [
                (lambda: Team([], session=session), "at least one agent"),
                (
                    lambda: Team([ann, agent(session, "Ann")], session=session),
                    "two agents of the team are called 'Ann'",
                ),
                (lambda: Team(ann, session=session), "made of a list of agents"),  # pyright: ignore[reportArgumentType] -- given by the user
                (lambda: Team(["Ann"], session=session), "made of agents, not 'Ann'"),  # pyright: ignore[reportArgumentType] -- given by the user
                (lambda: Team([ann], session="s"), "must be a Session"),  # pyright: ignore[reportArgumentType] -- given by the user
                (lambda: Team([ann], flow="sequence"), "flow= must be a Flow"),  # pyright: ignore[reportArgumentType] -- given by the user
                (lambda: Team([ann], turns_max=0), "turns_max must be a whole number from 1"),
                (lambda: Team([ann], budget=5), "budget= must be a Budget"),  # pyright: ignore[reportArgumentType] -- given by the user
                (lambda: Team([ann, bob], flow=Review(ann, "Dan")), "no agent 'Dan'"),
                (lambda: Team([ann], flow=Router(host)), "has a session, which would keep"),
                (lambda: Team([ann], session=Session(elsewhere, "s")), "another runtime than agent 'Ann'"),
                (lambda: Team([ann, agent(session, "ann")], flow=Handoff()), "would both be 'transfer_to_ann'"),
                (lambda: Team([ann]).stream("x"), "give the Team one, or pass session="),
                (lambda: Team([ann], session=session).stream([]), "nothing to answer"),
                (lambda: Team([ann], session=session).stream("x", spending=5), "must be a Spending"),  # pyright: ignore[reportArgumentType] -- given by the user
            ]
            for make, words in cases:
                with pytest.raises((ValueError, TypeError), match=words):
                    make()
            with pytest.raises(KeyError):
                Team([ann]).agent("Bob")
            assert await session.message_count() == 0

    run(body)


def test_a_flow_of_ones_own_may_let_anybody_of_the_team_speak(run: Run) -> None:
    class Twice(Flow):
        def __init__(self, who: str) -> None:
            self.who = who

        def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
            return self.who if len(turns) < 2 else Stop("done")

    class Silent(Flow):
        def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
            return Stop("done")

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            ann = agent(session, "Ann")

            assert (await Team([ann], session=session, flow=Twice("Ann")).chat("go")).text == "Ann 2"
            with pytest.raises(ValueError, match="no agent 'Dan' in the team"):
                await Team([ann], session=session, flow=Twice("Dan")).chat("go")
            with pytest.raises(RuntimeError, match="without a reply"):
                await Team([ann], session=session, flow=Silent()).chat("go")

    run(body)


def test_the_output_of_the_reply_that_counts_is_the_teams(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            judge = agent(session, "Judge", ['{"value": 7}'], output=int | str)
            reply = await Team([agent(session, "Ann"), judge], session=session).chat("go")

            assert reply.output == 7
            assert isinstance(reply.reply, Reply)

    run(body)


def test_the_session_of_a_call_goes_before_the_teams_own(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, other = Session(runtime, "s"), Session(runtime, "other")
            await Team([agent(session, "Ann")], session=session).chat("go", session=other)

            assert await session.message_count() == 0
            assert await other.message_count() == 2

    run(body)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_team_queues_whatever_the_sessions_own_way_is(run: Run, streamed: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="reject")
            team = Team([agent(session, "Ann")], session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: agent(session, "Dot", delay_s=1).chat("alone", session=session))
                await anyio.sleep(0.5)
                if streamed:
                    async with team.stream("go") as stream:
                        assert [event.agent async for event in stream]
                else:
                    await team.chat("go")

            assert [text for _, text in await said(session)] == ["alone", "Dot 1", "go", "Ann 1"]

    run(body)

"""Turns that wait for each other's sessions: the one that would close the circle is refused, nobody else is."""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeAlias

import anyio
import pytest

from callboard import Agent, CyclicAsk, Message, ModelAnswer, ModelRequest, Runtime, Session, ToolCall
from callboard.actors.reentry import HeldTurn, TurnWait, TurnWaits
from callboard.runtime.errors import Stopping
from callboard.testing import ScriptedModel, model_answer, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

LIMIT_S = 500.0
"""Below the timeout of a run: a circle that is not seen ends there."""


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda body: run_in_virtual_time(body, backend=request.param, limit_s=LIMIT_S)


def one_tool_call(request: ModelRequest) -> ModelAnswer:
    """Call the only tool, then say what it gave back."""
    last: Message = request.messages[-1]
    if last.role == "tool":
        return model_answer(f"tool said: {last.text}")
    return model_answer(tool_calls=[ToolCall("1", request.tools[0].name, "{}")])


class Office:
    """Sessions by name, and agents in them whose only tool turns to another session after a rest."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.refused: list[str] = []
        self.errors: list[CyclicAsk] = []

    def session(self, name: str) -> Session:
        return Session(self.runtime, name)

    def clerk(self, home: str, other: str, *, rest_s: float = 1.0, append: bool = False) -> Agent:
        """Works in `home`; its tool chats in `other`, or appends to it."""

        async def turn_to() -> str:
            """Turns to the other session."""
            await anyio.sleep(rest_s)
            try:
                if append:
                    await self.session(other).add_message("user", f"from {home}")
                    return "appended"
                reply = await Agent("helper", model=ScriptedModel(), session=self.session(other)).chat(f"from {home}")
            except CyclicAsk as error:
                self.refused.append(home)
                self.errors.append(error)
                raise
            return reply.text

        return Agent(
            f"clerk of {home}", model=ScriptedModel(one_tool_call), session=self.session(home), tools=[turn_to]
        )


async def chat_at_once(*agents: Agent) -> list[str]:
    texts: dict[int, str] = {}

    async def chat(number: int, agent: Agent) -> None:
        texts[number] = (await agent.chat("go")).text

    async with anyio.create_task_group() as tasks:
        for number, agent in enumerate(agents):
            tasks.start_soon(chat, number, agent)
    return [texts[number] for number in range(len(agents))]


@pytest.mark.parametrize("append", [False, True])
def test_two_turns_that_wait_for_each_others_sessions_both_end(run: Run, append: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            office = Office(runtime)

            texts = await chat_at_once(
                office.clerk("a", "b", rest_s=1.0, append=append), office.clerk("b", "a", rest_s=2.0, append=append)
            )

            assert office.refused == ["b"]  # the one that came last
            assert "session 'a', which waits for this one: 'b' -> 'a' -> 'b'" in str(office.errors[0])
            assert texts[0] == ("tool said: appended" if append else "tool said: echo: from a")
            assert "CyclicAsk" in texts[1]
            assert anyio.current_time() < LIMIT_S
            assert len(runtime.turn_waits) == 0
            for name in "ab":
                assert (await office.session(name).runs())[0].status == "completed"

    run(body)


def test_a_circle_of_three_chains_is_seen_and_shown(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            office = Office(runtime)
            agents = [office.clerk("a", "b"), office.clerk("b", "c", rest_s=2.0), office.clerk("c", "a", rest_s=3.0)]

            texts = await chat_at_once(*agents)

            assert office.refused == ["c"]
            assert "'c' -> 'a' -> 'b' -> 'c'" in str(office.errors[0])
            assert texts[0] == "tool said: echo: from a"
            assert len(runtime.turn_waits) == 0

    run(body)


def test_a_turn_further_up_the_own_chain_counts_as_well(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            office = Office(runtime)
            inner = office.clerk("b", "c", rest_s=5.0)

            async def ask_inner() -> str:
                """Chats in b, whose agent then turns to c."""
                return (await inner.chat("from a")).text

            outer = Agent("outer", model=ScriptedModel(one_tool_call), session=office.session("a"), tools=[ask_inner])

            # The turn of a waits for one of b that is granted, and will wait for c; that of c waits for a.
            texts = await chat_at_once(outer, office.clerk("c", "a", rest_s=2.0))

            assert office.refused == ["b"]
            assert texts[1] == "tool said: echo: from c"

    run(body)


def test_who_waits_in_one_direction_only_is_never_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            office = Office(runtime)
            names = "abcdefgh"
            forward = [office.clerk(name, after) for name, after in pairwise(names)]

            for _ in range(3):
                await chat_at_once(*forward, *(office.clerk("a", name, rest_s=0.5) for name in names[1:]))
                # And the other way round, when all those waits are over.
                await chat_at_once(*(office.clerk(after, name) for name, after in pairwise(names)))

            assert office.refused == []
            assert len(runtime.turn_waits) == 0

    run(body)


def test_the_waits_of_turns_are_shown_while_they_last(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            office = Office(runtime)
            slow = Agent("slow", model=ScriptedModel(delay_s=50.0), session=office.session("b"))
            tasks.start_soon(slow.chat, "go")
            tasks.start_soon(office.clerk("a", "b").chat, "go")
            await anyio.sleep(10.0)

            during = runtime.dump()
            seen = runtime.inspect("session", "a").waits_for

            assert seen == ("session:b",)
            assert "session:a -> session:b" in str(during)
            await anyio.sleep(100.0)
            assert runtime.waits() == []

    run(body)


def test_a_wait_that_was_cancelled_is_forgotten(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            office = Office(runtime)
            slow = Agent("slow", model=ScriptedModel(delay_s=50.0), session=office.session("b"))
            tasks.start_soon(slow.chat, "go")
            with anyio.move_on_after(10.0):
                await office.clerk("a", "b").chat("go")
            await anyio.sleep(1.0)

            assert len(runtime.turn_waits) == 0
            # So one of b may wait for a.
            texts = await chat_at_once(office.clerk("b", "a"))
            assert texts == ["tool said: echo: from b"]

    run(body)


def test_a_wait_ends_with_its_grant_its_reply_or_when_it_is_given_up(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            office = Office(runtime)
            seen: dict[str, list[tuple[str, str]]] = {}
            helper = Agent("helper", model=ScriptedModel(delay_s=5.0), session=office.session("b"))

            async def look_at(moment: str, after_s: float) -> None:
                await anyio.sleep(after_s)
                seen[moment] = runtime.turn_waits.edges()

            async def do_all() -> str:
                """Waits in many ways."""
                tasks.start_soon(look_at, "granted", 1.0)
                await helper.chat("go")
                await office.session("b").add_message("user", "x")
                await look_at("appended", 0.0)
                tasks.start_soon(helper.chat, "of somebody else")
                await anyio.sleep(1.0)
                tasks.start_soon(look_at, "queued", 1.0)
                with anyio.move_on_after(2.0):
                    await office.session("b").add_message("user", "y")
                await look_at("given up", 0.0)
                return "done"

            model = ScriptedModel(one_tool_call)
            await Agent("a", model=model, session=office.session("a"), tools=[do_all]).chat("go")

            assert seen == {"granted": [], "appended": [], "queued": [("a", "b")], "given up": []}

    run(body)


def test_what_a_turn_left_behind_holds_up_nobody_when_it_is_over(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            office = Office(runtime)
            slow = Agent("slow", model=ScriptedModel(delay_s=50.0), session=office.session("b"))

            async def leave_a_task() -> str:
                """Starts a chat in b and does not wait for it."""
                helper = Agent("helper", model=ScriptedModel(), session=office.session("b"))
                tasks.start_soon(helper.chat, "later")
                await anyio.sleep(1.0)
                return "left"

            leaver = Agent(
                "leaver", model=ScriptedModel(one_tool_call), session=office.session("a"), tools=[leave_a_task]
            )
            tasks.start_soon(slow.chat, "go")
            await anyio.sleep(0.1)
            reply = await leaver.chat("go")

            assert reply.text == "tool said: left"
            assert runtime.waits() == []

    run(body)


def test_to_ask_without_waiting_closes_no_circle(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            office = Office(runtime)
            outcomes: list[str] = []

            async def knock() -> str:
                """Tries a."""
                await anyio.sleep(2.0)
                helper = Agent("helper", model=ScriptedModel(), session=office.session("a"))
                try:
                    await helper.chat("now or never", overlap="reject")
                except Exception as error:
                    outcomes.append(type(error).__name__)
                    raise
                return "in"

            knocking = Agent("k", model=ScriptedModel(one_tool_call), session=office.session("b"), tools=[knock])

            await chat_at_once(office.clerk("a", "b"), knocking)

            assert outcomes == ["Busy"]
            assert office.refused == []

    run(body)


# The graph itself ---------------------------------------------------------------------------------------------------


def test_a_wait_that_is_refused_leaves_nothing_and_ends_count_once() -> None:
    waits = TurnWaits()
    a, b, nowhere = HeldTurn("a"), HeldTurn("b"), HeldTurn(None)
    first = TurnWait(waits.graph, "b", (a, nowhere))
    second = TurnWait(waits.graph, "a", (b,))

    first.begin("x")
    with pytest.raises(CyclicAsk):
        second.begin("y")
    held = waits.edges()
    second.end()
    first.end()
    first.end()
    second.begin("y")

    assert held == [("a", "b")]
    assert waits.edges() == [("b", "a")]
    b.end()
    second.end()
    assert len(waits) == 0


def test_a_wait_that_cannot_be_sent_has_not_begun() -> None:
    waits = TurnWaits()
    wait = TurnWait(waits.graph, "b", (HeldTurn("a"),))

    def send() -> None:
        assert waits.edges() == [("a", "b")]
        raise Stopping("closed")

    with pytest.raises(Stopping):
        wait.sent(send, "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - it returns nothing

    assert len(waits) == 0


def test_a_turn_that_is_over_waits_no_more() -> None:
    waits = TurnWaits()
    a, b = HeldTurn("a"), HeldTurn("b")
    wait = TurnWait(waits.graph, "c", (a, b))
    wait.begin("x")

    a.end()

    assert waits.edges() == [("b", "c")]
    wait.end()
    late = TurnWait(waits.graph, "c", (a,))
    late.begin("y")
    assert len(waits) == 0

"""Several agents on one session: one turn at a time, in order of arrival, each seeing what all wrote before."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import Agent, BadRequest, RunFailed, Runtime, Session, ToolCall
from callboard.actors.conversation import units
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def in_order(tasks: anyio.abc.TaskGroup, call: Callable[[], Awaitable[object]]) -> None:
    """Start the call; when this returns it has been sent. Tasks of one batch start in random order under trio."""
    sent = anyio.Event()

    async def send() -> None:
        sent.set()
        await call()

    tasks.start_soon(send)
    await sent.wait()


@pytest.mark.parametrize("on_disk", [False, True])
def test_agents_and_people_take_turns_in_order_of_arrival(run_in_real_time: Run, tmp_path: Path, on_disk: bool) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") if on_disk else Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(delay_s=0.005)
            agents = [Agent(name, model=model, session=session) for name in ("Ann", "Bob", "Cid")]
            expected: list[tuple[str, str | None]] = []
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    agent, text = agents[number % 3], f"text {number}"
                    if number % 5 == 4:
                        await in_order(tasks, lambda text=text: session.add_message("user", text, author="Dot"))
                        expected.append((text, "Dot"))
                    else:
                        await in_order(tasks, lambda agent=agent, text=text: agent.chat(text))
                        expected += [(text, None), (f"echo: {text}", agent.name)]

            assert [(message.text, message.author) for message in await session.messages()] == expected
            assert model.in_flight_max == 1
            for request in model.requests:
                seen = [message.text for message in request.messages]
                assert seen[:-1] == [text for text, _ in expected[: len(seen) - 1]]

    run_in_real_time(body)


def test_failed_turn_in_the_middle_is_seen_by_nobody_behind_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(delay_s=0.01)
            good = Agent("Good", model=model, session=session)
            bad = Agent("Bad", model=ScriptedModel([BadRequest("no")], delay_s=0.01), session=session)

            async def fail() -> None:
                with pytest.raises(RunFailed):
                    await bad.chat("lost")

            async with anyio.create_task_group() as tasks:
                for call in (lambda: good.chat("first"), fail, lambda: good.chat("last")):
                    await in_order(tasks, call)

            assert [m.text for m in await session.messages()] == ["first", "echo: first", "last", "echo: last"]
            assert [m.text for m in model.requests[-1].messages] == ["first", "echo: first", "last"]
            assert [record.status for record in await session.runs()] == ["completed", "failed", "completed"]

    run(body)


def test_an_agent_sees_anothers_tool_calls_with_their_results(run: Run) -> None:
    async def look(word: str) -> str:
        return word.upper()

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            script = [model_answer(tool_calls=[ToolCall("c", "look", '{"word": "a"}')]), "it is A"]
            await Agent("Ann", model=ScriptedModel(script), session=session, tools=[look]).chat("look up a")
            model = ScriptedModel()
            await Agent("Bob", model=model, session=session, instructions="You are Bob.").chat("and?")

            roles = [message.role for message in model.requests[0].messages]
            assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
            assert len(units(model.requests[0].messages)) == 5  # raises where a call and its result are parted
            assert [m.author for m in await session.messages()] == [None, "Ann", "Ann", "Ann", None, "Bob"]

    run(body)


def test_reply_that_was_given_is_seen_by_whoever_asks_next(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            agents = [Agent(name, model=ScriptedModel(), session=session) for name in ("Ann", "Bob")]
            for number in range(20):
                reply = await agents[number % 2].chat(str(number))

                assert (await session.messages(limit=1))[0] == reply.message
                assert await session.message_count() == 2 * number + 2
                assert (await session.run(reply.run_id)).status == "completed"
                assert (await session.head()).last_turn == reply.turn == number + 1

    run_in_real_time(body)


def test_more_turns_than_fit_into_a_mailbox_all_wait_and_all_come(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            async with anyio.create_task_group() as tasks:
                for number in range(500):
                    await in_order(tasks, lambda number=number: agent.chat(str(number)))

            asked = [m.text for m in await session.messages() if m.role == "user"]
            assert asked == [str(number) for number in range(500)]

    run(body)

"""The rows of SEED.md that stand, each by the public API alone, over real HTTP and a store on disk."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    Agents,
    Budget,
    BudgetExceeded,
    Delta,
    InstructionContext,
    InvalidTransition,
    Memory,
    Message,
    OpenAIChat,
    OpenAIEmbedder,
    Price,
    Prices,
    RunFailed,
    RunPolicy,
    RunStarted,
    Runtime,
    Session,
    SessionManager,
    Team,
    Template,
    ToolContext,
    ToolFinished,
    Usage,
)
from callboard.testing import Body, FakeUpstream, ScriptStep, answer, refuse

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class Crash(Exception):
    """A program ends in the middle of its work."""


async def plan_of() -> str:
    """Tell the plan."""
    return "gold"


def model_at(upstream: FakeUpstream) -> OpenAIChat:
    return OpenAIChat(base_url=upstream.url, api_key="none", model="fake")


def sent(upstream: FakeUpstream, number: int = -1) -> list[tuple[str, Any]]:
    """Role and content of each message of one request, the last one unless said otherwise."""
    return [(message["role"], message["content"]) for message in upstream.requests[number]["messages"]]


def test_s1_second_chat_sees_the_first_exchange_and_instructions_are_not_history(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "user-123")
            agent = Agent("Support Agent", instructions="Be kind.", model=model_at(upstream), session=session)
            await agent.chat("My name is John")
            reply = await agent.chat("What was my name?")

            assert reply.text == "echo: What was my name?"
            assert sent(upstream) == [
                ("system", "Be kind."),
                ("user", "My name is John"),
                ("assistant", "echo: My name is John"),
                ("user", "What was my name?"),
            ]
            history = await session.messages()
            assert [message.role for message in history] == ["user", "assistant", "user", "assistant"]
            assert reply.messages == tuple(history[2:])
            assert reply.message == history[-1]

    run_in_real_time(body)


def test_s2_manager_makes_finds_lists_and_deletes_sessions(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            manager = SessionManager(runtime)
            agent = Agent("Agent", model=model_at(upstream), runtime=runtime)
            for name in ("a", "b", "c"):
                session = await manager.get_or_create(name, metadata={"n": name}, owner="ann", tags=[f"tag-{name}"])
                await agent.chat("hello", session=session)
            first = await manager.list(owner="ann", limit=2)
            rest = await manager.list(owner="ann", limit=2, cursor=first.cursor)

            assert [head.id for head in (*first.sessions, *rest.sessions)] == ["c", "b", "a"]
            assert [head.id for head in (await manager.list(tag="tag-b")).sessions] == ["b"]
            assert first.sessions[0].message_count == 2
            found = await manager.get("b")
            assert found is not None
            assert await found.metadata() == {"n": "b"}
            assert await manager.delete("b")
            assert await manager.get("b") is None
            assert not await manager.delete("b")
            assert [head.id for head in (await manager.list()).sessions] == ["c", "a"]

    run_in_real_time(body)


def test_s3_history_by_hand_and_chats_without_a_session(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "user-123")
            await session.add_message("user", "one")
            await session.add_messages([Message(role="assistant", content="two"), {"role": "user", "content": "three"}])

            assert [message.text for message in await session.messages(limit=2)] == ["two", "three"]
            assert await session.messages_for_llm() == [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": "three"},
            ]
            alone = Agent("Alone", model=model_at(upstream), runtime=runtime)
            reply = await alone.chat(
                [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    Message(role="user", content="c"),
                ]
            )
            assert sent(upstream) == [("user", "a"), ("assistant", "b"), ("user", "c")]
            assert (reply.text, reply.session_id, reply.turn) == ("echo: c", None, 0)
            assert await session.message_count() == 3

    run_in_real_time(body)


def test_s5_agents_on_one_session_see_each_other_and_take_turns_in_order_of_arrival(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            upstream.queue(answer("from Ann", delay_s=0.05))
            model, session = model_at(upstream), Session(runtime, "user-123")
            ann, bob = (Agent(name, model=model, session=session) for name in ("Ann", "Bob"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ann.chat, "for Ann")
                await anyio.sleep(0.01)
                tasks.start_soon(bob.chat, "for Bob")

            assert sent(upstream) == [("user", "for Ann"), ("assistant", "from Ann"), ("user", "for Bob")]
            assert upstream.in_flight_max == 1
            assert [message.author for message in await session.messages()] == [None, "Ann", None, "Bob"]
            assert [run.agent for run in await session.runs()] == ["Ann", "Bob"]

    run_in_real_time(body)


@pytest.mark.parametrize("made", [Team, Agents])
def test_s5_a_team_runs_several_agents_on_one_session(tmp_path: Path, run_in_real_time: Run, made: type[Team]) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            model, session = model_at(upstream), Session(runtime, "user-123")
            ann, bob = (
                Agent(name, model=model, runtime=runtime, instructions=f"Be {name}.") for name in ("Ann", "Bob")
            )
            team = made([ann, bob], session=session)
            upstream.queue("a draft", "a better one")
            reply = await team.chat("Write.")
            async with anyio.create_task_group() as tasks:
                for text in ("Shorter.", "Longer."):
                    tasks.start_soon(team.chat, text)

            assert (reply.text, reply.stopped_by) == ("a better one", "done")
            history = [(message.author, message.text) for message in await session.messages()]
            assert history[:3] == [(None, "Write."), ("Ann", "a draft"), ("Bob", "a better one")]
            assert [author for author, _ in history] == [None, "Ann", "Bob"] * 3
            names = [(message["role"], message.get("name")) for message in upstream.requests[1]["messages"]]
            assert names == [("system", None), ("user", None), ("assistant", "Ann"), ("user", None)]
            assert [record.agent for record in await session.runs()] == ["Ann", "Bob"] * 3

    run_in_real_time(body)


def test_s6_each_chat_makes_a_run_and_runs_by_hand_obey_the_table(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            upstream.queue(answer("fine", usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}))
            session = Session(runtime, "user-123")
            agent = Agent("Agent", model=model_at(upstream), session=session)
            reply = await agent.chat("hello")
            upstream.queue(refuse(401, "no key"))
            with pytest.raises(RunFailed, match="no key") as caught:
                await agent.chat("again")
            by_hand = await session.create_run()
            with pytest.raises(InvalidTransition):
                await by_hand.complete()
            await by_hand.start()
            await by_hand.complete(tokens_used=150)
            with pytest.raises(InvalidTransition):
                await by_hand.fail("too late")

            first, second, third = await session.runs()
            assert (first.id, first.status, first.usage) == (reply.run_id, "completed", Usage(5, 2, 7, requests=1))
            assert (second.id, second.status, second.input[0].text) == (caught.value.run_id, "failed", "again")
            assert (third.id, third.status, third.usage.total_tokens) == (by_hand.id, "completed", 150)
            assert by_hand.status == "completed"
            assert by_hand.duration_ms is not None
            assert first.duration_ms is not None
            assert await session.message_count() == 2

    run_in_real_time(body)


def test_s6_runs_are_found_bounded_by_budgets_and_tried_again(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
            upstream.queue(answer(tool_calls=[("plan_of", {})], usage=usage), answer("gold", usage=usage))
            prices = Prices({"fake": Price(input=10.0, output=100.0)})
            session, manager = Session(runtime, "user-123"), SessionManager(runtime)
            policy = RunPolicy(budget=Budget(tokens=100, prices=prices))
            agent = Agent("Agent", model=model_at(upstream), session=session, tools=[plan_of], policy=policy)
            with pytest.raises(BudgetExceeded, match="budget of 100 tokens is spent") as caught:
                await agent.chat("Which plan?", keep_input=True)
            (failed,) = (await manager.runs(status="failed", agent="Agent")).runs
            reply = await agent.retry(caught.value.run_id)

            assert (failed.id, failed.usage.total_tokens, failed.input[0].text) == (
                caught.value.run_id,
                100,
                "Which plan?",
            )
            assert failed.usage.cost == pytest.approx(0.0019)
            assert [message.text for message in await session.messages()] == ["Which plan?", "gold"]
            assert (await session.run(reply.run_id)).retry_of == failed.id
            assert [run.id for run in await session.runs(status=["completed", "failed"])] == [failed.id, reply.run_id]

    run_in_real_time(body)


def test_s6_runs_that_a_crash_interrupted_all_go_on(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream(lambda _body: answer("late", delay_s=30.0)) as upstream:
            with suppress(Crash):
                async with Runtime(tmp_path / "support.lmdb") as runtime:
                    agent = Agent("Agent", model=model_at(upstream), runtime=runtime)
                    for name in ("a", "b", "c"):
                        await agent.submit("hello", session=Session(runtime, name))
                    raise Crash
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            manager = SessionManager(runtime)
            interrupted = [run.id for run in (await manager.runs(status="interrupted")).runs]
            resumed = await manager.resume_interrupted([Agent("Agent", model=model_at(upstream), runtime=runtime)])

            assert len(interrupted) == 3
            assert sorted(reply.run_id for reply in resumed.replies) == sorted(interrupted)
            assert resumed.errors == {}
            for name in ("a", "b", "c"):
                texts = [message.text for message in await Session(runtime, name).messages()]
                assert texts == ["hello", "echo: hello"]

    run_in_real_time(body)


def test_s7_spans_of_agents_and_by_hand_are_nested_and_stored(tmp_path: Path, run_in_real_time: Run) -> None:
    async def find(order: str, context: ToolContext) -> str:
        """Find an order."""
        with context.span("database") as span:
            span.set(rows=1)
        return f"{order} is on its way"

    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            upstream.queue(answer(tool_calls=[("find", {"order": "A-17"})], usage=usage), answer("done", usage=usage))
            session = Session(runtime, "user-123")
            reply = await Agent("Agent", model=model_at(upstream), session=session, tools=[find]).chat("Where?")
            by_hand = await session.create_run()
            await by_hand.start()
            async with by_hand.trace("report") as report:
                report.set(pages=2)
                async with by_hand.trace("gather"):
                    pass
            await by_hand.complete(tokens_used=150)
        async with Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "user-123")
            spans = await session.spans(reply.run_id)

            assert [(span.parent, span.kind, span.name) for span in spans] == [
                (0, "model", "fake"),
                (1, "tool", "find"),
                (2, "custom", "database"),
                (0, "model", "fake"),
            ]
            assert spans[2].attributes == {"rows": 1}
            assert [span.usage.total_tokens for span in spans] == [7, 0, 0, 7]
            assert all(span.status == "ok" and span.duration_ms is not None for span in spans)
            traced = await session.spans(by_hand.id)
            assert [(span.number, span.parent, span.name) for span in traced] == [(1, 0, "report"), (2, 1, "gather")]

    run_in_real_time(body)


def test_s8_a_model_sees_the_latest_messages_with_whole_tool_calls_and_nothing_is_lost(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def status(order: int) -> str:
        """Look up an order."""
        return f"order {order} is on its way"

    def script(body: Body) -> ScriptStep:
        last = body["messages"][-1]
        return "it is on its way" if last["role"] == "tool" else answer(tool_calls=[("status", {"order": 88})])

    async def body() -> None:
        async with FakeUpstream(script) as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "user-123", max_messages=50)
            agent = Agent("Agent", model=model_at(upstream), session=session, tools=[status])
            for number in range(25):
                await agent.chat(f"Where is order {number}?")

            for request in upstream.requests:
                roles = [message["role"] for message in request["messages"]]
                assert roles[0] == "user"  # never a result without its call
                assert len(roles) <= 1.25 * 50 + 2  # what the run itself wrote comes on top
                assert all(roles[i - 1] == "assistant" for i, role in enumerate(roles) if role == "tool")
            for limit in range(1, 12):
                shown = await session.messages_for_llm(max_messages=limit)
                assert len(shown) <= max(limit, 2)
                assert shown[0]["role"] != "tool"
            latest = await session.messages_for_llm(max_tokens=200, strategy="recent")
            assert 4 <= len(latest) < 100
            assert latest[-1]["content"] == "it is on its way"
            assert len(await session.messages()) == 100

    run_in_real_time(body)


def test_s9_metadata_reaches_instructions_and_tools(tmp_path: Path, run_in_real_time: Run) -> None:
    seen: list[Any] = []

    def plan(context: ToolContext) -> str:
        """Tell the plan."""
        seen.append((context.metadata["plan"], context.session_id, context.agent))
        return "gold"

    def instructions(context: InstructionContext) -> str:
        return f"Speak {context.metadata['language']}."

    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            metadata = {"plan": {"name": "gold", "seats": [1, 2.5]}, "language": "Dutch"}
            session = Session(runtime, "user-123", metadata=metadata)
            model = model_at(upstream)
            upstream.queue(answer(tool_calls=[("plan", {})]), "done")
            await Agent("A", model=model, session=session, instructions=instructions, tools=[plan]).chat("hi")

            assert sent(upstream, 0)[0] == ("system", "Speak Dutch.")
            assert seen == [({"name": "gold", "seats": [1, 2.5]}, "user-123", "A")]
            assert await session.update_metadata({"language": "Greek", "plan": None}) == {"language": "Greek"}
            await Agent("B", model=model, runtime=runtime, instructions=Template("In ${language}, ${agent}!")).chat(
                "hi", session=session
            )
            assert sent(upstream)[0] == ("system", "In Greek, B!")
            assert (await session.head()).metadata == {"language": "Greek"}

    run_in_real_time(body)


def test_s10_session_of_a_call_goes_before_the_agents_own(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            own, other = Session(runtime, "own"), Session(runtime, "other")
            agent = Agent("Agent", model=model_at(upstream), session=own)
            await agent.chat("here")
            reply = await agent.chat("there", session=other)

            assert reply.session_id == "other"
            assert sent(upstream) == [("user", "there")]
            assert [message.text for message in await own.messages()] == ["here", "echo: here"]
            assert [message.text for message in await other.messages()] == ["there", "echo: there"]

    run_in_real_time(body)


def test_s11_what_was_said_in_one_session_is_known_in_another(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            embedder = OpenAIEmbedder(base_url=upstream.url, api_key="none", model="fake")
            async with Runtime(tmp_path / "support.lmdb") as runtime:
                monday = Session(runtime, "monday", owner="ann")
                await Agent("Agent", model=model_at(upstream), session=monday).chat("My scooter's brake squeaks")
                await Memory(runtime, embedder=embedder).add("Ann has the gold plan", owner="ann")
                assert await Memory(runtime, embedder=embedder).remember(monday) == 2
            async with Runtime(tmp_path / "support.lmdb") as runtime:
                memory = Memory(runtime, embedder=embedder)
                known = await memory.context("Which plan has Ann?", owner="ann", limit=1)
                agent = Agent("Agent", instructions=f"You know:\n{known}", model=model_at(upstream), runtime=runtime)
                await agent.chat("Which plan?", session=Session(runtime, "friday", owner="ann"))

                assert sent(upstream) == [("system", "You know:\n- Ann has the gold plan"), ("user", "Which plan?")]
                hits = await memory.search("squeaks", mode="text")
                assert [hit.source and hit.source.seq for hit in hits] == [1, 2]
                assert (await memory.search("a brake", mode="semantic", limit=1))[0].text.endswith("brake squeaks")
                assert await memory.search("squeaks", owner="bob") == []

    run_in_real_time(body)


def test_s12_stream_gives_tokens_as_they_come_and_the_same_durable_outcome(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    def weather(city: str) -> str:
        return f"rain in {city}"

    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            script = [answer(tool_calls=[("weather", {"city": "Ghent"})]), answer(pieces=["It ", "rains", "."])]
            session = Session(runtime, "streamed")
            agent = Agent("Agent", model=model_at(upstream), session=session, tools=[weather])
            upstream.queue(*script)
            async with agent.stream("How is the weather?") as stream:
                events = [event async for event in stream]
            reply = stream.reply

            assert isinstance(events[0], RunStarted)
            assert [event.text for event in events if isinstance(event, Delta) and event.kind == "text"] == [
                "It ",
                "rains",
                ".",
            ]
            assert [event.content for event in events if isinstance(event, ToolFinished)] == ["rain in Ghent"]
            assert reply.text == "It rains."
            upstream.queue(*script)
            whole = await agent.chat("How is the weather?", session=Session(runtime, "whole"))
            assert [(m.role, m.content, m.author, m.seq) for m in reply.messages] == [
                (m.role, m.content, m.author, m.seq) for m in whole.messages
            ]
            assert reply.usage.requests == whole.usage.requests == 2
            assert await session.messages() == list(reply.messages)

    run_in_real_time(body)


def test_hundred_chats_at_once_on_one_session_run_one_by_one_in_order_of_arrival(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "user-123")
            agent = Agent("Agent", model=model_at(upstream), session=session)
            arrived: list[str] = []

            async def chat(text: str) -> None:
                arrived.append(text)  # no await between this and the call: the order of arrival
                assert (await agent.chat(text)).text == f"echo: {text}"

            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(chat, f"text {number}")

            assert upstream.in_flight_max == 1
            assert upstream.request_count == 100
            messages = await session.messages()
            assert [message.text for message in messages] == [
                each for text in arrived for each in (text, f"echo: {text}")
            ]
            assert [message.seq for message in messages] == list(range(1, 201))
            assert [run.turn for run in await session.runs()] == list(range(1, 101))

    run_in_real_time(body)


def test_hundred_chats_on_a_hundred_sessions_run_side_by_side(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream(lambda _body: answer("hi", delay_s=0.5)) as upstream:
            async with Runtime(tmp_path / "support.lmdb") as runtime:
                agent = Agent("Agent", model=model_at(upstream), runtime=runtime)
                async with anyio.create_task_group() as tasks:
                    for number in range(100):
                        session = Session(runtime, f"user-{number}")
                        tasks.start_soon(lambda session=session: agent.chat("hello", session=session))
                counts = [await Session(runtime, f"user-{number}").message_count() for number in range(100)]

            assert upstream.in_flight_max > 50
            assert counts == [2] * 100

    run_in_real_time(body)

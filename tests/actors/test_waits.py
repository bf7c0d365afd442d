"""What waits for what: cycles through tools are refused, deleted turns are stopped, cancellation is told as it is."""

import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from callboard import (
    Agent,
    CyclicAsk,
    Message,
    ModelAnswer,
    ModelRequest,
    OpenAIChat,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    UnknownSession,
    Usage,
)
from callboard.actors.model import OnDelta
from callboard.runtime import Backoff
from callboard.testing import FakeUpstream, ScriptedModel, answer, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

ONCE = RunPolicy(attempts_max=1, backoff=Backoff(first_s=0.01, max_s=0.02))


def calls_tool(name: str) -> list[ModelAnswer | str]:
    return [model_answer(tool_calls=[ToolCall("call_1", name, "{}")]), "done"]


@pytest.fixture
def deaf_url() -> Iterator[str]:
    """A server whose queue of connections is full: connecting to it hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}/v1"
        for client in clients:
            client.close()


def test_a_run_that_is_cancelled_while_it_connects_is_cancelled_and_keeps_its_span(
    run_in_real_time: Run, deaf_url: str
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=OpenAIChat(base_url=deaf_url, model="m"), session=session)
            with anyio.move_on_after(0.2):
                await agent.chat("hello")
            await session.add_message("user", "behind")

            (record,) = await session.runs()
            assert (record.status, record.error) == ("cancelled", "the caller went away")
            assert [span.status for span in await session.spans(record.id)] == ["error"]

    run_in_real_time(body)


def test_a_run_that_connects_while_the_runtime_is_closed_is_interrupted(run_in_real_time: Run, deaf_url: str) -> None:
    async def body() -> None:
        reasons: list[str] = []

        async def chat(agent: Agent) -> None:
            with pytest.raises(RunFailed) as failed:
                await agent.chat("hello")
            reasons.append(failed.value.reason)

        async with anyio.create_task_group() as tasks, Runtime.in_memory(drain_timeout_s=0.2) as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=OpenAIChat(base_url=deaf_url, model="m"), session=session)
            for _ in range(3):
                tasks.start_soon(chat, agent)
            await anyio.sleep(0.05)

        assert reasons == ["the runtime was closed"] * 3
        assert len([cut for cut in runtime.cut if "run_" in cut]) == 3

    run_in_real_time(body)


def test_a_tool_that_comes_back_to_its_session_through_another_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            first, second = Session(runtime, "first"), Session(runtime, "second")
            inner = Agent("Inner", model=ScriptedModel(["never"]), session=first)
            heard: list[BaseException] = []

            async def ask_inner() -> str:
                """Ask."""
                try:
                    return (await inner.chat("again")).text
                except CyclicAsk as error:
                    heard.append(error)
                    raise

            middle = Agent("Middle", model=ScriptedModel(calls_tool("ask_inner")), session=second, tools=[ask_inner])

            async def ask_middle() -> str:
                """Ask."""
                return (await middle.chat("go on")).text

            outer = Agent("Outer", model=ScriptedModel(calls_tool("ask_middle")), session=first, tools=[ask_middle])
            reply = await outer.chat("begin")

            assert reply.text == "done"
            assert ["session 'first'" in str(error) for error in heard] == [True]

    run(body)


def test_a_task_that_a_tool_left_behind_may_write_once_the_turn_is_over(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session, turn_over = Session(runtime, "s"), anyio.Event()

            async def write_later() -> None:
                await turn_over.wait()
                await session.add_message("user", "later")

            async def schedule() -> str:
                """Schedule."""
                tasks.start_soon(write_later)
                return "scheduled"

            agent = Agent("Agent", model=ScriptedModel(calls_tool("schedule")), session=session, tools=[schedule])
            await agent.chat("begin")
            turn_over.set()
            await anyio.sleep(0.1)

            assert [message.text for message in await session.messages()][-2:] == ["done", "later"]

    run(body)


async def upstream_is_busy(upstream: FakeUpstream) -> None:
    while upstream.in_flight == 0:  # noqa: ASYNC110 -- a server's own event is not ours to wait for
        await anyio.sleep(0.01)


def test_deleting_a_session_stops_the_model_call_of_its_turn(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream(lambda _body: answer("slow", delay_s=5)) as upstream, Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=OpenAIChat(base_url=upstream.url, model="m"), session=session)

            async def chat_with_the_deleted() -> None:
                with pytest.raises(UnknownSession, match="deleted while its turn ran"):
                    await agent.chat("one")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat_with_the_deleted)
                await upstream_is_busy(upstream)
                assert await session.delete()
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()

                assert runtime.statistics().children == 0

            assert await session.messages() == []
            assert await session.runs() == []

    run_in_real_time(body)


def test_a_stream_is_entered_once(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            stream = Agent("Agent", model=ScriptedModel(["one", "two"]), session=session).stream("hello")
            with pytest.raises(RuntimeError, match="enter the stream first"):
                await anext(stream)
            async with stream:
                async for _ in stream:
                    pass
            with pytest.raises(RuntimeError, match=r"call agent\.stream\(\) again"):
                await stream.__aenter__()

            assert await session.message_count() == 2

    run(body)


def test_a_patch_removes_only_the_keys_that_it_names(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"trial": None, "plan": "pro", "old": 1})
            await session.add_message("user", "hello")

            assert await session.update_metadata({"plan": "free", "old": None}) == {"trial": None, "plan": "free"}

    run(body)


class OddModel:
    """A model with one fact beside its message that no store takes."""

    name = "odd"

    def __init__(self, odd: ModelAnswer) -> None:
        self._odd = odd

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        return self._odd

    async def aclose(self) -> None:
        pass


def odd_answer(**odd: Any) -> ModelAnswer:
    facts: dict[str, Any] = {"message": Message(role="assistant", content="hello"), "finish_reason": "stop", **odd}
    return ModelAnswer(**facts)


@pytest.mark.parametrize(
    "odd",
    [
        odd_answer(usage=Usage(total_tokens=2**70)),
        odd_answer(usage=Usage(prompt_tokens=-1)),
        odd_answer(usage=None),
        odd_answer(finish_reason=object()),
        odd_answer(finish_reason="\ud800"),
        odd_answer(request_id=7),
        odd_answer(model=None),
    ],
)
def test_an_answer_that_no_store_takes_fails_its_run_and_not_its_session(run: Run, odd: ModelAnswer) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=OddModel(odd), session=session, policy=ONCE)
            for _ in range(8):  # more than a restart budget
                with pytest.raises(RunFailed, match="cannot be used"):
                    await agent.chat("hello")

            assert runtime.statistics().crashes == 0
            assert await session.messages() == []

    run(body)


@pytest.mark.parametrize("tokens_used", [-1, 2**64, True, 1.5])
def test_a_run_by_hand_takes_only_a_count_of_tokens(run: Run, tokens_used: Any) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manual = await Session(runtime, "s").create_run()
            await manual.start()
            with pytest.raises((TypeError, ValueError), match="total_tokens must be"):
                await manual.complete(tokens_used=tokens_used)
            await manual.complete(tokens_used=150)

            assert manual.record.usage.total_tokens == 150

    run(body)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ({"model": "gpt-4o"}, r"OpenAIChat\(model="),
        ({"session": "user-1"}, "session= must be a Session"),
        ({"settings": {"temperature": 1}}, "settings= must be a ModelSettings"),
        ({"policy": 3}, "policy= must be a RunPolicy"),
        ({"tools": print}, "a list of functions"),
    ],
)
def test_an_agent_refuses_what_it_is_not_made_of_and_says_what_it_wants(
    run: Run, wrong: dict[str, Any], advice: str
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            parts: dict[str, Any] = {"model": ScriptedModel(), "runtime": runtime}
            with pytest.raises(TypeError, match=advice):
                Agent("Agent", **{**parts, **wrong})

    run(body)


def test_a_run_policy_leaves_room_for_one_attempt() -> None:
    with pytest.raises(ValueError, match="attempts_max must be 1 or more, not 0"):
        RunPolicy(attempts_max=0)


def test_a_tool_of_an_endless_name_leaves_a_span_that_can_be_stored(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            name = "x" * 5_000 + "\ud800"
            model = ScriptedModel([model_answer(tool_calls=[ToolCall("call_1", name, "{}")]), "done"])
            with pytest.raises(RunFailed):  # half a character cannot be stored as a message
                await Agent("Agent", model=model, session=session, policy=ONCE).chat("hello")
            reply = await Agent("Agent", model=ScriptedModel(calls_tool("y" * 5_000)), session=session).chat("hello")

            assert reply.text == "done"
            assert [len(span.name) for span in await session.spans(reply.run_id)] == [8, 2_000, 8]

    run(body)

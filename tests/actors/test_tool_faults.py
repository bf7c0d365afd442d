"""Tools that go wrong in ways of their own, and tools that are cancelled: the one is an answer, the other passes."""

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from msgspec import Struct

from callboard import Agent, RunFailed, Runtime, Session, ToolCall
from callboard.actors.tool_threads import TOOL_THREADS_MAX
from callboard.actors.tools import Tool, ToolContext, ToolResult
from callboard.testing import ScriptedModel, model_answer

CONTEXT = ToolContext(agent="Support", run_id="r1")
BACKENDS = ["trio", "asyncio"]


def call(function: Callable[..., Any], arguments: str = "", *, backend: str = "trio") -> ToolResult:
    return anyio.run(Tool(function, name="tool").call, arguments, CONTEXT, backend=backend)


class Speechless(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


class Picky(Struct):
    number: int

    def __post_init__(self) -> None:
        raise Speechless


@pytest.mark.parametrize("backend", BACKENDS)
def test_exception_whose_text_cannot_be_had_is_a_result_too(backend: str) -> None:
    def fails() -> str:
        raise Speechless

    def picky(value: Picky) -> int:
        return value.number

    result = call(fails, backend=backend)
    refused = call(picky, '{"value": {"number": 5}}', backend=backend)

    assert result.content == "Error: tool failed: Speechless (its text cannot be had: LookupError)"
    assert isinstance(result.cause, Speechless)
    assert refused.content.startswith("Error: the arguments of tool do not fit: Speechless")
    assert isinstance(refused.cause, Speechless)


async def awaits_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def awaits_a_cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


def awaits_in_a_thread() -> None:
    anyio.from_thread.run(awaits_a_cancelled_future)


@pytest.mark.parametrize(
    "function", [awaits_a_cancelled_task, awaits_a_cancelled_future, cancels_itself, awaits_in_a_thread]
)
def test_tool_that_awaits_something_cancelled_is_an_error_result_and_its_task_goes_on(
    function: Callable[..., Any],
) -> None:
    async def body() -> ToolResult:
        result = await Tool(function, name="tool").call("", CONTEXT)
        with anyio.fail_after(5):  # nothing of the cancellation is left
            await anyio.sleep(0.001)
        return result

    result = anyio.run(body, backend="asyncio")

    assert result.is_error
    assert result.content == "Error: tool failed: it awaited something that was cancelled"
    assert isinstance(result.cause, RuntimeError)
    assert result.cause.__cause__ is not None


def test_cancellation_passes_through_a_tool_that_awaits_something_cancelled() -> None:
    async def body() -> bool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await Tool(awaits_a_cancelled_future).call("", CONTEXT)
            raise AssertionError("the scope is cancelled: nothing comes back")
        return scope.cancelled_caught

    assert anyio.run(body, backend="asyncio")


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancellation_passes_through_an_async_tool(backend: str) -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cleaned up")

    async def body() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(Tool(waits).call, "", CONTEXT)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    anyio.run(body, backend=backend)

    assert ended == ["cleaned up"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancellation_does_not_wait_for_a_thread(backend: str) -> None:
    started, released, ended = threading.Event(), threading.Event(), threading.Event()

    def blocks() -> None:
        started.set()
        released.wait(5)
        ended.set()

    async def body() -> bool:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(Tool(blocks).call, "", CONTEXT)
                await anyio.to_thread.run_sync(started.wait, 10)
                scope.cancel()
        was_still_running = not ended.is_set()
        released.set()
        return was_still_running

    assert anyio.run(body, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sync_tool_that_hangs_takes_no_thread_from_others_and_a_call_without_one_says_so(backend: str) -> None:
    released = threading.Event()
    begun: list[int] = []

    def hangs(number: int) -> None:
        begun.append(number)
        released.wait(10)

    def quick() -> str:
        return "done"

    async def body() -> list[str]:
        hanging, results = Tool(hangs, timeout_s=0.3), list[str]()

        async def call(number: int) -> None:
            results.append((await hanging.call(f'{{"number": {number}}}', CONTEXT)).content)

        async with anyio.create_task_group() as group:
            for number in range(TOOL_THREADS_MAX + 2):
                group.start_soon(call, number)
        with anyio.fail_after(5):
            assert (await Tool(quick).call("", CONTEXT)).content == "done"
            await anyio.getaddrinfo("127.0.0.1", 80)
        released.set()
        return results

    results = anyio.run(body, backend=backend)

    given_up = [text for text in results if "was given up; it may have had an effect" in text]
    not_begun = [text for text in results if "did not begin: 40 calls of it run" in text]
    assert len(given_up) + len(not_begun) == TOOL_THREADS_MAX + 2
    assert len(given_up) == len(begun)
    if backend == "trio":  # asyncio gives a thread's place away when it is given up: who waits may still begin
        assert len(not_begun) == 2


class Abort(BaseException):
    """What is raised to end a program, and is no Exception."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tool_that_leaves_the_program_fails_its_call_alone(backend: str) -> None:
    def command() -> str:
        raise SystemExit(3)

    result = call(command, backend=backend)

    assert result.content == "Error: tool failed: RuntimeError: it called sys.exit(3)"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tool_that_raises_what_is_no_exception_fails_the_run_and_the_record_says_so_too(backend: str) -> None:
    async def abort() -> str:
        raise Abort("enough")

    async def body() -> None:
        asks = model_answer(tool_calls=[ToolCall(id="c1", name="abort")])
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("a", model=ScriptedModel([asks]), session=session, tools=[abort])
            with pytest.raises(RunFailed, match="enough"):
                await agent.chat("go")
            (run,) = await session.runs()

            assert (run.status, "enough" in (run.error or "")) == ("failed", True)

    anyio.run(body, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_that_many_agents_have_as_a_tool_has_no_more_threads_for_that(backend: str) -> None:
    at_once: list[int] = []
    running = 0
    lock, pause = threading.Lock(), threading.Event()

    def made_anew() -> Tool:
        def busy() -> str:
            nonlocal running
            with lock:
                running += 1
                at_once.append(running)
            pause.wait(0.02)  # so that they overlap
            with lock:
                running -= 1
            return "done"

        return Tool(busy)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3 * TOOL_THREADS_MAX):
                tasks.start_soon(made_anew().call, "", CONTEXT)

    anyio.run(body, backend=backend)

    assert len(at_once) == 3 * TOOL_THREADS_MAX
    assert max(at_once) <= TOOL_THREADS_MAX


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_that_hangs_counts_until_it_ends(backend: str) -> None:
    released = threading.Event()

    def hangs() -> str:
        released.wait(20)
        return "at last"

    async def body() -> list[str]:
        tool = Tool(hangs, timeout_s=0.1)
        results: list[str] = []
        before = threading.active_count()

        async def one() -> None:
            results.append((await tool.call("", CONTEXT)).content)

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(TOOL_THREADS_MAX):
                    tasks.start_soon(one)
        more = threading.active_count() - before
        released.set()
        with anyio.fail_after(10):
            while (await Tool(hangs, timeout_s=5).call("", CONTEXT)).content != "at last":
                pass

        assert more <= TOOL_THREADS_MAX
        return results

    results = anyio.run(body, backend=backend)

    assert sum("it may have had an effect" in result for result in results) == TOOL_THREADS_MAX
    assert sum("it did not begin" in result for result in results) == TOOL_THREADS_MAX


def test_tools_behind_one_decorator_have_threads_of_their_own() -> None:
    released = threading.Event()

    def decorated(function: Callable[[], str]) -> Callable[[], str]:
        @functools.wraps(function)
        def wrapper() -> str:
            return function()

        return wrapper

    @decorated
    def hangs() -> str:
        released.wait(20)
        return "at last"

    @decorated
    def quick() -> str:
        return "at once"

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(TOOL_THREADS_MAX):
                tasks.start_soon(Tool(hangs, timeout_s=0.1).call, "", CONTEXT)
        result = await Tool(quick, timeout_s=5).call("", CONTEXT)
        released.set()

        assert result.content == "at once"

    anyio.run(body, backend="trio")

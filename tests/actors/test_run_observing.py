"""Who observes runs is around them, in the task that does the work, and no danger to it. Logs with the ids of runs."""

import json
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    ModelUnavailable,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    tool,
)
from callboard.observing import (
    JSONFormatter,
    ObservedModelCall,
    ObservedRun,
    ObservedToolCall,
    RunIds,
    RunIdsFilter,
    RunLog,
    RunObserver,
    current_run,
)
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))
SECRET = "my password is swordfish"


around: ContextVar[tuple[str, ...]] = ContextVar("around", default=())


class Witness(RunObserver):
    """Notes beginnings and ends; makes where it is current, as a tracer would."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.runs: list[ObservedRun] = []

    @contextmanager
    def _within(self, name: str, outcome: Callable[[], object]) -> Generator[None]:
        self.told.append(f"({name} in {'/'.join(around.get())}")
        token = around.set((*around.get(), name))
        yield
        around.reset(token)
        self.told.append(f"{name} {outcome()})")

    def run(self, run: ObservedRun, /) -> AbstractContextManager[None]:
        self.runs.append(run)
        return self._within("run", lambda: run.status)

    def model_call(self, call: ObservedModelCall, /) -> AbstractContextManager[None]:
        return self._within("model", lambda: call.answer.finish_reason if call.answer else type(call.error).__name__)

    def tool_call(self, call: ObservedToolCall, /) -> AbstractContextManager[None]:
        return self._within(call.call.name, lambda: call.result.content if call.result else type(call.error).__name__)

    def attempt_failed(self, run: ObservedRun, error: Exception, reason: str, delay_s: float, /) -> None:
        self.told.append(f"attempt failed: {reason}")


async def where() -> str:
    """Where a tool finds itself."""
    return "/".join(around.get())


def where_in_a_thread() -> str:
    """Likewise, in a thread."""
    ids = current_run()
    return f"{'/'.join(around.get())} of {ids.agent if ids else None}"


def test_observers_are_around_the_work_in_its_own_context(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            witness = Witness()
            runtime.observe_runs(witness)
            script = [model_answer(tool_calls=[ToolCall("c", "where")]), ModelUnavailable("busy"), "done"]
            session = Session(runtime, "s")
            agent = Agent("Ann", model=ScriptedModel(script), session=session, tools=[where], policy=QUICK)
            reply = await agent.chat("hi")

            assert witness.told == [
                "(run in ",
                "(model in run",
                "model tool_calls)",
                "(where in run",
                "where run/where)",
                "(model in run",
                "model ModelUnavailable)",
                "attempt failed: busy",
                "(model in run",
                "model stop)",
                "run completed)",
            ]
            (observed,) = witness.runs
            assert (observed.id, observed.session_id, observed.agent) == (reply.run_id, "s", "Ann")
            assert (observed.usage, observed.attempts) == (reply.usage, 2)
            assert (observed.model_calls, observed.tool_calls) == (3, 1)
            assert observed.output == reply.message
            assert around.get() == ()

    run(body)


def test_runs_that_do_not_end_well_say_how_they_ended(run: Run) -> None:
    @tool(approval=True)
    async def pay() -> str:
        return "paid"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            witness = Witness()
            runtime.observe_runs(witness)
            session = Session(runtime, "s")
            asking = model_answer(tool_calls=[ToolCall("c", "pay")])
            for step, expected in ((BadRequest("never"), RunFailed), (asking, ApprovalRequired)):
                with pytest.raises(expected):
                    await Agent("A", model=ScriptedModel([step]), session=session, tools=[pay]).chat("hi")
            with anyio.move_on_after(1):
                await Agent("A", model=ScriptedModel(delay_s=5), session=session).chat("hi")
            await anyio.sleep(1)

            assert [each.status for each in witness.runs] == ["failed", "waiting", "cancelled"]
            assert [type(each.error).__name__ for each in witness.runs[:2]] == ["RunFailed", "ApprovalRequired"]

    run(body)


def test_a_run_that_is_resumed_is_observed_with_its_tools(run: Run) -> None:
    @tool(approval=True)
    async def pay() -> str:
        return "/".join(around.get())

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent(
                "A",
                model=ScriptedModel([model_answer(tool_calls=[ToolCall("c", "pay")]), "done"]),
                session=Session(runtime, "s"),
                tools=[pay],
            )
            with pytest.raises(ApprovalRequired) as pause:
                await agent.chat("hi")
            witness = Witness()
            runtime.observe_runs(witness)
            await agent.resume(pause.value.run_id, approve=True)

            assert witness.told[:3] == ["(run in ", "(pay in run", "pay run/pay)"]

    run(body)


def test_the_caller_of_a_run_is_known_by_its_context(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            witness = Witness()
            runtime.observe_runs(witness)
            around.set(("request",))
            await Agent("A", model=ScriptedModel(), runtime=runtime).chat("hi")

            (observed,) = witness.runs
            assert observed.caller is not None
            assert observed.caller.run(around.get) == ("request",)
            assert witness.told[0] == "(run in "  # a run is nobody's task but its own

    run(body)


def test_an_observer_that_raises_disturbs_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RunObserver):
        def run(self, run: ObservedRun, /) -> AbstractContextManager[None]:
            raise RuntimeError("at the beginning")

        @contextmanager
        def model_call(self, call: ObservedModelCall, /) -> Generator[None]:
            yield
            raise RuntimeError("at the end")

        def attempt_failed(self, run: ObservedRun, error: Exception, reason: str, delay_s: float, /) -> None:
            raise RuntimeError("in between")

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            witness = Witness()
            for observer in (Broken(), witness, Broken()):
                runtime.observe_runs(observer)
            model = ScriptedModel([ModelUnavailable("busy"), "fine"])
            reply = await Agent("A", model=model, runtime=runtime, policy=QUICK).chat("hi")

            assert reply.text == "fine"
            assert witness.told[-1] == "run completed)"
            raised = [record for record in caplog.records if record.message == "a run's observer raised"]
            assert len(raised) == 2 * (1 + 2 + 1)

    run(body)


def test_observing_ends_and_nobody_observes_twice(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            witness = Witness()
            agent = Agent("A", model=ScriptedModel(), runtime=runtime)
            runtime.observe_runs(witness)
            end = runtime.observe_runs(witness)
            await agent.chat("hi")
            end()
            await agent.chat("hi")

            assert len(witness.runs) == 1
            with pytest.raises(TypeError, match="derives from RunObserver"):
                runtime.observe_runs(print)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] -- what is refused

    run(body)


# Logs -----------------------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps records, as a handler of a program does that has the filter."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.addFilter(RunIdsFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Generator[Kept]:
    handler, logger = Kept(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "callboard.run")}
    logger.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_every_record_of_a_run_has_its_ids_wherever_it_is_made(run: Run, kept: Kept) -> None:
    shop = logging.getLogger("shop")

    async def reserve() -> str:
        shop.info("reserved")
        return current_run().agent  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess] -- in a run

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "reserve")]), "done"])
            shop.info("before")
            reply = await Agent("Ann", model=model, session=session, tools=[reserve]).chat("hi")
            shop.info("after", extra={"run_id": "mine"})

            told = {record.message: record for record in kept.records if record.name == "shop"}
            expected = RunIds(reply.run_id, "s", "Ann", 1)
            assert {name: getattr(told["reserved"], name) for name in RunIds.__struct_fields__} == {
                name: getattr(expected, name) for name in RunIds.__struct_fields__
            }
            assert vars(told["before"])["run_id"] is None
            assert vars(told["after"])["run_id"] == "mine"
            assert current_run() is None
            assert reply.messages[2].text == "Ann"

    run(body)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_tool_in_a_thread_belongs_to_its_run_too(backend: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(Witness())
            model = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "where_in_a_thread")]), "done"])
            reply = await Agent("Ann", model=model, runtime=runtime, tools=[where_in_a_thread]).chat("hi")

            assert reply.messages[2].text == "run/where_in_a_thread of Ann"

    anyio.run(body, backend=backend)


async def eventful(runtime: Runtime) -> None:
    """A run with all that is logged: model calls, a tool that fails, a failed attempt, an error that quotes; one that
    fails."""

    async def look(word: str) -> str:
        raise ValueError(f"no {word}")

    session = Session(runtime, "s")
    call = ToolCall("c", "look", json.dumps({"word": SECRET}))
    script = [model_answer(tool_calls=[call]), ModelUnavailable(f"busy: {SECRET}"), SECRET, BadRequest(SECRET)]
    agent = Agent("Ann", model=ScriptedModel(script), session=session, tools=[look], policy=QUICK, instructions=SECRET)
    await agent.chat(SECRET)
    with pytest.raises(RunFailed):
        await agent.chat(SECRET)


def test_a_run_log_tells_what_happened_and_nothing_that_was_said(run: Run, kept: Kept) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(RunLog())
            await eventful(runtime)

            records = [record for record in kept.records if record.name == "callboard.run"]
            assert [(record.levelname, record.message) for record in records] == [
                ("INFO", "run started"),
                ("DEBUG", "model called"),
                ("DEBUG", "tool called"),
                ("DEBUG", "model called"),
                ("WARNING", "attempt failed"),
                ("DEBUG", "model called"),
                ("INFO", "run completed"),
                ("INFO", "run started"),
                ("DEBUG", "model called"),
                ("WARNING", "run failed"),
            ]
            fields = [vars(record) for record in records]
            assert {each["session_id"] for each in fields} == {"s"}
            assert [each.get("error_type") for each in fields] == [
                None, None, "ValueError", "ModelUnavailable", "ModelUnavailable", None, None, None, "BadRequest",
                "RunFailed",
            ]  # fmt: skip
            assert fields[6]["attempts"] == 2
            assert (fields[6]["model_calls"], fields[6]["tool_calls"]) == (3, 1)
            assert SECRET not in "".join(map(repr, fields))

    run(body)


def test_a_run_log_tells_what_was_said_where_that_is_asked_for(run: Run, kept: Kept) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(RunLog(logging.getLogger("mine"), content=True))
            await eventful(runtime)

            fields = [vars(record) for record in kept.records if record.name == "mine"]
            tool_called = next(each for each in fields if each["msg"] == "tool called")
            assert SECRET in tool_called["arguments"]
            assert SECRET in tool_called["result"]
            assert SECRET in fields[-1]["reason"]

    run(body)


def test_a_line_of_json_has_all_that_a_record_has(kept: Kept) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("shop").exception("sold %d", 3, extra={"article": "lamp", "strange": {1, 2}, "none": None})

    line = json.loads(JSONFormatter().format(kept.records[-1]))
    assert {name: line[name] for name in ("level", "logger", "message", "article", "strange")} == {
        "level": "ERROR",
        "logger": "shop",
        "message": "sold 3",
        "article": "lamp",
        "strange": [1, 2],
    }
    assert line["time"].endswith("+00:00")
    assert line["exception"].endswith("ValueError: broken")
    assert "none" not in line
    assert "\n" not in JSONFormatter().format(kept.records[-1])

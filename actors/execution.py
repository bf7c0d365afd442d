"""One run, carried out: model calls and tool calls until there is an answer, with attempts, within one deadline.

    attempt ── model call ──► answer without tool calls ──► close the turn as completed
       ▲           │
       │           └──► tool calls, side by side ──► journal the step ──► next model call
       └── backoff ◄── transient ModelError, or a crash      (from the last journaled step)
                       permanent ModelError, or the attempts are spent ──► close the turn as failed

Whatever happens, the turn is closed: cancelled from outside it is closed as cancelled or interrupted, behind a shield.
Where the store does not even take that in time, `turn_over` is left False, and it is the agent's actor that goes on.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import anyio
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..runtime.budget import Backoff
from ..runtime.envelope import Request
from ..runtime.errors import Failed, Rejected, Unknown
from ..runtime.ref import Ref
from ..store.errors import CallboardError, StoreError
from .conversation import as_message, repair
from .errors import BadResponse, ModelError, RateLimited, RunFailed, StaleTurn
from .instructions import InstructionContext, Instructions, render
from .ledger import RunEnd
from .limits import reason_of
from .message import Message, ToolCall, Usage
from .model import Delta, Model, ModelAnswer, ModelRequest, ModelSettings
from .reentry import HeldTurn, hold
from .reply import AttemptFailed, Reply, RunEvent, RunStarted, ToolFinished
from .run_record import RunStatus, check_usage
from .session_messages import CloseTurn, Grant, NoteRun, RecordStep
from .session_records import Step
from .spans import SpanLog
from .tools import ToolContext, ToolSet

__all__ = ["AgentSpec", "Execution", "RunPolicy", "persist"]

ReplyT = TypeVar("ReplyT")

CLOSE_TIMEOUT_S = 30.0
"""How long the end of a turn may be offered to a session whose store does not take it."""
RETRY_AFTER_S_MAX = 120.0
"""A server that asks for a longer pause is not waited for; OpenAI's and Anthropic's clients draw a line likewise."""


class RunPolicy(Struct, frozen=True):
    """How patient a run is.

    Attributes:
        attempts_max: how often it is tried where failures are transient.
        backoff: the wait between attempts; a server's own Retry-After, up to 120 s, goes before.
        timeout_s: the whole run, without its wait for the turn.
        model_calls_max: model calls in one turn, each but the last followed by tool calls.
    """

    attempts_max: int = 4
    backoff: Backoff = Backoff(first_s=0.5, max_s=8.0)
    timeout_s: float = 600.0
    model_calls_max: int = 32

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or self.model_calls_max < 1 or not self.timeout_s > 0:
            raise ValueError(f"a run has at least one attempt, one model call and some time: {self}")


@dataclass(slots=True, weakref_slot=True)
class AgentSpec:
    """What an agent is. Lives in this process; `listeners` get the events of runs that are being streamed."""

    name: str
    instructions: Instructions
    model: Model
    tools: ToolSet
    settings: ModelSettings
    policy: RunPolicy
    listeners: dict[str, Callable[[RunEvent], None]] = field(default_factory=lambda: dict[str, Any]())


@dataclass(slots=True)
class Execution:
    """One run of one agent. `session` is None for a run without a session, which is not stored.

    `stop_status` is what the run becomes if it is cancelled, `stop_reason` why. `turn_over` says whether the session
    knows that the turn has ended; where it does not, it should end with `end_status`. `within` are the turns that wait
    for this run.
    """

    spec: AgentSpec
    run_id: str
    session_id: str | None
    session: Ref | None
    grant: Grant
    input: tuple[Message, ...]
    within: tuple[HeldTurn, ...]
    wall_ms: Callable[[], int]
    stop_status: Literal["cancelled", "interrupted"] = "interrupted"
    stop_reason: str = "the runtime was closed"
    turn_over: bool = False
    end_status: Literal["failed", "cancelled", "interrupted"] = "failed"
    attempt: int = 0
    usage: Usage = field(default_factory=Usage)
    steps: list[Step] = field(default_factory=lambda: list[Step]())
    spans: SpanLog = field(init=False)

    def __post_init__(self) -> None:
        self.spans = SpanLog(self.run_id, self.wall_ms)

    async def run(self) -> Reply:
        """Carry the run out and close its turn.

        Raises:
            RunFailed: history is as before the turn, the run is marked failed.
            Unknown: there was an answer, and nobody can tell whether it was stored.

        Cancellation: the turn is closed first, at the latest after CLOSE_TIMEOUT_S; as completed where the answer has
            come already.
        """
        held = hold(self.session_id, within=self.within)
        self._emit(RunStarted(self.run_id, self.grant.turn))
        try:
            return await self._run()
        finally:
            held.end()

    async def _run(self) -> Reply:
        try:
            with anyio.fail_after(self.spec.policy.timeout_s):
                answer = await self._answer()
        except TimeoutError:
            reason = f"the run took longer than its {self.spec.policy.timeout_s:g} s"
            await self._fail("failed", reason)
            raise RunFailed(self.run_id, reason) from None
        except RunFailed as failure:
            await self._fail("failed", failure.reason)
            raise
        except BaseException:
            # A cancellation, alone or in a group: what trio's own nurseries raise when they are cancelled is one.
            with anyio.CancelScope(shield=True):
                self.end_status = self.stop_status
                await self._fail(self.stop_status, self.stop_reason)
            raise
        return await self._complete(answer)

    # Attempts -------------------------------------------------------------------------------------------------------

    async def _answer(self) -> ModelAnswer:
        """The last answer, after as many attempts as the policy allows.

        Raises:
            RunFailed: the cause is permanent, or the attempts are spent.
        """
        policy = self.spec.policy
        system = self._system()
        while True:
            self.attempt += 1
            try:
                return await self._attempt(system)
            except RunFailed:
                raise
            except ModelError as error:
                failure: Exception = error
                delay_s = self._delay_s(error) if error.transient else None
            except CallboardError as error:  # the session or the store refuses: another attempt would meet the same
                raise RunFailed(self.run_id, str(error)) from error
            except Exception as error:  # noqa: BLE001 - the run's guard: a tool's or a model's crash must end the turn
                failure = error
                delay_s = self._delay_s(error)
            if delay_s is None or self.attempt >= policy.attempts_max:
                raise RunFailed(self.run_id, _reason(failure)) from failure
            self._emit(AttemptFailed(self.attempt, _reason(failure), delay_s))
            await self._note("waiting", _reason(failure))
            await anyio.sleep(delay_s)
            await self._note("running", None)

    def _delay_s(self, error: Exception) -> float | None:
        """The wait before the next attempt; None where the server asks for more patience than there is."""
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= RETRY_AFTER_S_MAX else None
        return self.spec.policy.backoff.delay_s(self.attempt, random.random())

    def _system(self) -> tuple[Message, ...]:
        """The instructions, as the message that goes first and is not stored.

        Raises:
            RunFailed: they cannot be made; trying again would not help.
        """
        context = InstructionContext(
            agent=self.spec.name, session_id=self.session_id, metadata=self.grant.metadata, run_id=self.run_id
        )
        try:
            text = render(self.spec.instructions, context)
        except Exception as error:
            raise RunFailed(self.run_id, f"the instructions cannot be made: {_reason(error)}") from error
        return (Message(role="system", content=text),) if text else ()

    async def _attempt(self, system: tuple[Message, ...]) -> ModelAnswer:
        """From the last journaled step to an answer without tool calls."""
        for _ in range(len(self.steps), self.spec.policy.model_calls_max):
            answer = await self._call_model(system)
            if not answer.message.tool_calls:
                return answer
            results = await self._call_tools(answer.message.tool_calls)
            step = Step(len(self.steps) + 1, (answer.message, *results))
            await self._ask_session(RecordStep(self.run_id, self.grant.turn, step))
            self.steps.append(step)
        calls = self.spec.policy.model_calls_max
        raise RunFailed(self.run_id, f"there was no answer after {calls} model calls: see RunPolicy.model_calls_max")

    async def _call_model(self, system: tuple[Message, ...]) -> ModelAnswer:
        done = [message for step in self.steps for message in step.messages]
        history = repair([*self.grant.history, *self.input, *done]).messages
        request = ModelRequest((*system, *history), self.spec.tools.schemas, self.spec.settings)
        model = self.spec.settings.model or self.spec.model.name
        with self.spans.span(model, "model") as span:
            on_delta = self._emit if self.run_id in self.spec.listeners else None
            answer = await self.spec.model.complete(request, on_delta=on_delta)
            _check_usage(answer)
            self.usage = self.usage + answer.usage  # what an answer that is refused below has cost was spent
            answer = _checked(answer)
            span.usage = answer.usage
            span.attributes.update(finish_reason=answer.finish_reason, attempt=self.attempt)
            if answer.request_id is not None:
                span.attributes["request_id"] = answer.request_id
        return answer

    async def _call_tools(self, calls: tuple[ToolCall, ...]) -> list[Message]:
        """All results in the order of the calls; the calls run side by side."""
        results: dict[int, Message] = {}
        context = ToolContext(
            session_id=self.session_id,
            run_id=self.run_id,
            turn=self.grant.turn,
            agent=self.spec.name,
            metadata=self.grant.metadata,
        )

        async def call_one(index: int, call: ToolCall) -> None:
            with self.spans.span(call.name, "tool") as span:
                result = await self.spec.tools.call(call, context)
                span.attributes["call_id"] = call.id
                if result.is_error:
                    span.fail(result.content)
            results[index] = Message(role="tool", content=result.content, tool_call_id=call.id)
            self._emit(ToolFinished(call.name, call.id, result.content, result.is_error))

        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(calls):
                tasks.start_soon(call_one, index, call)
        return [results[index] for index in range(len(calls))]

    # The end --------------------------------------------------------------------------------------------------------

    async def _complete(self, answer: ModelAnswer) -> Reply:
        written = [message for step in self.steps for message in step.messages]
        by_agent = (replace(message, author=self.spec.name) for message in [*written, answer.message])
        messages = (*self.input, *by_agent)
        stored: list[Message] = []
        try:
            with anyio.CancelScope(shield=True):  # whoever cancels now must not be told that nothing was stored
                stored = await self._close("completed", None, messages)
        except Unknown:
            raise
        except CallboardError as error:
            raise RunFailed(self.run_id, f"the answer came, but its turn could not be stored: {error}") from error
        return Reply(
            message=stored[-1],
            messages=tuple(stored),
            run_id=self.run_id,
            session_id=self.session_id,
            turn=self.grant.turn,
            usage=self.usage,
            finish_reason=answer.finish_reason,
            attempts=self.attempt,
        )

    async def _fail(self, status: RunStatus, reason: str) -> None:
        try:
            await self._close(status, reason, ())
        except StaleTurn:
            pass  # the turn was ended by others, or the session deleted: there is nothing left to mark
        except CallboardError as error:
            raise RunFailed(self.run_id, f"{reason} (and the store refused to note it: {error})") from error

    async def _close(self, status: RunStatus, error: str | None, messages: tuple[Message, ...]) -> list[Message]:
        if self.session is None:
            self.turn_over = True
            return list(messages)
        end = RunEnd(status, error, self.usage, self.attempt, self.spans.finished())
        session, turn = self.session, self.grant.turn
        try:
            stored = await persist(lambda: session.ask(CloseTurn(self.run_id, turn, end, messages)))
        except StaleTurn:
            self.turn_over = True
            raise
        self.turn_over = True
        return stored

    async def _ask_session(self, message: Request[Any]) -> None:
        if self.session is not None:
            session = self.session
            await persist(lambda: session.ask(message))

    async def _note(self, status: RunStatus, error: str | None) -> None:
        if self.session is not None:
            assert status == "waiting" or status == "running"
            note = NoteRun(self.run_id, self.grant.turn, status, self.attempt + (status == "running"), error)
            try:
                await self.session.ask(note)
            except CallboardError as failure:
                raise RunFailed(self.run_id, str(failure)) from failure

    def _emit(self, event: RunEvent | Delta) -> None:
        listener = self.spec.listeners.get(self.run_id)
        if listener is not None:
            listener(event)


_FACTS = msgspec.msgpack.Decoder(tuple[str, str, str])


async def persist(send: Callable[[], Awaitable[ReplyT]]) -> ReplyT:
    """Send until the store has it. The messages sent so are safe to repeat: a session knows what it has had.

    Raises:
        Unknown: it may be stored: a try before the last one ended so, and no later one could tell.
        CallboardError: the answer of the last try that ran. Nothing is stored.
    """
    backoff = Backoff(first_s=0.05, max_s=2.0)
    give_up_at = anyio.current_time() + CLOSE_TIMEOUT_S
    failures: list[Failed | Unknown | StoreError] = []
    while True:
        try:
            return await send()
        except (Failed, Unknown, StoreError) as error:  # a StoreError: what is stored could not be read for the answer
            failures.append(error)
            delay_s = backoff.delay_s(len(failures), random.random())
            outage = not isinstance(error, Failed) or isinstance(error.__cause__, StoreError)
            if not outage or anyio.current_time() + delay_s > give_up_at:
                raise _worst(failures) from error.__cause__
        except Rejected as error:  # it did not run this time: what became of it is what the tries before say
            if not failures:
                raise
            raise _worst(failures) from failures[-1].__cause__ or error
        await anyio.sleep(delay_s)


def _worst(failures: list[Failed | Unknown | StoreError]) -> Failed | Unknown | StoreError:
    """What holds of a request that failed so often: once unknown, it stays unknown."""
    return next((error for error in failures if isinstance(error, Unknown)), failures[-1])


def _check_usage(answer: ModelAnswer) -> None:
    try:
        check_usage(answer.usage)
    except (TypeError, ValueError) as error:
        raise BadResponse(f"the model's answer cannot be used: {error}") from error


def _checked(answer: ModelAnswer) -> ModelAnswer:
    """The answer. What could not be stored or sent back is refused: it would spoil the session for all turns to come.

    Raises:
        BadResponse: it is no message of an assistant, or something beside it is no good.
    """
    try:
        message = as_message(answer.message, where="the model's answer")
        facts = (answer.finish_reason, answer.model, answer.request_id or "")
        _FACTS.decode(msgspec.msgpack.encode(facts))
    except (TypeError, ValueError) as error:
        raise BadResponse(f"the model's answer cannot be used: {error}") from error
    if message.role != "assistant":
        raise BadResponse(f"the model's answer has the role {message.role!r} instead of 'assistant'")
    return replace(answer, message=message)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ModelError) else reason_of(error)

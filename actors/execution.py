"""One run, carried out: model calls and tool calls until there is an answer, with attempts, within one deadline.

    attempt ── model call ──► answer without tool calls ──► close the turn as completed
       ▲           │
       │           └──► journal it ──► tool calls, side by side, each journaled ──► next model call
       │                                  └──► some need an approval ──► pause: the turn ends, the run waits
       └── backoff ◄── transient ModelError, or a crash      (from the last journaled step)
                       permanent ModelError, or the attempts are spent ──► close the turn as failed

Whatever happens, the turn is closed: cancelled from outside it is closed as cancelled or interrupted, behind a shield.
Where the store does not even take that in time, `turn_over` is left False, and it is the agent's actor that goes on.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio
from msgspec.structs import replace

from ..runtime.errors import Unknown
from ..runtime.ref import Ref
from ..store.errors import CallboardError
from .agent_spec import AgentSpec
from .answer_check import check_answer, check_answer_usage, told_or_estimated
from .attempts import Attempts, failure_reason
from .budgets import Purse, Spending
from .conversation import repair
from .errors import ApprovalRequired, BudgetExceeded, RunFailed, StaleTurn
from .instructions import InstructionContext, look_at_state, render
from .journal import Journal
from .ledger import RunEnd
from .limits import reason_of
from .message import Message, Usage
from .model import Delta, ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .output import Output
from .persistence import persist
from .progress import Progress
from .reentry import HeldTurn, hold
from .reply import ApprovalRequested, AttemptFailed, OutputRepair, Reply, RunEvent, RunStarted
from .run_context import RunIds, enter_run
from .run_ending import ended_by_tool, is_cancellation, last_answer
from .run_observing import ObservedRun
from .run_output import RunOutput
from .run_prompt import RunPrompt
from .run_record import RunStatus
from .run_wishes import RunStopped, RunWishes
from .session_messages import CloseTurn, Grant, NoteRun, PauseTurn
from .spans import LiveSpan, SpanLog
from .state import StateDelta
from .tool_calls import ToolCalls
from .turn_state import NO_STATE, TurnState, open_turn_state
from .window import Window

__all__ = ["Execution"]


@dataclass(slots=True)
class Execution:
    """One run of one agent. `session` is None for a run without a session, which is not stored.

    `wishes` is what others want of it. `turn_over` says whether the session
    knows that the turn has ended; where it does not, it should end with `end_status`. `within` are the turns that wait
    for this run. `caller` is the context of who asked for it, where somebody observes.
    """

    spec: AgentSpec
    run_id: str
    session_id: str | None
    session: Ref | None
    grant: Grant
    input: tuple[Message, ...]
    within: tuple[HeldTurn, ...]
    wall_ms: Callable[[], int]
    output: Output | None = None
    wishes: RunWishes = field(default_factory=RunWishes)
    shared_spending: Spending | None = None
    window: Window | None = None
    caller: contextvars.Context | None = None
    turn_over: bool = False
    end_status: Literal["failed", "cancelled", "interrupted"] = "failed"
    attempts: Attempts = field(init=False)
    run_output: RunOutput = field(init=False)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = ""
    calls: ToolCalls | None = None
    observed: ObservedRun | None = None
    state: TurnState = NO_STATE
    deltas: tuple[StateDelta, ...] = ()
    spans: SpanLog = field(init=False)
    prompt: RunPrompt = field(init=False)
    purse: Purse = field(init=False)

    def __post_init__(self) -> None:
        resumed = self.grant.resumed
        earlier = Usage() if resumed is None else resumed.record.usage
        self.purse = Purse(self.spec.policy.budget, self.shared_spending, earlier=earlier)
        self.attempts = Attempts(self.spec.policy)
        self.run_output = RunOutput(self.output, self.spec.policy.output_repairs_max)
        self.prompt = RunPrompt(
            agent=self.spec.name,
            model=self.spec.settings.model or self.spec.model.name,
            window=self.window,
            meters=self.spec.meters,
            grant=self.grant,
            input=self.input,
            session=self.session,
            ask=self._ask_for_summary,
        )
        self.spans = SpanLog(self.run_id, self.wall_ms, earlier=0 if resumed is None else resumed.spans)
        if resumed is not None:
            self.calls = self._new_calls(Progress(resumed.steps))

    async def run(self) -> Reply:
        """Carry the run out and close its turn.

        Raises:
            RunFailed: history is as before the turn, the run is marked failed. BudgetExceeded may leave a part.
            ApprovalRequired: history is as before the turn, the run is stored and waits.
            Unknown: there was an answer, and nobody can tell whether it was stored.

        Cancellation: the turn is closed first, at the latest after CLOSE_TIMEOUT_S; as completed where the answer has
            come already.
        """
        held = hold(self.session_id, within=self.within)
        enter_run(RunIds(self.run_id, self.session_id, self.spec.name, self.grant.turn))
        self._emit(RunStarted(self.run_id, self.grant.turn))
        self.purse.look(anyio.current_time())
        try:
            return await (self._run_observed() if self.spec.observers.each else self._run())
        finally:
            held.end()

    async def _run_observed(self) -> Reply:
        model = self.spec.settings.model or self.spec.model.name
        turn, asked = self.grant.turn, self.input
        each, agent = self.spec.observers.each, self.spec.name
        self.observed = run = ObservedRun(each, self.run_id, self.session_id, agent, model, turn, asked, self.caller)
        self.spans.around = run.span
        if self.calls is not None:  # of a run that goes on
            self.calls.observed = run
        with run.observe():
            try:
                reply = await self._run()
                run.status, run.output = "completed", reply.message
            except BaseException as error:
                ended = "cancelled" if isinstance(error, RunStopped) else self.end_status
                run.status = "waiting" if isinstance(error, ApprovalRequired) else ended
                run.error = error
                raise
            finally:
                run.usage, run.attempts = self._whole_usage, self._attempt_number
        return reply

    async def _run(self) -> Reply:
        try:
            with anyio.fail_after(self.spec.policy.timeout_s):
                answer = await self._answer()
        except TimeoutError:
            reason = f"the run took longer than its {self.spec.policy.timeout_s:g} s"
            await self._fail("failed", reason)
            raise RunFailed(self.run_id, reason) from None
        except RunStopped as stop:
            await self._fail("cancelled", stop.reason, partial=self.wishes.keep)
            raise
        except RunFailed as failure:
            await self._fail("failed", failure.reason, partial=isinstance(failure, BudgetExceeded) and failure.partial)
            raise
        except ApprovalRequired as pause:
            await self._pause(pause)
            raise
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                if is_cancellation(error):
                    self.end_status = self.wishes.status
                    await self._fail(self.wishes.status, self.wishes.reason, partial=self.wishes.keep)
                else:  # a tool or a model raised what is no Exception
                    await self._fail("failed", f"it crashed with {error!r}")
            raise
        return await self._complete(answer)

    # Attempts -------------------------------------------------------------------------------------------------------

    async def _answer(self) -> ModelAnswer | None:
        """The last answer, after as many attempts as the policy allows; None where a tool call has ended the run.

        Raises:
            RunFailed: the cause is permanent, or the attempts are spent.
            ApprovalRequired: calls of the latest answer need one.
        """
        await self._open_state()
        system = self._system()
        while True:
            self.attempts.begin()
            try:
                answer = await self._attempt(system)
                self.deltas = self._changed_state()
                return answer
            except (RunFailed, ApprovalRequired):
                raise
            except Exception as error:  # noqa: BLE001 - the run's guard: a tool's or a model's crash must end the turn
                failure, reason = error, failure_reason(error)
                self.wishes.said.clear()  # what was shown is void
            delay_s = None if self.wishes.last_attempt else self.attempts.failed(failure)
            if delay_s is None:
                raise RunFailed(self.run_id, reason) from failure
            self._emit(AttemptFailed(self._attempt_number, reason, delay_s))
            if self.observed is not None:
                self.observed.attempt_failed(failure, reason, delay_s)
            await self._note("waiting", reason)
            await anyio.sleep(delay_s)
            await self._note("running", None)

    def _system(self) -> tuple[Message, ...]:
        """The instructions, as the message that goes first and is not stored.

        Raises:
            RunFailed: they cannot be made; trying again would not help.
        """
        scopes = self.state.values_copied() if look_at_state(self.spec.instructions) else {}
        context = InstructionContext(
            agent=self.spec.name,
            session_id=self.session_id,
            metadata=self.grant.metadata,
            run_id=self.run_id,
            **scopes,
        )
        try:
            text = render(self.spec.instructions, context)
        except Exception as error:
            raise RunFailed(self.run_id, f"the instructions cannot be made: {reason_of(error)}") from error
        return (Message(role="system", content=text),) if text else ()

    async def _open_state(self) -> None:
        """Gather what the turn begins with of session, user and app, where its tools or instructions look at that."""
        if self.session_id is None or not (self.spec.tools.take_context or look_at_state(self.spec.instructions)):
            return
        earlier = self.calls.journal.progress.deltas if self.calls is not None else ()
        try:
            self.state = await open_turn_state(self.spec.session_of(self.session_id), earlier)
        except CallboardError as error:
            raise RunFailed(self.run_id, f"its state cannot be read: {error}") from error
        if self.calls is not None:
            self.calls.journal.scopes = self.state

    def _changed_state(self) -> tuple[StateDelta, ...]:
        """What the turn has changed in session, user and app. RunFailed where that cannot be stored."""
        if self.calls is None:
            return ()
        try:
            return self.state.deltas() or self.calls.journal.progress.deltas
        except (TypeError, ValueError) as error:
            raise RunFailed(self.run_id, f"a tool's state cannot be stored: {error}") from error

    async def _attempt(self, system: tuple[Message, ...]) -> ModelAnswer | None:
        """From what is journaled to an answer without tool calls, or to a call that ends the run (None)."""
        calls_max = self.spec.policy.model_calls_max
        if self.calls is not None:
            self.calls.attempt = self._attempt_number
            open_step = self.calls.journal.progress.open_step
            if open_step is not None:
                await self.calls.go_on(open_step)
        for number in range(self._steps_taken, calls_max):
            if self._ended_by_tool:
                return None
            await self._heed()
            answer = await self._call_model(system)
            if not answer.message.tool_calls:
                problem = self.run_output.take(answer)
                if problem is None:
                    if self.wishes.steered and await self._hear(answer.message):
                        continue
                    return answer
                self._emit(OutputRepair(self.run_output.repairs, problem))
                continue
            if number + 1 == calls_max:
                break  # what its calls would do could not be told any more
            if self.calls is None:
                self.calls = self._new_calls(Progress())
            await self.calls.begin(answer.message, self._whole_usage)
            self.run_output.step_taken()
        reason = f"there was no answer after {calls_max} model calls: see RunPolicy.model_calls_max"
        raise RunFailed(self.run_id, reason)

    async def _call_model(self, system: tuple[Message, ...]) -> ModelAnswer:
        done = self.calls.journal.progress.messages if self.calls is not None else ()
        settings = self.spec.settings
        if self._steps_taken and settings.tool_choice not in (None, "none"):
            settings = replace(settings, tool_choice="auto")  # one that demands a call would have them without end
        request = ModelRequest(system, self.spec.tools.schemas, settings, self.run_output.schema)
        request = await self.prompt.fill(request, done, self.run_output.aside)
        model = self.spec.settings.model or self.spec.model.name
        self._afford_call()
        with self.spans.span(model, "model") as span:
            on_delta = self._on_delta()
            self.wishes.said.clear()
            try:
                if self.observed is None:
                    answer = await self.spec.model.complete(request, on_delta=on_delta)
                else:
                    answer = await self.observed.complete(self.spec.model, request, on_delta)
            except (RunFailed, ApprovalRequired) as error:  # of another run, on which this model rests
                raise RuntimeError(f"the model's own run did not end well: {error}") from error
            self.wishes.said.clear()
            await self._pay(request, answer, model, span)  # also where the answer is refused below
            self.prompt.learn(request, answer.usage)
            answer = check_answer(answer)
            span.attributes.update(self.prompt.attributes)
            span.attributes.update(finish_reason=answer.finish_reason, attempt=self._attempt_number)
            if answer.model:
                span.attributes["model"] = answer.model  # of several in a chain, the one that answered
            if answer.request_id is not None:
                span.attributes["request_id"] = answer.request_id
        return answer

    async def _ask_for_summary(self, request: ModelRequest) -> ModelAnswer:
        """A call beside the conversation. It costs as any other."""
        model = self.spec.model
        if self.window is not None and self.window.summarizer is not None:
            model = self.window.summarizer
        else:
            request = replace(request, settings=ModelSettings(model=self.spec.settings.model))
        self._afford_call()
        with self.spans.span("summary", "model") as span:
            observed = self.observed
            answer = await (model.complete(request) if observed is None else observed.complete(model, request, None))
            await self._pay(request, answer, model.name, span)
        return answer

    async def _heed(self) -> None:
        """Do as others wish, before a model call. RunStopped where there is to be none."""
        if self.wishes.after_step:
            raise RunStopped(self.run_id, self.wishes.reason)
        if self.wishes.steered:
            await self._hear()

    async def _hear(self, answer: Message | None = None) -> bool:
        """Take in what was said meanwhile, behind this answer; False where nothing was."""
        self.wishes.steered = False
        if self.calls is None:
            self.calls = self._new_calls(Progress())
        return await self.calls.journal.heard(answer, self._whole_usage)

    def _afford_call(self) -> None:
        """A model call begins; BudgetExceeded where none may."""
        reached = self.purse.look(anyio.current_time())
        if reached is not None:
            partial = reached[1].keep_partial and self._steps_taken > 0
            raise BudgetExceeded(self.run_id, reached[0], partial=partial)
        self.purse.call_begins()

    async def _pay(self, request: ModelRequest, answer: ModelAnswer, model: str, span: LiveSpan) -> None:
        check_answer_usage(answer)
        usage = await told_or_estimated(answer, request, self.spec.meters, model)
        span.usage = self.purse.add(usage, answer.model or model, model)
        self.usage = self.usage + span.usage

    # The end --------------------------------------------------------------------------------------------------------

    async def _complete(self, answer: ModelAnswer | None) -> Reply:
        messages = self._written() if answer is None else self._written(answer.message)
        self.finish_reason = answer.finish_reason if answer is not None else "tool_calls"
        stored: list[Message] = []
        try:
            with anyio.CancelScope(shield=True):  # whoever cancels now must not be told that nothing was stored
                stored = await self._close("completed", None, messages)
        except Unknown:
            raise
        except CallboardError as error:
            raise RunFailed(self.run_id, f"the answer came, but its turn could not be stored: {error}") from error
        return Reply(
            message=stored[-1] if answer is not None else last_answer(stored),
            messages=tuple(stored),
            run_id=self.run_id,
            session_id=self.session_id,
            turn=self.grant.turn,
            usage=self._whole_usage,
            finish_reason=self.finish_reason,
            attempts=self._attempt_number,
            output=self.run_output.value,
        )

    async def _pause(self, pause: ApprovalRequired) -> None:
        """The turn ends, and the run waits; where that cannot be stored, the run is interrupted, and may be resumed."""
        self.end_status = "interrupted"
        session = self.session
        assert session is not None, "a run that is not stored cannot wait"
        note = PauseTurn(self.run_id, self.grant.turn, self._end("waiting", None), pause.calls)
        try:
            with anyio.CancelScope(shield=True):  # as with an answer: what was begun is done
                await persist(lambda: session.ask(note))
        except Unknown:
            raise
        except CallboardError as error:
            self.turn_over = isinstance(error, StaleTurn)
            raise RunFailed(self.run_id, f"it was to wait for an approval, but could not be stored: {error}") from error
        self.turn_over = True
        self._emit(ApprovalRequested(self.run_id, pause.calls))

    async def _fail(self, status: RunStatus, reason: str, *, partial: bool = False) -> None:
        """End the turn without an answer; with `partial`, what was done becomes history."""
        try:
            await self._close(status, reason, self._part() if partial else ())
        except StaleTurn:
            pass  # the turn was ended by others, or the session deleted: there is nothing left to mark
        except CallboardError as error:
            raise RunFailed(self.run_id, f"{reason} (and the store refused to note it: {error})") from error

    async def _close(self, status: RunStatus, error: str | None, messages: tuple[Message, ...]) -> list[Message]:
        if self.session is None:
            self.turn_over = True
            return list(messages)
        end = self._end(status, error, partial=bool(messages) and status != "completed")
        session, turn = self.session, self.grant.turn
        try:
            state = self.deltas if status == "completed" else ()
            stored = await persist(
                lambda: session.ask(CloseTurn(self.run_id, turn, end, messages, state, self.prompt.cut))
            )
        except StaleTurn:
            self.turn_over = True
            raise
        self.turn_over = True
        return stored

    def _end(self, status: RunStatus, error: str | None, *, partial: bool = False) -> RunEnd:
        spans = self.spans.finished()
        return RunEnd(status, error, self.usage, self._attempt_number, spans, partial, self.finish_reason)

    def _part(self) -> tuple[Message, ...]:
        """What there is of the turn, fit to be history: the answer that is under way, too, as far as it came."""
        return tuple(repair(self._written(*self.wishes.half_said())).messages)

    def _written(self, *last: Message) -> tuple[Message, ...]:
        """What the turn adds to history: the input, unless it stands there already, and what the run wrote."""
        journaled = self.calls.journal.progress.messages if self.calls is not None else ()
        by_agent = (self._signed(message) for message in (*journaled, *last))
        return (*(() if self.grant.input_seq else self.input), *by_agent)

    def _signed(self, message: Message) -> Message:
        """With the agent as its author, unless it is input that was taken in."""
        return message if message.role == "user" else replace(message, author=self.spec.name)

    async def _note(self, status: RunStatus, error: str | None) -> None:
        if self.session is not None:
            assert status == "waiting" or status == "running"
            note = NoteRun(self.run_id, self.grant.turn, status, self._attempt_number + (status == "running"), error)
            try:
                await self.session.ask(note)
            except CallboardError as failure:
                raise RunFailed(self.run_id, str(failure)) from failure

    @property
    def _ended_by_tool(self) -> bool:
        return self.calls is not None and ended_by_tool(self.calls.journal.progress, self.spec.tools)

    @property
    def _steps_taken(self) -> int:
        """Answers whose calls were carried out."""
        return len(self.calls.journal.progress.steps) if self.calls is not None else 0

    @property
    def _attempt_number(self) -> int:
        """How often the run was started, in earlier turns too."""
        resumed = self.grant.resumed
        return self.attempts.number + (0 if resumed is None else resumed.record.attempts)

    @property
    def _whole_usage(self) -> Usage:
        """Of the whole run, earlier turns included."""
        resumed = self.grant.resumed
        return self.usage if resumed is None else resumed.record.usage + self.usage

    def _new_calls(self, progress: Progress) -> ToolCalls:
        journal = Journal(self.run_id, self.grant.turn, self.session, progress)
        journal.scopes = self.state
        return ToolCalls(
            spec=self.spec,
            run_id=self.run_id,
            session_id=self.session_id,
            grant=self.grant,
            journal=journal,
            spans=self.spans,
            emit=self._emit,
            observed=self.observed,
            attempt=self._attempt_number,
        )

    def _emit(self, event: RunEvent | Delta) -> None:
        self.spec.tell(self.run_id, self.session_id, event)

    def _on_delta(self) -> OnDelta | None:
        """Who is to hear the pieces of an answer; None where nobody is, and the model need not stream it."""
        return self._heard if self.spec.wants_pieces(self.run_id, self.session_id) else None

    def _heard(self, delta: Delta) -> None:
        self.wishes.hear(delta)
        self._emit(delta)

"""The public handle on an agent: a name, instructions, a model and tools, that chats in sessions."""

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from functools import partial
from types import UnionType
from typing import Any, Generic, TypeAlias, TypeVar, Unpack, cast, overload

from msgspec.structs import replace

from ..runtime.ref import PendingReply, Ref
from .agent_requests import Resume, StartRun, SubmitRun
from .agent_spec import AgentSpec, RunPolicy
from .approvals import Approver, Verdict, as_decisions
from .budgets import Spending
from .chat_input import ChatInput, as_input
from .chat_options import ChatOptions
from .chat_stream import ChatStream
from .errors import InvalidTransition
from .host import Runtime
from .ids import new_id
from .instructions import Instructions, check_instructions
from .limits import check_agent_name, check_run_id
from .message import Message
from .model import Model, ModelSettings
from .outcomes import key_of
from .output import Output
from .perspective import GO_ON
from .reentry import check_not_held, current_held_turns
from .reply import OutputT, Reply
from .run_record import RunRecord
from .session import Session
from .session_messages import When
from .session_records import SessionDefaults
from .submission import Submission
from .tools import Tool, ToolFunction, ToolSet
from .turns import Overlap, check_overlap
from .window import Window

__all__ = ["Agent"]

OtherForm: TypeAlias = UnionType | dict[str, Any] | Output
"""Forms of an answer whose type a type checker cannot tell."""

FormT = TypeVar("FormT")


class Agent(Generic[OutputT]):
    """An agent. It may work in many sessions at once; in one session, one turn at a time.

    Args:
        name: who its messages are by.
        instructions: sent first in each call and not stored: text, a Template over the session's metadata, or a
            function of an InstructionContext.
        model: what answers. Make one and share it between agents: it holds the connections. Closed with the runtime.
        session: where it chats, unless `chat` names another.
        runtime: needed only without a session.
        tools: annotated functions that the model may call.
        settings: temperature and the like.
        policy: how often and how long a run is tried.
        output: what answers are to be, as a type that msgspec knows (a Struct, a dataclass, a TypedDict, list[...])
            or as a JSON schema (a dict; needs the extra `jsonschema`). `reply.output` is then of it: the server is
            told, the answer is checked here, and one that is wrong goes back to the model up to
            RunPolicy.output_repairs_max times. None: answers are free.
        approver: decides on tool calls that must be approved, while the turn waits. Without one such a run pauses, see
            `resume`.
        window: how much of a conversation its model sees, instead of what the session's handle says.

    Raises:
        TypeError, ValueError: an argument is no good; the message says what would be.
    """

    def __init__(
        self,
        name: str,
        *,
        model: Model,
        instructions: Instructions = "",
        session: Session | None = None,
        runtime: Runtime | None = None,
        tools: Iterable[ToolFunction | Tool] = (),
        settings: ModelSettings | None = None,
        policy: RunPolicy | None = None,
        output: type[OutputT] | OtherForm | None = None,
        approver: Approver | None = None,
        window: Window | None = None,
    ) -> None:
        kinds = {"session": Session, "runtime": Runtime, "settings": ModelSettings, "policy": RunPolicy}
        parts = dict(zip(kinds.items(), (session, runtime, settings, policy), strict=True))
        _check_parts(model, tools, parts | {("window", Window): window})
        if session is None and runtime is None:
            raise TypeError("an Agent needs a session=, or a runtime= to work without one")
        owner = session.runtime if session is not None else runtime
        assert owner is not None
        self._runtime: Runtime = owner
        if session is not None and runtime is not None and runtime is not session.runtime:
            raise ValueError("the session belongs to another runtime than runtime=: leave runtime= out")
        self._session = session
        self._spec = AgentSpec(
            name=check_agent_name(name),
            instructions=check_instructions(instructions),
            model=model,
            tools=ToolSet(tools),
            settings=settings or ModelSettings(),
            policy=policy or RunPolicy(),
            output=None if output is None else Output.of(output),
            session_of=partial(Session, owner),
            approver=_checked_approver(approver),
            boards=owner.boards,
            listeners=owner.feeds,
            observers=owner.run_observers,
            meters=owner.token_meters,
            window=window,
        )
        self._spec.check_priced(self._spec.policy.budget)
        self._ref: Ref = self._runtime.agent_actor(self._spec, self._runtime.next_agent_key(name))

    def __repr__(self) -> str:
        return f"<Agent {self.name!r}>"

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def runtime(self) -> Runtime:
        """Where it works."""
        return self._runtime

    @property
    def session(self) -> Session | None:
        """Where it chats, unless `chat` names another; None where it has no session of its own."""
        return self._session

    def with_tools(self, *tools: ToolFunction | Tool) -> "Agent[OutputT]":
        """The same agent, of the same name, that has these tools too; this one stays as it is.

        Raises:
            TypeError, ValueError: as with `tools=`.
        """
        has = [tool for name in self._spec.tools.names if (tool := self._spec.tools.get(name)) is not None]
        other = copy.copy(self)
        other._spec = dataclasses.replace(self._spec, tools=ToolSet([*has, *tools]))
        other._ref = self._runtime.agent_actor(other._spec, self._runtime.next_agent_key(self.name))
        return other

    @overload
    async def chat(
        self, messages: ChatInput, *, output: None = None, **options: Unpack[ChatOptions]
    ) -> Reply[OutputT]: ...

    @overload
    async def chat(
        self, messages: ChatInput, *, output: type[FormT], **options: Unpack[ChatOptions]
    ) -> Reply[FormT]: ...

    @overload
    async def chat(self, messages: ChatInput, *, output: OtherForm, **options: Unpack[ChatOptions]) -> Reply[Any]: ...

    async def chat(
        self, messages: ChatInput, *, output: type[Any] | OtherForm | None = None, **options: Unpack[ChatOptions]
    ) -> Reply[Any]:
        """Answer in one turn: the input and all that the run wrote become history together, or not at all.

        Args:
            messages: a user's text, a message, or several; or GO_ON: the agent answers what history ends with.
            session: instead of the agent's own.
            overlap: what happens where a turn runs already, instead of the session's own way. At most 1 000 may wait in
                one session. What becomes of an input is reported by `Delivered` events.
                "queue": behind it, in the order of the calls.
                "reject": Busy.
                "merge": behind it; inputs to this agent that wait side by side are answered together, in one turn.
                "debounce": as "merge", and also where no turn runs: once no further input came for
                `Session(debounce_s=)` seconds.
                "latest": behind it; a newer one takes the place of an older one to this agent, which is Superseded.
                "interrupt": next, and the turn that runs is stopped; what it has written stays, marked as interrupted.
                "rollback": next, and the turn that runs is stopped and leaves nothing.
                "steer": into it, before its next model call, whichever agent's it is; or behind it, where there is
                none. The reply is that of the run that took it in, whose end is its end too: `retry` of that run asks
                both again.
            key: an idempotency key of yours. Sent again with it, the same input of the same agent is not run again: the
                call joins the run under way, or gets the stored outcome, or the run goes on where it was interrupted,
                for as long as `Runtime(outcomes_kept_s=)` says.
            spending: a budget that this run shares with others. RunPolicy.budget is that of each run alone.
            keep_input: where the turn ends without an answer (failed, cancelled, interrupted, paused), its input stands
                in history all the same; once, however often it is retried or resumed.
            output: what the answer is to be, instead of the agent's own. Make an often used JSON schema once, by
                Output.of(schema): its check takes milliseconds. Types are remembered.

        Returns: the reply; it is durable.

        Raises:
            RunFailed: the run is marked failed (cancelled, by `cancel_run`) with the reason, the cause is chained;
                history is as before the turn (but see `keep_input`), and `retry` tries again.
                It is BudgetExceeded where a budget is spent.
                It is BadOutput where the model could not give what `output` asks for, Refusal where it would not.
            ApprovalRequired: the run waits, stored, for verdicts on calls of it; history is as before the turn.
            UnknownSession: the session was deleted meanwhile.
            Busy: with "reject", or where 1 000 wait already. Superseded: see `overlap`.
            KeyReused: the key stands for another request.
            CyclicAsk: called, directly or through other agents, by a tool that works in a turn of the very session; or
                in a turn that others wait for, which have the session's turn or come before this one.
            Rejected: it did not run.
            TypeError, ValueError: the input is no good.

        Cancellation: the model call is cut off at once, the run is marked cancelled, history is as before the turn;
            only where the commit of the whole turn was on its way already, the turn is stored. A run that others wait
            for too, by its key or because their input was merged into it, goes on.
        """
        return await self._start(self._chat_request(messages, output=output, **options)).wait()

    @overload
    def stream(
        self, messages: ChatInput, *, output: None = None, **options: Unpack[ChatOptions]
    ) -> "ChatStream[OutputT]": ...

    @overload
    def stream(
        self, messages: ChatInput, *, output: type[FormT], **options: Unpack[ChatOptions]
    ) -> "ChatStream[FormT]": ...

    @overload
    def stream(
        self, messages: ChatInput, *, output: OtherForm, **options: Unpack[ChatOptions]
    ) -> "ChatStream[Any]": ...

    def stream(
        self, messages: ChatInput, *, output: type[Any] | OtherForm | None = None, **options: Unpack[ChatOptions]
    ) -> "ChatStream[Any]":
        """Like `chat`, with its events as they come: `async with agent.stream("...") as stream: async for event in
        stream: ...`, and then `stream.reply`. Left early, the run is cancelled."""
        return ChatStream(self._spec, self._chat_request(messages, output=output, **options), self._start)

    async def submit(self, messages: ChatInput, **options: Unpack[ChatOptions]) -> Submission[OutputT]:
        """Have the input answered by and by: returns once it is stored that it will be.

        The run goes on whatever becomes of the caller. One that its process did not live to end is marked as
        interrupted, and goes on with `resume`, or with the same input and key. Within a turn, too, nothing waits for
        it.

        Args:
            messages, options: as with `chat`; the agent needs a session. With a key that is known, the submission is of
                the run that has it. One that the session cannot give a turn ends as interrupted, and can go on.

        Raises:
            Rejected, Failed: it is not stored; Busy, too. Unknown: it may be; submit it again with the same key.
            KeyReused, TypeError, ValueError: as with `chat`.
        """
        request = self._chat_request(messages, output=None, waits=False, **options)
        if request.session_id is None:
            raise TypeError("what is submitted is stored in a session: give the Agent one, or pass session=")
        run_id = await self._ref.ask(SubmitRun(request), timeout_s=math.inf)
        return Submission(self._spec, self._runtime.session_actor(request.session_id), run_id)

    def submission(self, run_id: str, *, session: Session | None = None) -> Submission[OutputT]:
        """The submission of this run, in whatever process it was made. Whether there is such a run, its calls say."""
        session = self._checked_session(session)
        if session is None:
            raise TypeError("a run is looked for in its session: give the Agent one, or pass session=")
        return Submission(self._spec, self._runtime.session_actor(session.id), check_run_id(run_id))

    @overload
    async def resume(
        self,
        run_id: str,
        *,
        approve: Verdict | Mapping[str, Verdict] | None = None,
        session: Session | None = None,
        spending: Spending | None = None,
        output: None = None,
    ) -> Reply[OutputT]: ...

    @overload
    async def resume(
        self,
        run_id: str,
        *,
        approve: Verdict | Mapping[str, Verdict] | None = None,
        session: Session | None = None,
        spending: Spending | None = None,
        output: type[FormT],
    ) -> Reply[FormT]: ...

    @overload
    async def resume(
        self,
        run_id: str,
        *,
        approve: Verdict | Mapping[str, Verdict] | None = None,
        session: Session | None = None,
        spending: Spending | None = None,
        output: OtherForm,
    ) -> Reply[Any]: ...

    async def resume(
        self,
        run_id: str,
        *,
        approve: Verdict | Mapping[str, Verdict] | None = None,
        session: Session | None = None,
        spending: Spending | None = None,
        output: type[Any] | OtherForm | None = None,
    ) -> Reply[Any]:
        """Go on with a run that waits for approvals, or that was interrupted: in a turn of its own, behind others.

        It begins with its input and what was journaled, after all that others wrote meanwhile. A tool call that has a
        result is not repeated. One that was cut off is where its tool is `repeatable`, else the model reads that.

        Args:
            run_id: of a run of an agent of this name, in whatever process it ran.
            approve: what becomes of the calls that wait: True, False or Denied("why") for all of them, or for each by
                its call id. Those that are left out go on waiting, or are up to the agent's `approver`.
            session: instead of the agent's own.
            spending, output: as with the `chat` that began it, which are not stored.

        Raises:
            UnknownRun: the session has none of this id.
            InvalidTransition: it has ended, runs, or went on since; nothing changed.
            Corrupt: its journal cannot be read: which calls had an effect is not known. It can be cancelled.
            TypeError, ValueError: `approve` is no verdict, or names a call that does not wait; the run is another
                agent's.
            and all that `chat` raises.

        Cancellation: as `chat`; before its turn has come, the run waits as before.
        """
        session, record = await self._own_run(run_id, session, "resumed")
        resume = Resume(record.turn, as_decisions(approve, record.pending))
        request = self._start_run(run_id, (), session, "queue", output=output, resume=resume)
        return await self._start(replace(request, spending=self._checked_spending(spending))).wait()

    @overload
    async def retry(self, run_id: str, *, output: None = None, **options: Unpack[ChatOptions]) -> Reply[OutputT]: ...

    @overload
    async def retry(self, run_id: str, *, output: type[FormT], **options: Unpack[ChatOptions]) -> Reply[FormT]: ...

    @overload
    async def retry(self, run_id: str, *, output: OtherForm, **options: Unpack[ChatOptions]) -> Reply[Any]: ...

    async def retry(
        self, run_id: str, *, output: type[Any] | OtherForm | None = None, **options: Unpack[ChatOptions]
    ) -> Reply[Any]:
        """Ask again what a run was asked that failed, was cancelled or interrupted: in a new run, from the beginning.

        Its tools run again; to go on with an interrupted run where it was, `resume` it. Where the input stands in
        history already (`keep_input`), it is not put there again, however often this is called, and the model reads it
        last. What a run has left there in part stays, and is followed by the input.

        Args:
            run_id: of a run of an agent of this name, in whatever process it ran.
            output, options: as with `chat`; `keep_input` is as it was.

        Returns: the reply. Its run's record has `retry_of`, the first run with this input.

        Raises:
            UnknownRun: the session has none of this id.
            InvalidTransition: the run has not ended, or was completed.
            ValueError: the run is another agent's; or was interrupted after it had taken input in: resume it.
            and all that `chat` raises. Cancellation: as `chat`.
        """
        session, record = await self._own_run(run_id, options.get("session"), "retried")
        if record.is_open or record.status == "completed":
            raise InvalidTransition(run_id, status=record.status, wanted="retried")
        options["session"] = session
        options.setdefault("keep_input", record.keep_input)
        if record.input_seq and record.heard:
            raise ValueError(f"run {run_id!r} took input in before it was cut off: agent.resume({run_id!r}) goes on")
        request = self._chat_request((*record.input, *record.heard) or GO_ON, output=output, **options)
        return await self._start(replace(request, retry_of=record.retry_of or record.id)).wait()

    async def cancel_run(
        self,
        run_id: str,
        *,
        session: Session | None = None,
        reason: str = "cancelled by hand",
        when: When = "now",
        keep_partial: bool = False,
    ) -> bool:
        """`Session.cancel_run`, in the agent's session or another."""
        session = self._checked_session(session)
        if session is None:
            raise TypeError("a run is cancelled in its session: give the Agent one, or pass session=")
        return await session.cancel_run(run_id, reason=reason, when=when, keep_partial=keep_partial)

    def _start(self, request: StartRun) -> PendingReply[Reply]:
        def send() -> PendingReply[Reply]:
            # No deadline here: the run has its own, and so has each turn before it.
            return self._ref.ask_nowait(request, timeout_s=math.inf)

        return send() if request.wait is None else request.wait.sent(send, f"the chat with agent {self.name!r}")

    async def _own_run(self, run_id: str, session: Session | None, what: str) -> tuple[Session, RunRecord]:
        session = self._checked_session(session)
        if session is None:
            raise TypeError(f"a run is {what} in its session: give the Agent one, or pass session=")
        record = await session.run(run_id)
        if record.agent != self.name or record.manual:
            by_hand = record.manual or not record.agent
            whose = "was made by hand" if by_hand else f"is one of agent {record.agent!r}"
            raise ValueError(f"run {run_id!r} {whose}, not of agent {self.name!r}")
        return session, record

    def _checked_session(self, session: Session | None) -> Session | None:
        if session is not None and not isinstance(session, Session):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"session= must be a Session, not {session!r}: Session(runtime, {session!r})")
        session = session or self._session
        if session is not None and session.runtime is not self._runtime:
            raise ValueError(f"session {session.id!r} belongs to another runtime than agent {self.name!r}")
        return session

    def _chat_request(
        self,
        messages: ChatInput,
        *,
        output: type | OtherForm | None,
        waits: bool = True,
        session: Session | None = None,
        overlap: Overlap | None = None,
        key: str | None = None,
        spending: Spending | None = None,
        keep_input: bool = False,
        **unknown: object,
    ) -> StartRun:
        if unknown:
            there = ", ".join(["output", *ChatOptions.__annotations__])
            raise TypeError(f"a chat has no option {next(iter(unknown))!r}; it has {there}")
        session, run_id = self._checked_session(session), new_id("run", time.time_ns() // 1_000_000)
        said = tuple(as_input(messages, in_session=session is not None))
        if key is not None and session is None:
            raise TypeError("key= needs a session, which keeps what came of it")
        policy = check_overlap(overlap) if overlap is not None else "queue" if session is None else session.overlap
        request = self._start_run(run_id, said, session, policy, output=output, waits=waits)
        if spending is None and not keep_input and key is None and policy == "queue":
            return request
        return replace(
            request,
            key=key_of(key, self.name, said) if key is not None else None,
            quiet_s=session.debounce_s if session is not None else 0.0,
            spending=self._checked_spending(spending),
            keep_input=bool(keep_input),
        )

    def _checked_spending(self, spending: object) -> Spending | None:
        if spending is not None and not isinstance(spending, Spending):
            raise TypeError(f"spending= must be a Spending, as in Spending(Budget(tokens=50_000)), not {spending!r}")
        self._spec.check_priced(None if spending is None else spending.budget)
        return spending

    def _start_run(
        self,
        run_id: str,
        messages: tuple[Message, ...],
        session: Session | None,
        overlap: Overlap,
        *,
        output: type | OtherForm | None,
        resume: Resume | None = None,
        waits: bool = True,
    ) -> StartRun:
        """`waits` says whether the caller, and so the turn that it may have, waits for the run."""
        waits = waits and session is not None and overlap != "reject"
        if waits:
            assert session is not None
            check_not_held(session.id, f"the chat with agent {self.name!r}")
        return StartRun(
            run_id=run_id,
            input=messages,
            session_id=session.id if session is not None else None,
            overlap=overlap,
            defaults=session.defaults if session is not None else SessionDefaults(),
            within=current_held_turns() if waits or session is None or overlap == "reject" else (),
            wait=self._runtime.turn_waits.wait(session.id) if session is not None and waits else None,
            output=None if output is None else Output.of(output),
            resume=resume,
            window=self._spec.window or (session.window if session is not None else None),
        )


def _check_parts(model: object, tools: object, parts: Mapping[tuple[str, type], object]) -> None:
    """Raises TypeError where something is not what an Agent is made of: callers need not have a type checker."""
    if not all(callable(getattr(model, method, None)) for method in ("complete", "aclose")):
        raise TypeError(f'model= must be a Model, as in model=OpenAIChat(model="gpt-4o"), not {model!r}')
    name: object = getattr(model, "name", None)
    if not isinstance(name, str) or name.encode(errors="replace").decode() != name:
        raise TypeError(f"the model's name must be a text that can be stored, not {name!r}")
    if callable(tools):
        raise TypeError("tools= must be a list of functions, as in tools=[look_up]")
    for (what, kind), value in parts.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{what}= must be a {kind.__name__}, not {value!r}")


def _checked_approver(approver: object) -> Approver | None:
    if approver is not None and not callable(approver):
        raise TypeError(f"approver= must be an async function of an ApprovalRequest, not {approver!r}")
    return cast("Approver | None", approver)

"""The journal of one turn as its run writes it: nothing may happen before the entry that says so is stored.

Calls that settle while an entry is on its way are gathered into the next one, so that many that run side by side cost
two waits for the disk, not one each. A run without a session has no store: its journal is its progress alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio

from ..runtime.ref import Ref
from .errors import RunFailed
from .limits import check_metadata
from .message import Message, Usage
from .persistence import persist
from .progress import Progress
from .session_messages import RecordStep, TakeInput
from .session_records import Step
from .turn_state import NO_STATE, TurnState

__all__ = ["Journal"]


@dataclass(slots=True, eq=False)
class _Gathered:
    """What the next entry will say."""

    begun: list[int] = field(default_factory=list[int])
    settled: dict[int, Message] = field(default_factory=dict[int, Message])
    stored: bool = False


class Journal:
    """Writes for one run, in the turn that it has now. `state` is the turn's state as tools see and change it, `scopes`
    that of session, user and app.

    Raises (all methods):
        RunFailed: a tool put something into `state` that cannot be stored.
        CallboardError: the session or its store refuses. What the entry says must then not happen.
    """

    def __init__(self, run_id: str, turn: int, session: Ref | None, progress: Progress) -> None:
        self._run_id = run_id
        self._turn = turn
        self._session = session
        self._writing = anyio.Lock(fast_acquire=True)
        self._gathered = _Gathered()
        self._in_doubt = False
        self.progress = progress
        self.state: dict[str, Any] = check_metadata(progress.state, what="state")
        self.scopes: TurnState = NO_STATE

    async def answered(self, answer: Message, *, begun: Iterable[int], usage: Usage, span: int = 0) -> None:
        """An answer that asks for calls came, in the span of this number; these of them begin when this returns."""
        await self._write(messages=(answer,), begun=tuple(begun), usage=usage, span=span)

    async def begun(self, index: int) -> None:
        """This call of the latest answer begins when this returns."""
        self._gathered.begun.append(index)
        await self._flush(self._gathered)

    async def settled(self, index: int, result: Message) -> None:
        """This call of the latest answer has its result, once this returns."""
        self._gathered.settled[index] = result
        await self._flush(self._gathered)

    async def heard(self, answer: Message | None, usage: Usage) -> bool:
        """Take in what was said meanwhile, behind this answer, which is journaled with it; False where nothing was."""
        progress = self.progress
        if self._session is None:
            return False
        async with self._writing:
            self._enter_doubt()
            take = TakeInput(self._run_id, self._turn, progress.entries + 1, answer, usage)
            said = await self._session.ask(take)
            self._in_doubt = False
        if said:
            answers = (answer,) if answer is not None else ()
            progress.take(Step(progress.entries + 1, answers, input=said, usage=usage))
        return bool(said)

    async def _flush(self, gathered: _Gathered) -> None:
        async with self._writing:
            if gathered.stored:
                return  # somebody else has written it
            self._gathered = _Gathered()
            await self._write(begun=tuple(gathered.begun), settled=gathered.settled)
            gathered.stored = True

    async def _write(
        self,
        *,
        messages: tuple[Message, ...] = (),
        begun: tuple[int, ...] = (),
        settled: dict[int, Message] | None = None,
        usage: Usage | None = None,
        span: int = 0,
    ) -> None:
        progress = self.progress
        try:
            state = check_metadata(self.state, what="context.state") if self.state else {}
            deltas = self.scopes.deltas()
        except (TypeError, ValueError) as error:
            raise RunFailed(self._run_id, f"a tool's state cannot be stored: {error}") from error
        step = Step(
            progress.entries + 1,
            messages,
            begun=begun,
            settled=settled or {},
            state=state if state != progress.state else None,
            deltas=deltas if deltas != progress.deltas else None,
            usage=usage,
            span=span,
        )
        if self._session is not None:
            self._enter_doubt()
            session = self._session
            await persist(lambda: session.ask(RecordStep(self._run_id, self._turn, step)))
            self._in_doubt = False
        progress.take(step)

    def _enter_doubt(self) -> None:
        """Cut off from here on, nobody knows whether the entry is stored; another of its number would be taken for
        it."""
        if self._in_doubt:
            raise RunFailed(self._run_id, "its journal was cut off in the middle of an entry")
        self._in_doubt = True

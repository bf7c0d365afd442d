"""A run that the user drives by hand: `run = await session.create_run()`, then start, and complete or fail."""

from ..runtime.ref import Ref
from .ledger import RunEnd
from .limits import reason_of
from .message import Usage
from .run_record import RunRecord, RunStatus, check_usage
from .session_messages import MoveRun, ReadRun

__all__ = ["Run"]


class Run:
    """A handle on one run. What it shows is as of the last call made with it; `refresh` looks again."""

    def __init__(self, session: Ref, record: RunRecord) -> None:
        self._session = session
        self._record = record

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def status(self) -> RunStatus:
        """queued, running, waiting, completed, failed, cancelled, interrupted."""
        return self._record.status

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from its start to its end; None while it has not ended. Time before the start does not count."""
        return self._record.duration_ms

    @property
    def record(self) -> RunRecord:
        """All that is stored about it."""
        return self._record

    async def start(self) -> None:
        """It runs from now on.

        Raises:
            InvalidTransition: it ran already, or has ended. It stays as it is; so with the methods below.
        """
        await self._move(RunEnd("running"))

    async def complete(self, *, tokens_used: int = 0, usage: Usage | None = None) -> None:
        """It has ended well. Give `usage`, or only the sum of tokens."""
        await self._move(RunEnd("completed", usage=check_usage(usage or Usage(total_tokens=tokens_used))))

    async def fail(self, error: BaseException | str) -> None:
        """It has failed, and this is why."""
        reason = reason_of(error) if isinstance(error, BaseException) else error
        if not isinstance(reason, str) or not reason:  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise ValueError("a run fails with a reason: pass an exception or a text that is not empty")
        await self._move(RunEnd("failed", reason))

    async def cancel(self, reason: str = "cancelled by hand") -> None:
        """It was given up."""
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a reason must be a string, not {reason!r}")
        await self._move(RunEnd("cancelled", reason))

    async def refresh(self) -> None:
        """Look at what is stored now."""
        self._record = await self._session.ask(ReadRun(self.id))

    async def _move(self, end: RunEnd) -> None:
        self._record = await self._session.ask(MoveRun(self.id, end))

"""Who waits for what in a session: for a turn, for the outcome of a run, for the end of one that is being stopped.

A run has one caller that began it, and any number of followers: those whose input was merged or taken into it, that
repeated its key, or that ask for its outcome by its id. It goes on as long as one of them wants it; so its agent is
told how many there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from ..runtime.envelope import Request
from ..runtime.identity import ActorId
from .errors import UnknownRun, UnknownSession
from .outcomes import Key, Outcomes
from .quiet import Quiet
from .reply import Delivered, DeliveredAs
from .run_record import RunRecord
from .session_messages import AcceptRun, BeginTurn, Followers, Joined, Resumed, RunOutcome, Unfollow, WaitRun
from .session_reads import ReadableSession
from .turns import Entry, TurnQueue

__all__ = ["WaitedSession", "Waiting", "agent_of", "as_retry", "begun"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits for a turn, or has it: the reply that is owed, for what, and the agent that sent it.

    `apply` is what a turn of one step does, given its number: it changes the ledger and returns the reply.
    None in the place of all this: the turn ran before the session was loaded anew.
    """

    ticket: Ticket
    message: Request[Any]
    sender: ActorId | None
    resumed: Resumed | None = None
    apply: Callable[[int, Context], Any] | None = None


def agent_of(entry: Entry[Waiting | None]) -> ActorId | None:
    """Who drives the run of an entry; None where code outside of actors does, or it had its turn before the session
    was loaded anew."""
    return entry.payload.sender if entry.payload is not None else None


def begun(entry: Entry[Waiting | None]) -> BeginTurn:
    """What was asked for by an entry that is to begin a run."""
    assert entry.payload is not None
    assert isinstance(entry.payload.message, BeginTurn)
    return entry.payload.message


def as_retry(run: RunRecord, before: RunRecord | None) -> RunRecord:
    """A run that has the key of one that was cancelled: it tries that again, whose input may stand in history."""
    if before is None or run.retry_of or before.input != run.input:  # it was merged with others, or taken into another
        return run
    return replace(run, retry_of=before.retry_of or before.id)


class WaitedSession(ReadableSession):
    """See the module's text. `turns` says who may extend the conversation now, and who waits for that."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.turns: TurnQueue[Waiting | None] = TurnQueue()
        self.quiet: Quiet[Waiting | None] = Quiet()
        self.outcomes: Outcomes
        self.stopping: dict[str, list[Ticket]] = {}  # by run: who waits for its end
        self._waits: dict[str, list[tuple[Ticket, WaitRun]]] = {}  # by run: who waits for its outcome
        self._followers: dict[str, set[str]] = {}

    @handles(WaitRun, retryable=True, on_cancel="cancel")
    def wait_run(self, message: WaitRun, context: Context) -> Ticket | RunOutcome:
        """Answer with the outcome of a run, now or when there is one. UnknownRun where there is no such run."""
        record = self.answering(message.run_id)
        run_id = record.id
        if self._has_outcome(record):
            self._drop_follower(run_id, message.follower, context)
            return self._outcome(record)
        ticket = context.defer()
        self._waits.setdefault(run_id, []).append((ticket, message))
        self.follow(record, message.follower, context)
        return ticket

    @handles(Unfollow)
    def unfollow(self, message: Unfollow, context: Context) -> None:
        """Somebody does not wait for this run any more."""
        self._drop_follower(message.run_id, message.follower, context)

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for the outcome of a run."""
        return bool(self._waits)

    # For the other halves -------------------------------------------------------------------------------------------

    def record_of(self, run_id: str) -> RunRecord:
        """A run as it is staged. UnknownRun where there is none."""
        return self.ledger.runs.get(run_id) or self.ledger.ended.get(run_id) or self.archive.run(self.id.key, run_id)

    def follower_count(self, run_id: str) -> int:
        """How many want the run beside its own caller: those that wait for it, and whoever submitted it."""
        record = self.ledger.runs.get(run_id) or self.ledger.ended.get(run_id)
        return len(self._followers.get(run_id, ())) + (record is not None and record.submitted)

    def answering(self, run_id: str) -> RunRecord:
        """The run that has the answer of this one, or will have: another, where its input was merged or taken in."""
        record = self.record_of(run_id)
        while record.joined:
            record = self.record_of(record.joined)
        return record

    def keyed(self, key: Key, run_id: str, *, at_ms: int) -> RunRecord | None:
        """The run, other than this, that has this key; None where there is none. KeyReused where it was asked another
        thing."""
        outcome = self.outcomes.find(key, at_ms=at_ms)
        if outcome is None or outcome.run_id == run_id:
            return None
        try:
            return self.answering(outcome.run_id)
        except UnknownRun:
            return None

    def remember(self, key: Key, run_id: str, *, at_ms: int) -> None:
        """Store which run answers a key, with what is staged for it."""
        self.ledger.put(self.outcomes.rows(self.outcomes.note(key, run_id, at_ms=at_ms), at_ms=at_ms))

    def follow(self, record: RunRecord, follower: str, context: Context) -> None:
        """Let somebody want a run, beside its own caller, until it has an outcome."""
        if self._has_outcome(record):
            return
        followers = self._followers.setdefault(record.id, set())
        if follower not in followers:
            followers.add(follower)
            self._tell_followers(record.id, context)

    def keep_going(self, message: AcceptRun, found: RunRecord, context: Context) -> None:
        """What is submitted is answered by a run that there is: it goes on without its caller, and that is stored with
        what is staged next."""
        assert message.key is not None
        if self._has_outcome(found) or found.submitted:
            return
        head, at_ms = self.ledger.head, context.wall_ms()
        if found.status == "queued" and (head is None or found.id not in head.queued_runs):
            self.ledger.ensure(message.defaults, at_ms=at_ms)
            self.ledger.accept_run(found, at_ms=at_ms)
            self.remember(message.key, found.id, at_ms=at_ms)
        else:
            self.ledger.note_submitted(found)
        self._tell_followers(found.id, context)

    def join(self, begin: BeginTurn, ticket: Ticket, record: RunRecord, *, how: DeliveredAs, context: Context) -> None:
        """Answer a request for a turn with another run, which it follows from now on."""
        self.follow(record, begin.run.id, context)
        ticket.reply(self.joined(record, how))
        self.show_delivered(begin, Delivered(begin.run.id, how, into=record.id))

    def joined(self, record: RunRecord, how: DeliveredAs = "joined") -> Joined:
        """The answer to a request that this run answers. One that waits to go on is as good as queued."""
        held = not record.is_open and self.turns.holds(record.id)
        return Joined(record.id, "queued" if held else record.status, record.turn, how)

    def show_delivered(self, begin: BeginTurn, delivered: Delivered) -> None:
        """Let those who read the session along know what became of an input that does not begin a turn at once."""
        board = self.boards.find(self.id.key) if self.boards else None
        if board is not None:
            board.put(begin.run.id, begin.run.agent, delivered)

    def settle_waits(self, context: Context) -> None:
        """Answer those who wait for runs that have an outcome now; call it with what makes it so staged."""
        if not self._waits and not self._followers:
            return
        for run_id in list(self._waits):
            try:
                record = self.record_of(run_id)
            except UnknownRun as error:  # lost: nobody else is to suffer from that
                for ticket, _ in self._waits.pop(run_id):
                    ticket.fail(error)
                continue
            if record.joined:
                waits = self._waits.pop(run_id)
                self._waits.setdefault(record.joined, []).extend(waits)
                joined = self.record_of(record.joined)
                for _, wait in waits:
                    self.follow(joined, wait.follower, context)
            elif self._has_outcome(record):
                self.settle_wait(record)
        wanted = {run_id for run_id in self._followers if run_id in self.ledger.runs or self.turns.holds(run_id)}
        for run_id in self._followers.keys() - wanted:
            del self._followers[run_id]

    def settle_wait(self, record: RunRecord) -> None:
        """Answer those who wait for this run, which has an outcome."""
        for ticket, _ in self._waits.pop(record.id, ()):
            ticket.reply(self._outcome(record))

    def fail_waits(self) -> None:
        """The session was deleted."""
        for run_id, waits in self._waits.items():
            for ticket, _ in waits:
                ticket.fail(UnknownSession(f"session {self.id.key!r} was deleted while this waited for run {run_id!r}"))
        self._waits.clear()
        self._followers.clear()

    def give_up_wait(self, message: WaitRun, context: Context) -> None:
        """The caller of a WaitRun has gone."""
        for run_id, waits in list(self._waits.items()):
            left = [(ticket, each) for ticket, each in waits if each != message]
            if len(left) < len(waits):
                self._drop_follower(run_id, message.follower, context)
            if left:
                self._waits[run_id] = left
            else:
                del self._waits[run_id]

    def tell_stopped(self, run_id: str) -> None:
        """Answer those who wait for the end of a run that was to be stopped."""
        for ticket in self.stopping.pop(run_id, ()):
            ticket.reply(True)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _has_outcome(self, record: RunRecord) -> bool:
        """Whether there is something to tell of a run: it has ended, or pauses; and does not wait to go on."""
        return (not record.is_open or bool(record.pending)) and not self.turns.holds(record.id)

    def _outcome(self, record: RunRecord) -> RunOutcome:
        # With what edits have removed since: it is what the run has answered.
        messages = self.history.read_removed_too(record.first_seq, record.last_seq) if record.first_seq else []
        return RunOutcome(record, tuple(messages))

    def _drop_follower(self, run_id: str, follower: str, context: Context) -> None:
        followers = self._followers.get(run_id)
        if followers is not None and follower in followers:
            followers.remove(follower)
            if not followers:
                del self._followers[run_id]
            self._tell_followers(run_id, context)

    def _tell_followers(self, run_id: str, context: Context) -> None:
        running = self.turns.running
        held = self.turns.find(run_id) or self.quiet.find(run_id)
        if running is not None and running.entry.run_id == run_id:
            held = running.entry
        agent = agent_of(held) if held is not None else None
        if agent is not None:
            context.tell(agent, Followers(run_id, self.follower_count(run_id)))

"""What can be asked of a session actor. Frozen values, so that they can cross a process border."""

from collections.abc import Iterable
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from msgspec import Struct

from ..runtime.envelope import MESSAGE_BYTES_DEFAULT, Request
from .approvals import ApprovalRequest, Decisions
from .event_log import EventPage
from .ledger import RunEnd
from .message import Message, Usage
from .outcomes import Key
from .overlay import Overlay
from .reply import Delivered, DeliveredAs
from .run_queries import RunFilter
from .run_record import RunRecord, RunStatus, SpanKind, SpanRecord
from .session_records import SessionDefaults, SessionHead, Step
from .state import StateDelta
from .turns import Overlap
from .window import Excerpt, ExcerptNeed

__all__ = [
    "WHENS",
    "AcceptRun",
    "Append",
    "BeginSpan",
    "BeginTurn",
    "CancelRun",
    "CancelTurn",
    "CloseTurn",
    "CommitOverlay",
    "CreateRun",
    "CreateSession",
    "DeleteSession",
    "Delivery",
    "EndSpan",
    "ExpireSession",
    "Expired",
    "Followers",
    "Grant",
    "Joined",
    "MoveRun",
    "NoteRun",
    "OneStep",
    "PatchMetadata",
    "PauseTurn",
    "ReadEvents",
    "ReadExcerpt",
    "ReadHead",
    "ReadMessages",
    "ReadRun",
    "ReadRuns",
    "ReadSpans",
    "ReadUncovered",
    "RecordStep",
    "ResumeTurn",
    "Resumed",
    "RunOutcome",
    "Settled",
    "Steered",
    "StopRun",
    "TakeInput",
    "TurnRevoked",
    "Uncovered",
    "Unfollow",
    "WaitRun",
    "When",
    "messages_size_bytes",
]


ReplyT = TypeVar("ReplyT")


def messages_size_bytes(messages: Iterable[Message]) -> int:
    """Roughly what these hold in memory, for a mailbox's bound."""
    return sum(MESSAGE_BYTES_DEFAULT + len(message.text) for message in messages)


class Resumed(Struct, frozen=True):
    """What a run that goes on had come to: its record as it was, its journal, and how many spans are stored."""

    record: RunRecord
    steps: tuple[Step, ...]
    spans: int


class Joined(Struct, frozen=True):
    """What a request for a turn is answered where another run has, or will have, the answer to it.

    `turn` is that in which the run was last, `status` what it was; `how` the input came to it.
    """

    run_id: str
    status: RunStatus
    turn: int
    how: DeliveredAs = "joined"


class RunOutcome(Struct, frozen=True):
    """What became of a run: its record, which has ended or waits for approvals, and what it added to history."""

    record: RunRecord
    messages: tuple[Message, ...]


class Grant(Struct, frozen=True):
    """The exclusive right to extend the conversation, with what it looked like when the turn began.

    `excerpt` is history, or what a window needs of it. `input` is that of the run, with what was merged into it;
    `input_seq` is where it stands in history already, or 0. `followers` is how many callers beside its own wait for the
    run.
    """

    turn: int
    excerpt: Excerpt
    metadata: dict[str, Any]
    resumed: Resumed | None = None
    input: tuple[Message, ...] = ()
    followers: int = 0
    input_seq: int = 0


class AcceptRun(Request[Joined | None], frozen=True):
    """Store this run, which will ask for a turn. Answered once that is durable, with a run that has its key already."""

    run: RunRecord
    key: Key | None
    defaults: SessionDefaults
    overlap: Overlap

    def size_bytes(self) -> int:
        return messages_size_bytes(self.run.input)


class BeginTurn(Request[Grant | Joined], frozen=True):
    """Ask for a turn; answered when it is granted, or when the run was merged into another, taken in by another, or is
    found to repeat another.

    `quiet_s` is for the policy "debounce": how long no further input may have come. `accepted`: see AcceptRun.
    `need` is what of history is wanted with the turn; None: all of it.
    """

    run: RunRecord
    overlap: Overlap
    defaults: SessionDefaults
    quiet_s: float = 0.0
    key: Key | None = None
    accepted: bool = False
    need: ExcerptNeed | None = None

    def size_bytes(self) -> int:
        return messages_size_bytes(self.run.input)


class ResumeTurn(Request[Grant], frozen=True):
    """Ask for another turn, for a run that paused or was interrupted; answered when it is granted.

    `turn` is that in which it ran last: the verdicts are on what it waited for then.
    """

    run_id: str
    turn: int
    decisions: Decisions
    need: ExcerptNeed | None = None


class TakeInput(Request[tuple[Message, ...]], frozen=True):
    """Take into the running turn what waits and steers it; answered with the messages.

    They are journaled as the entry of this number, together with the `answer` that they come after, if there is one.
    Where nothing steers, the answer is () and nothing is journaled.
    """

    run_id: str
    turn: int
    number: int
    answer: Message | None
    usage: Usage


class WaitRun(Request[RunOutcome], frozen=True):
    """Answered when the run has ended, or waits for approvals; at once where that is so already.

    `follower` is who wants to know, for a run goes on as long as anybody does.
    """

    run_id: str
    follower: str


class Unfollow(Request[None], frozen=True):
    """Whoever was told to join this run has gone before it asked for the outcome."""

    run_id: str
    follower: str


class RecordStep(Request[None], frozen=True):
    """Keep an entry of the running turn's journal, so that a crash loses at most what came after it."""

    run_id: str
    turn: int
    step: Step

    def size_bytes(self) -> int:
        return messages_size_bytes((*self.step.messages, *self.step.settled.values()))


class NoteRun(Request[None], frozen=True):
    """The run waits before its next attempt, or goes on with it. Shown, not stored."""

    run_id: str
    turn: int
    status: Literal["running", "waiting"]
    attempts: int
    error: str | None


class CloseTurn(Request[list[Message]], frozen=True):
    """End the running turn: the messages become history, together with the run's end. Answered with them as stored.

    Sent again after an answer that was lost, it gives the same answer and changes nothing. `state` is what the turn
    has changed in state, `cut` where its window was cut: the window's name and a place.
    """

    run_id: str
    turn: int
    end: RunEnd
    messages: tuple[Message, ...]
    state: tuple[StateDelta, ...] = ()
    cut: tuple[str, int] | None = None

    def size_bytes(self) -> int:
        return messages_size_bytes(self.messages)


class PauseTurn(Request[None], frozen=True):
    """End the running turn; its run waits for approvals. Sent again after a lost answer, it changes nothing."""

    run_id: str
    turn: int
    end: RunEnd
    pending: tuple[ApprovalRequest, ...]


When: TypeAlias = Literal["now", "after_step", "after_turn"]
"""When a run is stopped: at once, when the model call and the tool calls that it is at are done, or when it has ended
by itself, though no failed attempt is followed by another."""
WHENS: tuple[When, ...] = get_args(When)


class CancelRun(Request[bool], frozen=True):
    """End this run, be it queued, running or paused. Answered, once it has ended, with whether it was open.

    `keep` makes history of what a running one has written so far, marked as interrupted.
    """

    run_id: str
    reason: str
    when: When = "now"
    keep: bool = False


class CancelTurn(Request[bool], frozen=True):
    """The run needs no turn any more: taken out of the queue, or its running turn is ended with this status.

    Answered with whether there was one. Sent again, it does no harm. `status` None is for a run that nobody drives any
    more: interrupted where it was submitted, so that it can go on; else cancelled, as its caller was told.
    """

    run_id: str
    reason: str
    status: Literal["failed", "cancelled", "interrupted"] | None = "cancelled"


class TurnRevoked(Request[None], frozen=True):
    """Sent to an agent: the session of this run is no more. Its turn is over, whatever it does."""

    run_id: str
    session_id: str


class StopRun(Request[None], frozen=True):
    """Sent to an agent: somebody wants this run of it to end. It closes the turn. See CancelRun."""

    run_id: str
    reason: str
    when: When = "now"
    keep: bool = False


class Steered(Request[None], frozen=True):
    """Sent to an agent: input waits that this run may take in, with TakeInput."""

    run_id: str


class Followers(Request[None], frozen=True):
    """Sent to an agent: so many callers beside its own wait for this run."""

    run_id: str
    count: int


class Delivery(Request[None], frozen=True):
    """Sent to an agent: how the input of a run waits that does not begin at once."""

    delivered: Delivered


class OneStep(Request[ReplyT], Generic[ReplyT], frozen=True, gc=False):
    """A turn of a single step: it needs no run, and ends as soon as it was granted.

    `number` tells it from all others that may wait for their turn, see `ids.new_number`.
    """

    number: int


class Append(OneStep[list[Message]], frozen=True, gc=False):
    """Put messages at the end of history. Answered with them as stored."""

    messages: tuple[Message, ...]
    defaults: SessionDefaults

    def size_bytes(self) -> int:
        return messages_size_bytes(self.messages)


class CreateSession(Request[SessionHead], frozen=True):
    """The session's head, made now where there is none."""

    defaults: SessionDefaults


class DeleteSession(Request[bool], frozen=True):
    """Drop the session with all its content; False where there was none."""


Expired: TypeAlias = Literal["deleted", "changed", "running", "gone"]
"""What became of a session that seemed to have expired. All but "deleted": it is as it was."""


class ExpireSession(Request[Expired], frozen=True):
    """Drop the session with all its content if it has not changed since this moment, in milliseconds since 1970, and no
    turn or run of it is under way; with `even_running` those are ended as a DeleteSession ends them."""

    changed_before_ms: int
    even_running: bool = False


class PatchMetadata(Request[dict[str, Any]], frozen=True):
    """Set some keys, remove those whose value is None."""

    patch: dict[str, Any]
    defaults: SessionDefaults


class CreateRun(Request[RunRecord], frozen=True):
    """A run that the user drives."""

    run: RunRecord
    defaults: SessionDefaults


class MoveRun(Request[RunRecord], frozen=True):
    """A run made by hand goes to another status."""

    run_id: str
    end: RunEnd


class ReadEvents(Request[EventPage], frozen=True):
    """The next events behind number `after`, as far as they are committed; None: no events, but the latest number."""

    after: int | None


class BeginSpan(Request[SpanRecord], frozen=True):
    """A piece of work begins in a run made by hand. Answered with its span, which has its number now."""

    run_id: str
    name: str
    kind: SpanKind
    parent: int


class EndSpan(Request[SpanRecord], frozen=True):
    """It has ended so. Answered with the span as stored. Sent again, it is stored again."""

    span: SpanRecord


class ReadHead(Request[SessionHead | None], frozen=True):
    """The head as committed; None where there is no session."""


class ReadMessages(Request[list[Message]], frozen=True):
    """The latest committed messages, or those before a place; oldest first."""

    limit: int | None = None
    before_seq: int | None = None


class ReadExcerpt(Request[Excerpt], frozen=True):
    """What a window needs of the committed history; None for all of it."""

    need: ExcerptNeed | None


class Uncovered(Struct, frozen=True):
    """The committed messages up to a place that no overlay covers, and the overlay that covers those before.

    `message_count` is how many messages there are up to that place, `created_at_ms` when the session was made.
    """

    messages: tuple[Message, ...]
    overlay: Overlay | None
    message_count: int
    created_at_ms: int


class ReadUncovered(Request[Uncovered], frozen=True):
    """What a new summary up to a place is to be made of."""

    last_seq: int


class CommitOverlay(Request[bool], frozen=True):
    """Let a summary stand for the beginning of history, if that is as it was when the summary was begun: nothing was
    taken out of it, no other summary was made, and the session is still the one that was made at `created_at_ms`.

    `earlier_seq` is the last place that the overlay covered which this one was made from; 0 for none. Sent again after
    an answer that was lost, it gives the same answer.
    """

    overlay: Overlay
    earlier_seq: int
    created_at_ms: int


class ReadRuns(Request[list[RunRecord]], frozen=True):
    """The latest runs that are wanted, those in the queue included; oldest first."""

    limit: int | None = None
    wanted: RunFilter = RunFilter()


class ReadRun(Request[RunRecord], frozen=True):
    """One run."""

    run_id: str


class ReadSpans(Request[list[SpanRecord]], frozen=True):
    """The spans of a run that has ended."""

    run_id: str


class Settled(Request[None], frozen=True):
    """Answered once all that the session has staged so far is durable."""

"""What `load.py` was told, compared with what is stored: nothing acknowledged may be missing, doubled or out of order.

    note(line) ── acknowledgements, refusals ──> Ledger <── check(archive) ── the store, read by another process

A check reads of each session only what is newer than the last check has seen, so what it costs is bounded by what was
said meanwhile; it also reads a few sessions anew from their beginning, against what was once there and is no more.
`recount` reads all of them anew, at the end.
"""

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from load_plan import AckLine, ErrorLine, Plan, Said, agent_of, conversation, session_name, turn_of

from callboard import Message, UnknownRun
from callboard.actors.archive import Archive

__all__ = ["FAULTS_OF_TURNS", "Ledger", "as_said"]

FaultOfTurn: TypeAlias = Literal["lost", "doubled", "reordered", "half", "ghost", "hung", "wrong"]

FAULTS_OF_TURNS: dict[FaultOfTurn, str] = {
    "lost": "acknowledged, and not in the store",
    "doubled": "in the store more than once",
    "reordered": "in the store behind a turn that was asked for later",
    "half": "in the store, but not with all its messages, in their places, by one completed run",
    "ghost": "in the store, although its caller was told that it had failed",
    "hung": "never answered",
    "wrong": "answered with what the model has not said",
}
_ANEW = 100
"""Sessions read anew by each check."""
_TOLD_MAX = 20
_FOUND_MAX = 100_000


@dataclass(slots=True)
class _Pending:
    """What was said of a session since the last check: run ids by acknowledged turn, and turns that failed."""

    acknowledged: dict[int, str] = field(default_factory=lambda: dict[int, str]())
    failed: set[int] = field(default_factory=lambda: set[int]())


class Ledger:
    """See the module's text.

    Attributes:
        faults: turns by what is wrong with them; all must be 0.
        told: the first of these, for people.
        errors: chats that got an error, by its name: allowed, as it was told.
        acknowledged: how many turns were.
        begun: sessions that users have gone on to.
        turns: turns seen in the store, of all sessions.
        places: for each user the last session that he was heard in.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._pending: dict[int, _Pending] = defaultdict(_Pending)
        self._seqs = array("I", bytes(4 * plan.stored))
        self._turns = array("I", bytes(4 * plan.stored))
        self._last = array("I", bytes(4 * plan.stored))
        self._skipped: dict[int, set[int]] = defaultdict(set)
        self._found: set[tuple[FaultOfTurn, int, int]] = set()
        self.faults: Counter[FaultOfTurn] = Counter()
        self.told: list[str] = []
        self.errors: Counter[str] = Counter()
        self.acknowledged = 0
        self.begun = 0
        self.places = array("I", range(plan.sessions))

    @property
    def turns(self) -> int:
        return sum(self._turns)

    @property
    def sessions(self) -> int:
        """How many sessions there are by what was seen, those that were stored beforehand included."""
        return sum(map(bool, self._turns))

    def note(self, line: AckLine | ErrorLine) -> None:
        """A chat has ended."""
        user = line.session % self._plan.sessions
        if line.session > self.places[user]:
            self.places[user] = line.session
            self.begun += 1
        pending = self._pending[line.session]
        if isinstance(line, AckLine):
            self.acknowledged += 1
            pending.acknowledged[line.turn] = line.run_id
            return
        if line.kind == "failed":
            pending.failed.add(line.turn)
        if line.kind in ("failed", "unknown"):
            self.errors[line.error] += 1
        else:
            self._fault(line.kind, line.session, line.turn, line.error)

    def check(self, archive: Archive) -> int:
        """Compare what was noted up to now with what is stored; it may be called while the store is written.

        Returns: how many turns are there that were not acknowledged: a kill came between, or soon they are.
        """
        pending, self._pending = self._pending, defaultdict(_Pending)
        unacknowledged = 0
        for session, told in pending.items():
            self._grow(session)
            found = self._read(archive, session)
            self._compare(session, told, found)
            # Those of earlier days are seen for the first time with the visit's first turn.
            visit = found.keys() - range(self._plan.turns_before(session) + 1)
            unacknowledged += len(visit - told.acknowledged.keys())
        for session in self._chance.sample(range(len(self._turns)), min(_ANEW, len(self._turns))):
            self._read_anew(archive, session)
        self._require_sound(archive)
        return unacknowledged

    def recount(self, archive: Archive, *, closed: bool) -> None:
        """Read every session anew. `closed`: the worker has ended in order, so no run may be open."""
        for session in range(len(self._turns)):
            self._read_anew(archive, session)
        if closed and (left := archive.with_open_runs()):
            self._fault(
                "hung", 0, 0, f"runs are open in {len(left)} sessions, {left[:3]}, after the runtime was closed"
            )
        self._require_sound(archive)

    def _compare(self, session: int, told: _Pending, found: dict[int, str]) -> None:
        skipped = self._skipped.get(session, ())
        for turn, run_id in told.acknowledged.items():
            if turn > self._last[session] or turn in skipped:
                self._fault("lost", session, turn)
            elif found.get(turn, run_id) != run_id:
                self._fault("half", session, turn, f"acknowledged as {run_id}, stored as {found[turn]}")
        for turn in told.failed & found.keys():
            self._fault("ghost", session, turn)

    def _read(self, archive: Archive, session: int) -> dict[int, str]:
        """The turns since the last check, with their runs; remembered as seen."""
        messages = _messages(archive, session, after_seq=self._seqs[session])
        found: dict[int, str] = {}
        for turn, run_id in self._whole_turns(archive, session, messages):
            if turn <= self._last[session]:
                kind: FaultOfTurn = "reordered" if turn in self._skipped[session] else "doubled"
                self._fault(kind, session, turn)
                continue
            if turn > self._last[session] + 1:
                self._skipped[session].update(range(self._last[session] + 1, turn))
            self._last[session] = turn
            self._turns[session] += 1
            found[turn] = run_id
        if messages:
            self._seqs[session] = messages[-1].seq
        return found

    def _read_anew(self, archive: Archive, session: int) -> None:
        """All that was ever seen is still there."""
        seen = self._turns[session] or self._plan.turns_before(session)
        messages = _messages(archive, session, after_seq=0)
        turns = [turn for turn, _ in self._whole_turns(archive, session, messages)]
        if len(turns) < seen:
            self._fault("lost", session, self._last[session], f"{len(turns)} turns are there, {seen} were seen once")
        if len(set(turns)) < len(turns):
            self._fault("doubled", session, turns[-1], f"turns {turns}")
        if sorted(turns) != turns:
            self._fault("reordered", session, turns[-1], f"turns {turns}")

    def _whole_turns(self, archive: Archive, session: int, messages: list[Message]) -> Iterator[tuple[int, str]]:
        """The turns that these messages are, with their runs; those that are no whole turns are faults."""
        for group in _by_question(messages):
            asked = turn_of(group[0].text)
            if asked is None or asked[0] != session:
                self._fault("half", session, 0, f"message {group[0].seq} is {group[0].text[:60]!r}")
                continue
            turn = asked[1]
            problem = self._problem(archive, session, turn, group)
            if problem:
                self._fault("half", session, turn, problem)
            yield turn, group[0].run_id or ""

    def _problem(self, archive: Archive, session: int, turn: int, group: list[Message]) -> str:
        expected = list(conversation(session, turn))
        if [as_said(message) for message in group] != expected:
            return f"messages {group[0].seq} to {group[-1].seq} are {[message.role for message in group]}"
        if [message.seq for message in group] != list(range(group[0].seq, group[0].seq + len(group))):
            return f"it stands in places {[message.seq for message in group]}"
        if turn <= self._plan.turns_before(session):
            return ""
        author = f"Clerk {agent_of(session, turn, agents=self._plan.agents)}"
        if group[-1].author != author:
            return f"it was answered by {group[-1].author}, not by {author}"
        return _problem_of_run(archive, session, group)

    def _grow(self, session: int) -> None:
        for numbers in (self._seqs, self._turns, self._last):
            if len(numbers) <= session:
                numbers.extend([0] * (session + 1 - len(numbers)))

    def _require_sound(self, archive: Archive) -> None:
        if archive.damage.count:
            self._fault("half", 0, 0, f"the store has records that cannot be read: {archive.damage.list()[:3]}")

    def _fault(self, kind: FaultOfTurn, session: int, turn: int, more: str = "") -> None:
        if (kind, session, turn) in self._found:
            return  # read anew
        if len(self._found) < _FOUND_MAX:
            self._found.add((kind, session, turn))
        self.faults[kind] += 1
        if len(self.told) < _TOLD_MAX:
            self.told.append(f"turn {turn} of {session_name(session)}: {FAULTS_OF_TURNS[kind]}{more and f': {more}'}")


def as_said(message: Message) -> Said:
    calls = tuple((call.id, call.arguments) for call in message.tool_calls)
    return message.role, message.text, message.tool_call_id or "", calls


def _messages(archive: Archive, session: int, *, after_seq: int) -> list[Message]:
    """What history has behind this place. Of one moment, or later: nothing acknowledged before is left out."""
    head = archive.head(session_name(session))
    if head is None or head.message_count <= after_seq:
        return []
    count = head.message_count
    return archive.messages(session_name(session), limit=count - after_seq, before_seq=count + 1)


def _by_question(messages: list[Message]) -> Iterator[list[Message]]:
    """History cut before each user's message."""
    start = 0
    for place in range(1, len(messages) + 1):
        if place == len(messages) or messages[place].role == "user":
            yield messages[start:place]
            start = place


def _problem_of_run(archive: Archive, session: int, group: list[Message]) -> str:
    runs = {message.run_id for message in group}
    if len(runs) != 1 or group[0].run_id is None:
        return f"it was written by runs {runs}"
    try:
        run = archive.run(session_name(session), group[0].run_id)
    except UnknownRun:
        return f"there is no run {group[0].run_id}"
    if run.status != "completed" or (run.first_seq, run.last_seq) != (group[0].seq, group[-1].seq):
        return f"run {run.id} is {run.status}, with messages {run.first_seq} to {run.last_seq}"
    return ""

"""What a store may show after what a program noted: a model in plain dicts, which follows every possibility at once.

A commit that was answered happened, one that was refused with nothing stored did not, and one that is uncertain, or was
under way when the process died, may have: then both states are possible, until an answer or a look at the store tells.
A store that shows anything else has broken its promises.
"""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import msgspec
from fault_journal import Note

from callboard.store import Batch, Index, Store, Table

BACK_UP = "back up"
"""The step of the scenario that makes one."""

__all__ = ["BACK_UP", "Broken", "Dump", "Model", "Possible", "digest", "look"]

Dump = list[object]
"""All that a store shows through its contract: streams with guards, heads and rows, then index entries."""


class Broken(AssertionError):
    """A promise of the store's was not kept."""


@dataclass(frozen=True, slots=True)
class _Stream:
    number: int
    epoch: int = 0
    version: int = 0
    head: bytes = b""
    rows: dict[tuple[int, bytes], bytes] = field(default_factory=dict[tuple[int, bytes], bytes])
    entries: frozenset[tuple[int, bytes]] = frozenset()

    def after(self, batch: Batch) -> "_Stream":
        rows = {} if batch.erase else dict(self.rows)
        entries = set[tuple[int, bytes]]() if batch.erase else set(self.entries)
        for row in batch.rows:
            if row.value is None:
                rows.pop((row.table, row.key), None)
            else:
                rows[row.table, row.key] = short(row.value)
        for entry in batch.index_rows:
            (entries.add if entry.present else entries.discard)((entry.index, entry.value))
        head = batch.head if batch.head is not None else b"" if batch.erase else self.head
        return _Stream(self.number, batch.epoch, batch.version + 1, short(head), rows, frozenset(entries))


def short(value: bytes) -> bytes:
    """A value, or its hash where it is long."""
    return value if len(value) <= 40 else b"#" + blake2b(value, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Model:
    """One state that a store can be in."""

    streams: dict[str, _Stream] = field(default_factory=dict[str, _Stream])

    def after(self, batches: Iterable[Batch]) -> tuple["Model", list[str]]:
        """The state after this commit, and its answers."""
        streams = dict(self.streams)
        answers: list[str] = []
        for batch in batches:
            stream = streams.get(batch.stream) or _Stream(len(streams) + 1)
            if batch.epoch < stream.epoch:
                answers.append("Fenced")
            elif batch.version != stream.version:
                answers.append("Conflict")
            else:
                answers.append("")
                streams[batch.stream] = stream.after(batch)
        return replace(self, streams=streams), answers

    def dump(self) -> Dump:
        shown: list[object] = []
        for name, stream in sorted(self.streams.items()):
            rows = [[table, key, value] for (table, key), value in sorted(stream.rows.items())]
            entries = [[index, value] for index, value in sorted(stream.entries)]
            shown.append([name, stream.epoch, stream.version, stream.head, rows, entries])
        for index in Index:
            found = [
                (value, stream.number, name)
                for name, stream in self.streams.items()
                for kind, value in stream.entries
                if kind == index
            ]
            shown.append([int(index), [[value, name] for value, _, name in sorted(found)]])
        return shown


def look(store: Store) -> Dump:
    """What the store shows of itself, in the form of `Model.dump`."""
    shown: list[object] = []
    for name in store.streams():
        head = store.load(name)
        if head is None:
            raise Broken(f"{name!r} is listed but cannot be loaded")
        rows = [[int(table), key, short(value)] for table in Table for key, value in store.scan(name, table)]
        entries = [[int(entry.index), entry.value] for entry in store.entries(name)]
        shown.append([name, head.epoch, head.version, short(head.head), rows, entries])
    for index in Index:
        shown.append([int(index), [[hit.value, hit.stream] for hit in store.scan_index(index)]])
    if store.damage.list():
        raise Broken(f"the store reports damage: {store.damage.list()}")
    return shown


def digest(dump: Dump) -> bytes:
    return blake2b(msgspec.msgpack.encode(dump), digest_size=16).digest()


class Possible:
    """All states that the store may be in, as far as the notes tell."""

    def __init__(self) -> None:
        self.states = [Model()]
        self.claimed = 0
        self.opened = False
        self.at_backup: list[Model] = []
        self.backed_up = False
        self._tried: list[Batch] | None = None
        self._digests: dict[int, tuple[Model, bytes]] = {}  # the state is kept, so that its id stays its own

    def note(self, note: Note) -> None:
        """Go on by one note. Broken where it cannot be true."""
        match note.what:
            case "step" if note.text == BACK_UP:
                self.at_backup = self.states
            case "opened":
                self.opened = True
            case "try":
                self._tried = note.batches
            case "done":
                assert self._tried is not None
                after = [state.after(self._tried) for state in self.states]
                self._keep([state for state, answers in after if answers == note.answers], f"answers {note.answers}")
                self._tried = None
            case "raised" if self._tried is not None:
                self._give_up(uncertain=note.uncertain)
            case "seen":
                self._keep([state for state in self.states if self._digest(state) == note.dump], f"a look {note.text}")
            case "claimed":
                if note.number <= self.claimed:
                    raise Broken(f"owner number {note.number} was given after {self.claimed}")
                self.claimed = note.number
            case "called":
                self.backed_up = BACK_UP in note.answers
            case _:
                pass

    def died(self) -> "Possible":
        """The same where the process is gone at this moment, perhaps in the middle of a commit."""
        after = copy(self)
        if after._tried is not None:
            after._give_up(uncertain=True)
        return after

    def check(self, dump: Dump) -> None:
        """Broken unless this is one of the states."""
        self._check_one_of(self.states, dump, "the store")

    def check_backup(self, dump: Dump | None) -> None:
        """Broken unless this is one of the states that the store was in when it was backed up; None: there is none."""
        if dump is not None:
            self._check_one_of(self.at_backup, dump, "its backup")
        elif self.backed_up:
            raise Broken("there is no backup, and that it was made was said")

    def _check_one_of(self, states: list[Model], dump: Dump, what: str) -> None:
        if digest(dump) not in {self._digest(state) for state in states}:
            expected = "\n or ".join(str(state.dump()) for state in states)
            raise Broken(f"{what} shows\n    {dump}\nexpected\n    {expected}")

    def _give_up(self, *, uncertain: bool) -> None:
        assert self._tried is not None
        if uncertain:
            self.states = [*self.states, *(state.after(self._tried)[0] for state in self.states)]
        self._tried = None

    def _keep(self, states: list[Model], what: str) -> None:
        if not states:
            raise Broken(f"{what} cannot be, in any of {[state.dump() for state in self.states]}")
        self.states = states

    def _digest(self, state: Model) -> bytes:
        if id(state) not in self._digests:
            self._digests[id(state)] = state, digest(state.dump())
        return self._digests[id(state)][1]

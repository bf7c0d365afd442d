"""History under edits: turns see what was staged, readers what is durable, whatever of it is in memory."""

from hypothesis import given, settings, strategies as st

from callboard import Message
from callboard.actors.archive import Archive
from callboard.actors.history import History
from callboard.actors.seq_ranges import Ranges, add_range, is_removed
from callboard.actors.session_records import message_rows, stream_of
from callboard.actors.window import ExcerptNeed
from callboard.store import Batch, MemoryStore

OPS = st.lists(
    st.tuples(
        st.sampled_from(["stage", "stage", "remove", "commit", "whole", "read", "window", "again"]), st.integers(1, 30)
    ),
    max_size=25,
)


def message(seq: int) -> Message:
    return Message(role="user", content=f"text {seq}", seq=seq)


class Edited:
    """A history over a store; each change that is staged reaches the disk, and is told of, on demand and in order."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.count = self.durable_count = 0
        self.removed: Ranges = ()
        self.durable_removed: Ranges = ()
        self._changes: list[tuple[int, Ranges]] = []  # staged: the count and the removed places after each
        self._version = 0
        self.history = History(Archive(self.store), "s", durable_count=0)

    def stage(self, count: int) -> None:
        self.history.extend([message(self.count + n) for n in range(1, count + 1)])
        self.count += count
        self._changes.append((self.count, self.removed))

    def remove(self, count: int) -> None:
        """Take out the latest `count`, as every edit does."""
        places = self.visible[-count:]
        if places:
            self.removed = add_range(self.removed, places[0], self.count)
            self.history.remove(self.removed)
            self._changes.append((self.count, self.removed))

    def commit(self) -> None:
        if self._changes:
            count, removed = self._changes.pop(0)
            rows = message_rows([message(seq) for seq in range(self.durable_count + 1, count + 1)])
            assert self.store.commit([Batch(stream_of("s"), 1, self._version, rows=tuple(rows))]) == [None]
            self._version += 1
            self.durable_count, self.durable_removed = count, removed
            self.history.durable(count, removed)

    def load_anew(self) -> None:
        """As after a restart: what is staged is lost."""
        self._changes.clear()
        self.count, self.removed = self.durable_count, self.durable_removed
        self.history = History(Archive(self.store), "s", durable_count=self.count, removed=self.removed)

    @property
    def visible(self) -> list[int]:
        return [seq for seq in range(1, self.count + 1) if not is_removed(self.removed, seq)]

    @property
    def durably_visible(self) -> list[int]:
        return [seq for seq in range(1, self.durable_count + 1) if not is_removed(self.durable_removed, seq)]


@settings(max_examples=200)
@given(OPS)
def test_turns_see_what_is_staged_and_readers_what_is_durable(ops: list[tuple[str, int]]) -> None:
    edited = Edited()
    for op, number in ops:
        history = edited.history
        if op == "stage":
            edited.stage(number % 4 + 1)
        elif op == "remove":
            edited.remove(number)
        elif op == "commit":
            edited.commit()
        elif op == "again":
            edited.load_anew()
        elif op == "whole":
            assert [each.seq for each in history.whole()] == edited.visible
        elif op == "read":
            first, last = max(1, min(number, edited.durable_count)), edited.durable_count
            expected = [seq for seq in edited.durably_visible if first <= seq <= last]
            assert [each.seq for each in history.read(first, last)] == expected
            raw = [each.seq for each in history.read_removed_too(first, edited.count)]
            assert raw == list(range(first, edited.count + 1))
        else:
            need = ExcerptNeed(number % 3, number, None)
            history.load_for(need)
            for staged, places in ((True, edited.visible), (False, edited.durably_visible)):
                shown, first_ones, missing = history.excerpt(need, staged=staged)
                latest = places[-number:]
                assert [each.seq for each in shown][first_ones:] == latest
                assert [each.seq for each in shown][:first_ones] == [
                    seq for seq in places[: need.first] if seq not in latest
                ]
                assert missing == len(places) - len(shown)

    assert [each.seq for each in edited.history.whole()] == edited.visible


def test_memory_is_counted_without_what_edits_took_out() -> None:
    edited = Edited()
    edited.stage(20)
    edited.commit()
    edited.history.load()
    full = edited.history.size_bytes
    edited.remove(15)
    edited.commit()

    assert 0 < edited.history.size_bytes < full / 3
    edited.remove(5)
    edited.commit()
    assert edited.history.size_bytes == 0

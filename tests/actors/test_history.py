"""History is the store's messages and behind them those that are staged, whenever either of them is read."""

from typing import NamedTuple

import pytest
from hypothesis import example, given, settings, strategies as st

from callboard import Message, StoreUnavailable
from callboard.actors.archive import Archive
from callboard.actors.history import History
from callboard.actors.seq_ranges import Ranges, add_range
from callboard.actors.session_records import message_key, message_rows, stream_of
from callboard.actors.window import ExcerptNeed
from callboard.store import Batch, MemoryStore, Row, Table

unhurried = settings(deadline=None)  # other processes may take the machine's time


def message(seq: int) -> Message:
    return Message(role="user", content=f"text {seq}", seq=seq)


class CountingStore(MemoryStore):
    """Counts the rows that were read."""

    rows_read = 0

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        rows = super().scan(stream, table, start=start, stop=stop, limit=limit, newest_first=newest_first)
        self.rows_read += len(rows)
        return rows


class Stored:
    """A history over a store, to which what was staged is committed on demand."""

    def __init__(self, count: int) -> None:
        self.store = CountingStore()
        self.on_disk = self.staged = self._version = 0
        self.history = History(Archive(self.store), "s", durable_count=0)
        self.extend(count)
        self.commit(count)
        self.history = History(Archive(self.store), "s", durable_count=count)

    def extend(self, count: int) -> None:
        self.history.extend([message(self.staged + n) for n in range(1, count + 1)])
        self.staged += count

    def commit(self, count: int) -> None:
        """`count` messages reach the disk; the history hears of it by `durable`."""
        seqs = range(self.on_disk + 1, self.on_disk + count + 1)
        self.write(*message_rows([message(seq) for seq in seqs]))
        self.on_disk += count

    def write(self, *rows: Row) -> None:
        assert self.store.commit([Batch(stream_of("s"), 1, self._version, rows=rows)]) == [None]
        self._version += 1


@unhurried
@given(
    st.integers(0, 4),
    st.lists(st.sampled_from(["stage", "write", "durable", "read", "whole"]), max_size=25),
)
def test_history_has_every_message_once_in_order_whatever_is_loaded_or_durable(count: int, ops: list[str]) -> None:
    stored = Stored(count)
    told = count
    for op in ops:
        if op == "stage":
            stored.extend(2)
        elif op == "write" and stored.on_disk < stored.staged:
            stored.commit(1)
        elif op == "durable":
            told = stored.on_disk
            stored.history.durable(told)
        elif op == "whole":
            assert stored.history.whole() == tuple(message(seq) for seq in range(1, stored.staged + 1))
        else:
            first = told // 2 + 1
            assert stored.history.read(first, told) == [message(seq) for seq in range(first, told + 1)]
            assert stored.history.read(first, stored.staged) == [
                message(seq) for seq in range(first, stored.staged + 1)
            ]

    assert stored.history.whole() == tuple(message(seq) for seq in range(1, stored.staged + 1))


def test_reading_the_end_of_a_long_history_reads_only_the_end() -> None:
    stored = Stored(0)
    for _ in range(100):
        stored.extend(2)
        stored.commit(2)
        stored.history.durable(stored.on_disk)

    assert [each.seq for each in stored.history.read(198, 200)] == [198, 199, 200]
    assert stored.store.rows_read == 3


def test_place_in_the_middle_of_a_row_is_found() -> None:
    stored = Stored(100)  # in rows of 32

    assert [each.seq for each in stored.history.read(31, 34)] == [31, 32, 33, 34]
    assert [each.seq for each in stored.history.read(40, 40)] == [40]
    assert stored.history.read(101, 102) == []


def test_empty_range_reads_nothing() -> None:
    stored = Stored(3)
    stored.store.fail_next_read(StoreUnavailable("not to be read"))

    assert stored.history.read(3, 2) == []


def test_read_that_failed_can_be_tried_again() -> None:
    stored = Stored(3)
    stored.extend(1)
    stored.store.fail_next_read(StoreUnavailable("for now"))
    with pytest.raises(StoreUnavailable):
        stored.history.load()

    assert [each.seq for each in stored.history.whole()] == [1, 2, 3, 4]


def test_messages_that_are_gone_are_reported_once_and_left_out() -> None:
    stored = Stored(3)
    for _ in range(2):
        history = History(Archive(stored.store), "s", durable_count=4)
        assert [each.seq for each in history.whole()] == [1, 2, 3]

    damages = stored.store.damage.list()
    assert [(each.where, each.reason) for each in damages] == [
        ("history of session 's'", "4 messages were stored, 3 can be read")
    ]


def test_messages_that_cannot_be_read_leave_a_hole_and_places_stay_what_they_are() -> None:
    stored = Stored(100)
    stored.write(Row(Table.MESSAGE, message_key(33), b"\x02 no messages"))
    for loaded in (False, True):
        if loaded:
            stored.history.load()

        assert [each.seq for each in stored.history.read(31, 67)] == [31, 32, 65, 66, 67]
        assert stored.history.read(40, 50) == []
        assert [each.seq for each in stored.history.read(60, 65)] == [65]
    wheres = [each.where for each in stored.store.damage.list()]
    assert wheres == ["messages from 33 on of session 's'", "history of session 's'"]


def test_what_whole_gave_is_not_changed_by_what_comes_later() -> None:
    stored = Stored(1)
    before = stored.history.whole()
    stored.extend(1)

    assert len(before) == 1


# What a window needs --------------------------------------------------------------------------------------------------


def need(first: int, messages: int | None, characters: int | None = None) -> ExcerptNeed:
    return ExcerptNeed(first, messages, characters)


def test_a_windows_excerpt_reads_its_ends_and_not_what_lies_between() -> None:
    stored = Stored(10_000)
    stored.store.rows_read = 0
    stored.history.load_for(need(3, 50))

    messages, first_ones, missing = stored.history.excerpt(need(3, 50), staged=True)

    assert [message.seq for message in messages] == [1, 2, 3, *range(9_951, 10_001)]
    assert (first_ones, missing) == (3, 9_947)
    assert stored.store.rows_read < 10  # rows hold up to 32 messages here
    read_once = stored.store.rows_read
    stored.history.load_for(need(3, 50))
    assert stored.store.rows_read == read_once


def test_an_excerpt_by_characters_reads_until_it_has_them() -> None:
    stored = Stored(2_000)
    stored.history.load_for(need(0, None, 20_000))

    messages, _, missing = stored.history.excerpt(need(0, None, 20_000), staged=True)

    counted = sum(32 + len(each.text) for each in messages)
    assert 20_000 <= counted < 20_000 + 32 + len(messages[0].text)
    assert len(messages) + missing == 2_000


class Case(NamedTuple):
    """`stored` messages, of which `edits` took some out, `staged` ones behind them, and what is needed of all that."""

    stored: int
    staged: int
    edits: list[tuple[int, int]]
    first: int
    messages: int
    characters: int | None
    loaded_before: bool


cases = st.builds(
    Case,
    stored=st.integers(0, 120),
    staged=st.integers(0, 10),
    edits=st.lists(st.tuples(st.integers(1, 130), st.integers(0, 20)), max_size=3),
    first=st.integers(0, 12),
    messages=st.integers(1, 60),
    characters=st.one_of(st.none(), st.integers(1, 4_000)),
    loaded_before=st.booleans(),
)


@unhurried
@example(Case(stored=7, staged=1, edits=[], first=3, messages=6, characters=None, loaded_before=True))
@given(cases)
def test_an_excerpt_is_the_beginning_and_the_end_of_all_there_is(case: Case) -> None:
    count, staged, edits, first, messages, characters, loaded_before = case
    removed: Ranges = ()
    for start, length in edits:
        if start + length <= count:
            removed = add_range(removed, start, start + length)
    stored = Stored(count)
    history = History(Archive(stored.store), "s", durable_count=count, removed=removed)
    if loaded_before:
        history.load_for(need(1, 5))
    wanted = need(first, messages, characters)
    history.load_for(wanted)
    history.extend([message(count + n) for n in range(1, staged + 1)])

    given_messages, first_ones, missing = history.excerpt(wanted, staged=True)
    durable, _, _ = history.excerpt(wanted, staged=False)

    everything = [each.seq for each in history.whole()]
    shown = [each.seq for each in given_messages]
    assert len(shown) + missing == len(everything)
    assert shown == (
        everything if not missing else everything[:first_ones] + everything[len(everything) - len(shown) + first_ones :]
    )
    assert first_ones <= first
    enough = len(shown) - first_ones >= messages or missing == 0
    assert enough or sum(32 + len(each.text) for each in given_messages[first_ones:]) >= (characters or 10**9)
    assert all(each.seq <= count for each in durable)


def test_an_edit_while_a_window_is_loaded_changes_both_ends() -> None:
    stored = Stored(1_000)
    stored.history.load_for(need(4, 10))
    stored.history.remove(((2, 3), (996, 1_000)))
    stored.history.load_for(need(4, 10))
    staged, _, _ = stored.history.excerpt(need(4, 10), staged=True)
    seen, _, _ = stored.history.excerpt(need(4, 10), staged=False)
    stored.history.durable(1_000, ((2, 3), (996, 1_000)))
    stored.history.load_for(need(4, 10))

    messages, first_ones, missing = stored.history.excerpt(need(4, 10), staged=False)

    assert [each.seq for each in seen] == [1, 2, 3, 4, *range(991, 1_001)]
    assert [each.seq for each in staged] == [1, 4, 5, 6, *range(986, 996)]
    assert [each.seq for each in messages] == [1, 4, 5, 6, *range(986, 996)]
    assert (first_ones, missing) == (4, 995 - 2 - 14)


def test_what_an_edit_takes_from_the_beginning_is_made_up_from_behind() -> None:
    stored = Stored(1_000)
    stored.history.load_for(need(4, 10))
    stored.history.remove(((1, 64),))
    stored.history.durable(1_000, ((1, 64),))
    stored.history.load_for(need(4, 10))

    messages, first_ones, _ = stored.history.excerpt(need(4, 10), staged=True)

    assert [each.seq for each in messages[:first_ones]] == [65, 66, 67, 68]

"""The tails of streams in memory: laid over rows that have any part of them already, they give the whole."""

import pytest
from hypothesis import given, settings, strategies as st

from callboard.store import Batch, Conflict, Fenced, Head, Index, IndexRow, Row, Table
from callboard.store.errors import Corrupt
from callboard.store.log import Guard, Log, Stream
from callboard.store.overlay import merged

some_rows = st.builds(Row, st.just(Table.RUN), st.sampled_from([b"1", b"2", b"3"]), st.none() | st.binary(max_size=2))
some_changes = st.tuples(
    st.none() | st.binary(max_size=2), st.lists(some_rows, max_size=3), st.sampled_from([False, False, False, True])
)
# How many batches come, how many of the tail a checkpoint moves, and whether somebody reads then.
programs = st.lists(st.tuples(st.lists(some_changes, max_size=3), st.integers(0, 4), st.booleans()), max_size=12)
Change = tuple[bytes | None, list[Row], bool]


def moved(rows: dict[bytes, bytes], head: bytes, batches: list[Batch]) -> bytes:
    """What a checkpoint makes of rows and head."""
    for batch in batches:
        if batch.erase:
            rows.clear()
            head = b""
        head = batch.head if batch.head is not None else head
        for row in batch.rows:
            if row.value is None:
                rows.pop(row.key, None)
            else:
                rows[row.key] = row.value
    return head


@settings(deadline=None)
@given(programs)
def test_a_tail_over_rows_that_have_some_of_it_already_gives_the_whole(
    program: list[tuple[list[Change], int, bool]],
) -> None:
    stream = Stream("a", 1, 0, 0)
    stored: dict[bytes, bytes] = {}
    model: dict[bytes, bytes] = {}
    stored_head = model_head = b""
    version = 0
    for changes, count, reads in program:
        for head, rows, erase in changes:
            batch = Batch("a", 1, version, head, tuple(rows), erase=erase)
            version += 1
            stream.append(batch)
            model_head = moved(model, model_head, [batch])
        step = stream.batches[:count]
        stored_head = moved(stored, stored_head, step)  # on disk, and not yet dropped: both are read so
        if reads:
            assert seen(stream, stored) == sorted(model.items())
        stream.drop(len(step))

        if reads:
            assert seen(stream, stored) == sorted(model.items())
        guard = stream.guard()
        assert guard is None or guard == Head(1, version, model_head)
        assert guard is not None or stored_head == model_head


def seen(stream: Stream, stored: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    overlay = stream.tables().get(Table.RUN)
    below = [] if stream.erased else sorted(stored.items())
    return list(merged(below, overlay.range(b"", None))) if overlay is not None else below


def nothing_stored(_name: str) -> Guard | None:
    return None


def a_turn(stream: str, version: int, *, epoch: int = 1) -> Batch:
    return Batch(stream, epoch, version, index_rows=(IndexRow(Index.TAG, b"%d" % version),))


def test_an_undone_transaction_leaves_numbers_guards_and_streams_as_they_were() -> None:
    log = Log()
    log.decide([a_turn("a", 0)], nothing_stored)
    log.apply()

    assert log.decide([a_turn("b", 0), a_turn("a", 1, epoch=5), a_turn("a", 2, epoch=6)], nothing_stored) == [None] * 3
    log.undo()

    assert (log.streams, log.get("b"), log.accepted, log.created) == (1, None, [], [])
    assert (log["a"].epoch, log["a"].version, len(log["a"].batches)) == (1, 1, 1)
    assert log.decide([a_turn("a", 1), a_turn("c", 0)], nothing_stored) == [None, None]
    assert log["c"].number == 2


def test_nobody_sees_a_transaction_before_it_is_applied() -> None:
    log = Log()
    log.index()

    log.decide([a_turn("a", 0)], nothing_stored)
    assert (log.with_tail(), log["a"].guard(), log["a"].batches) == ([], None, [])
    log.apply()
    assert log.with_tail() == [log["a"]]


def test_refusals_are_those_of_the_transaction_in_the_making() -> None:
    log = Log()

    answers = log.decide([a_turn("a", 0, epoch=2), a_turn("a", 0, epoch=2), a_turn("a", 1)], nothing_stored)

    assert answers[0] is None
    assert isinstance(answers[1], Conflict)
    assert answers[1].stored_version == 1
    assert isinstance(answers[2], Fenced)
    assert answers[2].stored_epoch == 2
    assert len(log.accepted) == 1


def test_a_guard_that_cannot_be_read_refuses_its_batches_alone() -> None:
    log = Log()

    def stored(name: str) -> Guard | None:
        if name == "rotten":
            raise Corrupt("guard", "rotten")
        return (7, 3, 4)

    first, second = log.decide([a_turn("rotten", 0), a_turn("a", 4, epoch=3)], stored)

    assert isinstance(first, Corrupt)
    assert second is None
    assert log["a"].number == 7


def test_idle_streams_are_forgotten_where_many_are_known_and_those_with_a_tail_are_not() -> None:
    log = Log()
    log.decide([a_turn(str(number), 0) for number in range(10)], nothing_stored)
    log.apply()
    for number in range(7):
        log.drop(log[str(number)], 1)

    log.forget_idle(10)
    assert log.get("0") is not None
    log.forget_idle(9)
    assert [log.get(str(number)) is not None for number in range(10)] == [False] * 7 + [True] * 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_logs_bytes_are_those_of_the_segments_it_still_has(count: int) -> None:
    log = Log(last_segment=4)
    for number in (5, 6, 7):
        log.add_segment(number, 10 * number)

    log.drop_segments(count)

    assert log.size_bytes == sum(size_bytes for _, size_bytes in log.segments) == sum([50, 60, 70][count:])
    assert log.last_segment == 7

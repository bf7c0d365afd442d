"""What the memory store has beyond the contract: faults, history, restarts. The contract itself: tests/contracts."""

import pytest

from callboard.store import Batch, Fenced, Head, MemoryStore, Row, StoreFull, StoreUnavailable, Table


def test_an_ordered_fault_stores_nothing_and_is_gone_afterwards() -> None:
    store = MemoryStore()
    store.fail_next_commit(StoreFull("the disk is full"))

    with pytest.raises(StoreFull, match="the disk is full"):
        store.commit([Batch("a", 1, 0)])

    assert store.load("a") is None
    assert store.commit([Batch("a", 1, 0)]) == [None]


def test_a_fault_after_the_write_stores_everything() -> None:
    store = MemoryStore()
    store.fail_next_commit(StoreUnavailable("lost", uncertain=True), after_write=True)

    with pytest.raises(StoreUnavailable) as caught:
        store.commit([Batch("a", 1, 0, rows=(Row(Table.RUN, b"k", b"v"),))])

    assert caught.value.uncertain
    assert store.load("a") == Head(1, 1, b"")
    assert store.scan("a", Table.RUN) == [(b"k", b"v")]


def test_a_fault_after_the_write_must_admit_that_it_is_uncertain() -> None:
    with pytest.raises(ValueError, match="uncertain=True"):
        MemoryStore().fail_next_commit(StoreFull("full"), after_write=True)


def test_faults_come_in_the_order_in_which_they_were_made() -> None:
    store = MemoryStore()
    store.fail_next_commit(StoreFull("first"))
    store.fail_next_commit(StoreFull("second"))

    for reason in ("first", "second"):
        with pytest.raises(StoreFull, match=reason):
            store.commit([])


def test_an_ordered_fault_of_a_read_is_raised_once() -> None:
    store = MemoryStore()
    store.fail_next_read(StoreUnavailable("gone"))

    with pytest.raises(StoreUnavailable, match="gone"):
        store.scan("a", Table.RUN)

    assert store.scan("a", Table.RUN) == []


def test_a_reopened_store_has_the_data_and_the_old_one_is_shut_out() -> None:
    store = MemoryStore()
    store.commit([Batch("a", 3, 0, head=b"h")])
    store.fail_next_commit(StoreFull("gone with the crash"))

    again = store.reopened()

    assert again.load("a") == Head(3, 1, b"h")
    assert again.commit([Batch("a", 3, 1)]) == [None]
    with pytest.raises(StoreUnavailable, match="closed"):
        store.commit([Batch("a", 3, 2)])


def test_the_history_holds_what_was_accepted_commit_by_commit() -> None:
    store = MemoryStore(keep_history=True)
    first, refused, second = Batch("a", 2, 0), Batch("a", 1, 1), Batch("b", 1, 0)

    answers = store.commit([first, refused])
    store.commit([second])

    assert isinstance(answers[1], Fenced)
    assert store.committed == [(first,), (second,)]

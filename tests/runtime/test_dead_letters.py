from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, strategies as st

from callboard.runtime import Request
from callboard.runtime.dead_letters import DeadLetter, DeadLetterCause, DeadLetters
from callboard.runtime.identity import ActorId

COUNT_MAX, BYTES_MAX = 5, 100

causes: st.SearchStrategy[DeadLetterCause] = st.sampled_from(get_args(DeadLetterCause))


class Note(Request[None], frozen=True):
    pass


def a_letter(cause: DeadLetterCause = "dropped", *, at: float = 0.0, size_bytes: int = 10) -> DeadLetter:
    return DeadLetter(ActorId("note", "1"), Note(), None, cause, "no room", at, size_bytes)


@given(sent=st.lists(st.tuples(causes, st.sampled_from([0, 1, 24, 25, 50, BYTES_MAX, BYTES_MAX + 1]))))
def test_the_newest_letters_within_both_bounds_are_kept_and_all_are_counted(
    sent: list[tuple[DeadLetterCause, int]],
) -> None:
    letters = [a_letter(cause, at=at, size_bytes=size) for at, (cause, size) in enumerate(sent)]
    dead = DeadLetters(COUNT_MAX, bytes_max=BYTES_MAX)

    for number, letter in enumerate(letters, start=1):
        dead.add(letter)

        fitting = [n for n in range(1, COUNT_MAX + 1) if sum(x.size_bytes for x in letters[:number][-n:]) <= BYTES_MAX]
        kept = letters[:number][-max(fitting, default=1) :]
        assert list(dead) == kept
        assert len(dead) == len(kept)
        assert dead.size_bytes == sum(letter.size_bytes for letter in kept)
    assert dead.counts == Counter(cause for cause, _ in sent)


def test_a_letter_larger_than_the_whole_bound_is_kept_while_it_is_the_newest() -> None:
    dead = DeadLetters(bytes_max=BYTES_MAX)
    huge, small = a_letter(size_bytes=BYTES_MAX + 1), a_letter(size_bytes=1)

    dead.add(huge)
    while_newest = list(dead)
    dead.add(small)

    assert while_newest == [huge]
    assert list(dead) == [small]


def test_letters_may_come_while_somebody_reads() -> None:
    dead = DeadLetters(2)
    dead.add(a_letter(at=1.0))
    dead.add(a_letter(at=2.0))

    seen: list[float] = []
    for letter in dead:
        seen.append(letter.at)
        dead.add(a_letter(at=9.0))

    assert seen == [1.0, 2.0]


def test_a_cause_that_was_never_seen_counts_0_and_is_not_listed() -> None:
    dead = DeadLetters()
    dead.add(a_letter("expired"))

    assert dead.counts["refused"] == 0
    assert dict(dead.counts) == {"expired": 1}


def test_late_replies_begin_at_0_and_belong_to_no_cause() -> None:
    dead = DeadLetters()
    before = dead.late_replies

    dead.late_replies += 1

    assert (before, dead.late_replies) == (0, 1)
    assert dead.counts.total() == len(dead) == 0


def test_a_cause_that_nobody_knows_is_a_broken_invariant_and_changes_nothing() -> None:
    dead = DeadLetters()

    with pytest.raises(AssertionError, match="'boredom'"):
        dead.add(a_letter("boredom"))  # pyright: ignore[reportArgumentType] - just that
    assert dead.counts.total() == len(dead) == dead.size_bytes == 0


@pytest.mark.parametrize(("count_max", "bytes_max"), [(0, 1), (1, 0), (-1, 1)])
def test_a_bound_below_1_is_refused_at_the_door(count_max: int, bytes_max: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DeadLetters(count_max, bytes_max=bytes_max)

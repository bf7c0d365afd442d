from collections import deque
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.actors.errors import StaleTurn
from callboard.actors.turns import OVERLAPS, Entry, Granted, Overlap, Queued, Refused, Turn, TurnQueue


def entry(name: str) -> Entry[str]:
    return Entry(name, f"payload of {name}")


def queue_of(*names: str, waiting_max: int = 1_000) -> TurnQueue[str]:
    """A queue in which the first name runs and the others wait."""
    queue = TurnQueue[str](waiting_max=waiting_max)
    for name in names:
        queue.offer(entry(name))
    return queue


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_idle_session_grants_at_once_whatever_the_policy(overlap: Overlap) -> None:
    queue = queue_of()

    assert queue.offer(entry("a"), overlap) == Granted(1)
    assert queue.running == Turn(1, entry("a"))


def test_entries_that_come_while_a_turn_runs_wait_in_order() -> None:
    queue = queue_of("a")

    assert queue.offer(entry("b")) == Queued(1)
    assert queue.offer(entry("c")) == Queued(2)
    assert queue.waiting == (entry("b"), entry("c"))
    assert len(queue) == 2
    assert queue.finish(1) == Turn(2, entry("b"))
    assert queue.finish(2) == Turn(3, entry("c"))
    assert queue.finish(3) is None
    assert queue.running is None
    assert queue.last_number == 3


def test_reject_names_the_running_run_and_the_queue_length_and_changes_nothing() -> None:
    queue = queue_of("a", "b", "c")

    assert queue.offer(entry("d"), "reject") == Refused("a", 2)
    assert queue.waiting == (entry("b"), entry("c"))


def test_full_queue_refuses_and_says_that_it_is_full() -> None:
    queue = queue_of("a", "b", waiting_max=1)

    assert queue.offer(entry("c")) == Refused("a", 1, full=True)
    queue.finish(1)
    assert queue.offer(entry("c")) == Queued(1)


def test_finish_of_another_turn_is_stale_and_changes_nothing() -> None:
    queue = queue_of("a", "b")
    queue.finish(1)

    for number in (0, 1, 3):
        with pytest.raises(StaleTurn, match=f"turn {number} is over"):
            queue.finish(number)
    assert queue.running == Turn(2, entry("b"))


def test_nothing_can_be_finished_while_no_turn_runs() -> None:
    queue = queue_of("a")
    queue.finish(1)

    with pytest.raises(StaleTurn, match="none runs"):
        queue.finish(1)


def test_check_gives_the_running_turn_and_refuses_older_numbers() -> None:
    queue = queue_of("a", "b")

    assert queue.check(1) == Turn(1, entry("a"))
    queue.finish(1)
    with pytest.raises(StaleTurn):
        queue.check(1)


def test_withdrawn_entry_never_gets_a_turn() -> None:
    queue = queue_of("a", "b", "c")

    assert queue.withdraw("b") == entry("b")
    assert queue.withdraw("b") is None
    assert queue.finish(1) == Turn(2, entry("c"))


def test_running_turn_cannot_be_withdrawn() -> None:
    queue = queue_of("a")

    assert queue.withdraw("a") is None
    assert queue.running == Turn(1, entry("a"))


def test_clear_takes_out_all_who_wait_and_leaves_the_running_turn() -> None:
    queue = queue_of("a", "b", "c")

    assert queue.clear() == (entry("b"), entry("c"))
    assert queue.running == Turn(1, entry("a"))
    assert queue.finish(1) is None


def test_restored_queue_counts_on_and_refuses_turns_of_before() -> None:
    queue = TurnQueue[str]()
    queue.restore(41)

    assert queue.offer(entry("a")) == Granted(42)
    with pytest.raises(StaleTurn):
        queue.finish(41)


def test_restore_comes_before_the_first_turn_and_never_goes_back() -> None:
    with pytest.raises(AssertionError):
        queue_of("a").restore(5)
    idle = queue_of("a")
    idle.finish(1)
    with pytest.raises(AssertionError):
        idle.restore(0)


def test_run_that_is_in_the_queue_cannot_be_offered_again() -> None:
    queue = queue_of("a", "b")

    for name in ("a", "b"):
        with pytest.raises(ValueError, match="is in the turn queue already"):
            queue.offer(entry(name))
    queue.finish(1)
    assert queue.offer(entry("a")) == Queued(1)


def test_unknown_overlap_policy_is_refused_also_while_idle() -> None:
    queue = queue_of()
    wrong: Any = "later"

    with pytest.raises(ValueError, match="no overlap policy 'later': use one of queue, reject"):
        queue.offer(entry("a"), wrong)
    assert queue.running is None


def test_turns_of_one_step_come_in_the_order_of_arrival() -> None:
    queue = queue_of("run")
    queue.offer(entry("x"))
    queue.offer(entry("y"))
    queue.offer(entry("next run"))

    granted: list[tuple[int, str]] = []
    turn = queue.finish(1)
    while turn is not None and turn.entry.run_id in ("x", "y"):
        granted.append((turn.number, turn.entry.run_id))
        turn = queue.finish(turn.number)

    assert granted == [(2, "x"), (3, "y")]
    assert turn == Turn(4, entry("next run"))


class TurnQueueMachine(RuleBasedStateMachine):
    """The queue beside the simplest model: a number, who runs, and a list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = TurnQueue[int](waiting_max=4)
        self.offered = 0
        self.number = 0
        self.running: str | None = None
        self.waiting: deque[str] = deque()
        self.ended: list[str] = []  # finished, withdrawn, refused or cleared: each offered entry once

    @rule(overlap=st.sampled_from(OVERLAPS))
    def offer(self, overlap: Overlap) -> None:
        self.offered += 1
        name = str(self.offered)
        outcome = self.queue.offer(Entry(name, self.offered), overlap)
        if self.running is None:
            self.number += 1
            self.running = name
            assert outcome == Granted(self.number)
        elif overlap == "queue" and len(self.waiting) < 4:
            self.waiting.append(name)
            assert outcome == Queued(len(self.waiting))
        else:
            self.ended.append(name)
            assert outcome == Refused(self.running, len(self.waiting), full=overlap == "queue")

    @rule()
    def pass_by(self) -> None:
        if self.running is None:
            self.number += 1
            assert self.queue.pass_by() == self.number
        else:
            assert self.queue.pass_by() is None

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        turn = self.queue.finish(self.number)
        assert self.running is not None
        self.ended.append(self.running)
        self.running = self.waiting.popleft() if self.waiting else None
        if self.running is None:
            assert turn is None
        else:
            self.number += 1
            assert turn is not None
            assert (turn.number, turn.entry.run_id) == (self.number, self.running)

    @rule(behind=st.integers(1, 3))
    def finish_late(self, behind: int) -> None:
        with pytest.raises(StaleTurn):
            self.queue.finish(self.number - behind)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = str(data.draw(st.integers(0, self.offered)))
        taken = self.queue.withdraw(name)
        assert (taken is not None) == (name in self.waiting)
        if taken is not None:
            self.waiting.remove(name)
            self.ended.append(name)

    @rule()
    def clear(self) -> None:
        assert [each.run_id for each in self.queue.clear()] == list(self.waiting)
        self.ended.extend(self.waiting)
        self.waiting.clear()

    @invariant()
    def queue_is_as_the_model(self) -> None:
        running = self.queue.running
        assert (running.entry.run_id if running else None) == self.running
        assert [each.run_id for each in self.queue.waiting] == list(self.waiting)
        assert self.queue.last_number == self.number
        assert running is None or running.number == self.number

    @invariant()
    def somebody_runs_while_anybody_waits(self) -> None:
        assert self.queue.running is not None or not self.queue.waiting

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        known = [*self.ended, *([self.running] if self.running else []), *self.waiting]
        assert sorted(known, key=int) == [str(number + 1) for number in range(self.offered)]


TestTurnQueue = TurnQueueMachine.TestCase
TestTurnQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.actors.errors import StaleTurn
from callboard.actors.turns import OVERLAPS, Entry, Granted, Overlap, Queued, Refused, Turn, TurnQueue, check_overlap


def entry(name: str, overlap: Overlap = "queue", *, group: str = "") -> Entry[str]:
    return Entry(name, f"payload of {name}", overlap, group)


def queue_of(*names: str, waiting_max: int = 1_000) -> TurnQueue[str]:
    """A queue in which the first name runs and the others wait."""
    queue = TurnQueue[str](waiting_max=waiting_max)
    for name in names:
        queue.offer(entry(name))
    return queue


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_idle_session_grants_at_once_whatever_the_policy(overlap: Overlap) -> None:
    queue = queue_of()

    assert queue.offer(entry("a", overlap)) == Granted(1)
    assert queue.running == Turn(1, entry("a", overlap))


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

    assert queue.offer(entry("d", "reject")) == Refused("a", 2)
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


def test_unknown_overlap_policy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no overlap policy 'later': use one of queue, reject, merge"):
        check_overlap("later")


def test_those_of_one_group_that_stand_together_are_merged_into_one_turn() -> None:
    queue = queue_of("run")
    names = {"a": "x", "b": "x", "c": "y", "d": "x"}
    for name, group in names.items():
        queue.offer(entry(name, "merge", group=group))

    turns = [queue.finish(number) for number in range(1, 5)]

    merged = [(turn.entry.run_id, [each.run_id for each in turn.merged]) for turn in turns if turn is not None]
    assert merged == [("a", ["b"]), ("c", []), ("d", [])]


def test_what_stands_between_two_inputs_keeps_them_from_being_merged() -> None:
    queue = queue_of("run")
    for each in (entry("a", "merge"), entry("append"), entry("b", "merge")):
        queue.offer(each)

    assert queue.finish(1) == Turn(2, entry("a", "merge"))
    assert queue.finish(2) == Turn(3, entry("append"))


def test_those_offered_together_get_one_turn_at_once_where_none_runs() -> None:
    queue = queue_of()
    first, second = entry("a", "debounce"), entry("b", "debounce")

    assert queue.offer_together((first, second)) == Turn(1, first, (second,))
    assert queue.offer_together((entry("c", "debounce"),)) is None


def test_the_latest_supersedes_those_of_its_group_that_wait_and_no_others() -> None:
    queue = queue_of("run", "queued")
    queue.offer(entry("old", "latest", group="x"))
    queue.offer(entry("other", "latest", group="y"))

    outcome = queue.offer(entry("new", "latest", group="x"))

    assert outcome == Queued(3, (entry("old", "latest", group="x"),))
    assert [each.run_id for each in queue.waiting] == ["queued", "other", "new"]


def test_the_latest_finds_room_in_a_full_queue_where_it_supersedes_one() -> None:
    queue = queue_of("run", waiting_max=1)
    queue.offer(entry("old", "latest"))

    assert queue.offer(entry("other")) == Refused("run", 1, full=True)
    assert queue.offer(entry("new", "latest")) == Queued(1, (entry("old", "latest"),))


@pytest.mark.parametrize(("overlap", "stop"), [("interrupt", "keep"), ("rollback", "drop")])
def test_one_that_stops_goes_first_and_stops_each_turn_that_runs_before_it(overlap: Overlap, stop: str) -> None:
    queue = queue_of("run", "queued")
    assert queue.stop is None

    assert queue.offer(entry("a", overlap)) == Queued(1)
    assert queue.offer(entry("b", overlap)) == Queued(2)

    assert queue.stop == stop
    assert queue.finish(1) == Turn(2, entry("a", overlap))
    assert queue.stop == stop, "the second one came later than what runs now"
    assert queue.finish(2) == Turn(3, entry("b", overlap))
    assert queue.stop is None
    assert queue.finish(3) == Turn(4, entry("queued"))


def test_one_that_steers_waits_its_turn_until_it_is_taken_in() -> None:
    queue = queue_of("run")
    queue.offer(entry("a", "steer"))
    queue.offer(entry("b"))

    assert queue.steering() == (entry("a", "steer"),)
    assert queue.waiting == (entry("a", "steer"), entry("b"))


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
    """The queue beside the simplest model: a number, who runs, and two lists of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = TurnQueue[int](waiting_max=4)
        self.offered = 0
        self.number = 0
        self.running: list[str] = []  # who holds the turn, and whom it was merged with
        self.first: list[Entry[int]] = []
        self.others: list[Entry[int]] = []
        self.ended: list[str] = []  # finished, withdrawn, refused, superseded or cleared: each offered entry once

    @rule(overlap=st.sampled_from(OVERLAPS), group=st.sampled_from("xy"))
    def offer(self, overlap: Overlap, group: str) -> None:
        entry = self._new_entry(overlap, group)
        outcome = self.queue.offer(entry)
        if not self.running:
            self.number += 1
            self.running = [entry.run_id]
            assert outcome == Granted(self.number)
            return
        superseded = [e for e in self.others if overlap == e.overlap == "latest" and e.group == group]
        full = len(self.first) + len(self.others) - len(superseded) >= 4
        if overlap == "reject" or full:
            self.ended.append(entry.run_id)
            waiting = len(self.first) + len(self.others)
            assert outcome == Refused(self.running[0], waiting, full=overlap != "reject")
            return
        self.others = [e for e in self.others if e not in superseded]
        self.ended += [e.run_id for e in superseded]
        if overlap in ("interrupt", "rollback"):
            self.first.append(entry)
            assert outcome == Queued(len(self.first))
        else:
            self.others.append(entry)
            assert outcome == Queued(len(self.first) + len(self.others), tuple(superseded))

    @rule(group=st.sampled_from("xy"), count=st.integers(1, 3))
    def offer_together(self, group: str, count: int) -> None:
        entries = tuple(self._new_entry("debounce", group) for _ in range(count))
        turn = self.queue.offer_together(entries)
        self.others += entries
        if self.running:
            assert turn is None
        else:
            self._expect_next(turn)

    @rule()
    def pass_by(self) -> None:
        if not self.running:
            self.number += 1
            assert self.queue.pass_by() == self.number
        else:
            assert self.queue.pass_by() is None

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        turn = self.queue.finish(self.number)
        self.ended += self.running
        self._expect_next(turn)

    @rule(behind=st.integers(1, 3))
    def finish_late(self, behind: int) -> None:
        with pytest.raises(StaleTurn):
            self.queue.finish(self.number - behind)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = str(data.draw(st.integers(0, self.offered)))
        taken = self.queue.withdraw(name)
        assert (taken is not None) == (name in self._waiting)
        if taken is not None:
            (self.first if taken in self.first else self.others).remove(taken)
            self.ended.append(name)

    @rule()
    def clear(self) -> None:
        waiting = self._waiting
        assert [each.run_id for each in self.queue.clear()] == waiting
        self.ended += waiting
        self.first, self.others = [], []

    @invariant()
    def queue_is_as_the_model(self) -> None:
        running = self.queue.running
        held = [] if running is None else [running.entry.run_id, *(each.run_id for each in running.merged)]
        assert held == self.running
        assert [each.run_id for each in self.queue.waiting] == self._waiting
        assert [each.run_id for each in self.queue.steering()] == [
            e.run_id for e in self.others if e.overlap == "steer"
        ]
        assert self.queue.last_number == self.number
        assert running is None or running.number == self.number
        stop = {"interrupt": "keep", "rollback": "drop"}
        assert self.queue.stop == (stop[self.first[0].overlap] if self.first else None)

    @invariant()
    def somebody_runs_while_anybody_waits(self) -> None:
        assert self.queue.running is not None or not self.queue.waiting

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        known = [*self.ended, *self.running, *self._waiting]
        assert sorted(known, key=int) == [str(number + 1) for number in range(self.offered)]

    @property
    def _waiting(self) -> list[str]:
        return [each.run_id for each in (*self.first, *self.others)]

    def _new_entry(self, overlap: Overlap, group: str) -> Entry[int]:
        self.offered += 1
        return Entry(str(self.offered), self.offered, overlap, group)

    def _expect_next(self, turn: Turn[int] | None) -> None:
        line = self.first or self.others
        if not line:
            assert turn is None
            self.running = []
            return
        granted = [line.pop(0)]
        merges = ("merge", "debounce")
        while granted[0].overlap in merges and self.others:
            following = self.others[0]
            if following.overlap not in merges or following.group != granted[0].group:
                break
            granted.append(self.others.pop(0))
        self.number += 1
        self.running = [each.run_id for each in granted]
        assert turn == Turn(self.number, granted[0], tuple(granted[1:]))


TestTurnQueue = TurnQueueMachine.TestCase
TestTurnQueue.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

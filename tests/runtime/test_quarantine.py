import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from callboard.runtime import Request
from callboard.runtime.identity import ActorId
from callboard.runtime.quarantine import Quarantine, Quarantined

COUNT_MAX = 3
IDS = [ActorId("note", "1"), ActorId("note", "2")]


class Note(Request[None], frozen=True):
    pass


def a_poison(number: int, to: ActorId = IDS[0]) -> Quarantined:
    return Quarantined(number, to, Note(), attempts=3, error="ValueError('bad')", at=float(number))


class QuarantineMachine(RuleBasedStateMachine):
    """Against the plainest model: a list."""

    def __init__(self) -> None:
        super().__init__()
        self.quarantine = Quarantine(COUNT_MAX)
        self.model: list[Quarantined] = []
        self.numbers = 0

    @rule(to=st.sampled_from(IDS))
    def add(self, to: ActorId) -> None:
        self.numbers += 1
        poison = a_poison(self.numbers, to)
        self.model.append(poison)
        expected = self.model.pop(0) if len(self.model) > COUNT_MAX else None

        assert self.quarantine.add(poison) is expected

    @rule(number=st.integers(0, 12))
    def inspect(self, number: int) -> None:
        expected = next((kept for kept in self.model if kept.number == number), None)
        if expected is not None:
            assert self.quarantine.inspect(number) is expected
        else:
            with pytest.raises(LookupError, match=rf"no message {number} .* the {len(self.model)} that"):
                self.quarantine.inspect(number)

    @rule(number=st.integers(0, 12))
    def take(self, number: int) -> None:
        expected = next((kept for kept in self.model if kept.number == number), None)
        if expected is not None:
            assert self.quarantine.take(number) is expected
            self.model.remove(expected)
        else:
            with pytest.raises(LookupError, match=rf"no message {number} "):
                self.quarantine.take(number)

    @rule(to=st.sampled_from([*IDS, None]))
    def purge(self, to: ActorId | None) -> None:
        kept = [kept for kept in self.model if to is not None and kept.to != to]

        assert self.quarantine.purge(to) == len(self.model) - len(kept)
        self.model = kept

    @invariant()
    def it_holds_what_the_model_holds_in_its_order(self) -> None:
        assert self.quarantine.list() == tuple(self.model)
        assert len(self.quarantine) == len(self.model)
        for to in IDS:
            assert self.quarantine.list(to) == tuple(kept for kept in self.model if kept.to == to)


TestQuarantineAgainstItsModel = QuarantineMachine.TestCase


def test_a_full_quarantine_gives_back_its_oldest_message_for_the_newest() -> None:
    quarantine = Quarantine(2)
    first, second, third = a_poison(1), a_poison(2), a_poison(3)

    pushed_out = [quarantine.add(poison) for poison in (first, second, third)]

    assert pushed_out == [None, None, first]
    assert quarantine.list() == (second, third)


def test_a_message_that_was_taken_may_come_back_and_is_then_the_newest() -> None:
    quarantine = Quarantine()
    quarantine.add(a_poison(1))
    quarantine.add(a_poison(2))

    quarantine.add(quarantine.take(1))

    assert [kept.number for kept in quarantine.list()] == [2, 1]


def test_a_number_that_is_not_there_says_what_to_do() -> None:
    quarantine = Quarantine()
    quarantine.add(a_poison(1))

    with pytest.raises(LookupError, match=r"no message 7 .* list\(\) shows the 1 that are"):
        quarantine.take(7)
    assert len(quarantine) == 1


def test_the_same_message_twice_is_a_broken_invariant() -> None:
    quarantine = Quarantine()
    quarantine.add(a_poison(1))

    with pytest.raises(AssertionError, match="message 1 is in quarantine already"):
        quarantine.add(a_poison(1))


def test_a_bound_below_1_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="at least 1 message, not 0"):
        Quarantine(0)

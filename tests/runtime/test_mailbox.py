from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.runtime import Request
from callboard.runtime.actor import Actor
from callboard.runtime.cell import ActorKind
from callboard.runtime.envelope import Delivery, Phase
from callboard.runtime.identity import ActorId
from callboard.runtime.mailbox import Mailbox, Offered

COUNT_MAX, BYTES_MAX = 4, 100


class Note(Request[None], frozen=True):
    pass


def a_delivery(number: int = 1, size_bytes: int = 10) -> Delivery:
    return Delivery(ActorId("kind", "key"), Note(), number, size_bytes=size_bytes)


@dataclass(slots=True, eq=False)
class _Model:
    """What a mailbox should hold, by the plainest means: three lists without tombstones."""

    control: list[Delivery]
    user: list[Delivery]
    lobby: list[Delivery]

    def move_in(self) -> None:
        while self.lobby and self.fits(self.lobby[0]):
            self.user.append(self.lobby.pop(0))

    def fits(self, delivery: Delivery) -> bool:
        size_bytes = sum(queued.size_bytes for queued in self.user)
        enough = size_bytes + delivery.size_bytes <= BYTES_MAX
        return not self.user or (len(self.user) < COUNT_MAX and enough)


class MailboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox(count_max=COUNT_MAX, bytes_max=BYTES_MAX)
        self.model = _Model([], [], [])
        self.taken: list[Delivery] = []
        self.number = 0

    def _next(self, size_bytes: int) -> Delivery:
        self.number += 1
        return a_delivery(self.number, size_bytes)

    @rule(size_bytes=st.integers(0, 2 * BYTES_MAX), wait=st.booleans())
    def offer(self, size_bytes: int, wait: bool) -> None:
        delivery = self._next(size_bytes)
        delivery.awaited = False
        offered = self.mailbox.offer(delivery, wait=wait)
        if not self.model.lobby and self.model.fits(delivery):
            assert offered is Offered.IN
            self.model.user.append(delivery)
        elif wait:
            assert offered is Offered.WAITING
            self.model.lobby.append(delivery)
        else:
            assert offered is Offered.FULL

    @rule()
    def offer_control(self) -> None:
        delivery = self._next(0)
        self.mailbox.offer_control(delivery)
        self.model.control.append(delivery)

    @rule()
    def take(self) -> None:
        taken = self.mailbox.take()
        lane = self.model.control or self.model.user
        expected = lane.pop(0) if lane else None
        self.model.move_in()
        assert taken is expected
        if taken is not None:
            self.taken.append(taken)

    @rule(size_bytes=st.integers(0, BYTES_MAX))
    def offer_awaited(self, size_bytes: int) -> None:
        delivery = self._next(size_bytes)
        delivery.awaited = True
        fits = not self.model.lobby and self.model.fits(delivery)
        assert self.mailbox.offer(delivery) is (Offered.IN if fits else Offered.WAITING)
        (self.model.user if fits else self.model.lobby).append(delivery)

    @rule()
    def drop_oldest(self) -> None:
        droppable = [delivery for delivery in self.model.user if not delivery.awaited]
        dropped = self.mailbox.drop_oldest()
        assert dropped is (droppable[0] if droppable else None)
        if dropped is not None:
            self.model.user.remove(dropped)
            self.model.move_in()

    @precondition(lambda self: self.model.user or self.model.lobby)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        delivery = data.draw(st.sampled_from([*self.model.user, *self.model.lobby]))
        self.mailbox.bury(delivery)
        delivery.settle(None, None)
        (self.model.user if delivery in self.model.user else self.model.lobby).remove(delivery)
        self.model.move_in()

    @precondition(lambda self: self.taken)
    @rule()
    def put_back(self) -> None:
        self.mailbox.put_back(self.taken)
        self.model.user[:0] = self.taken
        self.taken = []

    @rule()
    def clear(self) -> None:
        assert self.mailbox.clear() == [*self.model.control, *self.model.user, *self.model.lobby]
        self.model = _Model([], [], [])

    @invariant()
    def it_counts_what_the_model_holds(self) -> None:
        model = self.model
        assert len(self.mailbox) == len(model.control) + len(model.user) + len(model.lobby)
        assert self.mailbox.waiting == len(model.lobby)
        assert self.mailbox.count == len(model.user)
        assert self.mailbox.size_bytes == sum(delivery.size_bytes for delivery in model.user)
        assert all(delivery.admitted for delivery in model.user)
        assert not any(delivery.admitted for delivery in model.lobby)
        assert not model.lobby or model.user, "who waits for space waits behind somebody"


TestMailboxHoldsWhatThreePlainListsWould = MailboxMachine.TestCase


@given(st.lists(st.integers(0, 30), max_size=40))
def test_what_is_taken_comes_in_the_order_in_which_it_was_offered(sizes: list[int]) -> None:
    mailbox = Mailbox(count_max=COUNT_MAX, bytes_max=BYTES_MAX)
    offered = [a_delivery(number, size) for number, size in enumerate(sizes)]
    for delivery in offered:
        mailbox.offer(delivery)

    taken: list[Delivery] = []
    while (delivery := mailbox.take()) is not None:
        taken.append(delivery)

    assert taken == offered


def test_a_message_larger_than_the_whole_bound_goes_into_an_empty_mailbox() -> None:
    mailbox = Mailbox(bytes_max=BYTES_MAX)

    assert mailbox.offer(a_delivery(size_bytes=10 * BYTES_MAX), wait=False) is Offered.IN
    assert mailbox.offer(a_delivery(size_bytes=1), wait=False) is Offered.FULL


def test_nobody_overtakes_who_waits_for_space_by_being_small() -> None:
    mailbox = Mailbox(bytes_max=BYTES_MAX)
    mailbox.offer(a_delivery(size_bytes=60))
    mailbox.offer(a_delivery(size_bytes=60))

    assert mailbox.offer(a_delivery(size_bytes=1), wait=False) is Offered.FULL
    assert mailbox.offer(a_delivery(size_bytes=1), wait=True) is Offered.WAITING


def test_tombstones_of_callers_that_gave_up_do_not_pile_up() -> None:
    mailbox = Mailbox()
    for number in range(10_000):
        delivery = a_delivery(number)
        mailbox.offer(delivery)
        mailbox.bury(delivery)
        delivery.settle(None, None)

    stored = mailbox._user  # pyright: ignore[reportPrivateUsage] - how much stays in memory shows nowhere else
    assert len(stored) < 50
    assert len(mailbox) == 0


def test_a_delivery_is_settled_once_and_tells_so_once() -> None:
    told: list[Delivery] = []
    delivery = Delivery(ActorId("kind", "key"), Note(), 1, on_settled=told.append)

    assert delivery.settle("first", None)
    assert not delivery.settle("late", None)

    assert delivery.result() == "first"
    assert told == [delivery]
    assert delivery.phase is Phase.SETTLED


@pytest.mark.parametrize("bounds", [{"mailbox_count_max": 0}, {"mailbox_bytes_max": 0}])
def test_a_kind_whose_mailboxes_could_hold_nothing_is_refused(bounds: dict[str, Any]) -> None:
    make: Callable[..., ActorKind] = partial(ActorKind, "kind", Actor)

    with pytest.raises(ValueError, match="at least 1 message"):
        make(**bounds)

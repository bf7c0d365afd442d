import logging

import pytest
from hypothesis import given, strategies as st

from callboard.runtime import Failed, Request, Unknown
from callboard.runtime.envelope import Delivery, Phase
from callboard.runtime.gate import Gate, HeldCall, HeldReply
from callboard.runtime.identity import ActorId
from callboard.store import StoreFull, StoreUnavailable


class Note(Request[None], frozen=True):
    pass


def a_delivery() -> Delivery:
    return Delivery(ActorId("kind", "key"), Note(), 1)


@given(st.lists(st.one_of(st.sampled_from(["close", "hold"]), st.booleans()), max_size=60))
def test_what_goes_out_keeps_its_order_and_comes_only_after_its_commit(actions: list[str | bool]) -> None:
    gate = Gate()
    out: list[int] = []
    in_flight: list[list[int]] = []
    expected: list[int] = []

    for number, action in enumerate(actions):
        output = HeldCall(lambda number=number: out.append(number))
        if action == "close":
            gate.close_behind([output])
            in_flight.append([number])
        elif action == "hold":
            held = gate.hold([output])
            assert held == bool(in_flight)
            if held:
                in_flight[-1].append(number)
        elif in_flight:
            came_back = in_flight.pop(0)
            gate.committed(None if action else StoreFull("no space"))
            expected += came_back if action else []

        assert out == expected
        assert len(gate) == len(in_flight)


def test_a_reply_behind_a_refused_commit_says_that_nothing_was_stored() -> None:
    gate, delivery, error = Gate(), a_delivery(), StoreFull("no space")
    gate.close_behind([HeldReply(delivery, "value", None)])
    assert delivery.phase is not Phase.SETTLED

    gate.committed(error)

    with pytest.raises(Failed) as caught:
        delivery.result()
    assert caught.value.__cause__ is error


def test_a_reply_behind_an_uncertain_commit_says_that_nobody_knows() -> None:
    gate, delivery = Gate(), a_delivery()
    gate.close_behind([HeldReply(delivery, "value", None)])

    gate.committed(StoreUnavailable("the disk is gone", uncertain=True))

    with pytest.raises(Unknown):
        delivery.result()


def test_a_call_that_raises_does_not_keep_back_the_reply_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    gate, delivery = Gate(), a_delivery()

    def mistake() -> None:
        raise ZeroDivisionError

    gate.close_behind([HeldCall(mistake), HeldReply(delivery, "value", None)])

    with caplog.at_level(logging.ERROR):
        gate.committed(None)

    assert delivery.result() == "value"
    assert "ZeroDivisionError" in caplog.text

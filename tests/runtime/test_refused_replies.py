"""What a caller is told whose reply was owed, and hung on a commit that the store has refused."""

import logging
from collections.abc import Awaitable, Callable

import pytest

from callboard.runtime import Actor, Context, Failed, Request, Runtime, Ticket, Unknown, handles
from callboard.store import CallboardError, MemoryStore, StoreFull

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Order(Request[str], frozen=True):
    pass


class OrderAgain(Request[str], frozen=True):
    pass


class OrderAtOnce(Request[str], frozen=True):
    pass


class Deliver(Request[None], frozen=True):
    pass


class Shop(Actor):
    @handles(Order)
    def order(self, _message: Order, context: Context) -> Ticket:
        context.stage(head=b"ordered")
        self.owed = context.defer()
        return self.owed

    @handles(OrderAgain, retryable=True)
    def order_again(self, _message: OrderAgain, context: Context) -> Ticket:
        self.owed = context.defer()
        return self.owed

    @handles(OrderAtOnce)
    def order_at_once(self, _message: OrderAtOnce, context: Context) -> Ticket:
        context.stage(head=b"ordered")
        ticket = context.defer()
        ticket.reply("delivered")
        return ticket

    @handles(Deliver)
    def deliver(self, _message: Deliver, context: Context) -> None:
        context.stage(head=b"delivered")
        self.owed.reply("delivered")


@pytest.mark.parametrize(
    ("message", "outcome", "stored"),
    [
        pytest.param(Order(), Unknown, b"ordered", id="its first handler has stored something"),
        pytest.param(OrderAgain(), Failed, None, id="it may be repeated"),
    ],
)
def test_a_reply_given_later_is_refused_with_what_may_have_been_stored_before(
    run: Run, message: Request[str], outcome: type[CallboardError], stored: bytes | None
) -> None:
    store, full = MemoryStore(), StoreFull("no space left")

    async def body() -> None:
        async with Runtime(lambda: store) as runtime:
            runtime.register("shop", Shop)
            shop = runtime.actor("shop", "s")
            pending = shop.ask_nowait(message)
            store.fail_next_commit(full)
            with pytest.raises(Failed):
                await shop.ask(Deliver())

            with pytest.raises(outcome) as caught:
                await pending.wait()
            assert caught.value.__cause__ is full
            head = store.load("shop:s")
            assert (head.head if head is not None else None) == stored

    run(body)


def test_a_reply_given_at_once_says_that_nothing_was_stored(run: Run) -> None:
    store = MemoryStore()

    async def body() -> None:
        async with Runtime(lambda: store) as runtime:
            runtime.register("shop", Shop)
            store.fail_next_commit(StoreFull("no space left"))

            with pytest.raises(Failed):
                await runtime.actor("shop", "s").ask(OrderAtOnce())
            assert store.load("shop:s") is None

    run(body)

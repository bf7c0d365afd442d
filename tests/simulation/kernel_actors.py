"""What the programs of kernel_program.py do: messages that say what their handler does, the actor that does it.

All that happens is written down in `Seen`, by the actors and by the callers; kernel_checks.py judges it.
"""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import anyio

from callboard.runtime import Abandoned, Actor, Answered, ChildEnded, Context, Request, Ticket, handles
from callboard.runtime.identity import ActorId
from callboard.runtime.signals import ActorEnded, Tick
from callboard.store import CallboardError, Row, Table

__all__ = [
    "NESTED",
    "RETRYABLE",
    "Ask",
    "Do",
    "DoAgain",
    "DoAsk",
    "DoAsync",
    "DoAsyncDetached",
    "DoInTwo",
    "DoLater",
    "DoPlain",
    "DoSupervise",
    "DoTimer",
    "DoWatch",
    "Player",
    "Refused",
    "Seen",
    "Witness",
    "number_of",
]


class Do(Request[int], frozen=True):
    """One piece of work. What the handler does is drawn when the program is made, so the program is data.

    Attributes:
        number: its own. sender: who sent it; order: the how-manieth of this sender to this actor.
        writes: stage a row with the number. sleeps_s: how long an async handler waits; cleanup_s: how long it goes on
            after it was cancelled. crashes: so many times; refuses: how else it ends.
        forward, told: the number and the actor of a message that is requested, or told, when this one is durable.
    """

    number: int
    sender: int
    order: int
    writes: bool = False
    sleeps_s: float = 0.0
    cleanup_s: float = 0.0
    crashes: int = 0
    refuses: bool = False
    forward: tuple[int, str] | None = None
    told: tuple[int, str] | None = None


class DoPlain(Do, frozen=True):
    pass


class DoAsync(Do, frozen=True):
    pass


class DoAsyncDetached(Do, frozen=True):
    pass


class DoLater(Do, frozen=True):
    """Owes its reply, which a child pays; may be repeated."""


class DoInTwo(Do, frozen=True):
    """Does its work and owes the reply, which a child pays; `second`, if not 0, is written only then."""

    second: int = 0


class DoAgain(Do, frozen=True):
    """Is delivered again after it has crashed its actor, until it goes to quarantine."""


class DoTimer(Do, frozen=True):
    """Starts or ends a timer. A period of 0: none, it ticks once."""

    tag: int = 0
    delay_s: float = 1.0
    period_s: float = 0.0
    cancels: bool = False


class DoWatch(Do, frozen=True):
    target: str = ""


class DoSupervise(Do, frozen=True):
    target: str = ""


class Ask(Request[None], frozen=True):
    """What a DoAsk asks of whom."""

    key: str
    message: Do
    timeout_s: float


class DoAsk(Do, frozen=True):
    """Asks others, one after the other, while its own caller waits."""

    asks: tuple[Ask, ...] = ()


RETRYABLE = (DoLater, DoAgain)
REQUESTED, TOLD, NESTED = -1, -2, -3
"""In place of a sender: another actor has requested it, told it, or asks it from within a handler."""


def number_of(message: Request[Any]) -> int:
    """The number of a message that the kernel shows somewhere."""
    assert isinstance(message, Do), f"{message!r} is not of this program's senders"
    return message.number


class Refused(CallboardError):
    pass


@dataclass(slots=True)
class Seen:
    """What happened under one runtime. `faults` are invariants that were seen broken while it went on.

    Attributes:
        running: handlers that run now, by actor. asking: whom the handler of an actor waits for.
        handled: (actor, message) as handlers began; done: messages whose handlers reached their end.
        repeatable: those of the messages that have begun which may crash their actor more than once.
        orders: by (actor, sender), the orders of the messages of outside senders, and whether they may be repeated.
        sent, arrived: messages that one actor requested of another, by (from, to).
        accepted: messages that nobody awaits and that were taken. purged: those taken out of quarantine for good.
        crashes: when each actor crashed, since it was last resumed. ticks: the last one of each
            clockwork: its count, when it was handled, and the clockwork, or its id could become another's.
        ended: signals that a watched actor has ended, by the watch.
    """

    faults: list[str] = field(default_factory=list[str])
    running: Counter[str] = field(default_factory=Counter[str])
    asking: dict[str, str] = field(default_factory=dict[str, str])
    handled: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    done: set[int] = field(default_factory=set[int])
    repeatable: set[int] = field(default_factory=set[int])
    orders: dict[tuple[str, int], list[tuple[int, bool]]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    arrived: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    accepted: set[int] = field(default_factory=set[int])
    purged: set[int] = field(default_factory=set[int])
    released: Counter[int] = field(default_factory=Counter[int])
    crashes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ticks: dict[int, tuple[int, float, object]] = field(default_factory=dict[int, tuple[int, float, object]])
    ended: Counter[int] = field(default_factory=Counter[int])


class Witness(Protocol):
    """What an actor needs of the program that it plays in; see kernel_program.Life."""

    seen: Seen

    def loading(self, actor: "Player") -> None: ...

    def load_delay_s(self) -> float | None: ...

    def is_current(self, context: Context) -> bool: ...

    async def ask_within(self, context: Context, ask: Ask, outer: DoAsk) -> None: ...

    def outcome(self, number: int, outcome: str) -> None: ...


class Player(Actor):
    """Does as it is told, and keeps in memory what must equal its rows in the store."""

    witness: ClassVar[Witness]

    def load(self, context: Context) -> Awaitable[None] | None:
        self.witness.loading(self)
        rows = context.store.scan(str(self.id), Table.MESSAGE)
        self.numbers = [int(value) for _, value in rows]
        self.owed: dict[int, Ticket] = {}
        if len(self.numbers) != context.version:
            self.witness.seen.faults.append(f"{self.id} was loaded with {self.numbers} at version {context.version}")
        delay_s = self.witness.load_delay_s()
        return None if delay_s is None else anyio.sleep(delay_s)

    @handles(DoPlain)
    def do_plain(self, message: Do, context: Context) -> int:
        return self._at_once(message, context)

    @handles(DoAgain, retryable=True)
    def do_again(self, message: DoAgain, context: Context) -> int:
        return self._at_once(message, context)

    @handles(DoAsync, on_cancel="cancel")
    async def do_async(self, message: DoAsync, context: Context) -> int:
        return await self._slowly(message, context)

    @handles(DoAsyncDetached, on_cancel="detach")
    async def do_async_detached(self, message: DoAsyncDetached, context: Context) -> int:
        return await self._slowly(message, context)

    @handles(DoAsk, on_cancel="cancel")
    async def do_ask(self, message: DoAsk, context: Context) -> int:
        self._begin(message, context)
        try:
            for ask in message.asks:
                self.witness.seen.asking[self.id.key] = ask.key
                await self.witness.ask_within(context, ask, message)
            return self._end(message, context)
        finally:
            self.witness.seen.asking.pop(self.id.key, None)
            self._left()

    @handles(DoLater, retryable=True, on_cancel="cancel")
    def do_later(self, message: DoLater, context: Context) -> Ticket:
        self._begin(message, context)
        self._left()
        return self._owe(message, context)

    @handles(DoInTwo, on_cancel="cancel")
    def do_in_two(self, message: DoInTwo, context: Context) -> Ticket:
        self._at_once(message, context)
        return self._owe(message, context)

    @handles(DoTimer)
    def do_timer(self, message: DoTimer, context: Context) -> int:
        if message.cancels:
            context.cancel_timer(message.tag)
        elif message.period_s:
            context.every(message.period_s, (message.tag, message.period_s))
        else:
            context.after(message.delay_s, (message.tag, 0.0))
        return self._at_once(message, context)

    @handles(DoWatch)
    def do_watch(self, message: DoWatch, context: Context) -> int:
        context.watch(ActorId("player", message.target), tag=message.number)
        return self._at_once(message, context)

    @handles(DoSupervise)
    def do_supervise(self, message: DoSupervise, context: Context) -> int:
        with contextlib.suppress(ValueError):  # it has another supervisor, or stands above this one
            context.supervise(ActorId("player", message.target))
        return self._at_once(message, context)

    # Signals

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, context: Context) -> None:
        self._nobody_else_runs()
        ticket = self.owed.pop(signal.tag.number, None)
        if ticket is None:
            return
        try:
            if isinstance(signal.tag, DoLater):
                self._end(signal.tag, context)
            elif signal.tag.second:
                self._write(signal.tag.second, context)
            ticket.reply(signal.tag.number)
        except Refused as refused:
            ticket.fail(refused)

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        context.cancel_child(signal.message)

    @handles(Answered)
    def answered(self, signal: Answered, _context: Context) -> None:
        self.witness.outcome(signal.tag, "reply" if signal.error is None else type(signal.error).__name__)

    @handles(ActorEnded)
    def actor_ended(self, signal: ActorEnded, _context: Context) -> None:
        self.witness.seen.ended[signal.tag] += 1

    @handles(Tick)
    def tick(self, signal: Tick, context: Context) -> None:
        self._nobody_else_runs()
        seen, clockwork = self.witness.seen, id(signal.source)
        count, handled_at, _ = seen.ticks.get(clockwork, (0, -math.inf, None))
        _, period_s = signal.tag
        if signal.count != count + 1 or context.now() < handled_at + period_s - 1e-6:
            seen.faults.append(f"{self.id}: tick {signal.count} at {context.now()}, after {count} at {handled_at}")
        seen.ticks[clockwork] = (signal.count, context.now(), signal.source)

    # Doing

    def _at_once(self, message: Do, context: Context) -> int:
        self._begin(message, context)
        try:
            return self._end(message, context)
        finally:
            self._left()

    async def _slowly(self, message: Do, context: Context) -> int:
        self._begin(message, context)
        try:
            try:
                await anyio.sleep(message.sleeps_s)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(message.cleanup_s)
            return self._end(message, context)
        finally:
            self._left()

    def _owe(self, message: Do, context: Context) -> Ticket:
        self.owed[message.number] = context.defer()
        context.spawn(partial(anyio.sleep, message.sleeps_s), tag=message)
        return self.owed[message.number]

    def _begin(self, message: Do, context: Context) -> None:
        seen, key = self.witness.seen, self.id.key
        self._nobody_else_runs()
        seen.running[key] += 1
        seen.handled.append((key, message.number))
        if isinstance(message, DoAgain):
            seen.repeatable.add(message.number)
        if context.sender is not None and message.sender == REQUESTED:
            seen.arrived[context.sender.key, key].append(message.number)
        elif message.sender >= 0 and not isinstance(message, DoLater) and not seen.released[message.number]:
            # After a restart DoLater is repeated behind others of its sender; so is what was in quarantine.
            seen.orders[key, message.sender].append((message.order, isinstance(message, DoAgain)))

    def _left(self) -> None:
        self.witness.seen.running[self.id.key] -= 1

    def _nobody_else_runs(self) -> None:
        if self.witness.seen.running[self.id.key]:
            self.witness.seen.faults.append(f"two handlers of {self.id} ran at once")

    def _end(self, message: Do, context: Context) -> int:
        seen, key = self.witness.seen, self.id.key
        if message.refuses:
            raise Refused
        if message.writes:
            self._write(message.number, context)
        if message.forward is not None:
            number, target = message.forward
            context.after_commit(lambda: seen.sent[key, target].append(number))
            context.request(ActorId("player", target), DoPlain(number, REQUESTED, 0), tag=number)
        if message.told is not None:
            told, listener = message.told
            context.after_commit(lambda: seen.accepted.add(told))
            context.tell(ActorId("player", listener), DoPlain(told, TOLD, 0))
        if [number for _, number in seen.handled].count(message.number) <= message.crashes:
            if self.witness.is_current(context):
                seen.crashes[key].append(context.now())
            raise ZeroDivisionError
        if len(self.numbers) != context.version + message.writes and self.witness.is_current(context):
            seen.faults.append(f"{self.id} has {self.numbers} in memory at version {context.version}")
        seen.done.add(message.number)
        return message.number

    def _write(self, number: int, context: Context) -> None:
        context.stage(rows=(Row(Table.MESSAGE, b"%08d" % context.version, b"%d" % number),))
        self.numbers.append(number)

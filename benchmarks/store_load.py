"""How the systems of bench_store.py are loaded, and how it is checked what they kept: the same for every system.

A turn is a user's message and the assistant's, 300 characters each: 660 bytes with what a record has beside the text.
Each message says who wrote it as which of its turns, so what a store holds tells what is lost, doubled or reordered.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec
import trio
from closed_loop import Caller, Round, percentile_ms
from system_process import Figures

__all__ = ["Book", "Conversations", "Load", "Measure", "checkpoint_of_loop", "figures_of", "turn_texts"]

TEXT_CHARACTERS = 300
DIGITS = 16
WRITER_TURNS_MAX = 10**10
PADDING = "I have looked at it, and the second position is right. ".ljust(TEXT_CHARACTERS - DIGITS - 1, "x")


class Load(msgspec.Struct, frozen=True):
    """How much work one round of one measurement is.

    Attributes:
        seconds: about how long each of its figures is taken.
        writers: how many are "100 writers".
        sessions: how many are "1 000 sessions"; each writer has its share of them for itself.
        committers: how many are "1 000 committers".
        long: messages of the history that is "100 000 messages".
        folder: where the files lie.
    """

    seconds: float
    writers: int
    sessions: int
    committers: int
    long: int
    folder: str


Measure: TypeAlias = Callable[[Load], Awaitable[Figures]]
"""One round of one system in one row."""


class Conversations(Protocol):
    """A system's sessions in one file or directory, used as its users do."""

    async def add(self, session: str, texts: Sequence[str]) -> None:
        """Put messages at the end of a session, of the user and the assistant by turns; durable when this returns.

        Cost: one call of the system's own that takes several messages, where it has one.
        """
        ...

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Any]:
        """The latest messages, or all, as the system gives them; oldest first."""
        ...

    def text_of(self, message: Any) -> str:
        """What one of these messages says."""
        ...


def turn_texts(writer: int, turn: int) -> tuple[str, str]:
    """What the user says in that writer's turn of this number, and the answer."""
    number = f"{writer * WRITER_TURNS_MAX + turn:0{DIGITS}d}"
    return f"u{number}{PADDING}", f"a{number}{PADDING}"


class Book:
    """What was acknowledged, and what came of it.

    Attributes:
        turns: how many turns of each writer were acknowledged, by session; numbered from 0 in each session.
        messages, lost, doubled, reordered: what `compare` has counted.
    """

    def __init__(self) -> None:
        self.turns: dict[str, Counter[int]] = {}
        self.messages = 0
        self.lost = 0
        self.doubled = 0
        self.reordered = 0

    def caller(self, conversations: Conversations, writer: int, sessions: Sequence[str]) -> Caller:
        """One who writes turn after turn, into each of these sessions in its turn."""
        made = 0

        async def call() -> None:
            nonlocal made
            session = sessions[made % len(sessions)]
            made += 1
            await self.fill(conversations, session, writer=writer)

        for session in sessions:
            self.turns.setdefault(session, Counter())
        return call

    async def fill(self, conversations: Conversations, session: str, *, writer: int = 0, turns: int = 1) -> None:
        """Put so many turns of one writer into a session, all at once."""
        acknowledged = self.turns.setdefault(session, Counter())
        first = acknowledged[writer]
        if turns == 1:
            texts: Sequence[str] = turn_texts(writer, first)
        else:
            texts = [text for turn in range(first, first + turns) for text in turn_texts(writer, turn)]
        await conversations.add(session, texts)
        acknowledged[writer] += turns

    async def compare(self, conversations: Conversations) -> Figures:
        """Read every session, and count what is not as it was acknowledged."""
        for session, turns in self.turns.items():
            texts = [conversations.text_of(message) for message in await conversations.messages(session)]
            self._compare(texts, turns)
        return {
            "checked_messages": self.messages,
            "lost": self.lost,
            "doubled": self.doubled,
            "reordered": self.reordered,
        }

    def _compare(self, texts: Sequence[str], acknowledged: Mapping[int, int]) -> None:
        self.messages += len(texts)
        seen = Counter(texts)
        self.doubled += sum(seen.values()) - len(seen)
        for writer, turns in acknowledged.items():
            self.lost += sum(text not in seen for turn in range(turns) for text in turn_texts(writer, turn))
        newest: dict[int, int] = {}
        # In pairs: where one half of a turn is missing or stands elsewhere, the pairs behind it are wrong as well.
        for user, assistant in zip(texts[::2], texts[1::2], strict=False):
            writer, turn = divmod(int(user[1 : DIGITS + 1]), WRITER_TURNS_MAX)
            in_order = newest.get(writer, -1) < turn
            self.reordered += (user, assistant) != turn_texts(writer, turn) or not in_order
            self.doubled += turn >= acknowledged.get(writer, 0)  # what nobody was told of is too much
            newest[writer] = turn


def figures_of(done: Round) -> Figures:
    """How fast the turns of a round were."""
    turns = len(done.latencies_s)
    return {
        "turns_per_s": done.per_s,
        "p50_ms": percentile_ms(done.latencies_s, 50),
        "p99_ms": percentile_ms(done.latencies_s, 99),
        "cpu_us": done.cpu_s / turns * 1e6,
    }


def checkpoint_of_loop() -> Callable[[], Awaitable[None]]:
    """What lets the other tasks of this event loop run, called as directly as can be."""
    return trio.lowlevel.checkpoint if trio.lowlevel.in_trio_task() else partial(asyncio.sleep, 0)

"""What of a conversation a model gets to see: a window over its units, within a budget. Pure.

    first ones   what came between, not shown        the latest ones                 never cut
    ┌─────────┐┌──────────────────────────────┐┌─────┬─────┬─────┬─────┬─────┐┌───────┬──────────────┐
    │ system  ││ (or an overlay: its summary) ││unit │unit │unit │unit │unit ││ input │ of this turn │
    └─────────┘└──────────────────────────────┘└─────┴─────┴─────┴─────┴─────┘└───────┴──────────────┘
                                               ▲ cut

The cut stays where it is until the window holds more than `keep_until` (1.25) times its budget; then it moves so far
that `cut_to` (0.7) times the budget is left. A cut that moved with each turn would change the prompt right behind its
beginning each time, and a provider's prompt cache would never hit. What is dropped from the view stays in the store.

A cut moves to where a user speaks, if that leaves at least half of what would fit: many chat templates want a
conversation to begin so. Stored system and developer messages that a conversation begins with are always shown.

    recent          as drawn
    head_and_tail   the first units too, as far as they fit into a quarter of the budget: what it was about
    summary         what lies before the cut is shown as a summary, once there is one: see compaction.py

Source: units and the pairing rule: conversation.py. Hysteresis: OpenAI and Anthropic, "Prompt caching" (a cache hits on
an equal beginning of the prompt only).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from typing import Literal, TypeVar, get_args

from msgspec import Struct

from ..runtime.options import check_number
from .conversation import Repaired, Unit, repair, units
from .message import Message
from .model import Model
from .overlay import Overlay
from .tokens import TokenCounter, TokenMeter

__all__ = ["STRATEGIES", "Excerpt", "ExcerptNeed", "Strategy", "Window", "WindowView", "check_strategy", "cut_view"]

Strategy = Literal["recent", "head_and_tail", "summary"]
Number = TypeVar("Number", int, float)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

_HEAD_SHARE = 0.25
_HEAD_MESSAGES_MAX = 64
_PINNED_MAX = 8
"""Stored system messages that a conversation begins with and that are always shown: more are no instructions."""
_HEAD_BYTES_PER_TOKEN = 3
"""Of UTF-8, and rather less than most: English has 4.5, Chinese 6, base64 1.5. The head is measured so, because what is
learnt of tokens must not move that with which each prompt begins."""
_CHARACTERS_PER_TOKEN_MAX = 8
"""No prose, code or JSON has more. Of history that has, less may be shown than would fit."""
_SPARE_MESSAGES = 16
"""Read beyond what a window holds, so that the unit at its edge is whole, with most numbers of tool calls."""
_TOO_LITTLE = 0.3
"""Of the budget: a cut that leaves less was made for another window, or history was shortened. It is made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How much of a conversation the model sees: the latest that fits, never part of a tool call with its results.

    Args:
        max_messages: so many messages, the turn's input included; what a run itself writes counts from the next turn.
        max_tokens: so many tokens, instructions, tools and all.
        strategy: "recent", "head_and_tail" (the first messages too) or "summary" (what is not shown is summarised).
        counter: of tokens; None takes tiktoken's encoding of the model where it is installed, else an estimate.
        summarizer: the model that writes summaries; None takes the agent's own.
        keep_until, cut_to: the window is cut to `cut_to` x its budget once it is over `keep_until` x, and stays as it
            is in between, so that prompts begin as the ones before them and a provider's prompt cache hits. 1 and 1: it
            never holds more than its budget, and moves with nearly each turn.

    Raises:
        TypeError, ValueError: an argument is no good; the message says what would be.
    """

    max_messages: int | None = None
    max_tokens: int | None = None
    strategy: Strategy = "recent"
    counter: TokenCounter | None = None
    summarizer: Model | None = None
    keep_until: float = 1.25
    cut_to: float = 0.7

    def __post_init__(self) -> None:
        if self.max_messages is None and self.max_tokens is None:
            raise ValueError("a Window needs max_messages= or max_tokens=")
        for name in ("max_messages", "max_tokens"):
            limit: object = getattr(self, name)
            if limit is None:
                continue
            if type(limit) is not int:
                raise TypeError(f"{name} must be a whole number, or None, not {limit!r}")
            if limit < 1:
                raise ValueError(f"{name} must be 1 or more, not {limit}")
        check_strategy(self.strategy)
        check_number("keep_until", self.keep_until)
        check_number("cut_to", self.cut_to)
        if not (1 <= self.keep_until <= 4 and 0.1 <= self.cut_to <= 1):
            raise ValueError(
                f"keep_until must be 1 to 4 and cut_to 0.1 to 1, not {self.keep_until} and {self.cut_to}: the window "
                "is kept until it holds so many times its budget, and then cut to so many"
            )
        if self.strategy != "recent" and self.max_messages == 1:
            raise ValueError(
                f"strategy={self.strategy!r} needs max_messages of 2 or more: what goes first is one of them"
            )

    @property
    def name(self) -> str:
        """What a session stores its cut under: windows that differ have cuts of their own."""
        return f"{self.strategy}/{self.max_messages or '-'}/{self.max_tokens or '-'}"

    @property
    def head_messages_max(self) -> int:
        """The most messages of the beginning that are shown, beside instructions."""
        if self.strategy != "head_and_tail":
            return 0
        share = inf if self.max_messages is None else ceil(_HEAD_SHARE * self.max_messages)
        return int(min(share, _HEAD_MESSAGES_MAX))

    def need(self) -> "ExcerptNeed":
        """What of history `cut_view` has to be given."""
        messages, characters = None, None
        if self.max_messages is not None:
            messages = ceil(self.keep_until * self.max_messages) + _SPARE_MESSAGES
        if self.max_tokens is not None:
            characters = ceil(self.keep_until * self.max_tokens) * _CHARACTERS_PER_TOKEN_MAX
        return ExcerptNeed(
            max(_PINNED_MAX, self.head_messages_max), messages, characters, self.strategy == "summary", self.name
        )


def check_strategy(strategy: object) -> Strategy:
    """The strategy, which is one. ValueError otherwise."""
    for known in STRATEGIES:
        if strategy == known:
            return known
    raise ValueError(f"there is no strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")


class ExcerptNeed(Struct, frozen=True):
    """How much of history a window is made from: the `first` messages, and of the latest at least `messages`, or as
    many as have `characters`, whichever is less. `window` is the name of the window whose cut is wanted."""

    first: int
    messages: int | None
    characters: int | None
    overlay: bool = False
    window: str = ""


class Excerpt(Struct, frozen=True):
    """What is at hand of a history.

    Attributes:
        messages: the first ones and the latest ones, oldest first.
        gap: how many are missing behind the first `gap_at` of them; 0 where it is the whole history.
        overlay: the latest valid summary, where it was asked for.
        cut: where the window was cut last: the seq of the first one behind the cut; 0 for none.
    """

    messages: tuple[Message, ...] = ()
    gap_at: int = 0
    gap: int = 0
    overlay: Overlay | None = None
    cut: int = 0


class WindowView(Struct, frozen=True):
    """What a model gets to see of a history, and what it does not.

    Attributes:
        messages: fit to be sent: each tool call is followed by its results.
        cut: the seq of the first message behind the cut; 0 where nothing is cut.
        shown: how many stored messages are among them.
        left_out: how many stored messages are not.
        tokens: of all that is to be sent, as counted and corrected; None where the window is not by tokens.
        counter: how they were counted, as in "tiktoken/o200k_base" or "estimate x 1.08"; "" where they were not.
        repaired: what had to be put right, among the messages at hand: results that were made up for open tool calls,
            results without a call.
        over: True where it holds more than `keep_until` x its budget, since what must be shown does.
        summary_to: where the strategy is "summary": the messages up to this seq should be summarised, since they are
            neither shown nor in a summary; 0 for none.
    """

    messages: tuple[Message, ...]
    cut: int
    shown: int
    left_out: int
    tokens: int | None = None
    counter: str = ""
    repaired: Repaired = Repaired(())
    over: bool = False
    summary_to: int = 0


@dataclass(slots=True)
class _Sizes:
    """Messages and tokens of the units that may be cut: of each, from it to the last one, behind which comes what must
    be shown anyway."""

    window: Window
    messages: list[int]
    tokens: list[float]

    def share(self, start: int) -> float:
        """How much of the budget the window holds if it begins with this unit."""
        share = 0.0
        if self.window.max_messages is not None:
            share = self.messages[start] / self.window.max_messages
        if self.window.max_tokens is not None:
            share = max(share, self.tokens[start] / self.window.max_tokens)
        return share

    def first_within(self, limit: float, *, least: int) -> int:
        """The first unit with which the window keeps to `limit` x its budget, from `least` on; behind the last one
        where none does."""
        low, high = least, len(self.messages) - 1
        while low < high:  # shares fall from unit to unit
            middle = (low + high) // 2
            if self.share(middle) <= limit:
                high = middle
            else:
                low = middle + 1
        return low


def cut_view(
    window: Window | None,
    excerpt: Excerpt,
    meter: TokenMeter | None = None,
    *,
    fixed: Sequence[Message] = (),
    extra_tokens: int = 0,
) -> WindowView:
    """The view of a history and of `fixed`, the turn's input, which stands behind it and is never cut.

    Args:
        window: None shows all.
        meter: needed for a window by tokens.
        extra_tokens: what else is sent, as counted without the learnt factor.

    Cost: that of repairing and counting what is at hand.
    """
    if window is None:
        repaired = repair((*excerpt.messages, *fixed))
        shown = len(excerpt.messages)
        return WindowView(repaired.messages, cut=0, shown=shown, left_out=excerpt.gap, repaired=repaired)
    parts = _parts(window, excerpt, fixed)
    overlay = excerpt.overlay if window.strategy == "summary" else None
    covered = 0
    if overlay is not None:
        parts.head = (*parts.head, overlay.message())
        covered = sum(_seq(unit) <= overlay.last_seq for unit in parts.cuttable)
    sizes = _sizes(window, parts, meter, extra_tokens=extra_tokens)
    start = _start(window, parts, sizes, excerpt, covered=covered)
    latest = parts.cuttable[start:]
    first_seq = _seq(latest[0]) if latest else parts.fixed_seq
    messages = (*parts.head, *_flat(latest), *parts.fixed)
    given = {id(message) for message in fixed}
    shown = sum(message.seq > 0 and id(message) not in given for message in messages)
    summarised_to = overlay.last_seq if overlay is not None else 0
    unread_to = _seq(parts.cuttable[0]) - 1 if excerpt.gap and parts.cuttable else 0
    wanting = window.strategy == "summary" and (start > covered or unread_to > summarised_to)
    by_tokens = meter is not None and window.max_tokens is not None
    return WindowView(
        messages=messages,
        cut=first_seq if start or excerpt.gap else 0,
        shown=shown,
        left_out=excerpt.gap + len(excerpt.messages) - shown,
        tokens=ceil(sizes.tokens[start]) if by_tokens else None,
        counter=meter.name if meter is not None and by_tokens else "",
        repaired=parts.repaired,
        over=sizes.share(start) > window.keep_until,
        summary_to=first_seq - 1 if wanting else 0,
    )


def _start(window: Window, parts: "_Parts", sizes: _Sizes, excerpt: Excerpt, *, covered: int) -> int:
    """The first unit that is shown; the units before `covered` are in a summary."""
    count = len(parts.cuttable)
    kept = max(bisect_left(parts.cuttable, excerpt.cut, key=_seq), covered)
    reaches_back = excerpt.gap > 0 and not covered and (not count or excerpt.cut < _seq(parts.cuttable[0]))
    too_little = kept > covered and sizes.share(kept) < _TOO_LITTLE
    if not reaches_back and not too_little and sizes.share(kept) <= window.keep_until:
        return kept
    start = sizes.first_within(window.cut_to, least=covered)
    if start == count > covered and (not parts.fixed or sizes.share(count - 1) <= 1):
        start = count - 1  # larger than what would fit, but better than nothing
    return _at_user(parts, sizes, start)


def _at_user(parts: "_Parts", sizes: _Sizes, start: int) -> int:
    """The first unit from here on in which a user speaks, if it leaves half of what there is; else this one."""
    count = len(parts.cuttable)
    speaks = next((i for i in range(start, count) if parts.cuttable[i].messages[0].role == "user"), start)
    rest = sizes.share(count)
    return speaks if sizes.share(speaks) - rest >= 0.5 * (sizes.share(start) - rest) else start


def _seq(unit: Unit) -> int:
    """The place of a unit that is stored: that of its first message."""
    return unit.messages[0].seq


@dataclass(slots=True)
class _Parts:
    """A history in units: what is always shown first, what may be cut, and what is always shown last, the first place
    of which, where it is stored, or else the one behind the last is `fixed_seq`."""

    head: tuple[Message, ...]
    cuttable: list[Unit]
    fixed: tuple[Message, ...]
    fixed_seq: int
    repaired: Repaired


def _parts(window: Window, excerpt: Excerpt, fixed: Sequence[Message]) -> _Parts:
    stored: Sequence[Message] = excerpt.messages
    fixed_seq = stored[-1].seq + 1 if stored else 1
    beginning: list[Unit] | None = None
    if excerpt.gap:
        beginning = _whole_units(stored[: excerpt.gap_at])
        stored = _without_orphans(stored[excerpt.gap_at :])
    repaired = repair((*stored, *fixed))
    cuttable = units(repaired.messages)
    # Results in the input may be those of a call that is stored: their unit is the input's, and what follows too.
    given = {id(message) for message in fixed}
    whose = (place for place, unit in enumerate(cuttable) if any(id(message) in given for message in unit.messages))
    split = next(whose, len(cuttable))
    cuttable, last = cuttable[:split], cuttable[split:]
    if last and id(last[0].messages[0]) not in given:
        fixed_seq = _seq(last[0])
    count = _head_count(window, cuttable if beginning is None else beginning)
    head = (cuttable if beginning is None else beginning)[:count]
    return _Parts(
        head=_flat(head),
        cuttable=cuttable[count:] if beginning is None else cuttable,
        fixed=_flat(last),
        fixed_seq=fixed_seq,
        repaired=repaired,
    )


def _whole_units(messages: Sequence[Message]) -> list[Unit]:
    """The units of the beginning of a history, as far as they are surely whole."""
    repaired = repair(messages)
    made_up = {id(message) for message in repaired.inserted}
    whole: list[Unit] = []
    for unit in units(repaired.messages):
        if any(id(message) in made_up for message in unit.messages):
            break
        whole.append(unit)
    return whole


def _without_orphans(messages: Sequence[Message]) -> Sequence[Message]:
    """Without the results that it begins with: their call was not read."""
    start = 0
    while start < len(messages) and messages[start].role == "tool":
        start += 1
    return messages[start:]


def _head_count(window: Window, first_units: Sequence[Unit]) -> int:
    """How many of the first units are always shown."""
    pinned = 0
    while pinned < min(len(first_units), _PINNED_MAX) and first_units[pinned].messages[0].role in _INSTRUCTING:
        pinned += 1
    if window.strategy != "head_and_tail":
        return pinned
    first_units = first_units[: window.head_messages_max]
    messages = accumulate(len(unit.messages) for unit in first_units)
    sizes = accumulate(sum(len(message.text.encode()) for message in unit.messages) for unit in first_units)
    bytes_max = inf if window.max_tokens is None else _HEAD_SHARE * window.max_tokens * _HEAD_BYTES_PER_TOKEN
    fitting = sum(
        count <= window.head_messages_max and size <= bytes_max for count, size in zip(messages, sizes, strict=True)
    )
    return max(pinned, fitting)


_INSTRUCTING = frozenset({"system", "developer"})


def _sizes(window: Window, parts: _Parts, meter: TokenMeter | None, *, extra_tokens: int) -> _Sizes:
    anyway = (*parts.head, *parts.fixed)
    messages = _sums((len(unit.messages) for unit in reversed(parts.cuttable)), len(anyway))
    if window.max_tokens is None:
        return _Sizes(window, messages, [])
    assert meter is not None, "a window by tokens needs a meter"
    factor = meter.factor
    always = factor * (meter.counted(anyway) + extra_tokens)
    tokens = _sums((factor * meter.counted(unit.messages) for unit in reversed(parts.cuttable)), always)
    return _Sizes(window, messages, tokens)


def _sums(newest_first: Iterable[Number], always: Number) -> list[Number]:
    """For each unit the sum from it to the last one, and `always`; at the end `always` alone."""
    sums = list(accumulate(newest_first, initial=always))
    sums.reverse()
    return sums


def _flat(parts: Iterable[Unit]) -> tuple[Message, ...]:
    return tuple(message for unit in parts for message in unit.messages)

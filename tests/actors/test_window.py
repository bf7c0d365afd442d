"""A window's view is valid for the API, within its budget, and begins as the one before it, whatever history is."""

from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from callboard import Message, ToolCall
from callboard.actors.conversation import repair, units
from callboard.actors.overlay import Overlay
from callboard.actors.tokens import TokenMeter
from callboard.actors.window import Excerpt, Strategy, Window, WindowView, cut_view

unhurried = settings(deadline=None)  # other processes may take the machine's time

STRATEGIES: list[Strategy] = ["recent", "head_and_tail", "summary"]


class Letters:
    """Four letters are a token, as in English."""

    name = "letters"
    exact = True

    def count(self, text: str) -> int:
        return -(-len(text) // 4)


def meter() -> TokenMeter:
    return TokenMeter(Letters())


def numbered(messages: list[Message]) -> tuple[Message, ...]:
    """As a session stores them."""
    return tuple(
        Message(role=m.role, content=m.content, tool_calls=m.tool_calls, tool_call_id=m.tool_call_id, seq=seq)
        for seq, m in enumerate(messages, 1)
    )


def talk(turns: int, *, letters: int = 10) -> tuple[Message, ...]:
    """Turns of a question and its answer."""
    roles = ["user", "assistant"] * turns
    return numbered([Message(role=role, content="x" * letters) for role in roles])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] -- both are roles


def seqs(view: WindowView) -> list[int]:
    return [message.seq for message in view.messages]


def calling(*ids: str) -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(id=id, name="f", arguments="{}") for id in ids))


def result(id: str) -> Message:
    return Message(role="tool", content="done", tool_call_id=id)


# Histories as they come, valid or not ---------------------------------------------------------------------------------

ids = st.sampled_from(["a", "b", "c"])
a_message = st.one_of(
    st.builds(Message, role=st.sampled_from(["user", "assistant", "system"]), content=st.text("xy ", max_size=30)),
    st.lists(ids, min_size=1, max_size=3, unique=True).map(lambda chosen: calling(*chosen)),
    st.builds(result, ids),
)
histories = st.lists(a_message, max_size=40).map(numbered)
inputs = st.lists(a_message, max_size=4)
windows = st.builds(
    Window,
    max_messages=st.integers(2, 20),
    max_tokens=st.one_of(st.none(), st.integers(5, 400)),
    strategy=st.sampled_from(STRATEGIES),
    keep_until=st.sampled_from([1.0, 1.25, 2.0]),
    cut_to=st.sampled_from([0.5, 0.7, 1.0]),
)


@st.composite
def excerpts(draw: st.DrawFn) -> Excerpt:
    """A history, whole or with a hole, perhaps with an overlay and a cut."""
    history = draw(histories)
    cut = draw(st.integers(0, len(history) + 2))
    first, latest = sorted((draw(st.integers(0, len(history))), draw(st.integers(0, len(history)))))
    overlay = None
    if history and draw(st.booleans()):
        to = draw(st.integers(1, len(history)))
        overlay = Overlay(last_seq=to, message_count=to, text="so far")
    messages = (*history[:first], *history[latest:])
    if latest == len(history):  # the latest ones are always read
        return Excerpt(history, overlay=overlay, cut=cut)
    return Excerpt(messages, gap_at=first, gap=latest - first, overlay=overlay, cut=cut)


@unhurried
@given(windows, excerpts(), inputs, st.integers(0, 50))
def test_the_view_keeps_the_pairing_rule(window: Window, excerpt: Excerpt, fixed: list[Message], extra: int) -> None:
    view = cut_view(window, excerpt, meter(), fixed=fixed, extra_tokens=extra)

    assert repair(view.messages).messages == view.messages
    assert not repair(view.messages).changed
    units(view.messages)  # it raises where the rule is broken


@unhurried
@given(windows, excerpts(), inputs, st.integers(0, 50))
def test_the_view_keeps_to_its_budget_unless_nothing_more_can_go(
    window: Window, excerpt: Excerpt, fixed: list[Message], extra: int
) -> None:
    count = meter()
    view = cut_view(window, excerpt, count, fixed=fixed, extra_tokens=extra)
    assert window.max_messages is not None
    share = len(view.messages) / window.max_messages
    if window.max_tokens is not None:
        tokens = count.counted(view.messages) + extra
        assert view.tokens == tokens
        share = max(share, tokens / window.max_tokens)

    assert view.over == (share > window.keep_until)
    if view.over and not any(message.role == "tool" for message in fixed):  # results would keep their stored calls
        behind = [unit for unit in units(view.messages) if unit.messages[0].seq >= max(view.cut, 1)]
        instructing = [unit for unit in behind if unit.messages[0].role == "system"]
        at_most = 1 + (window.head_messages_max if window.strategy == "head_and_tail" else 0)
        assert len(behind) <= len(instructing) + at_most


@unhurried
@given(st.integers(4, 40), st.integers(0, 100), st.integers(0, 100), st.sampled_from(["recent", "head_and_tail"]))
def test_a_talk_without_tools_fits_always(limit: int, turns: int, cut: int, strategy: Strategy) -> None:
    strict = Window(max_messages=limit, strategy=strategy, keep_until=1, cut_to=1)
    lax = Window(max_messages=limit, strategy=strategy)

    assert len(cut_view(strict, Excerpt(talk(turns), cut=cut)).messages) <= limit
    assert len(cut_view(lax, Excerpt(talk(turns), cut=cut)).messages) <= 1.25 * limit


@unhurried
@given(windows, excerpts(), inputs)
def test_units_are_shown_whole_and_in_order(window: Window, excerpt: Excerpt, fixed: list[Message]) -> None:
    whole = units(repair((*excerpt.messages, *fixed)).messages)

    shown = units(cut_view(window, excerpt, meter(), fixed=fixed).messages)

    if not excerpt.gap:  # where much was not read, a unit of the whole may be one that was cut apart by reading
        overlaid = excerpt.overlay is not None and window.strategy == "summary"
        remaining = iter(whole)
        assert all(unit in remaining for unit in shown if not (overlaid and "[Summary" in unit.messages[0].text))


@unhurried
@given(windows, excerpts(), inputs)
def test_what_is_shown_and_what_is_left_out_is_all_there_is(
    window: Window, excerpt: Excerpt, fixed: list[Message]
) -> None:
    view = cut_view(window, excerpt, meter(), fixed=fixed)

    assert view.shown == sum(message.seq > 0 for message in view.messages)
    assert view.shown + view.left_out == len(excerpt.messages) + excerpt.gap
    assert len({id(message) for message in view.messages}) == len(view.messages)


@unhurried
@given(windows, excerpts(), inputs)
def test_a_view_made_again_at_its_cut_is_the_same(window: Window, excerpt: Excerpt, fixed: list[Message]) -> None:
    view = cut_view(window, excerpt, meter(), fixed=fixed)

    again = cut_view(
        window, Excerpt(excerpt.messages, excerpt.gap_at, excerpt.gap, excerpt.overlay, view.cut), meter(), fixed=fixed
    )

    if window.cut_to <= 1 <= window.keep_until and not view.over:
        assert again.messages == view.messages


@unhurried
@given(histories, inputs)
def test_without_a_window_all_is_shown(history: tuple[Message, ...], fixed: list[Message]) -> None:
    view = cut_view(None, Excerpt(history), fixed=fixed)

    assert view.messages == repair((*history, *fixed)).messages
    assert (view.cut, view.left_out, view.summary_to) == (0, 0, 0)


# Stability ------------------------------------------------------------------------------------------------------------


def equal_share(window: Window, turns: int, *, letters: int = 240) -> float:
    """Talk for so many turns; the share of each prompt that the one after it begins with, over all of them, in tokens.

    A cut costs a prompt's length once in so many turns as it takes from `cut_to` to `keep_until`.
    """
    history = talk(turns, letters=letters)
    prompts: list[tuple[Message, ...]] = []
    cut = 0
    for turn in range(turns):
        excerpt = Excerpt(history[: 2 * turn], cut=cut)
        view = cut_view(window, excerpt, meter(), fixed=history[2 * turn : 2 * turn + 1])
        cut = view.cut
        prompts.append(view.messages)
    equal = sum(meter().counted(common(one, other)) for one, other in pairwise(prompts))
    return equal / sum(meter().counted(prompt) for prompt in prompts[:-1])


def common(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """With what both begin."""
    return one[: next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


LIMITS = [{"max_messages": 50}, {"max_tokens": 4_000}, {"max_messages": 50, "max_tokens": 4_000}]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("strategy", ["recent", "head_and_tail"])
def test_nine_tenths_of_each_prompt_are_the_beginning_of_the_next(strategy: Strategy, limits: dict[str, int]) -> None:
    share = equal_share(Window(**limits, strategy=strategy), 200)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] -- limits are whole numbers
    tight = equal_share(Window(**limits, strategy=strategy, keep_until=1, cut_to=1), 200)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] -- as above

    assert share >= 0.9
    assert tight < 0.5  # what it is good for


# Where reading stops within a unit ------------------------------------------------------------------------------------


def test_a_unit_that_reading_has_cut_apart_is_neither_shown_nor_called_broken() -> None:
    user = Message(role="user", content="x")
    head = [user, calling("a", "b"), result("a"), result("b")]
    history = numbered([*head, *[user] * 20, calling("a"), result("a"), user])
    first, latest = history[:3], history[25:]  # without the last result of the head, and without the last call
    excerpt = Excerpt((*first, *latest), gap_at=3, gap=22)

    view = cut_view(Window(max_messages=20, strategy="head_and_tail"), excerpt)

    assert [message.seq for message in view.messages] == [1, 27]
    assert not view.repaired.changed
    assert (view.shown, view.left_out) == (2, 25)


# Cuts that do not fit any more ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [10, 100])
def test_a_history_that_was_shortened_behind_its_cut_is_shown_again(cut: int) -> None:
    question = [Message(role="user", content="x")]

    view = cut_view(Window(max_messages=10), Excerpt(talk(5), cut=cut), fixed=question)

    assert seqs(view) == [5, 6, 7, 8, 9, 10, 0]
    assert view.cut == 5


def test_a_cut_further_back_than_what_was_read_moves_and_then_stays() -> None:
    history = talk(50)
    window = Window(max_messages=20)
    first = cut_view(window, Excerpt(history[-20:], gap=80, cut=40))

    second = cut_view(window, Excerpt(history[-20:], gap=80, cut=first.cut))

    assert len(first.messages) == 14
    assert second.messages == first.messages

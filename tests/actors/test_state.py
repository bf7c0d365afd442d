"""What a turn sees and changes of one scope, and what its deltas come to: properties of the pure part of state."""

import copy
from typing import Any, Literal, TypeAlias, cast

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.actors.state import (
    ScopedState,
    StateDelta,
    added,
    applied,
    check_amount,
    check_state_patch,
    patch_deltas,
)

Operation: TypeAlias = tuple[Literal["set", "pop", "increment", "inside"], str, Any]

KEYS = st.sampled_from(["a", "b", "c"])
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, -0.25]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=4,
)
SCOPES = st.dictionaries(KEYS, VALUES, max_size=3)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("pop"), KEYS, st.none()),
        st.tuples(st.just("increment"), KEYS, NUMBERS),
        st.tuples(st.just("inside"), KEYS, VALUES),
    ),
    max_size=8,
)


def do(state: Any, operation: Operation) -> None:
    """The same on a ScopedState and on a dict."""
    name, key, value = operation
    if name == "set":
        state[key] = copy.deepcopy(value)
    elif name == "pop":
        state.pop(key, None)
    elif name == "inside" and isinstance(state.get(key), list):
        state[key].append(copy.deepcopy(value))
    elif name == "increment" and type(state.get(key, 0)) in (int, float):
        if isinstance(state, ScopedState):
            state.increment(key, value)
        else:
            state[key] = state.get(key, 0) + value


def exactly(values: object) -> bytes:
    """1 is not 1.0, and neither is True."""
    return msgspec.msgpack.encode(values, order="sorted")


@given(SCOPES, OPERATIONS)
def test_turn_sees_what_a_dict_would_show(values: dict[str, Any], operations: list[Operation]) -> None:
    state, plain = ScopedState("app", values), copy.deepcopy(values)
    for operation in operations:
        do(state, operation)
        do(plain, operation)

    assert exactly(dict(state)) == exactly(plain)
    assert exactly(state.values_copied()) == exactly(plain)


@given(SCOPES, OPERATIONS)
def test_deltas_on_the_same_values_give_what_the_turn_saw(values: dict[str, Any], operations: list[Operation]) -> None:
    before = exactly(values)
    state = ScopedState("app", values)
    for operation in operations:
        do(state, operation)

    assert exactly(applied(values, state.deltas())) == exactly(dict(state))
    assert len({delta.key for delta in state.deltas()}) == len(state.deltas())
    assert exactly(values) == before


@given(SCOPES, OPERATIONS, SCOPES)
def test_key_that_a_turn_left_alone_stays_as_others_made_it(
    values: dict[str, Any], operations: list[Operation], others: dict[str, Any]
) -> None:
    state = ScopedState("app", values)
    for operation in operations:
        do(state, operation)
    touched = {key for name, key, _ in operations if name != "inside"}
    changed = {key for key in {*values, *state} if exactly(values.get(key, "-")) != exactly(state.get(key, "-"))}

    result = applied(others, state.deltas())

    for key in {"a", "b", "c"} - touched - changed:
        assert exactly(result.get(key, "-")) == exactly(others.get(key, "-"))


@given(SCOPES, OPERATIONS, OPERATIONS, SCOPES)
def test_turn_that_paused_has_the_deltas_of_one_that_did_not(
    values: dict[str, Any], before: list[Operation], after: list[Operation], others: dict[str, Any]
) -> None:
    whole = ScopedState("app", values)
    for operation in before:
        do(whole, operation)
    resumed = ScopedState("app", values, deltas=whole.deltas())
    for operation in after:
        do(whole, operation)
        do(resumed, operation)

    assert exactly(dict(resumed)) == exactly(dict(whole))
    assert exactly(applied(values, resumed.deltas())) == exactly(dict(whole))
    assert exactly(applied(others, resumed.deltas())) == exactly(applied(others, whole.deltas()))


def test_turn_that_paused_and_looks_no_more_keeps_its_deltas() -> None:
    deltas = (StateDelta("app", "a", "increment", 2), StateDelta("app", "b", "remove"))
    state = ScopedState("app", {"a": 1, "b": 2}, deltas=deltas)

    assert state.deltas() == deltas
    assert state.values_copied() == {"a": 3}
    assert state.deltas() == deltas


@given(st.lists(st.tuples(KEYS, NUMBERS), max_size=10), st.randoms(use_true_random=False))
def test_increments_of_many_turns_add_up_in_any_order(steps: list[tuple[str, float]], chance: Any) -> None:
    deltas: list[StateDelta] = []
    for key, amount in steps:
        state = ScopedState("app", {"a": 7})
        state.increment(key, amount)
        deltas += state.deltas()
    chance.shuffle(deltas)

    result = applied({"a": 7}, deltas)

    for key in ("a", "b", "c"):
        assert result.get(key, 0) == (7 if key == "a" else 0) + sum(amount for each, amount in steps if each == key)


@given(st.one_of(VALUES, st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False)), NUMBERS)
def test_sum_can_always_be_stored(present: object, amount: float) -> None:
    total = added(present, amount)

    assert check_amount(total) == total


@pytest.mark.parametrize(
    ("present", "amount", "total"),
    [
        (2**64 - 1, 1, float(2**64)),
        (-(2**63), -1, float(-(2**63) - 1)),
        (1.5e308, 1.5e308, 1.5e308),
        ("text", 2, 2),
        (True, 2, 2),
        (None, 2, 2),
    ],
)
def test_committed_increment_never_fails(present: object, amount: float, total: float) -> None:
    result = added(present, amount)

    assert (result, type(result)) == (total, type(total))


def test_value_that_is_set_to_what_it_was_is_a_delta_all_the_same() -> None:
    state = ScopedState("app", {"a": 1})
    state["a"] = 1

    assert applied({"a": 2}, state.deltas()) == {"a": 1}


def test_key_that_came_and_went_in_one_turn_is_removed() -> None:
    state = ScopedState("app", {})
    state["a"] = 1
    del state["a"]

    assert applied({"a": "of another"}, state.deltas()) == {}


def test_increment_of_what_the_turn_has_set_is_a_set() -> None:
    state = ScopedState("app", {"a": 1})
    state["a"] = 5
    state.increment("a")

    assert state.deltas() == (StateDelta("app", "a", "set", 6),)


def test_what_a_delta_holds_does_not_change_with_what_the_turn_has() -> None:
    state, mine = ScopedState("app", {}), [1]
    state["a"] = mine
    deltas = state.deltas()
    mine.append(2)

    assert deltas == (StateDelta("app", "a", "set", [1]),)
    assert state["a"] == [1, 2]


@pytest.mark.parametrize("key", ["", "a\nb", "k" * 65, 5, "\ud800"])
def test_key_that_cannot_be_stored_is_refused_and_changes_nothing(key: Any) -> None:
    state = ScopedState("app", {"a": 1})

    with pytest.raises((TypeError, ValueError), match="state key"):
        state[key] = 1
    with pytest.raises((TypeError, ValueError), match="state key"):
        state.increment(key)
    assert (dict(state), state.deltas()) == ({"a": 1}, ())


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), 2**64, "1", None, True])
def test_increment_by_what_is_no_number_is_refused(amount: Any) -> None:
    state = ScopedState("app", {"a": 1})

    with pytest.raises((TypeError, ValueError)):
        state.increment("a", amount)
    assert (dict(state), state.deltas()) == ({"a": 1}, ())


def test_sum_beyond_what_can_be_stored_is_refused_in_a_turn() -> None:
    state = ScopedState("app", {"a": 2**64 - 1})

    with pytest.raises(ValueError, match=r'app_state\["a"\] is a whole number beyond 64 bits'):
        state.increment("a")
    assert state.deltas() == ()


def test_scope_that_cannot_be_changed_says_why_also_of_what_is_inside() -> None:
    state = ScopedState("user", {"list": []}, refusal="nobody owns it")
    for change in (
        lambda: cast("Any", state).__setitem__("a", 1),
        lambda: state.__delitem__("list"),
        lambda: state.increment("a"),
    ):
        with pytest.raises(ValueError, match="user_state cannot be changed: nobody owns it"):
            change()
    assert state.deltas() == ()
    state["list"].append(1)

    with pytest.raises(ValueError, match="nobody owns it"):
        state.deltas()


@given(SCOPES, SCOPES)
def test_patch_sets_keys_and_removes_those_that_are_none(values: dict[str, Any], patch: dict[str, Any]) -> None:
    result = applied(values, patch_deltas("app", check_state_patch(patch)))

    for key in {*values, *patch}:
        expected = patch.get(key, values.get(key))
        if key in patch and patch[key] is None:
            assert key not in result
        else:
            assert exactly(result[key]) == exactly(expected)

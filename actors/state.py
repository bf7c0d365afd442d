"""State of the scopes app, user and session: what a turn sees of it, and the deltas that its commit keeps. Pure.

A turn sees each scope as it was when the turn began, with its own changes. What it changes becomes deltas, one a key:

    set, remove     the last one that is applied counts, whatever a key held before
    increment       adds to what the key holds then: of many turns at once none is lost

Deltas of a scope that nobody else writes meanwhile (session) leave just what the turn saw. Those of app and user meet
others' there, and are applied one after the other.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from threading import RLock
from typing import Any, Literal, TypeAlias, cast

import msgspec
from msgspec import Struct

from .limits import check_metadata, check_state_key, json_copy

__all__ = [
    "ScopedState",
    "StateDelta",
    "StateScope",
    "added",
    "applied",
    "check_amount",
    "check_state_patch",
    "patch_deltas",
]

StateScope: TypeAlias = Literal["app", "user", "session"]

_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1  # what msgpack can carry

_packed = msgspec.msgpack.Encoder(order="sorted").encode


class StateDelta(Struct, frozen=True, omit_defaults=True, gc=False):
    """One key of one scope changes. `value` is what it is set to, or by how much it goes up."""

    scope: StateScope
    key: str
    op: Literal["set", "remove", "increment"] = "set"
    value: Any = None


def check_amount(amount: object) -> float:
    """A finite number to add, a whole one within 64 bits.

    Raises:
        TypeError, ValueError: it is none.
    """
    if type(amount) is not int and type(amount) is not float:
        raise TypeError(f"a value is incremented by a number, not by {amount!r}")
    return cast("float", json_copy(amount, "the increment"))


def check_state_patch(patch: object) -> dict[str, Any]:
    """A copy of a patch for a scope, in which None removes a key.

    Raises:
        TypeError, ValueError: it is no mapping, a key is none that state has, or a value is not JSON.
    """
    checked = check_metadata(patch, what="patch")
    for key in checked:
        check_state_key(key)
    return checked


def patch_deltas(scope: StateScope, patch: Mapping[str, Any]) -> tuple[StateDelta, ...]:
    """The deltas of a patch that was checked."""
    return tuple(
        StateDelta(scope, key, "remove") if value is None else StateDelta(scope, key, "set", value)
        for key, value in patch.items()
    )


def applied(values: Mapping[str, Any], deltas: Iterable[StateDelta]) -> dict[str, Any]:
    """A scope's values with these deltas, one after the other. What was given stays as it is, also inside of values."""
    result = dict(values)
    for delta in deltas:
        if delta.op == "set":
            result[delta.key] = delta.value
        elif delta.op == "remove":
            result.pop(delta.key, None)
        else:
            result[delta.key] = added(result.get(delta.key), delta.value)
    return result


def added(present: object, amount: float) -> float:
    """The sum, always one that can be stored; what is no number counts as 0, since a committed delta cannot fail.

    Whole numbers that leave 64 bits become a float; where even that is not finite, the value stays as it is.
    """
    number = cast("float", present) if type(present) is int or type(present) is float else 0
    total = number + amount
    if isinstance(total, int) and not _INTEGER_MIN <= total <= _INTEGER_MAX:
        total = float(total)
    return total if math.isfinite(total) else number


class ScopedState(MutableMapping[str, Any]):
    """What a turn sees of one scope, as a dict of JSON values that it may change; also inside of lists and dicts.

    Args:
        scope: which one.
        values: what it held when the turn began; never changed here.
        deltas: what the turn changed before it paused.
        refusal: why nothing can be changed here; None where it can.

    Raises (on a change):
        TypeError, ValueError: a value is not JSON, a key is none that state has, or nothing can be changed here.

    Any thread may use it.
    """

    __slots__ = ("_base", "_earlier", "_increments", "_lock", "_refusal", "_scope", "_values", "_written")

    def __init__(
        self,
        scope: StateScope,
        values: Mapping[str, Any] | None = None,
        *,
        deltas: Iterable[StateDelta] = (),
        refusal: str | None = None,
    ) -> None:
        self._scope: StateScope = scope
        self._base: Mapping[str, Any] = values or {}
        self._earlier = tuple(deltas)
        self._refusal = refusal
        self._lock = RLock()
        self._values: dict[str, Any] | None = None  # a copy, made when somebody looks
        self._written: set[str] = set()
        self._increments: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<{self._scope}_state {self._own()!r}>"

    def __getitem__(self, key: str) -> Any:
        return self._own()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a key; the turn's value is then what others find there, unless they set it later."""
        with self._lock:
            self._check_change(key)
            json_copy(value, self._place(key))
            self._own()[key] = value
            self._note_written(key)

    def __delitem__(self, key: str) -> None:
        """Remove a key that is there."""
        with self._lock:
            self._check_change(key)
            del self._own()[key]
            self._note_written(key)

    def increment(self, key: str, amount: float = 1) -> float:
        """Add to a number, 0 where there is none yet; what this turn sees of it then.

        Of turns that increment one key at the same time, in whatever sessions, each counts.

        Raises:
            TypeError, ValueError: the value is no number, or the sum none that can be stored; and as on any change.
        """
        with self._lock:
            self._check_change(key)
            own = self._own()
            present, amount = own.get(key, 0), check_amount(amount)
            if type(present) is not int and type(present) is not float:
                raise TypeError(f"{self._place(key)} is {present!r}: only a number can be incremented")
            total = cast("float", json_copy(present + amount, self._place(key)))
            own[key] = total
            if key not in self._written:
                self._increments[key] = self._increments.get(key, 0) + amount
            return total

    def values_copied(self) -> dict[str, Any]:
        """All values as they are now, a copy throughout."""
        with self._lock:
            return _copied(self._base if self._values is None and not self._earlier else self._own())

    def deltas(self) -> tuple[StateDelta, ...]:
        """What the turn has changed so far, each key once.

        Raises:
            TypeError, ValueError: something that is no JSON was put inside of a value, or the whole became too large.
        """
        with self._lock:
            own = self._values
            if own is None:
                return self._earlier
            found: list[StateDelta] = []
            for key, value in own.items():
                if key in self._increments:
                    found.append(StateDelta(self._scope, key, "increment", self._increments[key]))
                elif key in self._written or key not in self._base or _differs(value, self._base[key]):
                    found.append(StateDelta(self._scope, key, "set", json_copy(value, self._place(key))))
            removed = (self._base.keys() | self._written) - own.keys()
            found += [StateDelta(self._scope, key, "remove") for key in sorted(removed)]
            if found:
                if self._refusal is not None:
                    raise ValueError(f"{self._scope}_state cannot be changed: {self._refusal}")
                check_metadata(own, what=f"{self._scope}_state")
            return tuple(found)

    def _own(self) -> dict[str, Any]:
        if self._values is not None:
            return self._values
        with self._lock:
            if self._values is None:
                self._values = self._with_earlier()
            return self._values

    def _with_earlier(self) -> dict[str, Any]:
        for delta in self._earlier:
            if delta.op == "increment":
                self._increments[delta.key] = delta.value
            else:
                self._written.add(delta.key)
        return _copied(applied(self._base, self._earlier))

    def _note_written(self, key: str) -> None:
        self._written.add(key)
        self._increments.pop(key, None)

    def _check_change(self, key: str) -> None:
        if self._refusal is not None:
            raise ValueError(f"{self._scope}_state cannot be changed: {self._refusal}")
        check_state_key(key)

    def _place(self, key: str) -> str:
        return f'{self._scope}_state["{key}"]'


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(dict(values)), type=dict[str, Any]) if values else {}


def _differs(value: object, other: object) -> bool:
    """Exactly: 1 differs from 1.0 and from True. What cannot be encoded differs, and is told of afterwards."""
    try:
        return _packed(value) != _packed(other)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return True

"""What a runtime and its kinds of actors are made with, checked where it is given: programs without a type checker."""

import math
import os
from numbers import Real
from typing import Any

from .actor import Actor

__all__ = ["check_count", "check_factory", "check_interval", "check_kind", "check_number", "check_opener"]


def check_number(name: str, value: Any) -> None:
    """That an option is a number at all; its range is for who asks.

    Raises:
        TypeError: it is none.
        ValueError: it is nan.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = "; say math.inf for never" if value is None and name.endswith("_s") else ""
        raise TypeError(f"{name} is a number, not {value!r}{hint}")
    if math.isnan(value):
        raise ValueError(f"{name} is a number, not nan")


def check_count(name: str, value: Any, *, least: int) -> None:
    """That an option is a whole number, and at least so many.

    Raises:
        TypeError: it is none.
        ValueError: it is less.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], *, example: str) -> None:
    """That an option is None or of its type. The value is not shown: it may be a secret.

    Raises:
        TypeError: it is not; the text has the example.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}= is of type {type(value).__name__}: give it as in {name}={example}")


def check_factory(factory: Any) -> None:
    """Raises: TypeError: it makes no actors."""
    if isinstance(factory, type) and not issubclass(factory, Actor):
        raise TypeError(f"a class of actors derives from callboard.runtime.Actor, and {factory.__name__} does not")
    if not callable(factory):
        one = " (pass its class)" if isinstance(factory, Actor) else ""
        raise TypeError(
            f"a factory is a class of actors, or a function of an id that gives an actor, not {factory!r}{one}"
        )


def check_interval(switch_interval_s: Any) -> None:
    """That it can be a switch interval: None, or a number of seconds above 0.

    Raises:
        TypeError, ValueError: it is not.
    """
    if switch_interval_s is None:
        return
    check_number("switch_interval_s", switch_interval_s)
    if not 0 < switch_interval_s < 1:
        raise ValueError(f"switch_interval_s is a number of seconds between 0 and 1, or None, not {switch_interval_s}")


def check_opener(open_store: Any) -> None:
    """Raises: TypeError: it opens no store."""
    if isinstance(open_store, (str, bytes, os.PathLike)):
        raise TypeError(
            "callboard.runtime.Runtime takes what opens its store, as in `Runtime(MemoryStore)` or "
            "`Runtime(partial(LmdbStore, path))`; callboard.Runtime is the one that takes a path, such as "
            f"{open_store!r}"
        )
    if not callable(open_store):
        raise TypeError(
            "a runtime opens its store itself, and closes it: pass the class or a function that gives the store, as in "
            f"`Runtime(MemoryStore)`, not {open_store!r}"
        )

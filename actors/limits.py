"""What a session accepts: every bound with its reason, and the checks that stand at the door.

A check returns the value to keep (a copy where the caller's could change later) and raises TypeError or ValueError with
what is wrong and what to do instead. Nothing has happened when it raises.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from .message import Message

__all__ = [
    "AGENT_NAME_BYTES_MAX",
    "FACT_CHARACTERS_MAX",
    "JSON_DEPTH_MAX",
    "MESSAGE_BYTES_MAX",
    "METADATA_BYTES_MAX",
    "OWNER_BYTES_MAX",
    "REASON_CHARACTERS_MAX",
    "RUN_ID_BYTES_MAX",
    "SESSION_ID_BYTES_MAX",
    "STATE_KEY_BYTES_MAX",
    "TAGS_MAX",
    "TAG_BYTES_MAX",
    "TOOL_RESULT_BYTES_MAX",
    "check_agent_name",
    "check_author",
    "check_count",
    "check_limit",
    "check_message_size",
    "check_metadata",
    "check_owner",
    "check_reason",
    "check_run_id",
    "check_seq",
    "check_session_id",
    "check_state_key",
    "check_tag",
    "check_tags",
    "json_copy",
    "reason_of",
    "storable_reason",
]

SESSION_ID_BYTES_MAX = 200
"""UTF-8 bytes. "session:" and the id are a stream's name, of which the store takes 400 bytes."""

OWNER_BYTES_MAX = 200
"""UTF-8 bytes. An owner is the value of an index row, of which the store takes 400 bytes, with room for a suffix."""

TAG_BYTES_MAX = 100
"""UTF-8 bytes. A tag is an index value too, and a label rather than a text."""

TAGS_MAX = 64
"""Tags of one session. Each is an index row to write and to erase; a session is found by a few of them."""

AGENT_NAME_BYTES_MAX = 200
"""UTF-8 bytes, for agents and authors. The name stands in every message and run that the agent writes."""

METADATA_BYTES_MAX = 64 * 1024
"""Bytes as JSON. Metadata is part of the session's head, which is written with every commit."""

STATE_KEY_BYTES_MAX = 64
"""UTF-8 bytes. A key of state is a row's key, of which the store takes 64 bytes."""

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Bytes as msgpack. Half of a mailbox's default bound of 8 MiB, so that one message always fits beside another."""

TOOL_RESULT_BYTES_MAX = 1024 * 1024
"""UTF-8 bytes of text. A quarter of a message; more than any model reads at once."""

KEY_BYTES_MAX = 400
"""UTF-8; an idempotency key, for which callers take a UUID or a hash."""

RUN_ID_BYTES_MAX = 60
"""UTF-8 bytes. A run id and a span's number are a row's key, of which the store takes 64 bytes."""

REASON_CHARACTERS_MAX = 2_000
"""Of why a run failed: enough to see what happened; some exceptions quote whole documents."""

FACT_CHARACTERS_MAX = 200
"""Of what a server says beside an answer (finish_reason, model, request id): it stands in runs and spans."""

JSON_DEPTH_MAX = 32
"""Lists and objects inside each other. Deeper ones are a mistake, most often a value that contains itself."""

_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1  # what msgpack can carry


def check_session_id(value: object) -> str:
    """A session's id: 1 to 200 bytes of UTF-8 without control characters."""
    return _check_name("session id", value, bytes_max=SESSION_ID_BYTES_MAX)


def check_agent_name(value: object, *, what: str = "agent name") -> str:
    """An agent's name: 1 to 200 bytes of UTF-8 without control characters. `what` is its name in errors."""
    return _check_name(what, value, bytes_max=AGENT_NAME_BYTES_MAX)


def check_owner(value: object) -> str | None:
    """A session's owner: None, or 1 to 200 bytes of UTF-8 without control characters."""
    return None if value is None else _check_name("owner", value, bytes_max=OWNER_BYTES_MAX)


def check_author(value: object) -> str | None:
    """A message's author: None, or 1 to 200 bytes of UTF-8 without control characters."""
    return None if value is None else _check_name("author", value, bytes_max=AGENT_NAME_BYTES_MAX)


def check_key(value: object) -> str:
    """An idempotency key: 1 to 400 bytes without control characters."""
    return _check_name("key", value, bytes_max=KEY_BYTES_MAX)


def check_run_id(value: object) -> str:
    """A run's id: 1 to 60 bytes of UTF-8 without control characters."""
    return _check_name("run id", value, bytes_max=RUN_ID_BYTES_MAX)


def check_tag(value: object) -> str | None:
    """One tag to look for: None, or 1 to 100 bytes of UTF-8 without control characters."""
    return None if value is None else _check_name("tag", value, bytes_max=TAG_BYTES_MAX)


def check_tags(value: object) -> tuple[str, ...]:
    """A session's tags, in the order given and each once: at most 64 of 1 to 100 bytes."""
    given = _a(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f'tags must be a list or tuple of strings, not {given}: for one tag write tags=("billing",)')
    items = cast("Iterable[object]", value)
    tags = tuple(dict.fromkeys(_check_name("tag", item, bytes_max=TAG_BYTES_MAX) for item in items))
    if len(tags) > TAGS_MAX:
        raise ValueError(f"{len(tags)} tags are more than the {TAGS_MAX} a session may have: keep details in metadata")
    return tags


def check_metadata(value: object, *, what: str = "metadata") -> dict[str, Any]:
    """A copy of a mapping that is JSON throughout and at most 64 KiB of it; `what` is its name in errors.

    Also right for a patch, in which None removes a key: its result is to be checked again for its size.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict, not {_a(value)}")
    copy = json_copy(dict(cast("Mapping[object, object]", value)), what)
    size_bytes = len(msgspec.json.encode(copy))
    if size_bytes > METADATA_BYTES_MAX:
        raise ValueError(
            f"{what} is {size_bytes} bytes as JSON, more than the {METADATA_BYTES_MAX} that fit: "
            "keep large values elsewhere and their key here"
        )
    return cast("dict[str, Any]", copy)


def check_state_key(value: object) -> str:
    """A key of state: 1 to 64 bytes of UTF-8 without control characters."""
    return _check_name("state key", value, bytes_max=STATE_KEY_BYTES_MAX)


def check_message_size(message: Message) -> int:
    """The message's size in bytes as it is stored.

    Cost: encodes the message once.
    """
    size_bytes = len(msgspec.msgpack.encode(message))
    if size_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of role {message.role!r} is {size_bytes} bytes, more than the {MESSAGE_BYTES_MAX} that fit: "
            "split it, or store the large part elsewhere and send a reference"
        )
    return size_bytes


def check_limit(value: object, *, maximum: int | None = None) -> int | None:
    """How many to give: None for all, or a whole number from 1, up to `maximum` where there is one."""
    return None if value is None and maximum is None else check_count(value, what="limit", maximum=maximum)


def check_count(value: object, *, what: str = "count", maximum: int | None = None) -> int:
    """How many: a whole number from 1, up to `maximum` where there is one; `what` is its name in errors."""
    upper = "" if maximum is None else f" to {maximum}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be a whole number from 1{upper}, not {_a(value)}")
    if value < 1 or (maximum is not None and value > maximum):
        raise ValueError(f"{what} must be from 1{upper}, not {value}")
    return value


def check_seq(value: object) -> int:
    """The place of a message: a whole number; 0 is before the first."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a place is a message's seq, a whole number, not {_a(value)}")
    if not 0 <= value < 2**63:
        raise ValueError(f"a place is a message's seq, from 0 to 2**63 - 1, not {value}")
    return value


def check_reason(value: object) -> str:
    """Why somebody did what they did: "", or up to 2 000 characters that can be stored."""
    if not isinstance(value, str):
        raise TypeError(f"reason must be a string, not {_a(value)}")
    if len(value) > REASON_CHARACTERS_MAX:
        raise ValueError(f"reason has {len(value)} characters, more than the {REASON_CHARACTERS_MAX} that fit")
    return cast("str", json_copy(value, "reason"))


def storable_reason(text: str) -> str:
    """The text, cut to 2 000 characters, each half of a character in it replaced by a question mark: why a run failed
    must be storable whatever an exception says."""
    return text[:REASON_CHARACTERS_MAX].encode(errors="replace").decode()


def reason_of(error: BaseException) -> str:
    """The error's kind and text as a `storable_reason`, also where its own `__str__` raises."""
    kind = type(error).__name__
    if isinstance(error, BaseExceptionGroup):  # what its task group says is only how many there are
        causes = "; ".join(reason_of(cause) for cause in cast("BaseExceptionGroup[BaseException]", error).exceptions)
        return storable_reason(f"{kind}: {causes}")
    try:
        return storable_reason(f"{kind}: {error}")
    except Exception as failure:  # noqa: BLE001 -- the __str__ of an error is anyone's code
        return storable_reason(f"{kind} (its text cannot be had: {type(failure).__name__})")


def json_copy(value: object, where: str) -> Any:
    """A deep copy of a JSON value: str, bool, None, finite numbers, lists, and dicts with string keys.

    Raises:
        TypeError, ValueError: it is something else; the message names the place, as in `metadata["a"][3] is a set`.
    """
    return _json_copy(value, where, JSON_DEPTH_MAX)


def _json_copy(value: object, where: str, depth_left: int) -> object:
    # Exact types: a subclass (an enum, numpy's float64) would come back from the store as something else.
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _check_text(where, cast("str", value))
    if kind is int or kind is float:
        return _check_number(where, cast("float", value))
    if kind is not list and kind is not dict:
        raise TypeError(
            f"{where} is {_a(value)}, which JSON does not have: use strings, numbers, booleans, None, lists and dicts"
        )
    if not depth_left:
        raise ValueError(f"{where} is nested deeper than {JSON_DEPTH_MAX}, or contains itself: make it flatter")
    if kind is list:
        items = cast("list[object]", value)
        return [_json_copy(item, f"{where}[{index}]", depth_left - 1) for index, item in enumerate(items)]
    return {
        _check_key(where, key): _json_copy(item, f'{where}["{key}"]', depth_left - 1)
        for key, item in cast("dict[object, object]", value).items()
    }


def _check_key(where: str, key: object) -> str:
    if type(key) is not str:
        raise TypeError(f"{where} has the key {key!r}, which is {_a(key)}: JSON keys are strings, use {str(key)!r}")
    return _check_text(f"the key {key!r} of {where}", key)


def _check_number(where: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON does not have: use None or a string")
    if isinstance(value, int) and not _INTEGER_MIN <= value <= _INTEGER_MAX:
        raise ValueError(f"{where} is a whole number beyond 64 bits: use a string")
    return value


def _check_name(what: str, value: object, *, bytes_max: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{_with_article(what)} must be a string, not {_a(value)}")
    if not value:
        raise ValueError(f"{_with_article(what)} must not be empty: use 1 to {bytes_max} bytes of UTF-8")
    size_bytes = len(_check_text(f"the {what}", value).encode())
    if size_bytes > bytes_max:
        raise ValueError(
            f"the {what} {value[:40]!r}... is {size_bytes} bytes long: use at most {bytes_max} bytes of UTF-8"
        )
    # No control characters: keys on disk may separate parts with one, and a terminal obeys them.
    bad = next((character for character in value if unicodedata.category(character) == "Cc"), None)
    if bad is not None:
        raise ValueError(f"the {what} {value!r} contains the control character {bad!r}: take it out")
    return str.__str__(value)  # a plain one also where a subclass was given


def _check_text(where: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} contains half a character ({value[error.start]!r}) that UTF-8 cannot carry: "
            'decode its source correctly, or with errors="replace"'
        ) from None
    return value


def _a(value: object) -> str:
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"

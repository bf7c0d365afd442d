"""What stands in a sealed store in place of names and keys, and what somebody who has the file still sees.

| what                   | in the file                        | seen without the key                               |
|------------------------|------------------------------------|----------------------------------------------------|
| stream's name          | HMAC, 22 characters                | how many streams, which records belong together    |
| head, row values       | sealed (AES-GCM)                   | their size                                         |
| key in MESSAGE, STEP   | itself: numbers                    | how many messages, turns, steps                    |
| key in RUN, SPAN       | itself: a run's id, a number       | when each run was made: its id has the time        |
| key in OUTCOME,        | HMAC, other ones in each stream;   | how many                                           |
| REMINDER               | the true key is with the value     |                                                    |
| UPDATED                | itself: a time                     | when each session changed last                     |
| OPEN_RUN               | itself: a run's id                 | which runs are open                                |
| OWNER, TAG:            | AES-SIV of the text,               | which streams share an owner or tag, how many; the |
| text 00 time           | then the time                      | text's length in blocks of 16 bytes; the time      |
| REMINDER_DUE:          | the time,                          | when something is due; which names are the same,   |
| time name              | then AES-SIV of the name           | and their length in blocks of 16 bytes             |
| epochs, versions,      | themselves                         | how often each stream was written                  |
| owner numbers          |                                    |                                                    |

Order: entries of one owner or tag keep theirs, the time's. Over all owners or tags, or by a part of one, SealedStore
reads and sorts the whole index. Reminders due in the same millisecond come in the order of their hidden names.

Layouts of the inner values, of which only this file knows:

    OWNER, TAG      01 blocks:u8 hidden text (16 x blocks) [01 rest]    the rest is what followed a 00
                    02 digest of text (16) digest of value (16)         a value that would be too long: it is in a row
    REMINDER_DUE    time (8) [01 blocks:u8 hidden name | 02 digest of value (16)]
    OUTCOME, REMINDER keys
                    01 digest (16)                                      its value: length of the key:u8, key, value
                    02 index:u8 digest of value (16)                    OUTCOME only: an index value that was too long

Source: RFC 5297 (AES-SIV, deterministic authenticated encryption), RFC 2104 (HMAC).
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from .batch import INDEX_VALUE_BYTES_MAX, INDEX_VALUE_ZEROS_MAX, Index, Table
from .keyring import PSEUDONYM_BYTES, Keyring, Unopened

__all__ = [
    "HIDDEN_KEYS",
    "INDEX_LAYOUTS",
    "KEYS_START",
    "KEYS_STOP",
    "LONG",
    "HiddenValue",
    "IndexLayout",
    "Pseudonyms",
]

HIDDEN_KEYS: Mapping[Table, bool] = MappingProxyType(
    {
        Table.MESSAGE: False,
        Table.RUN: False,
        Table.SPAN: False,
        Table.STEP: False,
        Table.OUTCOME: True,  # the user's own words: an idempotency key may be "refund of order 7, Ann Lee"
        Table.REMINDER: True,
        Table.STATE: True,
        Table.OVERLAY: False,
        Table.MEMORY: False,
        Table.OUTBOX: False,
        Table.EDIT: False,
        Table.EVENT: False,
    }
)
"""Which tables have keys that are somebody's text."""


class IndexLayout(Enum):
    """Where the text is in an index's values."""

    CLEAR = "no text: numbers and ids"
    TEXT_FIRST = "text, then 00 and a rest in clear"
    TIME_FIRST = "8 bytes in clear, then text"


INDEX_LAYOUTS: Mapping[Index, IndexLayout] = MappingProxyType(
    {
        Index.UPDATED: IndexLayout.CLEAR,
        Index.OWNER: IndexLayout.TEXT_FIRST,
        Index.TAG: IndexLayout.TEXT_FIRST,
        Index.OPEN_RUN: IndexLayout.CLEAR,
        Index.REMINDER_DUE: IndexLayout.TIME_FIRST,
        Index.RUN_STATUS: IndexLayout.CLEAR,
        Index.OUTBOX_DUE: IndexLayout.CLEAR,
    }
)

KEYS_START, KEYS_STOP = b"\x01", b"\x02"
"""Between these stand all hidden row keys."""
_SHORT, LONG = b"\x01", b"\x02"
_REST = b"\x01"
_TIME_BYTES = 8
_BLOCK_BYTES = 16


class HiddenValue(NamedTuple):
    """An index value as the store beneath has it. `row_key` is where the true one stands, if it was too long."""

    inner: bytes
    row_key: bytes | None


class Pseudonyms:
    """Turns names into what stands for them, and back as far as that can be. Any thread may use it."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self.of_stream = keyring.pseudonym

    def of_key(self, stream: str, table: Table, key: bytes) -> bytes:
        """A row's key in the store beneath; `stream` is a pseudonym. The same in every table whose keys are no text."""
        if not HIDDEN_KEYS[table]:
            return key
        return KEYS_START + self._keyring.digest(b"key", stream.encode() + bytes((table,)) + key)

    def of_value(self, index: Index, value: bytes) -> HiddenValue:
        """An index value in the store beneath."""
        layout = INDEX_LAYOUTS[index]
        if layout is IndexLayout.CLEAR or (layout is IndexLayout.TIME_FIRST and len(value) <= _TIME_BYTES):
            return HiddenValue(value, None)
        if layout is IndexLayout.TIME_FIRST:
            start, inner = value[:_TIME_BYTES], value[:_TIME_BYTES] + self._short(index, value[_TIME_BYTES:])
        else:
            text, zero, rest = value.partition(b"\0")
            start = b""
            inner = self._short(index, text) + (_REST + rest if zero else b"")
        if _fits(inner):
            return HiddenValue(inner, None)
        whole = self._keyring.digest(b"value", bytes((index,)) + value)
        middle = self.long_prefix(index, value) if layout is IndexLayout.TEXT_FIRST else LONG
        return HiddenValue(start + middle + whole, LONG + bytes((index,)) + whole)

    def short_prefix(self, index: Index, prefix: bytes) -> bytes | None:
        """What the values beneath start with of which the true ones start with `prefix`, a text, 00 and more.

        None where all that start with this are too long.
        """
        text, _, rest = prefix.partition(b"\0")
        inner = self._short(index, text) + _REST + rest
        return inner if _fits(inner) else None

    def long_prefix(self, index: Index, value: bytes) -> bytes:
        """What those beneath start with that are too long and have the text of `value`."""
        return LONG + self._keyring.digest(b"text", bytes((index,)) + value.partition(b"\0")[0])

    def true_value(self, index: Index, inner: bytes) -> bytes | HiddenValue:
        """The index value that was hidden, or, if it was too long, where it stands. Unopened if it is none of ours."""
        layout = INDEX_LAYOUTS[index]
        if layout is IndexLayout.CLEAR or (layout is IndexLayout.TIME_FIRST and len(inner) <= _TIME_BYTES):
            return inner
        start = _TIME_BYTES if layout is IndexLayout.TIME_FIRST else 0
        form = inner[start : start + 1]
        if form == LONG:
            return HiddenValue(inner, LONG + bytes((index,)) + inner[-PSEUDONYM_BYTES:])
        if form != _SHORT or len(inner) < start + 2:
            raise Unopened("it has no form that we know")
        end = start + 2 + inner[start + 1] * _BLOCK_BYTES
        text = self._keyring.text_of(bytes((index,)), inner[start + 2 : end])
        if layout is IndexLayout.TIME_FIRST:
            return inner[:start] + text
        return text + b"\0" + inner[end + 1 :] if len(inner) > end else text

    def _short(self, index: Index, text: bytes) -> bytes:
        hidden = self._keyring.hide_text(bytes((index,)), text)
        return _SHORT + bytes((len(hidden) // _BLOCK_BYTES,)) + hidden


def _fits(inner: bytes) -> bool:
    return len(inner) <= INDEX_VALUE_BYTES_MAX and inner.count(0) <= INDEX_VALUE_ZEROS_MAX

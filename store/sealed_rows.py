"""Reads the rows of sealed streams: in tables with keys in clear as the store beneath orders them, in others by key.

A hidden key stands nowhere near its neighbours, so that one row is found at once, and a range is looked for among all
the rows that the stream has in that table.
"""

from .batch import Table
from .contract import Store
from .pseudonyms import HIDDEN_KEYS, KEYS_START, KEYS_STOP
from .sealing import Sealing

__all__ = ["SealedRows"]

_Pairs = list[tuple[bytes, bytes]]


class SealedRows:
    """The rows in the store `inner`, opened by `sealing`. Streams are given by their true names."""

    def __init__(self, inner: Store, sealing: Sealing) -> None:
        self._inner = inner
        self._sealing = sealing

    def scan(
        self, stream: str, table: Table, *, start: bytes, stop: bytes | None, limit: int | None, newest_first: bool
    ) -> _Pairs:
        """As Store.scan."""
        if not HIDDEN_KEYS[table]:
            return self._scan_ordered(stream, table, start, stop, limit=limit, newest_first=newest_first)
        first_alone = limit == 1 and not newest_first and (stop is None or start < stop)
        if stop == start + b"\0" or first_alone:
            found = self._find(stream, table, start)
            if found or not first_alone:
                return found[:limit]
        return self._scan_hidden(stream, table, start, stop, limit=limit, newest_first=newest_first)

    def _scan_ordered(
        self, stream: str, table: Table, start: bytes, stop: bytes | None, *, limit: int | None, newest_first: bool
    ) -> _Pairs:
        pseudonym = self._sealing.names.of_stream(stream)
        opened: _Pairs = []
        while True:
            wanted = None if limit is None else limit - len(opened)
            rows = self._inner.scan(pseudonym, table, start=start, stop=stop, limit=wanted, newest_first=newest_first)
            opened += self._sealing.open_rows(pseudonym, table, rows, name=stream)
            if wanted is None or len(rows) < wanted or len(opened) == limit:
                return opened
            # Rows that do not open are left out, and must not make a page look like the last one: fill it up.
            if newest_first:
                stop = rows[-1][0]
            else:
                start = rows[-1][0] + b"\0"

    def _find(self, stream: str, table: Table, key: bytes) -> _Pairs:
        names = self._sealing.names
        pseudonym = names.of_stream(stream)
        at = names.of_key(pseudonym, table, key)
        rows = self._inner.scan(pseudonym, table, start=at, stop=at + b"\0", limit=1)
        return self._sealing.open_rows(pseudonym, table, rows, name=stream)

    def _scan_hidden(
        self, stream: str, table: Table, start: bytes, stop: bytes | None, *, limit: int | None, newest_first: bool
    ) -> _Pairs:
        pseudonym = self._sealing.names.of_stream(stream)
        rows = self._inner.scan(pseudonym, table, start=KEYS_START, stop=KEYS_STOP)
        opened = self._sealing.open_rows(pseudonym, table, rows, name=stream)
        chosen = [pair for pair in opened if start <= pair[0] and (stop is None or pair[0] < stop)]
        chosen.sort(reverse=newest_first)
        return chosen[:limit]

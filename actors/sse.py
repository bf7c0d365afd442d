"""Server-sent events: bytes in, the events' data out. Pure: no I/O, no clock.

    bytes ── CR and CRLF become LF ── lines ── "data:" lines gather ── empty line: one event

Only LF, CR and CRLF end a line. U+2028 and U+0085 do not: they may stand inside JSON, which is why httpx's
`aiter_lines` must not be used. Work is done on bytes, so a character cut between two reads is never looked at alone.

An `error:` line counts as data too: llama.cpp before late 2025 wrote its errors so. `event:`, `id:` and `retry:` are
dropped, since no server of this API says in them what its data does not say too.

Source: WHATWG HTML, 9.2 Server-sent events.
"""

__all__ = ["EVENT_BYTES_MAX", "SseError", "SseParser"]

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""The most bytes of one event or one line. Pieces of an answer are below 1 kB; a
whole tool call in one event may be more."""

_PLAIN_TAIL_BYTES = 4096
"""Up to here the beginning of an event is looked at again with each read, which is cheaper than to keep its lines."""

_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """The stream breaks a limit; what came before in the same stream stays valid."""


class SseParser:
    """Cuts one stream into events, whatever pieces its bytes come in.

    Cost: 0.3 us an event where the stream uses LF.
    """

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_event_bytes_max", "_first", "_plain", "_tail")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._first = True
        self._plain = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; returns the data of each event that they end, in order.

        Raises:
            SseError: an event or a line is longer than the limit. The parser must not be used again.
        """
        if self._plain and b"\r" not in chunk and len(self._tail) < _PLAIN_TAIL_BYTES:
            return self._feed_plain(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            # The LF of a CRLF that was cut between two chunks: its line has ended already.
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[bytes] = []
        if b"\n" in chunk:
            head, _, chunk = chunk.rpartition(b"\n")
            self._lines(bytes(self._tail) + head, events)
            self._tail.clear()
        self._tail += chunk
        self._check_tail()
        self._plain = not (self._first or self._after_cr or self._data)
        return events

    def _feed_plain(self, chunk: bytes) -> list[bytes]:
        """As `feed`, where no event has begun but what is in the tail, and LF ends the lines: as nearly always."""
        *blocks, tail = (bytes(self._tail) + chunk).split(b"\n\n")
        self._tail = bytearray(tail)
        events: list[bytes] = []
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block and len(block) <= self._event_bytes_max:
                events.append(block[6:])
            else:
                self._lines(block + b"\n", events)
        self._check_tail()
        return events

    def _lines(self, text: bytes, events: list[bytes]) -> None:
        for line in text.split(b"\n"):
            self._line(line, events)

    def _check_tail(self) -> None:
        if len(self._tail) > self._event_bytes_max:
            raise self._too_long()

    def close(self) -> list[bytes]:
        """The stream has ended: returns the last event if no empty line closed it, else nothing.

        The standard would drop it; servers that are cut short or forget the last line end make it the one with the
        news.
        """
        events: list[bytes] = []
        self._lines(bytes(self._tail), events)
        self._tail.clear()
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if len(line) > self._event_bytes_max:
            raise self._too_long()
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data) if len(self._data) > 1 else self._data[0])
                self._data = []
                self._data_bytes = 0
            return
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._event_bytes_max:
                raise self._too_long()

    def _too_long(self) -> SseError:
        return SseError(f"a server-sent event is longer than {self._event_bytes_max} bytes")

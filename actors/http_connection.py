"""One connection to a server: requests out, responses in, one after the other.

    idle ── begin(request) ──► head ── receive() ... b"" ──► idle again, if `reusable`
                     └── anything goes wrong, or is cancelled ──► the caller closes it

A connection never repairs itself: whoever uses it closes it after an exception, and makes another.

Errors are httpx's own, since users of the transport expect those; what they mean for a model call is one table's
business (wire_errors).
"""

import ssl

import anyio
import httpx
from anyio.streams.tls import TLSAttribute

from .dialing import Wire
from .http1 import HttpError, ResponseHead, ResponseParser
from .socket_stream import RECEIVE_BYTES, SocketStream

__all__ = ["HttpConnection"]

WRITE_TIMEOUT_S = 30.0
"""For a whole request: a megabyte of history over a slow line."""


class HttpConnection:
    """An HTTP/1.1 connection, for one task at a time.

    Attributes:
        heard: whether a byte of a response to the last request has come: until then the server may not have seen it.

    Cost: beside the system's calls 10 us a request, 2 us a piece of a body.
    """

    __slots__ = ("_parser", "_plain", "_tls", "_wire", "heard")

    def __init__(self, wire: Wire, plain: SocketStream) -> None:
        self._wire = wire
        self._plain = plain
        self._tls = None if isinstance(wire, SocketStream) else wire.extra(TLSAttribute.ssl_object)
        self._parser: ResponseParser | None = None
        self.heard = False

    async def begin(self, request: bytes, *, expects_body: bool = True) -> ResponseHead:
        """Send a request, head and body; the head of its response. A response to HEAD has no body, whatever it says.

        Raises:
            httpx.WriteError, httpx.WriteTimeout, httpx.ReadError: the connection broke, or takes nothing any more.
            httpx.RemoteProtocolError: what came is no response.
        """
        self.heard = False
        self._parser = None
        unsent: Exception | None = None
        try:
            await self._send(request)
        except (OSError, httpx.WriteError) as error:
            unsent = error  # a server that refuses a request may answer and close before it has read all of it
        try:
            data = await self._receive()
            # Not before: thousands of requests may wait for their answers.
            self._parser = parser = ResponseParser(expects_body=expects_body)
            _feed(parser, data)
            while parser.head is None:
                _feed(parser, await self._receive())
        except httpx.HTTPError:
            if unsent is not None and not self.heard:
                raise httpx.WriteError(str(unsent)) from unsent
            raise
        return parser.head

    async def receive(self) -> bytes:
        """The next bytes of the body, as many as have come; b"" at its end.

        Raises:
            httpx.ReadError: the connection broke.
            httpx.RemoteProtocolError: the body was cut off, or is malformed.
        """
        parser = self._parser
        assert parser is not None, "begin comes first"
        while True:
            body = parser.take_body()
            if body or parser.complete:
                return body
            _feed(parser, await self._receive())

    @property
    def ended(self) -> bool:
        """Whether the response is over, and all of its body taken or about to be."""
        return self._parser is not None and self._parser.complete

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the response was read to its end, and the server keeps the line open."""
        return self._parser is not None and self._parser.keep_alive

    @property
    def is_quiet(self) -> bool:
        """Whether an idle connection is still good: one that the server has closed, or spoken on, is readable."""
        return not self._plain.is_readable() and (self._tls is None or _has_no_more(self._tls))

    def close(self) -> None:
        """Close the socket now. No farewell: HTTP/1.1 needs none, and TLS without one is what browsers do."""
        self._plain.close()

    async def _send(self, request: bytes) -> None:
        if isinstance(self._wire, SocketStream) and (request := self._wire.send_nowait(request)) == b"":
            return
        try:
            with anyio.fail_after(WRITE_TIMEOUT_S):
                await self._wire.send(request)
        except TimeoutError:
            raise httpx.WriteTimeout(f"the server took no more of the request for {WRITE_TIMEOUT_S:g} s") from None
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:  # TLS: its OSError is the cause
            raise httpx.WriteError(str(error.__cause__ or error)) from error

    async def _receive(self) -> bytes:
        """What has come; b"" where the server has closed."""
        try:
            data = await self._wire.receive(RECEIVE_BYTES)
        except (OSError, anyio.BrokenResourceError) as error:
            raise httpx.ReadError(str(error) or str(error.__cause__ or "")) from error
        except anyio.EndOfStream:
            return b""
        self.heard = True
        return data


def _feed(parser: ResponseParser, data: bytes) -> None:
    try:
        if data:
            parser.feed(data)
        else:
            parser.feed_eof()
    except HttpError as error:
        raise httpx.RemoteProtocolError(str(error)) from error


def _has_no_more(tls: ssl.SSLObject) -> bool:
    """Whether nothing lies in the TLS layer. What a server sent behind a response in the same segment has left the
    socket already, and would be taken for the next response."""
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return True
    except ssl.SSLError:
        return False
    return False

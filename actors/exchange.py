"""One request to a model's server and its answer: out, in, with its clock, every fault as a typed error.

    encode_request ── Upstream.post ── status ──► an error: wire_errors
                                       └─ events or one body ── AnswerJoiner ──► deltas ... ModelAnswer

Three deadlines, all of which start when the request may go out: `first_byte_timeout_s` for the first piece of a
streamed answer, `progress_timeout_s` between two of its pieces, `timeout_s` for the whole. Only pieces of the answer
count as progress, neither comments nor single bytes, because read timeouts never fire on keep-alive comments or a
slow-loris. An answer in one body shows no progress, so only the last one holds.

Once the finish_reason has come the answer is whole: what goes wrong after it (no [DONE], a reset, a server that keeps
the stream open) costs the connection, not the answer.

Source: OpenAI API reference, chat completions; FACTS.md, "The client that follows from it".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from time import monotonic

import anyio
import httpx
import msgspec

from .dialect import Dialect
from .errors import BadRequest, BadResponse, ModelError, ModelUnavailable, Stalled, Truncated
from .model import Delta, ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .sse import SseParser
from .upstream import Upstream, UpstreamResponse
from .wire_answer import AnswerJoiner, ServerErrorInAnswer, UnusableAnswer
from .wire_errors import ServerError, error_of_status, error_of_transport, parse_error, request_id_of
from .wire_request import encode_request

__all__ = ["BODY_BYTES_MAX", "ERROR_BYTES_MAX", "Exchange", "Server", "read_all"]

GRACE_S = 5.0
"""After the finish_reason: for the usage and the stream's end. Servers send both within milliseconds or never."""

DRAIN_S = 1.0
"""After [DONE]: for the end of the body, without which the connection cannot be used again."""

CLOCK_STEPS = 16
"""The progress deadline is moved at most so often in its own time: to move it costs 4 us, and a piece comes every
few milliseconds. So a stall is noticed up to a sixteenth early."""

BODY_BYTES_MAX = 64 * 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024


@dataclass(slots=True, frozen=True)
class Server:
    """Where requests go, how, and how long they may take."""

    where: str
    """Scheme, host and port, as errors name the server: without path, query and credentials."""
    upstream: Upstream
    dialect: Dialect
    secrets: tuple[str, ...]
    """What of its headers no error may show."""
    first_byte_timeout_s: float
    progress_timeout_s: float
    timeout_s: float


class Exchange:
    """One request and its answer.

    Attributes:
        shown: whether a piece of the answer was handed out.
    """

    __slots__ = (
        "_done",
        "_ends_at",
        "_joiner",
        "_moved_at",
        "_on_delta",
        "_raised",
        "_request",
        "_request_id",
        "_scope",
        "_server",
        "_settings",
        "_streamed",
        "_whole",
        "shown",
    )

    def __init__(
        self, server: Server, request: ModelRequest, settings: ModelSettings, on_delta: OnDelta | None
    ) -> None:
        self.shown = False
        self._server = server
        self._request = request
        self._settings = settings
        self._on_delta = on_delta
        self._streamed = on_delta is not None
        self._joiner: AnswerJoiner | None = None  # made when something comes: thousands may wait at once
        self._scope = anyio.CancelScope()
        self._request_id: str | None = None
        self._raised: Exception | None = None
        self._whole = False
        self._done = False
        self._ends_at = 0.0
        self._moved_at = 0.0

    async def run(self) -> ModelAnswer:
        """Send the request and read the answer.

        Raises:
            ModelError: see `callboard.actors.errors`.
            Exception: what `on_delta` raised.

        Cancellation: the connection is closed at once.
        """
        now = anyio.current_time()
        self._ends_at = now + self._server.timeout_s
        self._set_clock(self._server.first_byte_timeout_s if self._streamed else self._server.timeout_s, now)
        self._moved_at = -inf  # the first piece moves it in any case: from then on another deadline holds
        with self._scope:
            try:
                await self._converse()
            except (httpx.HTTPError, httpx.StreamError) as error:
                if error is self._raised:
                    raise
                if not self._whole:
                    raise error_of_transport(error, where=self._server.where) from error
        if self._scope.cancelled_caught and not self._whole:
            raise self._too_late()
        return self._finish()

    # The clock.

    def _set_clock(self, seconds: float, now: float) -> None:
        self._moved_at = monotonic()
        self._scope.deadline = min(now + seconds, self._ends_at)

    def _note_progress(self) -> None:
        timeout_s = self._server.progress_timeout_s
        if self._done:
            self._set_clock(DRAIN_S, anyio.current_time())
        elif self._whole:
            self._set_clock(GRACE_S, anyio.current_time())
        elif monotonic() - self._moved_at >= timeout_s / CLOCK_STEPS:
            self._set_clock(timeout_s, anyio.current_time())

    def _too_late(self) -> ModelError:
        server = self._server
        if not self._streamed:
            return ModelUnavailable(f"{server.where}: no answer within {server.timeout_s:g} s")
        if anyio.current_time() >= self._ends_at:
            text = f"{server.where}: the answer did not come to its end within {server.timeout_s:g} s"
        elif self._joiner is not None and self._joiner.heard:
            text = f"{server.where}: no piece of an answer came for {server.progress_timeout_s:g} s"
        else:
            text = f"{server.where}: no piece of an answer came within {server.first_byte_timeout_s:g} s"
        return Stalled(text, request_id=self._request_id)

    # Out.

    async def _converse(self) -> None:
        response = await self._server.upstream.post(self._encode())
        try:
            if not 200 <= response.status < 300:
                raise await self._refusal(response)
            self._request_id = request_id_of(response)
            if self._is_stream(response):
                await self._read_stream(response)
            else:
                await self._read_body(response)
        finally:
            await response.aclose()

    def _encode(self) -> bytes:
        dialect = self._server.dialect
        try:
            return encode_request(self._request, self._settings, dialect=dialect, stream=self._streamed)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            # Neither the cause nor its text: a UnicodeEncodeError carries the message.
            kind = type(error).__name__
            text = f"the request cannot be written as JSON ({kind}): is all of it text, numbers, lists and dicts?"
            raise BadRequest(text) from None

    # In.

    def _is_stream(self, response: UpstreamResponse) -> bool:
        """By what came, not by what was asked for: some servers ignore `stream`."""
        kind = (response.get("content-type") or "").lower()
        return "event-stream" in kind or (self._streamed and "json" not in kind and "html" not in kind)

    async def _read_stream(self, response: UpstreamResponse) -> None:
        self._streamed = True
        parser, joiner = SseParser(), self._begin_answer()
        while chunk := await response.receive():
            try:
                events = parser.feed(chunk)
            except ValueError as error:
                if self._whole:
                    return
                raise self._bad_response(str(error)) from None
            self._take_events(joiner, events)
        self._take_events(joiner, parser.close())

    def _take_events(self, joiner: AnswerJoiner, events: list[bytes]) -> None:
        progress = False
        for data in events:
            data = data.strip()
            if not data or self._done:
                continue
            if data == b"[DONE]":
                self._done = True
                continue
            try:
                deltas = self._take(joiner, data, "an event of the stream")
            except ModelError:
                if joiner.finish_reason in (None, "error"):
                    raise
                self._done = True  # the answer is whole: what is wrong behind it costs the connection
                continue
            progress = progress or bool(deltas)
            self._show(deltas)
        self._whole = joiner.finish_reason is not None
        if progress or self._whole or self._done:
            self._note_progress()

    async def _read_body(self, response: UpstreamResponse) -> None:
        body = await read_all(response, BODY_BYTES_MAX)
        if body is None:
            raise self._bad_response(f"a body of more than {BODY_BYTES_MAX} bytes")
        kind = response.get("content-type") or "no content type"
        body = body.removeprefix(b"\xef\xbb\xbf")
        self._show(self._take(self._begin_answer(), body, f"a body ({kind})"))
        self._whole = True

    def _begin_answer(self) -> AnswerJoiner:
        self._joiner = AnswerJoiner()
        return self._joiner

    def _take(self, joiner: AnswerJoiner, data: bytes, what: str) -> list[Delta]:
        """Take a body or an event's data; returns what is new in it."""
        try:
            return joiner.take(data)
        except ServerErrorInAnswer as error:
            raise self._server_error(error.error, status=200, headers=httpx.Headers()) from None
        except UnusableAnswer as error:
            raise self._bad_response(str(error)) from None
        except ValueError as error:
            raise self._bad_response(f"{what} that cannot be read ({error})") from None

    def _show(self, deltas: list[Delta]) -> None:
        on_delta = self._on_delta
        if on_delta is not None:
            for delta in deltas:
                if delta.text:
                    self.shown = True
                    try:
                        on_delta(delta)
                    except Exception as error:
                        self._raised = error  # the caller's, whatever it is
                        raise

    def _finish(self) -> ModelAnswer:
        joiner = self._joiner
        if not self._whole or joiner is None:
            text = f"{self._server.where}: the stream ended without a finish_reason: what came is a fragment"
            raise Truncated(text, status=200, request_id=self._request_id)
        if joiner.finish_reason == "error":
            text = f"{self._server.where}: the answer ended with finish_reason 'error' and no reason"
            raise ModelUnavailable(text, status=200, request_id=self._request_id)
        try:
            return joiner.finish(request_id=self._request_id)
        except UnusableAnswer as error:
            raise self._bad_response(str(error)) from None

    # Errors.

    async def _refusal(self, response: UpstreamResponse) -> ModelError:
        try:
            body = await read_all(response, ERROR_BYTES_MAX)
        except (httpx.HTTPError, httpx.StreamError):
            body = None  # the status says enough
        error = parse_error(body) if body else ServerError()
        return self._server_error(error, status=response.status, headers=response.headers)

    def _server_error(self, error: ServerError, *, status: int, headers: httpx.Headers) -> ModelError:
        return error_of_status(error, status=status, headers=headers, where=self._server.where, hidden=self._hidden())

    def _bad_response(self, what: str) -> BadResponse:
        return BadResponse(f"{self._server.where} sent {what}", status=200, request_id=self._request_id)

    def _hidden(self) -> Iterator[str]:
        """What no error may show: keys, and what the messages say, as it is and as JSON has it."""
        said: set[str] = set()
        for message in self._request.messages:
            parts = message.content if isinstance(message.content, list) else ()
            said.update(part["text"] for part in parts if isinstance(part.get("text"), str))
            said.update(call.arguments for call in message.tool_calls)
            said.add(message.text)
        escaped = {msgspec.json.encode(text).decode()[1:-1] for text in said}
        yield from self._server.secrets
        yield from sorted(said | escaped, key=len, reverse=True)


async def read_all(response: UpstreamResponse, bytes_max: int) -> bytes | None:
    """All of the body, or None where it is more than `bytes_max`."""
    pieces: list[bytes] = []
    size_bytes = 0
    while piece := await response.receive():
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            return None
    return b"".join(pieces)

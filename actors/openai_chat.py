"""OpenAIChat: a `Model` that is any server of the OpenAI chat completions API, reached with httpx.

    complete ── wire.encode_request ── PooledTransport ── server
                 AnswerJoiner ◄── wire.decode_piece ◄── SseParser or whole body ◄──┘
                 every fault ── wire_errors (tables) ── a ModelError

Nothing is tried twice here but the pool's free retry: the run's supervisor does that, since it knows the run's budget.

Two clocks, both of which start when the request has its slot in the pool. A streamed answer may take as long as it
likes while it makes progress: `progress_timeout_s` is the time without a piece of answer, and neither comments nor
single bytes count, because read timeouts never fire on keep-alive comments or a slow-loris. An answer in one body
shows no progress, so the whole call has a deadline, `timeout_s`.

Once the finish_reason has come the answer is whole: what goes wrong after it (no [DONE], a reset, a server that keeps
the stream open) costs the connection, not the answer.

Source: OpenAI API reference, chat completions; FACTS.md, "The client that follows from it".
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import msgspec

from .errors import BadRequest, BadResponse, ModelError, ModelUnavailable, Stalled, Truncated
from .model import ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .pooled_transport import CONNECTIONS_MAX, STARTED, PooledTransport
from .sse import SseParser
from .wire import AnswerJoiner, Dialect, MaxTokensField, Piece, UnusableAnswer, decode_piece, encode_request
from .wire_errors import ServerError, error_of_status, error_of_transport, parse_error, request_id_of

__all__ = ["OpenAIChat"]

OPENAI_URL = "https://api.openai.com/v1"

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 30.0
"""A megabyte of history over a slow line."""

GRACE_S = 5.0
"""After the finish_reason: for the usage and the stream's end. Servers send both within milliseconds or never."""

DRAIN_S = 1.0
"""After [DONE]: for the end of the body, without which the connection cannot be used again."""

BODY_BYTES_MAX = 64 * 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024


class OpenAIChat:
    """A model behind the OpenAI chat completions API. One object serves many runs at once, on trio and on asyncio.

    Make one and give it to all agents: it holds the connections. One for each agent or request connects anew each time
    and leaves an idle socket behind, which stays open until `aclose`, until that object's next request, or until the
    runtime that it served closes. Agents may differ in model and settings all the same: both go with each request.

    Args:
        base_url: where the API is, for instance "http://127.0.0.1:8080/v1"; else OPENAI_BASE_URL; else OpenAI's own
            if there is a key.
        api_key: sent as bearer token; else OPENAI_API_KEY. Only OpenAI's own server insists on one.
        model: asked for unless a request's settings name another; else OPENAI_MODEL.
        settings: defaults; what a request sets goes before them, `extra_body` is merged field by field.
        progress_timeout_s: seconds without a piece of a streamed answer, from the request on, until `Stalled`.
        timeout_s: seconds for an answer in one body, until `ModelUnavailable`.
        connections_max: requests at once; further ones wait in order, and their clocks do not run yet.
        max_tokens_field: the request's field for `max_tokens`; None: "max_completion_tokens" for OpenAI, else
            "max_tokens".
        stream_usage: whether to ask for usage in streams.
        send_extra: whether a message's `extra` is sent back; off where sessions move between providers.
        headers: added to every request.
        transport: an httpx transport in place of our pool; the caller closes it.
        client: a whole httpx client (its auth, proxies, hooks); the caller closes it.

    Raises:
        ValueError: an argument is missing or malformed; the text names it and its environment variable.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        settings: ModelSettings | None = None,
        progress_timeout_s: float = 60.0,
        timeout_s: float = 600.0,
        connections_max: int = CONNECTIONS_MAX,
        max_tokens_field: MaxTokensField | None = None,
        stream_usage: bool = True,
        send_extra: bool = True,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        if transport is not None and client is not None:
            raise ValueError("give either transport or client: a client has its own transport")
        for name, seconds in (("progress_timeout_s", progress_timeout_s), ("timeout_s", timeout_s)):
            if not seconds > 0:
                raise ValueError(f"{name} must be positive, not {seconds}")
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or None, has_key=api_key is not None)
        at_openai = url.host == "api.openai.com"
        if at_openai and api_key is None:
            raise ValueError(f"OpenAI wants a key: give api_key=... or set OPENAI_API_KEY ({_OTHER_SERVER})")
        self._settings = settings or ModelSettings()
        model = self._settings.model or model or os.environ.get("OPENAI_MODEL")
        if not model:
            raise ValueError("which model? give model=... or set OPENAI_MODEL")
        self._name = model
        self._pool = PooledTransport(connections_max=connections_max) if not (transport or client) else None
        self._server = _Server(
            url=url,
            api_key=api_key,
            headers=_checked_headers(api_key, headers or {}),
            dialect=Dialect(
                max_tokens_field=max_tokens_field or ("max_completion_tokens" if at_openai else "max_tokens"),
                stream_usage=stream_usage,
                send_extra=send_extra,
            ),
            progress_timeout_s=progress_timeout_s,
            timeout_s=timeout_s,
            way=client or transport or self._pool or PooledTransport(),
            tells_start=self._pool is not None,
        )

    def __repr__(self) -> str:
        return f"OpenAIChat(base_url={self._server.where!r}, model={self._name!r})"

    @property
    def name(self) -> str:
        """The model that is asked for by default."""
        return self._name

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """Answer the request, streamed if `on_delta` is given; see `Model.complete`.

        Raises:
            ModelError: see `callboard.actors.errors`. The text names the server and holds neither the key nor the
                messages.
            Exception: what `on_delta` raised; the connection is closed.

        Cancellation: the connection is closed at once and the slot in the pool is free.
        """
        return await _Exchange(self._server, request, self._effective(request.settings), on_delta).run()

    async def aclose(self) -> None:
        """Close idle connections, unless the transport is the caller's. The model can be used again afterwards."""
        if self._pool is not None:
            await self._pool.aclose()

    def _effective(self, settings: ModelSettings) -> ModelSettings:
        """A request's settings over this client's."""
        theirs = msgspec.structs.asdict(settings)
        mine = msgspec.structs.asdict(self._settings)
        chosen = {name: mine[name] if value in (None, ()) else value for name, value in theirs.items()}
        chosen["model"] = chosen["model"] or self._name
        chosen["extra_body"] = mine["extra_body"] | theirs["extra_body"]
        return ModelSettings(**chosen)


@dataclass(slots=True, frozen=True)
class _Server:
    """Where requests go and how."""

    url: httpx.URL
    api_key: str | None
    headers: httpx.Headers
    dialect: Dialect
    progress_timeout_s: float
    timeout_s: float
    way: httpx.AsyncClient | httpx.AsyncBaseTransport
    tells_start: bool
    """Whether the way there calls STARTED; else the clock starts before a queue that is not ours."""

    @property
    def where(self) -> str:
        """Scheme, host and port, as errors name the server: without path, query and credentials."""
        return f"{self.url.scheme}://{self.url.netloc.decode('ascii')}"

    async def send(self, body: bytes, started: Callable[[], None]) -> httpx.Response:
        timeouts = {"connect": CONNECT_TIMEOUT_S, "write": WRITE_TIMEOUT_S, "read": None, "pool": None}
        extensions: dict[str, Any] = {"timeout": timeouts, STARTED: started}
        if isinstance(self.way, httpx.AsyncClient):
            request = self.way.build_request(
                "POST", self.url, content=body, headers=self.headers, extensions=extensions
            )
            return await self.way.send(request, stream=True)
        # Without AsyncClient around it a request costs 0.1 ms less.
        request = httpx.Request("POST", self.url, headers=self.headers, content=body, extensions=extensions)
        return await self.way.handle_async_request(request)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, server: _Server, request: ModelRequest, settings: ModelSettings, on_delta: OnDelta | None
    ) -> None:
        self._server = server
        self._request = request
        self._settings = settings
        self._on_delta = on_delta
        self._streamed = on_delta is not None
        self._joiner = AnswerJoiner()
        self._scope = anyio.CancelScope()
        self._request_id: str | None = None
        self._whole = False
        self._done = False

    async def run(self) -> ModelAnswer:
        with self._scope:
            if not self._server.tells_start:
                self._start_clock()
            try:
                await self._converse()
            except (httpx.HTTPError, httpx.StreamError) as error:
                if not self._whole:
                    raise error_of_transport(error, where=self._server.where) from error
        if self._scope.cancelled_caught and not self._whole:
            raise self._too_late()
        return self._finish()

    # The clock.

    def _start_clock(self) -> None:
        self._set_clock(self._server.progress_timeout_s if self._streamed else self._server.timeout_s)

    def _set_clock(self, seconds: float) -> None:
        self._scope.deadline = anyio.current_time() + seconds

    def _too_late(self) -> ModelError:
        if self._streamed:
            text = f"{self._server.where}: no piece of an answer came for {self._server.progress_timeout_s:g} s"
            return Stalled(text, request_id=self._request_id)
        return ModelUnavailable(f"{self._server.where}: no answer within {self._server.timeout_s:g} s")

    # Out.

    async def _converse(self) -> None:
        response = await self._server.send(self._encode(), self._start_clock)
        self._request_id = request_id_of(response.headers)
        reader = _Reader(response)
        try:
            if not response.is_success:
                raise await self._refusal(response, reader)
            if self._is_stream(response):
                await self._read_stream(reader)
            else:
                await self._read_body(response, reader)
        finally:
            await reader.aclose()

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

    def _is_stream(self, response: httpx.Response) -> bool:
        """By what came, not by what was asked for: some servers ignore `stream`."""
        kind = response.headers.get("content-type", "").lower()
        return "event-stream" in kind or (self._streamed and "json" not in kind and "html" not in kind)

    async def _read_stream(self, reader: "_Reader") -> None:
        self._streamed = True
        parser = SseParser()
        async for chunk in reader:
            try:
                events = parser.feed(chunk)
            except ValueError as error:
                raise self._bad_response(str(error)) from None
            self._take_events(events)
        self._take_events(parser.close())

    def _take_events(self, events: list[bytes]) -> None:
        progress = False
        for data in events:
            data = data.strip()
            if not data or self._done:
                continue
            if data == b"[DONE]":
                self._done = True
                continue
            progress = self._take(data, "an event of the stream") or progress
        if self._done:
            self._set_clock(DRAIN_S)
        elif self._whole:
            self._set_clock(GRACE_S)
        elif progress:
            self._start_clock()

    async def _read_body(self, response: httpx.Response, reader: "_Reader") -> None:
        body = await reader.read(BODY_BYTES_MAX)
        if body is None:
            raise self._bad_response(f"a body of more than {BODY_BYTES_MAX} bytes")
        self._take(body, f"a body ({response.headers.get('content-type', 'no content type')})")
        self._whole = True

    def _take(self, data: bytes, what: str) -> bool:
        """Take a body or an event's data; returns whether it brought the answer forward."""
        try:
            piece = decode_piece(data)
        except ValueError as error:
            raise self._bad_response(f"{what} that cannot be read ({error})") from None
        if piece.is_error:
            raise self._server_error(parse_error(data), status=200, headers=httpx.Headers())
        return self._join(piece)

    def _join(self, piece: Piece) -> bool:
        try:
            deltas = self._joiner.add(piece)
        except UnusableAnswer as error:
            raise self._bad_response(str(error)) from None
        if self._on_delta is not None:
            for delta in deltas:
                if delta.text:
                    self._on_delta(delta)
        self._whole = self._joiner.finish_reason is not None
        return bool(deltas)

    def _finish(self) -> ModelAnswer:
        if not self._whole:
            text = f"{self._server.where}: the stream ended without a finish_reason: what came is a fragment"
            raise Truncated(text, status=200, request_id=self._request_id)
        if self._joiner.finish_reason == "error":
            text = f"{self._server.where}: the answer ended with finish_reason 'error' and no reason"
            raise ModelUnavailable(text, status=200, request_id=self._request_id)
        try:
            return self._joiner.finish(request_id=self._request_id)
        except UnusableAnswer as error:
            raise self._bad_response(str(error)) from None

    # Errors.

    async def _refusal(self, response: httpx.Response, reader: "_Reader") -> ModelError:
        try:
            body = await reader.read(ERROR_BYTES_MAX)
        except (httpx.HTTPError, httpx.StreamError):
            body = None  # the status says enough
        error = parse_error(body) if body else ServerError()
        return self._server_error(error, status=response.status_code, headers=response.headers)

    def _server_error(self, error: ServerError, *, status: int, headers: httpx.Headers) -> ModelError:
        return error_of_status(error, status=status, headers=headers, where=self._server.where, hidden=self._hidden())

    def _bad_response(self, what: str) -> BadResponse:
        return BadResponse(f"{self._server.where} sent {what}", status=200, request_id=self._request_id)

    def _hidden(self) -> Iterator[str]:
        yield self._server.api_key or ""
        yield from sorted((message.text for message in self._request.messages), key=len, reverse=True)


class _Reader:
    """A response's decoded bytes, and its orderly end whatever happens."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            raise

    async def read(self, bytes_max: int) -> bytes | None:
        """All of it, or None where it is more than `bytes_max`."""
        body = bytearray()
        async for chunk in self:
            body += chunk
            if len(body) > bytes_max:
                return None
        return bytes(body)

    async def aclose(self) -> None:
        """Cancellation: shielded, at most a second: a connection that was not read to its end is closed, never
        drained."""
        if self._ended:
            return  # httpx closed the response with its last byte
        with anyio.move_on_after(DRAIN_S, shield=True):
            await self._response.aclose()


_OTHER_SERVER = "for another server give base_url=... or set OPENAI_BASE_URL"


def _checked_url(base_url: str | None, *, has_key: bool) -> httpx.URL:
    """The address of chat completions below `base_url`; a query (Azure's api-version) is kept."""
    if base_url is None:
        if not has_key:
            raise ValueError(
                "which server? give base_url=... or set OPENAI_BASE_URL; "
                "for OpenAI's own give api_key=... or set OPENAI_API_KEY"
            )
        base_url = OPENAI_URL
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # or the look-up of a name that cannot be one ends in a UnicodeError
    except (httpx.InvalidURL, TypeError, UnicodeError) as error:
        raise ValueError(f"base_url (or OPENAI_BASE_URL) is not a URL: {error}") from None
    if url.userinfo:
        raise ValueError("base_url (or OPENAI_BASE_URL) holds a password: send it as headers={'authorization': ...}")
    port_fits = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host or not port_fits:
        raise ValueError(f"base_url (or OPENAI_BASE_URL) must look like http://127.0.0.1:8080/v1, not {base_url!r}")
    path = url.path.rstrip("/")
    if path.endswith("/chat/completions"):
        raise ValueError("base_url (or OPENAI_BASE_URL) must end before /chat/completions")
    return url.copy_with(path=f"{path}/chat/completions")


def _checked_headers(api_key: str | None, headers: Mapping[str, str]) -> httpx.Headers:
    ours = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()) or api_key != api_key.strip():
            raise ValueError("api_key (or OPENAI_API_KEY) has spaces around it or characters that no header may have")
        ours["authorization"] = f"Bearer {api_key}"
    return httpx.Headers({**ours, **{name.lower(): value for name, value in headers.items()}})

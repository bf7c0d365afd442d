"""What a model's server or the way to it can answer instead of an answer, and which error of ours that is. Pure, by
tables.

This is the one border: above it there are only `callboard.actors.errors`. Texts carry the server's own message, since
nothing else tells a user what to do, but never a key, never text of the request, and never a body that is not an
error of the API.

Source: OpenAI's error codes; FACTS.md, "Wire truth" (errors, headers) and "Faults".
"""

import errno
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, cast

import httpx
import msgspec
from msgspec import Struct

from .errors import BadRequest, BadResponse, ContextOverflow, ModelError, ModelUnavailable, RateLimited, Refused
from .limits import FACT_CHARACTERS_MAX

__all__ = [
    "ServerError",
    "error_of_status",
    "error_of_transport",
    "parse_error",
    "request_id_of",
    "retry_after_s_of",
    "should_retry_of",
]

BY_STATUS: dict[int, type[ModelError]] = {
    401: Refused,
    402: Refused,
    403: Refused,
    408: ModelUnavailable,
    409: ModelUnavailable,
    425: ModelUnavailable,
    429: RateLimited,
}
"""What is not here: 1xx to 3xx BadResponse, other 4xx BadRequest, 5xx ModelUnavailable."""

BY_CODE: dict[str, type[ModelError]] = {
    "context_length_exceeded": ContextOverflow,
    "exceed_context_size_error": ContextOverflow,
    "insufficient_quota": Refused,
    "billing_hard_limit_reached": Refused,
    "billing_not_active": Refused,
    "billing_error": Refused,
    "account_deactivated": Refused,
    "access_terminated": Refused,
    "invalid_api_key": Refused,
    "authentication_error": Refused,
    "permission_error": Refused,
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "model_not_found": BadRequest,
    "not_found_error": BadRequest,
    "not_supported_error": BadRequest,
    "content_policy_violation": BadRequest,
    "content_filter": BadRequest,
    "invalid_request_error": BadRequest,
    "overloaded_error": ModelUnavailable,
    "unavailable_error": ModelUnavailable,
    "server_error": ModelUnavailable,
}
"""A `code` or `type` says more than the status, and is all there is inside a 200. `code` is looked at first.

OpenAI sends 429 for what is closed for good (billing, account), llama.cpp 501 for what it cannot do: waiting would not
help.
"""

_GENERAL_CODES = frozenset({"invalid_request_error", "server_error"})
"""Too general to overrule a status."""

_OVERFLOW_WORDS = re.compile(r"maximum context length|context (size|length|window)|too many tokens", re.IGNORECASE)
"""vLLM and others say it in words only."""

BY_EXCEPTION: tuple[tuple[type[Exception], type[ModelError], str], ...] = (
    (httpx.DecodingError, BadResponse, "the body's encoding is broken"),
    (httpx.TooManyRedirects, BadRequest, "it redirects without end"),
    (httpx.ConnectTimeout, ModelUnavailable, "no connection within the timeout"),
    (httpx.ConnectError, ModelUnavailable, "no connection"),
    (httpx.UnsupportedProtocol, BadRequest, "there is no way to it"),
    (httpx.ProxyError, ModelUnavailable, "the proxy failed"),
    (httpx.TimeoutException, ModelUnavailable, "timed out"),
    (httpx.RemoteProtocolError, ModelUnavailable, "the connection ended in the middle, or it is no HTTP server"),
    (httpx.TransportError, ModelUnavailable, "the connection broke"),
    (httpx.StreamError, ModelUnavailable, "the connection was closed from this side"),
)
"""The first row that fits holds."""

_NO_FILES = {errno.EMFILE: "this process has", errno.ENFILE: "this machine has"}
_NO_FILES_HELP = (
    "no file descriptors left, of which each connection takes one: make one OpenAIChat and share it between all "
    "agents, set its connections_max, close what else is open, or raise the limit (ulimit -n)"
)

RETRY_AFTER_S_MAX = 24 * 3600.0
_MESSAGE_LENGTH_MAX = 300
_ECHO_LENGTH_MIN = 4
"""Shorter texts of a request are found in any message by chance."""


class ServerError(Struct, frozen=True):
    """An error as a server worded it; `codes` are its code and type, the more telling first."""

    message: str = ""
    codes: tuple[str, ...] = ()
    status: int | None = None


class _Finding(Struct):
    loc: list[str | int] = []
    msg: str = ""


def parse_error(body: bytes) -> ServerError:
    """Read an error in any of the known shapes; what is none of them (HTML, nothing, an endless nest) gives an empty
    one."""
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ServerError()
    return _parse(decoded)


def _parse(decoded: Any) -> ServerError:
    match decoded:
        case {"error": str(message)}:
            return ServerError(message)
        case {"error": dict()} if decoded["error"]:
            return _parse_object(decoded["error"])
        case {"detail": detail}:
            return ServerError(_detail_text(detail))
        case {"message": str()} | {"object": "error"}:
            return _parse_object(decoded)
        case [dict()]:  # Gemini's
            return _parse(decoded[0])
        case _:
            return ServerError()


def _parse_object(error: Mapping[str, Any]) -> ServerError:
    code, kind, message = error.get("code"), error.get("type"), error.get("message")
    codes = tuple(word for word in (code, kind) if isinstance(word, str) and word)
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:  # Python refuses to read thousands of digits
        code = int(code)
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    if isinstance(message, dict):  # Mistral's 422
        message = _detail_text(cast(dict[str, Any], message).get("detail"))
    return ServerError(message if isinstance(message, str) else "", codes, status)


def _detail_text(detail: Any) -> str:
    """FastAPI's: a text, or a list of findings, of which `input` would be the request's content."""
    if isinstance(detail, str):
        return detail
    try:
        findings = msgspec.convert(detail, list[_Finding])
    except msgspec.ValidationError:
        return ""
    return "; ".join(f"{'.'.join(map(str, finding.loc))}: {finding.msg}" for finding in findings)


def error_of_status(
    error: ServerError,
    *,
    status: int,
    headers: httpx.Headers,
    where: str,
    hidden: Iterable[str] = (),
) -> ModelError:
    """The typed error for what the server said. `status` 200 means that the error stood inside a good response.

    Args:
        error: what `parse_error` found.
        where: the server, for the text.
        hidden: texts that must not show: the key, what the messages say.
    """
    request_id = request_id_of(headers)
    effective = status if status >= 400 else error.status or status
    kind = _kind(error, effective)
    said = _shorten(_without(error.message, hidden))
    text = f"{where} answered {effective if effective >= 300 else 'an error inside a good response'}"
    text += f": {said}" if said else _hint(effective, headers)
    return kind(
        text,
        status=effective,
        request_id=request_id,
        retry_after_s=retry_after_s_of(headers),
        should_retry=should_retry_of(headers),
    )


def _kind(error: ServerError, status: int) -> type[ModelError]:
    has_status = status >= 400
    for code in error.codes:
        if code in BY_CODE and not (has_status and code in _GENERAL_CODES):
            return BY_CODE[code]
    if status in (400, 413, 422, 500) and _OVERFLOW_WORDS.search(error.message):
        return ContextOverflow
    if status in BY_STATUS:
        return BY_STATUS[status]
    if 400 <= status < 500:
        return BadRequest
    return BadResponse if 300 <= status < 400 else ModelUnavailable


def _hint(status: int, headers: httpx.Headers) -> str:
    if 300 <= status < 400:
        return " (a redirect, which is not followed: is base_url right?)"
    if status == 404:
        return ": is base_url right? It usually ends in /v1"
    return f", without a message this API knows ({headers.get('content-type', 'no content type')})"


def error_of_transport(error: Exception, *, where: str) -> ModelError:
    """The typed error for an exception of httpx."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _NO_FILES:
            return ModelUnavailable(f"{where}: {_NO_FILES[cause.errno]} {_NO_FILES_HELP} ({type(error).__name__})")
    for kind, ours, text in BY_EXCEPTION:
        if isinstance(error, kind):
            # h11 quotes the bytes that it cannot read, which may be anything.
            details = "" if "bytearray(" in str(error) else _shorten(str(error))
            return ours(f"{where}: {text} ({type(error).__name__}{': ' if details else ''}{details})")
    raise error  # not a fault of operation: a mistake in this program


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, through groups: several addresses fail together."""
    found: list[BaseException] = [error]
    for each in found:  # grows meanwhile
        yield each
        causes = [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            causes += cast("BaseExceptionGroup[BaseException]", each).exceptions
        found += [cause for cause in causes if cause is not None and cause not in found]


class _HeaderLookup(Protocol):
    def get(self, name: str, /) -> str | None: ...


def request_id_of(headers: _HeaderLookup) -> str | None:
    """The server's name for the request; OpenRouter calls it otherwise."""
    name = headers.get("x-request-id") or headers.get("x-generation-id")
    return name and name[:FACT_CHARACTERS_MAX]


def retry_after_s_of(headers: httpx.Headers) -> float | None:
    """The server's wish in seconds from now: retry-after-ms, else Retry-After in seconds or as a date; None where
    none."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, RETRY_AFTER_S_MAX)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is None and value:
        try:
            seconds = max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else min(seconds, RETRY_AFTER_S_MAX)


def should_retry_of(headers: httpx.Headers) -> bool | None:
    """The server's own word for whether another try helps; None where it says nothing, or no such word."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _without(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        if len(secret) >= _ECHO_LENGTH_MIN:
            text = text.replace(secret, "[…]")
    return text


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE_LENGTH_MAX else text[: _MESSAGE_LENGTH_MAX - 1] + "…"

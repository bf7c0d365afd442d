"""Which error of ours it is: by status, code, shape of body, exception and header."""

import errno
import os
import time
from email.utils import formatdate

import httpx
import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.actors.errors import (
    BadRequest,
    BadResponse,
    ContextOverflow,
    ModelError,
    ModelUnavailable,
    RateLimited,
    Refused,
)
from callboard.actors.wire_errors import (
    ServerError,
    error_of_status,
    error_of_transport,
    parse_error,
    retry_after_s_of,
    should_retry_of,
)


def error_of(status: int, body: object = None, **headers: str) -> ModelError:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of_status(parse_error(data), status=status, headers=httpx.Headers(names), where="http://host")


def in_error(**fields: object) -> dict[str, object]:
    return {"error": {"message": "why", **fields}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, BadResponse),
        (400, BadRequest),
        (401, Refused),
        (402, Refused),
        (403, Refused),
        (404, BadRequest),
        (408, ModelUnavailable),
        (409, ModelUnavailable),
        (413, BadRequest),
        (422, BadRequest),
        (425, ModelUnavailable),
        (429, RateLimited),
        (500, ModelUnavailable),
        (503, ModelUnavailable),
        (529, ModelUnavailable),
    ],
)
def test_a_status_is_its_error(status: int, kind: type[ModelError]) -> None:
    error = error_of(status, in_error(type="whatever", code=None))

    assert (type(error), error.status) == (kind, status)
    assert "why" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, in_error(code="insufficient_quota", type="insufficient_quota"), Refused),
        (429, in_error(code="billing_not_active", type="billing_not_active"), Refused),
        (429, in_error(code="rate_limit_exceeded"), RateLimited),
        (501, in_error(code=501, type="not_supported_error"), BadRequest),
        (503, in_error(code=503, type="unavailable_error"), ModelUnavailable),
        (400, in_error(code="context_length_exceeded", type="invalid_request_error"), ContextOverflow),
        (400, in_error(code=400, type="exceed_context_size_error", n_ctx=10), ContextOverflow),
        (400, {"object": "error", "message": "This model's maximum context length is 5", "code": 400}, ContextOverflow),
        (500, in_error(type="invalid_request_error", code=None), ModelUnavailable),
        (200, in_error(code=429), RateLimited),
        (200, in_error(code="429"), RateLimited),
        (200, in_error(code=502), ModelUnavailable),
        (200, in_error(type="invalid_request_error", code=None), BadRequest),
        (200, {"error": "a plain text"}, ModelUnavailable),
    ],
)
def test_a_code_says_more_than_the_status(status: int, body: object, kind: type[ModelError]) -> None:
    assert type(error_of(status, body)) is kind


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "why"}}, "why"),
        ({"error": "why"}, "why"),
        ({"object": "error", "message": "why"}, "why"),
        ({"message": "why", "code": 500}, "why"),
        ({"detail": "why"}, "why"),
        ([{"error": {"code": 400, "message": "why", "status": "INVALID_ARGUMENT"}}], "why"),
        ({"detail": [{"loc": ["body", "model"], "msg": "why", "input": "what a user said"}]}, "body.model: why"),
    ],
)
def test_every_known_shape_of_error_gives_its_message(body: object, text: str) -> None:
    error = error_of(400, body)

    assert str(error) == f"http://host answered 400: {text}"


@pytest.mark.parametrize("body", [b"", b"<html>my secret</html>", b"Internal Server Error", b"[1]", b"\xff", b"{}"])
def test_a_body_that_is_no_error_of_the_api_is_not_quoted(body: bytes) -> None:
    error = error_of(500, body, content_type="text/html")

    assert str(error) == "http://host answered 500, without a message this API knows (text/html)"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.dictionaries(
                st.sampled_from(["error", "message", "detail", "code", "type", "object", "loc", "msg"]), inner
            )
            | st.lists(inner)
        ),
    )
)
def test_any_json_gives_some_error(body: object) -> None:
    assert isinstance(error_of(400, body), BadRequest | ModelError)


def test_an_error_nested_without_end_or_with_an_endless_code_is_an_error_all_the_same() -> None:
    deep = b'{"error":' + b"[" * 200_000 + b"]" * 200_000 + b"}"

    assert type(error_of(400, deep)) is BadRequest
    assert type(error_of(400, in_error(code="9" * 5_000))) is BadRequest
    assert type(error_of(400, in_error(code=2**63))) is BadRequest


def test_an_endless_request_id_is_cut() -> None:
    assert error_of(500, x_request_id="r" * 5_000).request_id == "r" * 200


def test_hidden_texts_and_endless_messages_do_not_show() -> None:
    said = ServerError("Incorrect API key provided: sk-123456. You said: my PIN is 0000. " + "x" * 1000)

    error = error_of_status(
        said, status=401, headers=httpx.Headers(), where="http://host", hidden=["sk-123456", "my PIN is 0000", "", "h"]
    )

    assert "sk-123456" not in str(error)
    assert "PIN" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "1e99"}, 86400.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_from_now(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s_of(httpx.Headers(headers)) == seconds


def test_retry_after_as_a_date_counts_from_now() -> None:
    header = formatdate(time.time() + 60, usegmt=True)

    seconds = retry_after_s_of(httpx.Headers({"retry-after": header}))

    assert seconds is not None
    assert 55 < seconds <= 60


def test_a_rate_limit_carries_the_servers_wish_and_name() -> None:
    error = error_of(429, in_error(), retry_after="3", x_request_id="req_1")

    assert isinstance(error, RateLimited)
    assert (error.retry_after_s, error.request_id, error.transient) == (3.0, "req_1", True)


@pytest.mark.parametrize("status", [400, 401, 429, 503])
def test_any_error_carries_the_servers_wish_and_word_on_another_try(status: int) -> None:
    error = error_of(status, in_error(), retry_after="7", x_should_retry="true")
    silent = error_of(status, in_error())

    assert (error.retry_after_s, error.should_retry) == (7.0, True)
    assert (silent.retry_after_s, silent.should_retry, silent.tries) == (None, None, 1)


@pytest.mark.parametrize(
    ("header", "word"), [("true", True), ("false", False), (" FALSE ", False), ("maybe", None), ("1", None), ("", None)]
)
def test_a_word_on_another_try_is_true_or_false(header: str, word: bool | None) -> None:
    assert should_retry_of(httpx.Headers({"x-should-retry": header})) is word


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("refused"), ModelUnavailable),
        (httpx.ConnectTimeout(""), ModelUnavailable),
        (httpx.ReadError(""), ModelUnavailable),
        (httpx.RemoteProtocolError("incomplete chunked read"), ModelUnavailable),
        (httpx.DecodingError("gzip"), BadResponse),
        (httpx.StreamClosed(), ModelUnavailable),
    ],
)
def test_an_exception_of_httpx_is_its_error(raised: Exception, kind: type[ModelError]) -> None:
    error = error_of_transport(raised, where="http://host")

    assert type(error) is kind
    assert type(raised).__name__ in str(error)


@pytest.mark.parametrize(("number", "whose"), [(errno.EMFILE, "this process has"), (errno.ENFILE, "this machine has")])
@pytest.mark.parametrize("grouped", [False, True])
def test_want_of_file_descriptors_is_named_with_what_helps(number: int, whose: str, grouped: bool) -> None:
    cause: Exception = OSError(number, os.strerror(number))
    raised = httpx.ConnectError("All connection attempts failed")
    raised.__cause__ = ExceptionGroup("several", [OSError(errno.ECONNREFUSED, "refused"), cause]) if grouped else cause

    error = error_of_transport(raised, where="http://host")

    assert type(error) is ModelUnavailable
    assert f"http://host: {whose} no file descriptors left" in str(error)
    assert "make one OpenAIChat and share it" in str(error)


def test_bytes_that_h11_quotes_do_not_show() -> None:
    raised = httpx.RemoteProtocolError("illegal status line: bytearray(b'a secret')")

    assert "secret" not in str(error_of_transport(raised, where="http://host"))

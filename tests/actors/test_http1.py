"""HTTP/1.1 without I/O: when a connection is kept, how a body is handed out, the limits; and heads of requests.

What it reads of responses of every kind stands beside h11 in test_http1_oracle.py.
"""

import time

import pytest

from callboard.actors.http1 import HttpError, ResponseParser, encode_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (OK + b"Content-Length: 2\r\n\r\nok", True),
        (OK + b"Content-Length: 0\r\n\r\n", True),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", True),
        (OK + b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", True),
        (OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"connection: Keep-Alive, CLOSE\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"connection: te\r\nconnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"\r\nuntil the end", False),
        (OK + b"Content-Length: 2\r\n\r\nok and more", False),
        (OK + b"Content-Length: 0\r\n\r\nmore", False),
        (CHUNKED + b"0\r\n\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\nmore", False),
    ],
)
def test_a_connection_is_kept_after_a_framed_response_of_http_1_1_that_does_not_say_close(
    data: bytes, kept: bool
) -> None:
    for pieces in ([data], byte_by_byte(data)):
        parser = ResponseParser()
        for piece in pieces:
            parser.feed(piece)
        if not kept:
            parser.feed_eof()

        assert parser.complete
        assert parser.keep_alive is kept


def test_bytes_that_come_after_the_end_take_back_that_the_connection_is_kept() -> None:
    parser = ResponseParser()
    parser.feed(OK + b"Content-Length: 2\r\n\r\nok")
    before = parser.keep_alive
    parser.feed(b"")
    still = parser.keep_alive
    parser.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    assert (before, still, parser.keep_alive) == (True, True, False)
    assert parser.head is not None
    assert parser.head.status == 200
    assert parser.take_body() == b"ok"


def test_a_body_is_handed_out_as_it_comes_and_once() -> None:
    parser = ResponseParser()
    taken = list[bytes]()
    for piece in (CHUNKED + b"4\r\nab", b"c", b"d\r", b"\n3\r\nefg\r\n2\r\nhi\r\n", b"0\r\n", b"\r\n"):
        parser.feed(piece)
        taken += [parser.take_body(), parser.take_body()]

    assert taken == [b"ab", b"", b"c", b"", b"d", b"", b"efghi", b"", b"", b"", b"", b""]
    assert parser.complete


def test_what_came_of_a_body_before_it_broke_is_still_there() -> None:
    parser = ResponseParser()
    parser.feed(CHUNKED + b"4\r\nabcd\r\n")
    with pytest.raises(HttpError):
        parser.feed(b"no size\r\n")

    assert parser.take_body() == b"abcd"


def test_a_header_that_is_said_again_is_joined_by_a_comma() -> None:
    parser = ResponseParser()
    parser.feed(OK + b"A: 1\r\na:2\r\nB: \r\n\r\n")

    assert parser.head is not None
    assert parser.head.get(b"a") == b"1, 2"
    assert parser.head.get(b"b") == b""
    assert parser.head.get(b"c") is None


# Limits.

LIMIT = 200
CHUNK_LINE_BYTES_MAX = 4096


def fits(data: bytes, size_bytes: int, *, head_bytes_max: int = LIMIT) -> bool:
    """Whether all of it is taken in pieces of this size."""
    parser = ResponseParser(head_bytes_max=head_bytes_max)
    try:
        for at in range(0, len(data), size_bytes):
            parser.feed(data[at : at + size_bytes])
    except HttpError:
        return False
    return True


@pytest.mark.parametrize("size_bytes", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (OK + b"x: ", b"\r\n\r\n"),
        (OK + b"x: ", b"\n y\r\n\r\n"),
        (b"HTTP/1.1 200 ", b"\n\n"),
        (b"HTTP/1.1 100 C\r\n\r\n" * 3 + OK + b"x: ", b"\r\n\r\n"),
    ],
)
def test_a_head_may_be_as_long_as_the_limit_and_no_longer(start: bytes, end: bytes, size_bytes: int) -> None:
    right = start + b"a" * (LIMIT - len(start) - len(end)) + end
    too_long = start + b"a" * (LIMIT - len(start) - len(end) + 1) + end

    assert fits(right, size_bytes)
    assert not fits(too_long, size_bytes)
    assert not fits(start + b"a" * LIMIT, size_bytes)


@pytest.mark.parametrize("size_bytes", [1, 7, 10_000])
def test_interim_responses_without_end_are_refused(size_bytes: int) -> None:
    assert not fits(b"HTTP/1.1 100 C\r\n\r\n" * 1000, size_bytes)


@pytest.mark.parametrize("size_bytes", [1, 7, 10_000])
def test_trailers_have_the_limit_of_a_head(size_bytes: int) -> None:
    start = OK + b"transfer-encoding: chunked\r\n\r\n0\r\n"
    right = start + b"x: " + b"a" * (LIMIT - 8) + b"\r\n\r\n"

    assert fits(right, size_bytes)
    assert not fits(start + b"x: " + b"a" * LIMIT, size_bytes)
    assert not fits(start + b"x: y\r\n" * 100, size_bytes)


@pytest.mark.parametrize("size_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("filler", [b"a", b"\t"])
def test_the_line_of_a_chunk_may_be_as_long_as_the_limit_and_no_longer(filler: bytes, size_bytes: int) -> None:
    right = CHUNKED + b"1;" + filler * (CHUNK_LINE_BYTES_MAX - 2) + b"\r\nx\r\n"
    too_long = CHUNKED + b"1;" + filler * (CHUNK_LINE_BYTES_MAX - 1) + b"\r\nx\r\n"

    assert fits(right, size_bytes)
    assert not fits(too_long, size_bytes)
    assert not fits(CHUNKED + b"1;" + filler * CHUNK_LINE_BYTES_MAX, size_bytes)


@pytest.mark.parametrize(
    "data",
    [
        OK + b"x:" + b" " * 60_000 + b"\0\r\n\r\n",
        OK + b"x:" + b" a" * 30_000 + b"\0\r\n\r\n",
        OK + b"x: a" + b" " * 60_000 + b"\r\r\n\r\n",
        OK + b"x" * 60_000 + b"\r\n\r\n",
        OK + b"x:" + b"\n " * 30_000 + b"\0\r\n\r\n",
        OK + b"x: a\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 " + b" a" * 30_000 + b"\0\r\n\r\n",
        OK + b"content-length: " + b"5," * 30_000 + b"5\r\n\r\n",
        OK + b"content-length: " + b"9" * 60_000 + b"\r\n\r\n",
        CHUNKED + (b"1;" + b"\t" * 4000 + b"\0\r\nx\r\n") * 10,
        CHUNKED + b"1\r\nx\r\n" * 10_000,
        CHUNKED + b"0\r\nx:" + b" " * 60_000 + b"\0\r\n\r\n",
    ],
    ids=lambda data: repr(data[:24] + b"..." + data[-10:]),
)
def test_no_response_takes_more_time_than_its_length(data: bytes) -> None:
    began_s = time.process_time()
    fits(data, 64 * 1024, head_bytes_max=64 * 1024)
    took_s = time.process_time() - began_s

    assert took_s < 0.5


def test_a_head_that_comes_byte_by_byte_takes_no_more_than_a_second() -> None:
    data = OK + b"x: y\r\n" * 10_000 + b"\r\n"
    began_s = time.process_time()
    taken = fits(data, 1, head_bytes_max=64 * 1024)
    took_s = time.process_time() - began_s

    assert taken
    assert took_s < 1.5


# Requests.


def test_a_head_goes_out_in_the_order_and_the_words_given() -> None:
    head = encode_head(b"POST", b"/v1?a=b", [(b"Host", b"h"), (b"x", b""), (b"x", b"\xe4")])

    assert head == b"POST /v1?a=b HTTP/1.1\r\nHost: h\r\nx: \r\nx: \xe4\r\n\r\n"


@pytest.mark.parametrize("evil", [b"a\r\nb: c", b"a\nb: c", b"a\rb: c", b"a\0", b"a\r\n"])
@pytest.mark.parametrize("where", ["method", "target", "name", "value"])
def test_a_line_break_in_a_part_of_a_head_is_refused(where: str, evil: bytes) -> None:
    parts = {"method": b"GET", "target": b"/", "name": b"x", "value": b"y"} | {where: evil}

    with pytest.raises(HttpError, match="line break"):
        encode_head(parts["method"], parts["target"], [(parts["name"], parts["value"])])

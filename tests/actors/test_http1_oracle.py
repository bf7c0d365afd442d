"""What h11 reads of a response, ours reads alike, whatever pieces the bytes come in; and it refuses the rest.

h11 is the oracle twice: for responses that are right, after every piece; and for broken ones, where ours may refuse
more (`refused_by_intent`), but takes nothing that h11 does not.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import h11
import pytest
from hypothesis import example, given, settings, strategies as st

from callboard.actors.http1 import HEAD_BYTES_MAX, HttpError, ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SECRET = b"sesame"


class Seen(NamedTuple):
    """What a parser says of a response so far. Headers are without those of interim responses."""

    status: int | None
    headers: list[tuple[bytes, bytes]]
    http11: bool
    body: bytes
    complete: bool
    keep_alive: bool


class Ours:
    def __init__(self) -> None:
        self.parser = ResponseParser()
        self.body = b""

    def feed(self, data: bytes) -> None:
        try:
            self.parser.feed(data)
        finally:
            self.body += self.parser.take_body()

    def feed_eof(self) -> None:
        self.parser.feed_eof()

    def seen(self) -> Seen:
        parser, head = self.parser, self.parser.head
        if head is None:
            return Seen(None, [], False, self.body, parser.complete, False)
        keep_alive = parser.complete and parser.keep_alive
        return Seen(head.status, head.headers, head.http11, self.body, parser.complete, keep_alive)


class Oracle:
    """h11 as a client that has sent a POST and waits for the response."""

    def __init__(self) -> None:
        self.connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        for event in (h11.Request(method="POST", target="/", headers=[("host", "h")]), h11.EndOfMessage()):
            self.connection.send(event)
        self.response: h11.Response | None = None
        self.body = b""
        self.complete = False

    def feed(self, data: bytes) -> None:
        if data:  # to h11 no bytes are the end of the connection
            self._take(data)

    def feed_eof(self) -> None:
        if not self.complete:
            self._take(b"")

    def _take(self, data: bytes) -> None:
        self.connection.receive_data(data)
        while True:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError:
                if self.complete:  # what comes after a response that says close: to ours it is the pool's business
                    return
                raise
            match event:
                case h11.Response():
                    self.response = event
                case h11.Data():
                    self.body += bytes(event.data)
                case h11.EndOfMessage():
                    self.complete = True
                case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                    return
                case _:
                    assert isinstance(event, h11.InformationalResponse)

    def seen(self) -> Seen:
        if self.response is None:
            return Seen(None, [], False, self.body, self.complete, False)
        done = self.connection.their_state is h11.DONE  # neither MUST_CLOSE nor CLOSED
        keep_alive = self.complete and done and not self.connection.trailing_data[0]
        http11 = self.response.http_version >= b"1.1"
        headers = list(self.response.headers)
        return Seen(self.response.status_code, headers, http11, self.body, self.complete, keep_alive)


def read(reader: Ours | Oracle, pieces: Iterable[bytes], *, eof: bool = False) -> Seen | None:
    """What the reader says after all pieces, or None where it refused them."""
    try:
        for piece in pieces:
            reader.feed(piece)
        if eof:
            reader.feed_eof()
    except (HttpError, h11.RemoteProtocolError) as error:
        quoted = isinstance(error, HttpError) and SECRET.decode() in str(error)
    else:
        return reader.seen()
    assert not quoted
    return None


def ours(*pieces: bytes, eof: bool = False) -> Seen | None:
    return read(Ours(), pieces, eof=eof)


def oracle(*pieces: bytes, eof: bool = False) -> Seen | None:
    return read(Oracle(), pieces, eof=eof)


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(at % (len(data) + 1) for at in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Responses that are right, as servers and the proxies before them write them.


@dataclass(frozen=True)
class Written:
    """A response in bytes, and what it says."""

    data: bytes
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ends_with_connection: bool


VISIBLE = bytes(byte for byte in range(256) if byte not in b"\0\t\n\v\f\r ")
NAME = st.text("abcXYZ019-!#$%&'*+.^_`|~", min_size=1, max_size=12).map(lambda text: b"X-" + text.encode())
WORD = st.lists(st.sampled_from(VISIBLE), min_size=1, max_size=8).map(bytes)
VALUE = st.lists(WORD, max_size=3).map(b" ".join)
SPACE = st.sampled_from([b"", b" ", b"\t", b"  "])
END = st.sampled_from([b"\r\n", b"\r\n", b"\n"])
CHUNK = st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from([b"\r\n", b"0\r\n\r\n", b"a" * 300]))
REASON = st.sampled_from([b"", b" ", b" OK", b" Too Many  Requests", b" \xe4\t!"])


@st.composite
def header_lines(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Lines of a head, some of them folded, and what they say. A fold stands for one space."""
    lines, said = b"", list[tuple[bytes, bytes]]()
    for name in draw(st.lists(NAME, max_size=5)):
        parts = draw(st.lists(VALUE.filter(bool), max_size=3))
        folded = (draw(END) + draw(st.sampled_from([b" ", b"\t ", b"   "]))).join(parts)
        lines += name + b":" + draw(SPACE) + folded + draw(SPACE) + draw(END)
        said.append((name.lower(), b" ".join(parts)))
    return lines, said


@st.composite
def interim_responses(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from([100, 102, 103, 199]))
    return b"HTTP/1.%d %d%b\r\n%b\r\n" % (draw(st.integers(0, 1)), status, draw(REASON), draw(header_lines())[0])


@st.composite
def chunked_bodies(draw: st.DrawFn, chunks: list[bytes]) -> bytes:
    extension = st.sampled_from([b"", b"", b" ", b";a", b';a="b;c"', b";" + SECRET])
    zeros = st.sampled_from([b"", b"", b"0", b"000"])
    data = b""
    for chunk in chunks:
        size = draw(st.sampled_from([b"%x", b"%X"])) % len(chunk)
        data += draw(zeros) + size + draw(extension) + b"\r\n" + chunk + b"\r\n"
    return data + b"0" + draw(zeros) + draw(extension) + b"\r\n" + draw(header_lines())[0] + draw(END)


@st.composite
def responses(draw: st.DrawFn) -> Written:
    data = b"".join(draw(st.lists(interim_responses(), max_size=2)))
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 304, 400, 429, 500, 599, 799]))
    minor = draw(st.sampled_from([1, 1, 1, 0, 2]))
    lines, said = draw(header_lines())
    chunks = draw(st.lists(CHUNK, max_size=4))
    body = b"".join(chunks)
    framing = draw(st.sampled_from(["length", "chunked", "chunked and length", "end"]))
    fields = list[tuple[bytes, bytes]]()
    if "length" in framing:
        many = b", ".join([b"%d" % len(body)] * draw(st.integers(1, 2)))
        fields.append((b"Content-Length", many))
    if "chunked" in framing:
        fields.append((draw(st.sampled_from([b"transfer-encoding", b"TRANSFER-ENCODING"])), b"Chunked"))
    if draw(st.booleans()):
        fields.append((b"Connection", draw(st.sampled_from([b"keep-alive", b"close", b"x, Close"]))))
    for name, value in draw(st.permutations(fields)):
        lines = name + b":" + draw(SPACE) + value + draw(SPACE) + draw(END) + lines
        said.insert(0, (name.lower(), value))
    data += b"HTTP/1.%d %d%b%b%b%b" % (minor, status, draw(REASON), draw(END), lines, draw(END))
    if status in (204, 304):
        return Written(data, status, said, b"", False)
    data += draw(chunked_bodies(chunks)) if "chunked" in framing else body
    return Written(data, status, said, body, framing == "end")


CUTS = st.lists(st.integers(0, 5000), max_size=12)
LEFT_OVER = st.sampled_from([b"", b"", b"", b"\n", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])


def alike(seen: Seen) -> Seen:
    """h11 gives the framing's headers in its own words: a length that is said twice once, codings in lower case."""
    headers = [
        (name, value.split(b",")[0] if name == b"content-length" else value.lower() if b"encod" in name else value)
        for name, value in seen.headers
    ]
    return seen._replace(headers=headers)


@settings(deadline=None, max_examples=200)
@given(responses(), LEFT_OVER, CUTS)
def test_after_every_piece_of_a_response_it_says_what_h11_says(
    written: Written, left_over: bytes, cuts: list[int]
) -> None:
    mine, theirs = Ours(), Oracle()

    for piece in cut(written.data + left_over, cuts):
        mine.feed(piece)
        theirs.feed(piece)

        assert alike(mine.seen()) == alike(theirs.seen())
    mine.feed_eof()
    theirs.feed_eof()

    assert alike(mine.seen()) == alike(theirs.seen())


@settings(deadline=None, max_examples=100)
@given(responses())
def test_what_was_written_is_read(written: Written) -> None:
    before_the_end = ours(*byte_by_byte(written.data))
    after = ours(*byte_by_byte(written.data), eof=True)

    assert before_the_end is not None
    assert after is not None
    assert before_the_end.complete is not written.ends_with_connection
    assert after.complete
    assert (after.status, after.headers, after.body) == (written.status, written.headers, written.body)


@settings(deadline=None, max_examples=100)
@given(responses(), st.integers(0, 5000))
def test_a_connection_that_ends_within_a_response_is_refused(written: Written, at: int) -> None:
    start = written.data[: at % (len(written.data) + 1)]
    sofar = ours(start)
    whole = ours(start, eof=True)

    assert sofar is not None
    cut_off = not sofar.complete and not (sofar.status is not None and written.ends_with_connection)
    assert (whole is None) is cut_off
    assert (oracle(start, eof=True) is None) is cut_off


# Broken ones.


def refused_by_intent(data: bytes, theirs: Seen) -> bool:
    """Whether h11 takes what ours need not: other major versions, sizes that no real server writes; and a head that has
    gone wrong already, where h11 waits for its end."""
    other_version = re.search(rb"HTTP/[^1]\.", data)
    huge_length = re.search(rb"(?i)content-length:[^\n]*[0-9]{19}", data)
    huge_chunk = re.search(rb"(?:^|\n)[0-9A-Fa-f]{17}", data)
    return bool(theirs.status is None or other_version or huge_length or huge_chunk)


def judge(data: bytes, cuts: list[int]) -> None:
    """Ours says what h11 says, or refuses for a reason, and by HttpError alone; it may keep fewer connections."""
    for eof in (False, True):
        mine = ours(*cut(data, cuts), eof=eof)
        theirs = oracle(data, eof=eof)

        assert mine == ours(data, eof=eof)
        if mine is None:
            assert theirs is None or refused_by_intent(data, theirs)
        else:
            assert theirs is not None
            assert alike(mine) == alike(theirs)._replace(keep_alive=mine.keep_alive and theirs.keep_alive)


BYTES = st.sampled_from([b"", b"\0", b"\t", b"\n", b"\r", b"\r\n", b" ", b":", b";", b",", b"0", b"5", b"f", b"\xff"])


@settings(deadline=None, max_examples=200)
@given(responses(), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 2), BYTES), min_size=1, max_size=3), CUTS)
def test_of_a_response_with_a_few_wrong_bytes_it_takes_no_more_than_h11(
    written: Written, wrong: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = written.data
    for position, length, insert in wrong:
        at = position % (len(data) + 1)
        data = data[:at] + insert + data[at + length :]

    judge(data, cuts)


SOUP = [
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100\r\n", b"HTTP/1.1 101 S\r\n\r\n", b"HTTP/1.0 204\n", b"HTTP/2.0 200\n"),
    *(b"content-length: 3\r\n", b"Content-Length: 3, 4\r\n", b"content-length: -1\r\n", b"content-length:\r\n"),
    *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"connection: close\r\n"),
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"0", b"3", b"a\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"x: y\r\n"),
    *(b" fold\r\n", b"ffffffffffffffff\r\n", b"3;" + SECRET + b"\r\n", SECRET, b"H", b"HTTP/", b"\xff", b"\0"),
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(SOUP), max_size=14), CUTS)
@example([b"HTTP/1.1 100\r\n", b"content-length: 3\r\n", b"Content-Length: 3, 4\r\n", b"\r\n"], [])
def test_of_any_soup_of_bytes_it_takes_no_more_than_h11(words: list[bytes], cuts: list[int]) -> None:
    judge(b"".join(words), cuts)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\r\n" + OK + b"\r\n",
        b" " + OK + b"\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.10 200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b" folded: from nothing\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b": no name\r\n\r\n",
        OK + b"space before : colon\r\n\r\n",
        OK + b"x: a\rb\r\n\r\n",
        OK + b"x: a\0b\r\n\r\n",
        OK + b"x\xff: a\r\n\r\n",
        OK + b"Content-Length: five\r\n\r\n",
        OK + b"Content-Length: \r\n\r\n",
        OK + b"Content-Length: +5\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 5.0\r\n\r\n",
        OK + b"Content-Length: 0x5\r\n\r\n",
        OK + b"Content-Length: 5, 6\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 05\r\n\r\n",
        OK + "Content-Length: \u0665\r\n\r\n".encode(),
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked; a=b\r\n\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"g\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"0x5\r\nabcde\r\n",
        CHUNKED + b" 5\r\nabcde\r\n",
        CHUNKED + b"5 5\r\nabcde\r\n",
        CHUNKED + b"5\r\nabcdeX\r\n",
        CHUNKED + b"5\r\nabcde\n\n",
        CHUNKED + b"5\r\nabcde\rX",
        CHUNKED + b"f" * 40 + b"\r\n",
        CHUNKED + b"0\r\nno trailer\r\n\r\n",
        CHUNKED + b"0\r\nContent-Length: 5, 6\r\n\r\n",
        CHUNKED + b"0\r\n folded: from nothing\r\n\r\n",
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    assert oracle(data) is None
    assert ours(data) is None
    assert ours(*byte_by_byte(data)) is None

"""The SSE parser: the same events whatever pieces the bytes come in."""

import itertools

import pytest
from hypothesis import given, strategies as st

from callboard.actors.sse import SseError, SseParser


def parse(*chunks: bytes, event_bytes_max: int = 1000) -> list[bytes]:
    parser = SseParser(event_bytes_max=event_bytes_max)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.close()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": OPENROUTER PROCESSING\n\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"event: message\nid: 1\nretry: 3\ndata: a\n\n", [b"a"]),
        (b"database: no\n\ndata: a\n\n", [b"a"]),
        ('data: {"a": "\u2028\u0085"}\n\n'.encode(), ['{"a": "\u2028\u0085"}'.encode()]),
        (b'error: {"code": 500}\n\n', [b'{"code": 500}']),
        (b"data: a\n\ndata: unterminated", [b"a", b"unterminated"]),
        (b"data: a\n", [b"a"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_a_stream_gives_its_events(stream: bytes, events: list[bytes]) -> None:
    assert parse(stream) == events


ALPHABET = [
    b"data:",
    b"data: ",
    b"error: ",
    b"\n",
    b"\r",
    b"\r\n",
    b":",
    b" ",
    b"x",
    b"\xef\xbb\xbf",
    "\u2028ä€😀".encode(),
]


@given(st.lists(st.sampled_from(ALPHABET), max_size=30), st.lists(st.integers(0, 200), max_size=20))
def test_any_chopping_gives_the_same_events(words: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(words)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]

    assert parse(*pieces) == parse(stream) == parse(*(bytes((byte,)) for byte in stream))


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=8))
def test_what_is_written_as_events_is_read_as_events(texts: list[str]) -> None:
    stream = "".join(f"data: {text}\n\n" for text in texts).encode()

    assert parse(stream, event_bytes_max=100_000) == [text.encode() for text in texts]


@given(st.integers(1, 40), st.sampled_from([b"data: ", b": ", b""]))
def test_the_limit_holds_for_any_chopping(size: int, start: bytes) -> None:
    stream = b"data: a\n\n" + start + b"x" * 30 + b"\n\n"
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    with pytest.raises(SseError, match="longer than 20 bytes"):
        parse(*pieces, event_bytes_max=20)


def test_many_short_lines_of_one_event_count_together() -> None:
    with pytest.raises(SseError):
        parse(b"data: xxxx\n" * 10, event_bytes_max=20)

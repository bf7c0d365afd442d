"""The table of what can go wrong between a client and a model's server, and what must come of each row.

A row has two cells: the answer streamed, and in one body; None where the fault cannot be (`why_not` says why). A cell
has what the server sends, what the client's one request ends with, and what becomes of the connection.

Source: FACTS.md, "Faults", whose rows are `FACTS`; the others are FakeUpstream's further faults.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from raw_upstream import Take, chunked, cut, head

from callboard import BadResponse, ModelError, ModelUnavailable, Stalled, Truncated
from callboard.fake_answers import FaultKind, UpstreamAnswer, answer, completion, fault, stream_events, to_json

ANSWER = "häl\u2028lo\u0085 😀 two three four five six"

FACTS = (
    "RST mid-stream",
    "FIN mid-stream, chunked",
    "FIN mid-stream, no chunked framing",
    "error event in a 200 stream",
    "malformed JSON chunk",
    "invalid UTF-8",
    "no [DONE]",
    "U+2028 / U+0085 in a delta",
    "`data:` without space",
    "CRLF, CR, BOM, comments, UTF-8 cut across segments, 7-byte segments",
    "hang",
    "slow-loris (1 byte / 50 ms)",
    "keep-alive closed by server 1 ms after the answer, next POST at once",
)

Outcome: TypeAlias = type[ModelError] | Literal["answer"]
Sent: TypeAlias = UpstreamAnswer | Take

PATIENT_S = 10.0
SHORT_S = 0.35
"""Timeouts of cells in which nothing comes any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the server sends to one request; what the request ends with; whether its connection serves the next one
    (None: where the response's end had come along with the fault); whether pieces come before the fault; and how long
    the client waits."""

    sent: Sent
    outcome: Outcome
    kept: bool | None
    pieces: bool = False
    patience_s: float = PATIENT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. `fact` is its row in FACTS.md; `kind` what it is called by FakeUpstream."""

    name: str
    streamed: Cell | None = None
    whole: Cell | None = None
    fact: str | None = None
    kind: FaultKind | None = None
    why_not: str = ""


# What a server sends, as bytes.

EVENT_STREAM = "content-type: text/event-stream"
JSON = "content-type: application/json"
EVENTS = tuple(stream_events(answer(ANSWER), {}))[1:]
"""Without the first one, which says no more than whose turn it is: so that each event that is lost is missed."""
DONE = b"[DONE]"
BODY = completion(answer(ANSWER), {})
NEXT = "the next answer"


def events_of(line_end: bytes, *, field: bytes = b"data: ", between: bytes = b"", last: bytes = DONE) -> bytes:
    """The answer as a stream, with `last` in place of [DONE]."""
    events = [between + field + data + line_end + line_end for data in (*EVENTS[:-1], last)]
    return b"".join(events)


def in_lines(line_end: bytes) -> bytes:
    """The same with the data of each event over several lines, where its JSON allows it."""
    return events_of(line_end).replace(b',"', b"," + line_end + b'data: "')


def stream_of(text: bytes, *, segment_bytes: int = 1 << 20, pause_s: float = 0.0) -> Take:
    data = head(EVENT_STREAM, "transfer-encoding: chunked") + chunked(text) + b"0\r\n\r\n"
    return Take(cut(data, segment_bytes), pause_s=pause_s)


def body_of(data: bytes, *, segment_bytes: int = 1 << 20, pause_s: float = 0.0) -> Take:
    return Take(cut(head(JSON, f"content-length: {len(data)}") + data, segment_bytes), pause_s=pause_s)


def next_take(*, streamed: bool) -> Take:
    """A good answer, for whatever request comes behind the fault."""
    if not streamed:
        return body_of(completion(answer(NEXT), {}))
    return stream_of(b"".join(b"data: " + data + b"\n\n" for data in stream_events(answer(NEXT), {})))


# The rows.


def of_kind(kind: FaultKind, outcome: Outcome, *, kept: bool | None = False, pieces: bool = False) -> Cell:
    waits = outcome is Stalled or kind in ("hang", "hang_mid_stream")
    return Cell(
        sent=fault(kind, ANSWER),
        outcome=outcome,
        kept=kept,
        pieces=pieces,
        patience_s=SHORT_S if waits else PATIENT_S,
    )


def good(sent: Sent) -> Cell:
    return Cell(sent=sent, outcome="answer", kept=True, pieces=True)


def _broken_connections() -> list[Row]:
    half_stream = head(EVENT_STREAM) + events_of(b"\n")[:-400]
    half_body = BODY[: len(BODY) // 2]
    return [
        Row(
            name="RST mid-stream",
            fact=FACTS[0],
            kind="reset_mid_stream",
            streamed=of_kind("reset_mid_stream", ModelUnavailable, pieces=True),
            whole=of_kind("reset_mid_stream", ModelUnavailable),
        ),
        Row(
            name="FIN mid-stream, chunked",
            fact=FACTS[1],
            kind="close_mid_stream",
            streamed=of_kind("close_mid_stream", ModelUnavailable, pieces=True),
            whole=Cell(
                sent=Take((head(JSON, "transfer-encoding: chunked") + chunked(half_body),), "close"),
                outcome=ModelUnavailable,
                kept=False,
            ),
        ),
        Row(
            name="FIN mid-stream, Content-Length",
            streamed=Cell(
                sent=Take((head(EVENT_STREAM, "content-length: 9999") + events_of(b"\n")[:-400],), "close"),
                outcome=ModelUnavailable,
                kept=False,
                pieces=True,
            ),
            whole=of_kind("close_mid_stream", ModelUnavailable),
        ),
        Row(
            name="FIN mid-stream, no chunked framing",
            fact=FACTS[2],
            kind="close_mid_unframed_stream",
            streamed=of_kind("close_mid_unframed_stream", Truncated, pieces=True),
            whole=Cell(sent=Take((head(JSON) + half_body,), "close"), outcome=BadResponse, kept=False),
        ),
        Row(
            name="FIN in the middle of an event, no chunked framing",
            streamed=Cell(sent=Take((half_stream,), "close"), outcome=BadResponse, kept=False, pieces=True),
            why_not="a body has no events",
        ),
    ]


def _connections_without_a_word() -> list[Row]:
    return [
        Row(
            name="RST before the first byte",
            kind="reset",
            streamed=of_kind("reset", ModelUnavailable),
            whole=of_kind("reset", ModelUnavailable),
        ),
        Row(
            name="FIN before the first byte",
            kind="close",
            streamed=of_kind("close", ModelUnavailable),
            whole=of_kind("close", ModelUnavailable),
        ),
        Row(
            name="keep-alive closed at once, without a word",
            kind="close_after_answer",
            streamed=Cell(sent=fault("close_after_answer", ANSWER), outcome="answer", kept=False, pieces=True),
            whole=Cell(sent=fault("close_after_answer", ANSWER), outcome="answer", kept=False),
        ),
    ]


def _after_the_end() -> list[Row]:
    """An answer whose finish_reason has come is whole: what goes wrong behind it costs the connection at most."""
    finished = head(EVENT_STREAM, "transfer-encoding: chunked") + chunked(events_of(b"\n", last=b""))
    silent = head(JSON, f"content-length: {len(BODY)}", "connection: close") + BODY
    garbage = b"HTTP/1.1 500 Not asked for\r\n\r\n"
    return [
        Row(
            name="RST behind the finish_reason",
            streamed=Cell(sent=Take((finished,), "reset", linger_s=0.05), outcome="answer", kept=False, pieces=True),
            why_not="a body ends where its length says",
        ),
        Row(
            name="FIN behind the finish_reason",
            streamed=Cell(sent=Take((finished,), "close"), outcome="answer", kept=False, pieces=True),
            why_not="a body ends where its length says",
        ),
        Row(
            name="a response that nobody asked for right behind the answer",
            streamed=Cell(
                sent=Take((b"".join(stream_of(events_of(b"\n")).segments) + garbage,)),
                outcome="answer",
                kept=False,
                pieces=True,
            ),
            whole=Cell(sent=Take((b"".join(body_of(BODY).segments) + garbage,)), outcome="answer", kept=False),
        ),
        Row(
            name="`Connection: close` by a server that does not close",
            streamed=Cell(
                sent=Take((finished.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + b"0\r\n\r\n",)),
                outcome="answer",
                kept=False,
                pieces=True,
            ),
            whole=Cell(sent=Take((silent,)), outcome="answer", kept=False),
        ),
    ]


def _bad_answers() -> list[Row]:
    return [
        Row(
            name="error event in a 200 stream",
            fact=FACTS[3],
            kind="error_in_stream",
            streamed=of_kind("error_in_stream", ModelUnavailable, kept=None, pieces=True),
            whole=of_kind("error_in_stream", ModelUnavailable, kept=True),
        ),
        Row(
            name="malformed JSON chunk",
            fact=FACTS[4],
            kind="malformed_json",
            streamed=of_kind("malformed_json", BadResponse, kept=None, pieces=True),
            whole=of_kind("malformed_json", BadResponse, kept=True),
        ),
        Row(
            name="invalid UTF-8",
            fact=FACTS[5],
            kind="invalid_utf8",
            streamed=of_kind("invalid_utf8", BadResponse, kept=None, pieces=True),
            whole=of_kind("invalid_utf8", BadResponse, kept=True),
        ),
        Row(
            name="no finish_reason",
            kind="no_finish_reason",
            streamed=of_kind("no_finish_reason", Truncated, kept=True, pieces=True),
            whole=good(fault("no_finish_reason", ANSWER)),
        ),
        Row(
            name="a page of HTML",
            kind="html",
            streamed=of_kind("html", BadResponse),
            whole=of_kind("html", BadResponse),
        ),
        Row(
            name="no HTTP",
            kind="not_http",
            streamed=of_kind("not_http", ModelUnavailable),
            whole=of_kind("not_http", ModelUnavailable),
        ),
    ]


def _odd_but_good() -> list[Row]:
    segments = FACTS[9]
    with_comments = events_of(b"\n", between=b": keep-alive\n\n")
    forms: dict[str, Take] = {
        "CRLF": stream_of(events_of(b"\r\n")),
        "CR": stream_of(events_of(b"\r")),
        "BOM": stream_of(b"\xef\xbb\xbf" + events_of(b"\n")),
        "comments": stream_of(with_comments),
        "CR in 7-byte segments": stream_of(events_of(b"\r"), segment_bytes=7),
        "data over several lines": stream_of(in_lines(b"\n")),
        "data over several lines, CRLF cut anywhere": stream_of(in_lines(b"\r\n"), segment_bytes=1),
    }
    return [
        Row(
            name="no [DONE]",
            fact=FACTS[6],
            kind="no_done",
            streamed=good(fault("no_done", ANSWER)),
            whole=good(fault("no_done", ANSWER)),
        ),
        Row(
            name="U+2028 / U+0085 in a delta",
            fact=FACTS[7],
            streamed=good(answer(pieces=[ANSWER[:4], ANSWER[4:]])),
            whole=good(answer(ANSWER)),
        ),
        Row(
            name="`data:` without space",
            fact=FACTS[8],
            streamed=good(stream_of(events_of(b"\n", field=b"data:"))),
            why_not="a body has no lines",
        ),
        *(
            Row(name=name, fact=segments, streamed=good(take), why_not="a body has no lines")
            for name, take in forms.items()
        ),
        Row(
            name="UTF-8 cut across segments",
            fact=segments,
            streamed=good(stream_of(events_of(b"\n"), segment_bytes=1)),
            whole=good(body_of(BODY, segment_bytes=1)),
        ),
        Row(
            name="7-byte segments",
            fact=segments,
            streamed=good(stream_of(events_of(b"\n"), segment_bytes=7)),
            whole=good(body_of(BODY, segment_bytes=7)),
        ),
        Row(
            name="empty lines before the body",
            streamed=good(stream_of(b"\n\n\n" + events_of(b"\n"))),
            whole=good(body_of(b"\n\n \r\n" + BODY)),
        ),
    ]


def _silences() -> list[Row]:
    slowly = body_of(BODY + b" " * 10_000, segment_bytes=1, pause_s=0.02)
    unending = to_json({"choices": [{"index": 0, "delta": {"content": "x" * 9_000}}]})
    return [
        Row(
            name="hang",
            fact=FACTS[10],
            kind="hang",
            streamed=of_kind("hang", Stalled),
            whole=of_kind("hang", ModelUnavailable),
        ),
        Row(
            name="hang mid-stream",
            kind="hang_mid_stream",
            streamed=of_kind("hang_mid_stream", Stalled, pieces=True),
            whole=of_kind("hang_mid_stream", ModelUnavailable),
        ),
        Row(
            name="slow-loris (1 byte / 50 ms)",
            fact=FACTS[11],
            streamed=Cell(
                sent=stream_of(b"data: " + unending, segment_bytes=1, pause_s=0.02),
                outcome=Stalled,
                kept=False,
                patience_s=SHORT_S,
            ),
            whole=Cell(sent=slowly, outcome=ModelUnavailable, kept=False, patience_s=SHORT_S),
        ),
        Row(
            name="slow-loris in chunks, an event-stream where a body was asked for",
            kind="slow_loris",
            streamed=of_kind("slow_loris", Stalled),
            whole=of_kind("slow_loris", Stalled),
        ),
        Row(
            name="comments for ever",
            kind="comments_only",
            streamed=of_kind("comments_only", Stalled),
            whole=of_kind("comments_only", Stalled),
        ),
    ]


_PARTS: tuple[Callable[[], list[Row]], ...] = (
    _broken_connections,
    _connections_without_a_word,
    _after_the_end,
    _bad_answers,
    _odd_but_good,
    _silences,
)
TABLE: tuple[Row, ...] = tuple(row for part in _PARTS for row in part())
ELSEWHERE = {FACTS[12]: "a hundred requests, one after the other: a test of its own"}

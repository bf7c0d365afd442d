"""What all processes of `load.py` agree upon: who talks when, and what is said. Pure.

What is said is a function of session and turn number, so that any message can be recognised wherever it turns up:
missing, doubled, cut or in another session. Sessions have numbers: user u talks in session u, then in u + users, then
in u + 2 x users, and so on; the first `stored` of them were there before, with `stored_turns` turns each.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "AckLine",
    "ErrorLine",
    "Line",
    "MarkLine",
    "Plan",
    "Said",
    "agent_of",
    "answer_to",
    "conversation",
    "decode_line",
    "encode_line",
    "is_streamed",
    "question",
    "session_name",
    "turn_of",
]

Backend = Literal["trio", "asyncio"]

FILLER = " The invoice of last month lists the same position twice, and the second one is in another currency." * 2
"""So that messages have the size that messages have: 200 characters more."""

_QUESTION = re.compile(r"turn (\d+) of s(\d+)\.")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The load.

    Attributes:
        sessions: how many users talk at the same time, each in one session.
        stored: sessions that are in the store beforehand, which the users visit first.
        stored_turns: of each of those.
        turns: of a visit, after which the user goes on in another session.
        agents: how many there are; they take turns in each session.
        think_s: the mean pause of a user between an answer and the next question.
        burst: how many questions a user asks at once, in every fourth place, without waiting for the answers.
        server_s: how long the model takes for an answer, on average.
        fault_share: of the model's answers, how many go wrong.
        store_fault_every_s: the mean time between commits that fail; 0: none.
        idle_s: how long a session stays in memory.
        durability: of the store.
        log_mb: where its log is moved into rows; about as much again, and twice, is held in memory.
        seed: of all chance but the kills' effects.
    """

    sessions: int = 1_000
    stored: int = 0
    stored_turns: int = 3
    turns: int = 10
    agents: int = 4
    think_s: float = 2.0
    burst: int = 3
    server_s: float = 0.1
    fault_share: float = 0.0
    store_fault_every_s: float = 0.0
    idle_s: float = 30.0
    durability: Literal["sync", "async"] = "sync"
    log_mb: int = 16
    seed: int = 0

    def turns_before(self, session: int) -> int:
        """How many turns the session had before its visit."""
        return self.stored_turns if session < self.stored else 0

    def last_turn(self, session: int) -> int:
        """The number of the last turn of the session's visit."""
        return self.turns_before(session) + self.turns


# What is said ---------------------------------------------------------------------------------------------------------

Said: TypeAlias = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""A message: role, text, the call that it answers, its calls (id and arguments)."""


def session_name(session: int) -> str:
    return f"s{session:07}"


def question(session: int, turn: int) -> str:
    return f"turn {turn} of {session_name(session)}.{FILLER}"


def answer_to(session: int, turn: int) -> str:
    return f"answer to turn {turn} of {session_name(session)}.{FILLER}"


def turn_of(text: str) -> tuple[int, int] | None:
    """(session, turn) of a question; None where it is none."""
    found = _QUESTION.match(text)
    return (int(found[2]), int(found[1])) if found else None


def agent_of(session: int, turn: int, *, agents: int) -> int:
    """Which agent answers."""
    return (session + turn) % agents


def is_streamed(turn: int) -> bool:
    """Every fifth answer comes as a stream."""
    return turn % 5 == 0


def topic_of(session: int, turn: int) -> str | None:
    """What the model looks up before it answers: something in every fourth turn."""
    return f"topic {turn} of {session_name(session)}" if turn % 4 == 0 else None


def conversation(session: int, turn: int) -> Iterator[Said]:
    """All messages of a turn."""
    yield ("user", question(session, turn), "", ())
    topic = topic_of(session, turn)
    if topic is not None:
        yield ("assistant", "", "", (("call_1", f'{{"topic":"{topic}"}}'),))
        yield ("tool", f"facts on {topic}", "call_1", ())
    yield ("assistant", answer_to(session, turn), "", ())


# What the worker says -------------------------------------------------------------------------------------------------


class AckLine(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A chat has returned: from now on the turn must be there."""

    session: int
    turn: int
    run_id: str
    took_ms: float


class ErrorLine(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A chat has not given an answer.

    `kind`: "failed": nothing of it may be there. "unknown": it may be there. "hung": no answer came in time. "wrong":
    another answer than the model's.
    """

    kind: Literal["failed", "unknown", "hung", "wrong"]
    session: int
    turn: int
    error: str


class MarkLine(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Where the worker is: "opening", "open" (the store is, and what was open is put right), "done"."""

    what: Literal["opening", "open", "done"]
    store_faults: int = 0


Line: TypeAlias = AckLine | ErrorLine | MarkLine

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Line)


def encode_line(line: Line) -> bytes:
    return _encoder.encode(line) + b"\n"


def decode_line(data: bytes) -> Line:
    line: Line = _decoder.decode(data)
    return line

"""The demo's proof: what the worker acknowledged, against what the store holds.

Kept by the parent, which the SIGKILL does not touch, and compared with the store read from outside the worker.
"""

from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from callboard.actors.message import Message
from callboard.actors.run_record import RunRecord

from .demo_events import Acknowledged, Event, TurnStarted

__all__ = ["Ledger", "Proof", "StoredCases"]


class StoredCases(Protocol):
    """Where the ledger looks: `callboard.actors.archive.Archive`, or a test's own records."""

    def messages(self, session_id: str) -> list[Message]: ...

    def runs(self, session_id: str) -> list[RunRecord]: ...


class Proof(Struct, frozen=True):
    """What the comparison found; messages as people may read them.

    Attributes:
        acknowledged: messages that the worker had acknowledged.
        stored: messages that the store holds in these sessions.
        lost: those of the acknowledged that the store does not hold exactly once, unchanged and in their order.
        half_turns: stored messages of a run that did not complete.
        open_runs: ids of runs that have not ended; right after a kill these are the ones that it cut.
        interrupted: runs that were started, not acknowledged, and are marked "interrupted".
    """

    acknowledged: int
    stored: int
    lost: tuple[str, ...]
    half_turns: tuple[str, ...]
    open_runs: tuple[str, ...]
    interrupted: tuple[RunRecord, ...]


@dataclass(slots=True)
class Ledger:
    """Every acknowledgement and every start that the worker reported, of all its lives."""

    messages: dict[str, list[Message]] = field(default_factory=dict[str, list[Message]])
    started: dict[str, TurnStarted] = field(default_factory=dict[str, TurnStarted])
    answered: set[str] = field(default_factory=set[str])

    def record(self, event: Event) -> None:
        match event:
            case TurnStarted():
                self.started[event.run_id] = event
                self.messages.setdefault(event.session_id, [])
            case Acknowledged():
                self.messages.setdefault(event.session_id, []).extend(event.messages)
                if event.run_id is not None:
                    self.answered.add(event.run_id)
            case _:
                pass

    def compare(self, stored: StoredCases) -> Proof:
        """Compare with the store, at any time.

        Cost: reads every session that the worker named, once.
        """
        stored_count = 0
        lost: list[str] = []
        half_turns: list[str] = []
        open_runs: list[str] = []
        interrupted: list[RunRecord] = []
        for session_id, acknowledged in self.messages.items():
            held = stored.messages(session_id)
            runs = stored.runs(session_id)
            stored_count += len(held)
            lost += _lost(acknowledged, held)
            unfinished = {run.id for run in runs if run.status != "completed"}
            half_turns += [_name(message) for message in held if message.run_id in unfinished]
            open_runs += [run.id for run in runs if run.is_open]
            unanswered = self.started.keys() - self.answered
            interrupted += [run for run in runs if run.id in unanswered and run.status == "interrupted"]
        return Proof(
            acknowledged=sum(map(len, self.messages.values())),
            stored=stored_count,
            lost=tuple(lost),
            half_turns=tuple(half_turns),
            open_runs=tuple(open_runs),
            interrupted=tuple(interrupted),
        )


def _lost(acknowledged: list[Message], held: list[Message]) -> list[str]:
    places = [[place for place, other in enumerate(held) if other.id == message.id] for message in acknowledged]
    lost: list[str] = []
    last = -1
    for message, found in zip(acknowledged, places, strict=True):
        if len(found) != 1 or held[found[0]] != message or found[0] <= last:
            lost.append(_name(message))
        else:
            last = found[0]
    return lost


def _name(message: Message) -> str:
    return f"{message.id} ({message.author or message.role}: {message.text[:40]!r})"

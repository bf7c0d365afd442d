"""How the demo is shown while it runs: a live board on a terminal, plain lines anywhere else.

`Board` is what is known, folded from the worker's events; the two views only draw it.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .cli_tables import printable
from .demo_case import CASES
from .demo_events import Acknowledged, AttemptVoided, Event, Opened, Piece, TurnStarted

__all__ = ["Board", "Seat", "View", "open_view"]

_STYLES = {"waits": "dim", "works": "bold yellow", "done": "green", "killed": "bold red"}
_TAIL_CHARACTERS = 400


@dataclass(slots=True)
class Seat:
    """One agent at work on one case. `pieces` counts those of the answer so far, `tokens` all that the case cost it."""

    session_id: str
    agent: str
    state: str = "waits"
    text: str = ""
    pieces: int = 0
    tokens: int = 0
    started_s: float | None = None
    ended_s: float | None = None


@dataclass(slots=True)
class Board:
    """All seats, in the order of the cases. `clock` gives seconds."""

    clock: Callable[[], float] = time.monotonic
    seats: dict[tuple[str, str], Seat] = field(
        default_factory=lambda: {
            (case.session_id, turn.agent): Seat(case.session_id, turn.agent) for case in CASES for turn in case.turns
        }
    )

    def record(self, event: Event) -> None:
        match event:
            case TurnStarted():
                seat = self.seats[event.session_id, event.agent]
                seat.state, seat.text, seat.pieces = "works", "", 0
                seat.started_s, seat.ended_s = self.clock(), None
            case Piece():
                seat = self.seats[event.session_id, event.agent]
                seat.text += event.text
                seat.pieces += 1
            case AttemptVoided():
                seat = self.seats[event.session_id, event.agent]
                seat.text, seat.pieces = "", 0
            case Acknowledged(run_id=str()):
                seat = self.seats[event.session_id, event.agent]
                seat.state, seat.ended_s = "done", self.clock()
                seat.text = event.messages[-1].text
                seat.tokens += event.usage.total_tokens if event.usage is not None else 0
            case _:
                pass

    def killed(self) -> None:
        """The worker is gone: who worked is cut off."""
        for seat in self.seats.values():
            if seat.state == "works":
                seat.state, seat.ended_s = "killed", self.clock()

    def elapsed_s(self, seat: Seat) -> float | None:
        if seat.started_s is None:
            return None
        return (self.clock() if seat.ended_s is None else seat.ended_s) - seat.started_s


class View(Protocol):
    """What the demo tells a person. `show` follows `Board.record`; `tick` is called about ten times a second."""

    def show(self, event: Event) -> None: ...

    def note(self, text: str, *, style: str = "") -> None: ...

    def tick(self) -> None: ...


@contextlib.contextmanager
def open_view(console: Console, board: Board) -> Generator[View]:
    """The live board if the console is a terminal, else plain lines."""
    if not console.is_terminal:
        yield _PlainView(console, board)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield _LiveView(live, board)


class _PlainView:
    def __init__(self, console: Console, board: Board) -> None:
        self._console = console
        self._board = board
        self._started_s = board.clock()

    def show(self, event: Event) -> None:
        match event:
            case Opened():
                self.note(f"worker {event.pid} has opened the store")
            case TurnStarted():
                self.note(f"{event.session_id} · {event.agent} works ({event.run_id})")
            case AttemptVoided():
                self.note(f"{event.session_id} · {event.agent} tries again: {event.reason}", style="yellow")
            case Acknowledged(run_id=str()):
                seat = self._board.seats[event.session_id, event.agent]
                self.note(
                    f"{event.session_id} · {event.agent} is done: {seat.pieces} pieces streamed, {seat.tokens} tokens, "
                    f"{self._board.elapsed_s(seat) or 0:.1f} s"
                )
            case _:
                pass

    def note(self, text: str, *, style: str = "") -> None:
        stamp = f"{self._board.clock() - self._started_s:6.1f} s  "
        self._console.print(Text.assemble((stamp, "dim"), (printable(text), style)), soft_wrap=True)

    def tick(self) -> None:
        pass


class _LiveView:
    """Drawn from the event loop, not from a thread of rich's: the board never changes while it is drawn."""

    def __init__(self, live: Live, board: Board) -> None:
        self._live = live
        self._board = board
        self._notes = _PlainView(live.console, board)

    def show(self, event: Event) -> None:
        if isinstance(event, Opened | AttemptVoided):
            self._notes.show(event)

    def note(self, text: str, *, style: str = "") -> None:
        self._notes.note(text, style=style)

    def tick(self) -> None:
        self._live.update(self._drawing(), refresh=True)

    def _drawing(self) -> Group:
        table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
        for heading in ("case", "agent", "state"):
            table.add_column(heading, no_wrap=True)
        for heading in ("tokens", "time"):
            table.add_column(heading, no_wrap=True, justify="right")
        table.add_column("answer", ratio=1, overflow="ellipsis", no_wrap=True)
        speaking = Text()
        for seat in self._board.seats.values():
            elapsed_s = self._board.elapsed_s(seat)
            table.add_row(
                seat.session_id,
                seat.agent,
                Text(seat.state, _STYLES[seat.state]),
                f"~{seat.pieces}" if seat.state == "works" else str(seat.tokens),
                "" if elapsed_s is None else f"{elapsed_s:.1f} s",
                Text(" ".join(printable(seat.text).split()), "dim" if seat.state == "killed" else ""),
            )
            if seat.state == "works":
                speaking.append(f"\n{seat.session_id} · {seat.agent}: ", "bold yellow")
                speaking.append(printable(seat.text)[-_TAIL_CHARACTERS:])
        return Group(table, speaking)

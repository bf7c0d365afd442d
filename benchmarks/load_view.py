"""How `load.py` shows what goes on, on standard error: a live board on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from load_ledger import FAULTS_OF_TURNS
from load_stage import Course, Outcome
from rich.console import Console
from rich.live import Live
from rich.table import Table

__all__ = ["facts", "open_view", "table_of"]

_LINE_EVERY_S = 10.0
_SHORT = ("turns", "turns/s", "memory", "kills", "errors told", "faults of turns")


@contextmanager
def open_view(outcome: Outcome, course: Course) -> Generator[Callable[[str], None]]:
    """What is called with a word on what goes on ("" while it simply runs)."""
    console = Console(file=sys.stderr)
    began_s = time.monotonic()
    if not console.is_terminal:
        yield _Lines(console, outcome, began_s)
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:

        def show(doing: str) -> None:
            elapsed = f"{time.monotonic() - began_s:.0f} s, {outcome.loaded_s:.0f} of {course.seconds:.0f} s of load"
            live.update(table_of(facts(outcome), title=f"callboard load · {elapsed} · {doing or 'runs'}"))

        yield show


class _Lines:
    def __init__(self, console: Console, outcome: Outcome, began_s: float) -> None:
        self._console = console
        self._outcome = outcome
        self._began_s = began_s
        self._shown_s = 0.0

    def __call__(self, doing: str) -> None:
        now_s = time.monotonic() - self._began_s
        if now_s - self._shown_s < _LINE_EVERY_S:
            return
        self._shown_s = now_s
        told = facts(self._outcome)
        words = [
            f"{now_s:.0f} s",
            *(f"{name} {told[name]}" for name in _SHORT),
        ]
        self._console.print("load: " + " · ".join([*words, doing] if doing else words), highlight=False, soft_wrap=True)


def facts(outcome: Outcome) -> dict[str, str]:
    """What is known, for people."""
    latencies = outcome.latencies.as_record()
    seconds, recent = _recent(outcome)
    rss = [moment.anonymous_bytes for _, moment in outcome.series if moment.anonymous_bytes]
    faults = {kind: count for kind, count in outcome.ledger.faults.items() if count}
    return {
        "turns": f"{outcome.ledger.acknowledged:,} acknowledged, {outcome.ledger.turns:,} seen in the store",
        "turns/s": f"{recent / seconds:,.0f} lately" if seconds else "-",
        "latency (ms)": " · ".join(f"{name} {value:,.1f}" for name, value in latencies.items()),
        "memory": f"{rss[-1] / 2**20:,.0f} MB, at most {max(rss) / 2**20:,.0f}" if rss else "-",
        "kills": f"{outcome.kills}, cutting {outcome.runs_cut} runs; {outcome.unacknowledged} turns stored, not told",
        "model faults": _counts(outcome.model_faults),
        "store faults": str(outcome.store_faults),
        "errors told": _counts(outcome.ledger.errors),
        "faults of turns": ", ".join(f"{count} {kind}" for kind, count in faults.items())
        or f"0 of {len(FAULTS_OF_TURNS)} kinds",
    }


def _recent(outcome: Outcome) -> tuple[float, int]:
    """How many turns came in the last moments that are over."""
    moments = list(outcome.series)[-11:-1]
    return len(moments) * outcome.series.step_s, sum(moment.latencies.count for _, moment in moments)


def _counts(counter: dict[str, int]) -> str:
    total = sum(counter.values())
    told = ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda item: -item[1])[:6])
    return f"{total:,} ({told})" if total else "0"


def table_of(told: dict[str, str], *, title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in told.items():
        table.add_row(name, value)
    return table

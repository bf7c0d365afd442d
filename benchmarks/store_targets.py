"""The figures to reach in bench_store.py, as ratios within one run where the issue says so, and what came of them."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

__all__ = ["TARGETS", "Measured", "Target", "Verdict", "judged"]

Measured = Mapping[tuple[str, str, str], Sequence[float]]
"""The figures of each round by system ("ours on trio"), row and figure; more is better in "_per_s"."""


class Target(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        work: what is done.
        row, figure: ours.
        beside: the system; "ours" for another figure of ours, "" for an absolute figure.
        beside_figure: what is set against ours, of the same row; "" for the figure of the same name.
        limit, aim: what must and what should be reached; None where the line is for information.
        faster: True for how many times as fast as the other we are (at least `limit`); False for how many times the
            other's cost ours is, or for an absolute figure (at most `limit`).
    """

    work: str
    row: str
    figure: str
    beside: str = ""
    beside_figure: str = ""
    limit: float | None = None
    aim: float | None = None
    faster: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """A line with its result: the ratio of the least disturbed rounds, and the lowest and highest of one same round."""

    target: Target
    backend: str
    beside: str
    this: float
    lowest: float
    highest: float

    @property
    def verdict(self) -> str:
        if self.target.limit is None:
            return "-"
        if not self._reaches(self.target.limit):
            return "NO"
        return "aim" if self.target.aim is not None and self._reaches(self.target.aim) else "yes"

    def _reaches(self, wanted: float) -> bool:
        return self.this >= wanted if self.target.faster else self.this <= wanted


def _turns(work: str, row: str, beside: str, *, limit: float | None = None, aim: float | None = None) -> Target:
    return Target(work, row, "turns_per_s", beside, "", limit, aim)


def _at_most(work: str, row: str, figure: str, *, limit: float | None = None, aim: float | None = None) -> Target:
    return Target(work, row, figure, "", "", limit, aim, faster=False)


WRITERS = "100 writers x 1 000 sessions"
ONE = "one session, turn after turn"
AGENTS = "20 agents on one session"

TARGETS: Sequence[Target] = (
    _turns(WRITERS, "writers", "openai", limit=40, aim=75),
    _turns(WRITERS, "writers", "langgraph", limit=200, aim=400),
    _turns(WRITERS, "writers", "sqlite", limit=15, aim=30),
    _turns(WRITERS, "writers", "adk"),
    _at_most("bytes written per turn of 660 bytes", "writers", "written_bytes", limit=5_000, aim=2_000),
    _at_most("bytes on disk per message", "writers", "stored_message_bytes"),
    Target("1 000 committers", "committers", "turns_per_s", "ours", "log_turns_per_s", 0.4, 0.5),
    _turns(ONE, "one", "lmdb", limit=0.8, aim=0.85),
    _turns(ONE, "one", "openai", limit=1.3, aim=1.6),
    _turns(ONE, "one", "sqlite"),
    _turns(ONE, "one", "langgraph"),
    _turns(ONE, "one", "adk"),
    _turns(AGENTS, "agents", "openai", limit=12, aim=20),
    _at_most("lost, doubled, reordered there", "agents", "wrong", limit=0, aim=0),
    Target(
        "append at 100 000 over at 10", "append", "append_100000_us", "ours", "append_10_us", 1.15, 1.05, faster=False
    ),
    Target("append at 1 000 over at 10", "append", "append_1000_us", "ours", "append_10_us", faster=False),
    Target("cold activation, 1 000 x 100 messages", "cold", "cold_us", "openai", "", 25, 40),
    Target("the same, 100 at once", "cold", "cold_together_us", "openai"),
    Target("last 50 of 10 000", "last", "last_50_us", "openai", "", 5, 8),
    _at_most("loop busy for 1 ms at a time: commit wait p99, ms", "busy", "busy_p99_ms", limit=10, aim=8),
    _at_most("the same with a writer process", "busy", "busy_process_p99_ms", limit=10, aim=8),
    _at_most("loop busy for 0.1 ms at a time: the same", "busy", "busy_short_p99_ms", limit=10, aim=8),
    _at_most("the same with a writer process", "busy", "busy_short_process_p99_ms", limit=10, aim=8),
    _at_most("loop blocked by a commit, ms", "ticker", "lmdb_blocked_max_ms", limit=1),
    _at_most("the same with a writer process", "ticker", "process_blocked_max_ms", limit=1),
    _at_most("the same without a disk", "ticker", "memory_blocked_max_ms"),
    _turns("flushes 1 ms slower, 100 writers", "slow", "openai", limit=50, aim=100),
)


def judged(measured: Measured, backends: Sequence[str]) -> Iterator[Verdict]:
    """Each target for each backend of ours; what was not measured is left out."""
    for target in TARGETS:
        for backend in backends:
            ours = measured.get((f"ours on {backend}", target.row, target.figure), ())
            system = f"ours on {backend}" if target.beside == "ours" else target.beside
            figure = target.beside_figure or target.figure
            theirs = measured.get((system, target.row, figure), ()) if system else ()
            if not ours or (system and not theirs):
                continue
            ratios = [_ratio(target, a, b) for a, b in zip(ours, theirs, strict=False)] if system else list(ours)
            this = _ratio(target, _best(target, ours), _best(target, theirs)) if system else min(ours)
            beside = f"{target.beside}: {figure}" if system else ""
            yield Verdict(target, backend, beside, this, min(ratios), max(ratios))


def _best(target: Target, rounds: Sequence[float]) -> float:
    return max(rounds) if target.figure.endswith("_per_s") else min(rounds)


def _ratio(target: Target, ours: float, theirs: float) -> float:
    return ours / theirs if target.figure.endswith("_per_s") or not target.faster else theirs / ours

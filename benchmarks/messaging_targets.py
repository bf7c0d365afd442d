"""The figures to reach in bench_messaging.py, as ratios within one run, and what came of them."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

__all__ = ["TARGETS", "Measured", "Target", "Verdict", "judged"]

Measured = Mapping[tuple[str, str, str], Sequence[float]]
"""The figures of each round by system ("ours on trio"), row and figure."""


class Target(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        work: what is done.
        row, figure: ours.
        beside: the system, "" for an absolute figure; {backend} in it stands for the one of ours.
        beside_figure: what is set against ours, of the same row.
        limit, aim: what must and what should be reached; None where the line is for information.
        faster: True for how many times slower the other is (at least `limit`); False for how many times ours takes,
            or for an absolute figure (at most `limit`).
        backends: of ours.
    """

    work: str
    row: str
    figure: str
    beside: str = ""
    beside_figure: str = ""
    limit: float | None = None
    aim: float | None = None
    faster: bool = True
    backends: tuple[str, ...] = ("trio", "asyncio")


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


def _bare(work: str, row: str, figure: str, *, limit: float, aim: float | None = None) -> list[Target]:
    """Beside a channel on bare trio, which is what is to be beaten; for information beside the same on asyncio."""
    against = f"channel_{figure}"
    judged = Target(work, row, figure, "bare on trio", against, limit, aim)
    return [judged, Target(work, row, figure, "bare on asyncio", against, backends=("asyncio",))]


TARGETS: Sequence[Target] = (
    Target("ask", "ask", "ask_us", "pykka pinned", "ask_us", 8, 15),
    Target("ask", "ask", "ask_us", "pykka", "ask_us", 50),
    Target("ask", "ask", "ask_us", "xoscar", "ask_us", 1.4, 3),
    Target("ask", "ask", "ask_us", "autogen-core", "ask_us", 40),
    Target("ask", "ray", "ask_us", "ray", "ask_us", 300),
    Target("ask", "ask", "ask_us", "bare on trio", "ping_pong_us", 3, backends=("trio",)),
    Target("ask", "ask", "ask_us", "bare on asyncio", "ping_pong_us", backends=("asyncio",)),
    Target("ask with a deadline over without", "ask", "ask_us", "ours", "ask_no_deadline_us", 1.15, 1.05, faster=False),
    *_bare("ask, async handler", "async", "async_us", limit=1.2, aim=7),
    *_bare("ask, handler waits once", "waits", "waits_us", limit=1.2),
    Target("ask, handler waits once", "waits", "waits_us", "bare on {backend}", "parked_waits_us"),
    *_bare("the same, 50 callers", "waits", "waits_50_callers_us", limit=1.2),
    Target(
        "the same, 50 callers", "waits", "waits_50_callers_us", "bare on {backend}", "parked_waits_50_callers_us", 1
    ),
    *_bare("1 000 callers x 1 000 actors", "many", "many_us", limit=8, aim=13),
    Target("1 000 callers x 1 000 actors", "many", "many_us", "xoscar", "many_us", 1.6, 2.8),
    *_bare("tells, 100 senders to one", "tells", "tell_us", limit=5),
    Target("tells, 100 senders to one", "tells", "tell_us", "pykka pinned", "tell_us", 2),
    Target("tells, pykka from one thread", "tells", "tell_us", "pykka pinned", "tell_1_sender_us"),
    Target("bytes of an idle actor", "memory", "idle_bytes", limit=1024, aim=200, faster=False),
    Target("tasks of an idle actor", "memory", "idle_tasks", limit=0, faster=False),
    Target("bytes of a passivated actor", "memory", "passivated_bytes", limit=0.5, faster=False),
    *_bare("create 10 000 by first message", "create", "create_us", limit=12, aim=30),
    Target("create 10 000 by first message", "create", "create_us", "xoscar", "create_us", 25, 50),
    Target("seconds to stop 100 000 idle", "live", "stop_s", limit=1, faster=False),
    *_bare("one hot actor, 50 agents", "hot", "hot_us", limit=5, aim=8),
    Target("one hot actor, 50 agents", "hot", "hot_us", "xoscar", "hot_us", 2, 2.7),
    Target("ask at 100 000 live over at 100", "live", "live_all_same_100_us", "ours", "live_100_us", 1.3, faster=False),
    Target("the same, all 100 000 in turn", "live", "live_all_in_turn_us", "ours", "live_100_us", faster=False),
    Target(
        "activate from LMDB over memory", "activate", "activate_lmdb_us", "ours", "activate_memory_us", faster=False
    ),
)


def judged(measured: Measured, backends: Sequence[str]) -> Iterator[Verdict]:
    """Each target for each backend of ours; what was not measured is left out."""
    for target in TARGETS:
        for backend in (one for one in backends if one in target.backends):
            ours = measured.get((f"ours on {backend}", target.row, target.figure), ())
            beside = target.beside.format(backend=backend)
            system = f"ours on {backend}" if beside == "ours" else beside
            theirs = measured.get((system, target.row, target.beside_figure), ())
            ratios = (
                list(ours)
                if not beside
                else [_ratio(a, b, faster=target.faster) for a, b in zip(ours, theirs, strict=False)]
            )
            if ratios:
                shown = f"{beside}: {target.beside_figure}" if beside else ""
                this = _ratio(min(ours), min(theirs), faster=target.faster) if beside else min(ours)
                yield Verdict(target, backend, shown, this, min(ratios), max(ratios))


def _ratio(ours: float, theirs: float, *, faster: bool) -> float:
    return theirs / ours if faster else ours / theirs

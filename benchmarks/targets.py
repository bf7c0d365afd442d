"""Figures to reach, as ratios within one run, and what came of them: the table at the end of a benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import msgspec

__all__ = ["Measured", "Target", "Verdict", "judged", "print_table"]

Measured = Mapping[tuple[str, str, str], Sequence[float]]
"""The figures of each round by system ("ours on trio"), row and figure; more is better in "_per_..."."""


class Target(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        work: what is done.
        row, figure: ours.
        beside: the system, {backend} in it stands for the one of ours; "ours" for another figure of ours; "" for an
            absolute figure.
        beside_figure: what is set against ours, of the same row; "" for the figure of the same name.
        limit, aim: what must and what should be reached; None where the line is for information.
        faster: True for how many times as fast as the other we are (at least `limit`); False for how many times the
            other's cost ours is, or for an absolute figure (at most `limit`).
        backends: of ours.
        ours: which of ours it is, where a benchmark has several.
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
    ours: str = "ours"


class Verdict(msgspec.Struct, frozen=True):
    """A line with its result: the ratio of each one's least disturbed round, and those of each two of a same round."""

    target: Target
    backend: str
    beside: str
    this: float
    ratios: Sequence[float]

    @property
    def verdict(self) -> str:
        if self.target.limit is None:
            return "-"
        if not self._reaches(self.target.limit):
            return "NO"
        return "aim" if self.target.aim is not None and self._reaches(self.target.aim) else "yes"

    def _reaches(self, wanted: float) -> bool:
        return self.this >= wanted if self.target.faster else self.this <= wanted


def judged(targets: Sequence[Target], measured: Measured, backends: Sequence[str]) -> Iterator[Verdict]:
    """Each target for each backend of ours; what was not measured is left out."""
    for target in targets:
        for backend in (one for one in backends if one in target.backends):
            verdict = _judged(target, measured, backend)
            if verdict is not None:
                yield verdict


def _judged(target: Target, measured: Measured, backend: str) -> Verdict | None:
    mine = f"{target.ours} on {backend}"
    ours = measured.get((mine, target.row, target.figure), ())
    if not target.beside:
        return Verdict(target, backend, "", min(ours), ours) if ours else None
    name = target.beside.format(backend=backend)
    figure = target.beside_figure or target.figure
    theirs = measured.get((mine if name == "ours" else name, target.row, figure), ())
    ratios = [_ratio(target, a, b) for a, b in zip(ours, theirs, strict=False)]
    if not ratios:
        return None
    this = _ratio(target, _best(target, ours), _best(target, theirs))
    return Verdict(target, backend, f"{name}: {figure}", this, ratios)


def _best(target: Target, rounds: Sequence[float]) -> float:
    return max(rounds) if "_per_" in target.figure else min(rounds)


def _ratio(target: Target, ours: float, theirs: float) -> float:
    return ours / theirs if "_per_" in target.figure or not target.faster else theirs / ours


def print_table(targets: Sequence[Target], measured: Measured, backends: Sequence[str]) -> None:
    """What the issue asks for, and what this run says to it."""
    heads = ("work", "ours on", "beside", "this", "of", "median", "to reach", "aim", "reached")
    table: list[tuple[str, ...]] = [heads, *(_cells(verdict) for verdict in judged(targets, measured, backends))]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    for line in table:
        print("# " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cells(verdict: Verdict) -> tuple[str, ...]:
    target = verdict.target
    bound = "at least" if target.faster else "at most"
    return (
        target.work,
        verdict.backend,
        verdict.beside,
        f"{verdict.this:.3g}",
        f"{min(verdict.ratios):.3g} to {max(verdict.ratios):.3g}",
        f"{median(verdict.ratios):.3g}",
        "" if target.limit is None else f"{bound} {target.limit:g}",
        "" if target.aim is None else f"{target.aim:g}",
        verdict.verdict,
    )

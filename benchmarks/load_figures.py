"""How long turns took and how memory went, counted in bounded memory. Pure: time is passed in."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

__all__ = ["PERCENTILES", "Latencies", "Memory", "Moment", "Sample", "Series", "judge_memory"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

_STEPS_PER_E = 100
"""Of the logarithmic scale: a figure is right within 1 %."""
_MOMENTS_MAX = 1_200


class Latencies:
    """A histogram of times in milliseconds on a logarithmic scale, after HdrHistogram; `max_ms` is exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.max_ms = 0.0

    def add(self, took_ms: float) -> None:
        self._counts[math.floor(math.log(max(took_ms, 0.001)) * _STEPS_PER_E)] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, took_ms)

    def merge(self, other: "Latencies") -> None:
        self._counts += other._counts
        self.count += other.count
        self.max_ms = max(self.max_ms, other.max_ms)

    def percentile_ms(self, percent: float) -> float:
        """So many of a hundred took no longer; 0 where nothing was added."""
        wanted = math.ceil(self.count * percent / 100)
        for step in sorted(self._counts):
            wanted -= self._counts[step]
            if wanted <= 0:
                return min(self.max_ms, math.exp((step + 1) / _STEPS_PER_E))
        return self.max_ms

    def as_record(self) -> dict[str, float]:
        found = {f"p{percent:g}": round(self.percentile_ms(percent), 2) for percent in PERCENTILES}
        return {**found, "max": round(self.max_ms, 2)}


# Over time ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Moment:
    """What came in one stretch of time; `anonymous_bytes` is the last that was seen of the worker's memory."""

    latencies: Latencies = field(default_factory=Latencies)
    anonymous_bytes: int = 0
    kills: int = 0
    errors: int = 0


class Series:
    """All moments of a run, of equal length. There are at most 1 200: where more would be, they grow twice as long."""

    def __init__(self) -> None:
        self.step_s = 1.0
        self._moments: defaultdict[int, Moment] = defaultdict(Moment)

    def at(self, now_s: float) -> Moment:
        """The moment of this time, in seconds since the beginning."""
        while now_s / self.step_s >= _MOMENTS_MAX:
            self._halve()
        return self._moments[int(now_s / self.step_s)]

    def __iter__(self) -> Iterator[tuple[float, Moment]]:
        """When it began, and the moment; also those in which nothing came."""
        for place in range(max(self._moments, default=-1) + 1):
            yield place * self.step_s, self._moments.get(place, Moment())

    def _halve(self) -> None:
        finer, self._moments = self._moments, defaultdict(Moment)
        self.step_s *= 2
        for place in sorted(finer):
            into, each = self._moments[place // 2], finer[place]
            into.latencies.merge(each.latencies)
            into.anonymous_bytes = each.anonymous_bytes or into.anonymous_bytes
            into.kills += each.kills
            into.errors += each.errors


# Memory ---------------------------------------------------------------------------------------------------------------

JUDGED_S_MIN = 60.0
"""What is seen for a shorter time says nothing of a leak."""
GROWTH_BYTES_MAX = 8 << 20
REMEMBERED_BYTES = 300
"""Where the last 100 000 sessions lie the store keeps in memory (KNOWN_MAX in store/lmdb_store.py): 270 bytes each."""
REMEMBERED_MAX = 100_000
GROWTH_SHARE_MAX = 0.03
"""Noise: allocators give pages back late, and the load is random."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The worker's memory at an age of its own: what it allocated (VmRSS without files), and what it sees of files.

    `sessions`: how many users had begun to talk in, up to then.
    """

    age_s: float
    anonymous_bytes: int
    file_bytes: int
    sessions: int = 0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What became of memory in one life of the worker.

    Attributes:
        judged_s: how long it was watched once it was warm; 0: too short to say anything.
        remembered_mb: as much may have come for the names of sessions that were begun meanwhile.
        growth_mb: how much more it had at the end of that time than at its beginning, by the straight line through all.
        slope_mb_per_h: the same per hour.
        grows: more than noise and those names.
    """

    max_mb: float
    median_mb: float = 0.0
    file_max_mb: float = 0.0
    judged_s: float = 0.0
    growth_mb: float = 0.0
    remembered_mb: float = 0.0
    slope_mb_per_h: float = 0.0
    grows: bool = False


def judge_memory(samples: Sequence[Sample], *, warm_s: float) -> Memory:
    """Whether memory grew in one life.

    Args:
        samples: in the order of time.
        warm_s: how long a worker takes until it has all that the load needs: before that it must grow.
    """
    top_mb = max((sample.anonymous_bytes for sample in samples), default=0) / 2**20
    file_mb = max((sample.file_bytes for sample in samples), default=0) / 2**20
    known = Memory(max_mb=round(top_mb, 1), file_max_mb=round(file_mb, 1))
    warm = [sample for sample in samples if sample.age_s >= warm_s]
    if len(warm) < 10 or warm[-1].age_s - warm[0].age_s < JUDGED_S_MIN:
        return known
    span_s = warm[-1].age_s - warm[0].age_s
    growth_bytes = _slope([(sample.age_s, sample.anonymous_bytes) for sample in warm]) * span_s
    remembered_bytes = min(warm[-1].sessions - warm[0].sessions, REMEMBERED_MAX) * REMEMBERED_BYTES
    median_bytes = sorted(sample.anonymous_bytes for sample in warm)[len(warm) // 2]
    return msgspec.structs.replace(
        known,
        median_mb=round(median_bytes / 2**20, 1),
        judged_s=round(span_s, 1),
        remembered_mb=round(remembered_bytes / 2**20, 2),
        growth_mb=round(growth_bytes / 2**20, 2),
        slope_mb_per_h=round(growth_bytes / 2**20 / span_s * 3_600, 2),
        grows=growth_bytes - remembered_bytes > max(GROWTH_BYTES_MAX, GROWTH_SHARE_MAX * median_bytes),
    )


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points, by least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / below if below else 0.0

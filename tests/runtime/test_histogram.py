import math

import pytest
from hypothesis import given, strategies as st

from callboard.runtime.histogram import Histogram

WEEK_S = 7 * 86400.0

durations = st.lists(st.floats(0.0, 5 * 86400.0), min_size=1)
fractions = st.floats(0.0, 1.0)


def filled(seconds: list[float]) -> Histogram:
    histogram = Histogram()
    for duration_s in seconds:
        histogram.add(duration_s)
    return histogram


@given(seconds=durations, fraction=fractions)
def test_a_percentile_is_never_too_small_and_at_most_twice_too_large(seconds: list[float], fraction: float) -> None:
    exact_s = sorted(seconds)[max(1, math.ceil(fraction * len(seconds))) - 1]

    bound_s = filled(seconds).percentile_s(fraction)

    assert exact_s < bound_s
    assert bound_s <= max(1e-6, 2 * exact_s * (1 + 1e-12))  # 64 us are 63.99999999999999 us to a float


@given(seconds=durations, lower=fractions, higher=fractions)
def test_a_larger_share_never_has_a_smaller_bound(seconds: list[float], lower: float, higher: float) -> None:
    histogram = filled(seconds)
    lower, higher = sorted((lower, higher))

    assert histogram.percentile_s(lower) <= histogram.percentile_s(higher)


@given(seconds=durations, fraction=fractions)
def test_a_snapshot_says_what_the_histogram_says(seconds: list[float], fraction: float) -> None:
    histogram = filled(seconds)

    snapshot = histogram.snapshot()

    assert snapshot.count == histogram.count == len(seconds)
    assert snapshot.total_s == histogram.total_s == pytest.approx(sum(seconds))
    assert snapshot.percentile_s(fraction) == histogram.percentile_s(fraction)
    assert snapshot.buckets[-1] > 0


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.9e-6, 0), (1e-6, 1), (1.9e-6, 1), (2e-6, 2), (1e-3, 10), (1.0, 20), (WEEK_S, 40), (1e300, 40)],
)
def test_each_duration_lands_in_the_bucket_of_its_power_of_two(seconds: float, bucket: int) -> None:
    snapshot = filled([seconds]).snapshot()

    assert snapshot.buckets == (*[0] * bucket, 1)


def test_what_takes_longer_than_every_bound_is_counted_and_has_none() -> None:
    histogram = filled([1e-6, WEEK_S, 1e300])

    assert histogram.count == 3
    assert histogram.percentile_s(0.3) == 2e-6
    assert histogram.percentile_s(1.0) == histogram.snapshot().percentile_s(0.5) == math.inf


def test_an_empty_histogram_has_no_durations_and_0_for_every_percentile() -> None:
    histogram = Histogram()

    snapshot = histogram.snapshot()

    assert (snapshot.count, snapshot.total_s, snapshot.buckets) == (0, 0.0, ())
    assert histogram.percentile_s(0.99) == snapshot.percentile_s(0.0) == 0.0


def test_a_snapshot_stays_as_it_was_when_more_is_added() -> None:
    histogram = filled([1e-3])
    snapshot = histogram.snapshot()

    histogram.add(1e-3)

    assert (snapshot.count, histogram.count) == (1, 2)
    assert snapshot.total_s == 1e-3


@pytest.mark.parametrize("seconds", [-1e-9, math.nan])
def test_a_duration_below_0_is_a_broken_invariant_and_is_not_counted(seconds: float) -> None:
    histogram = Histogram()

    with pytest.raises(AssertionError):
        histogram.add(seconds)
    assert (histogram.count, histogram.total_s) == (0, 0.0)


@pytest.mark.parametrize("fraction", [-0.01, 1.01, 99.0])
def test_a_percentile_is_asked_for_as_a_share_not_as_a_hundredth(fraction: float) -> None:
    with pytest.raises(AssertionError):
        filled([1.0]).percentile_s(fraction)

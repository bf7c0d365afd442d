"""What a store left out is noted once a place, logged, counted, and kept up to a bound."""

import logging
import threading

import pytest

from callboard.store.damage import DAMAGES_MAX, Damage, DamageLog


def test_a_place_is_noted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    damage = DamageLog()

    with caplog.at_level(logging.ERROR, logger="callboard.store"):
        for reason in ("first", "second"):
            damage.report("here", reason)
        damage.report("there", "third")

    assert damage.list() == [Damage("here", "first"), Damage("there", "third")]
    assert damage.count == 2
    assert [record.args for record in caplog.records] == [("here", "first"), ("there", "third")]


def test_of_very_many_all_are_counted_and_the_first_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="callboard.store")
    damage = DamageLog()

    for place in range(DAMAGES_MAX + 5):
        damage.report(str(place), "rotten")

    assert damage.count == DAMAGES_MAX + 5
    assert [seen.where for seen in damage.list()] == [str(place) for place in range(DAMAGES_MAX)]


def test_what_is_listed_is_the_callers_own() -> None:
    damage = DamageLog()
    damage.report("here", "rotten")

    damage.list().clear()

    assert len(damage.list()) == 1


def test_threads_that_report_the_same_places_count_each_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="callboard.store")
    damage = DamageLog()
    start = threading.Barrier(4)

    def report() -> None:
        start.wait()
        for place in range(300):
            damage.report(str(place), "rotten")

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert damage.count == len(damage.list()) == 300

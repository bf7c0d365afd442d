from itertools import product

import msgspec
import pytest
from msgspec.structs import replace

from callboard.actors.errors import InvalidTransition
from callboard.actors.message import Message, Usage
from callboard.actors.run_record import (
    OPEN,
    RUN_STATUSES,
    TRANSITIONS,
    RunRecord,
    RunStatus,
    SpanRecord,
    advance,
)

# Written out here once more, from DESIGN.md, so that a slip in the table shows.
ALLOWED: set[tuple[str, str]] = {
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("queued", "interrupted"),
    ("running", "waiting"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "interrupted"),
    ("waiting", "running"),
    ("waiting", "completed"),
    ("waiting", "failed"),
    ("waiting", "cancelled"),
    ("waiting", "interrupted"),
    ("interrupted", "running"),  # when it is resumed
}
PAIRS = list(product(RUN_STATUSES, RUN_STATUSES))


def record(status: RunStatus = "queued") -> RunRecord:
    return RunRecord(id="r1", session_id="s1", created_at_ms=1_000, status=status)


def step(before: RunRecord, status: RunStatus, *, at_ms: int = 2_000) -> RunRecord:
    return advance(before, status, at_ms=at_ms, error="why" if status == "failed" else None)


@pytest.mark.parametrize(("status", "wanted"), PAIRS)
def test_every_pair_of_statuses_is_allowed_or_refused_as_the_design_says(status: RunStatus, wanted: RunStatus) -> None:
    before = record(status)

    if (status, wanted) in ALLOWED:
        assert step(before, wanted).status == wanted
    else:
        with pytest.raises(InvalidTransition) as caught:
            step(before, wanted)
        assert (caught.value.run_id, caught.value.status, caught.value.wanted) == ("r1", status, wanted)
    assert before == record(status)


def test_table_names_every_status() -> None:
    assert set(TRANSITIONS) == set(RUN_STATUSES)
    assert {"queued", "running", "waiting"} == OPEN


@pytest.mark.parametrize("status", RUN_STATUSES)
def test_run_is_open_until_it_ended(status: RunStatus) -> None:
    assert record(status).is_open == (status in ("queued", "running", "waiting"))


def test_complete_after_fail_is_refused() -> None:
    failed = step(step(record(), "running"), "failed")

    with pytest.raises(InvalidTransition, match="run 'r1' is 'failed' and cannot become 'completed'"):
        step(failed, "completed")


def test_duration_is_from_start_to_end_without_the_queue() -> None:
    running = advance(record(), "running", at_ms=5_000)
    completed = advance(running, "completed", at_ms=5_250)

    assert record().duration_ms is None
    assert running.duration_ms is None
    assert completed.duration_ms == 250
    assert (completed.created_at_ms, completed.started_at_ms, completed.ended_at_ms) == (1_000, 5_000, 5_250)


def test_run_that_never_started_has_ended_without_a_duration() -> None:
    cancelled = advance(record(), "cancelled", at_ms=3_000)

    assert cancelled.duration_ms is None
    assert cancelled.ended_at_ms == 3_000
    assert cancelled.started_at_ms is None
    assert cancelled.attempts == 0


def test_duration_counts_from_the_first_start_also_after_waiting() -> None:
    running = advance(record(), "running", at_ms=2_000)
    waiting = advance(running, "waiting", at_ms=3_000)
    again = advance(waiting, "running", at_ms=4_000)

    assert (waiting.started_at_ms, waiting.ended_at_ms) == (2_000, None)
    assert advance(again, "completed", at_ms=4_500).duration_ms == 2_500


def test_clock_that_was_set_back_gives_no_negative_duration() -> None:
    running = advance(record(), "running", at_ms=500)
    completed = advance(running, "completed", at_ms=100)

    assert running.started_at_ms == 1_000
    assert completed.duration_ms == 0
    assert advance(record(), "cancelled", at_ms=1).ended_at_ms == 1_000


def test_usage_of_every_step_is_added() -> None:
    one = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, cached_tokens=4, reasoning_tokens=5, requests=1)
    running = advance(record(), "running", at_ms=2_000)
    waiting = advance(running, "waiting", at_ms=3_000, usage=one)
    completed = advance(advance(waiting, "running", at_ms=4_000), "completed", at_ms=5_000, usage=one)

    assert waiting.usage == one
    assert completed.usage == one + one
    assert completed.usage.requests == 2


def test_first_start_is_attempt_1_and_later_ones_are_counted_by_the_supervisor() -> None:
    running = advance(record(), "running", at_ms=2_000)
    waiting = advance(running, "waiting", at_ms=3_000)

    assert record().attempts == 0
    assert running.attempts == 1
    assert advance(waiting, "running", at_ms=4_000).attempts == 1
    assert advance(waiting, "running", at_ms=4_000, attempts=2).attempts == 2


def test_failing_needs_a_reason_and_completing_takes_none() -> None:
    running = advance(record(), "running", at_ms=2_000)

    for nothing in (None, ""):
        with pytest.raises(ValueError, match="cannot fail without a reason"):
            advance(running, "failed", at_ms=3_000, error=nothing)
    with pytest.raises(ValueError, match="cannot complete with the error 'x'"):
        advance(running, "completed", at_ms=3_000, error="x")
    assert advance(running, "failed", at_ms=3_000, error="quota").error == "quota"
    assert advance(running, "interrupted", at_ms=3_000, error="process ended").error == "process ended"


def test_reason_for_waiting_is_gone_when_the_run_goes_on() -> None:
    waiting = advance(advance(record(), "running", at_ms=2_000), "waiting", at_ms=2_500, error="429")

    assert waiting.error == "429"
    assert advance(waiting, "running", at_ms=3_000).error is None


def test_advance_keeps_what_it_does_not_change() -> None:
    before = RunRecord(
        id="r1",
        session_id="s1",
        created_at_ms=1,
        agent="Support",
        turn=4,
        input=(Message(role="user", content="hello"),),
        model="m",
        first_seq=3,
        last_seq=5,
        manual=True,
    )
    after = advance(before, "running", at_ms=7)

    assert after == replace(before, status="running", started_at_ms=7, attempts=1)


def test_records_survive_encoding_and_name_their_kind() -> None:
    run = step(step(replace(record(), input=(Message(role="user", content="hi"),)), "running"), "failed")
    span = SpanRecord(
        run_id="r1", number=2, parent=1, name="m", kind="model", started_at_ms=5, ended_at_ms=9, attributes={"a": [1]}
    )

    for each in (run, span):
        data = msgspec.msgpack.encode(each)
        assert msgspec.msgpack.decode(data, type=RunRecord | SpanRecord) == each
        assert msgspec.msgpack.decode(data)["type"] == ("run" if each is run else "span")


def test_span_that_was_cut_off_has_no_duration() -> None:
    span = SpanRecord(run_id="r1", number=1, name="m", kind="model", started_at_ms=5)

    assert span.duration_ms is None
    assert replace(span, ended_at_ms=9).duration_ms == 4

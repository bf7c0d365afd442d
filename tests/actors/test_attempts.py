"""What spends a run's budget of attempts, and how long it waits for the next one."""

import pytest

from callboard.actors.agent_spec import RunPolicy
from callboard.actors.attempts import Attempts
from callboard.actors.errors import BadOutput, BadRequest, ModelError, ModelUnavailable, RateLimited
from callboard.runtime.budget import Backoff
from callboard.runtime.errors import Failed
from callboard.store.errors import StoreUnavailable

POLICY = RunPolicy(backoff=Backoff(first_s=1.0, max_s=1.0))


def waits_after(*errors: Exception) -> list[float | None]:
    attempts, waits = Attempts(POLICY), list[float | None]()
    for error in errors:
        attempts.begin()
        waits.append(attempts.failed(error))
    return waits


def is_backoff(wait_s: float | None) -> bool:
    return wait_s is not None and 0.0 <= wait_s <= 1.0


@pytest.mark.parametrize("error", [ModelUnavailable("down"), RuntimeError("a tool's bug")])
def test_a_passing_failure_is_tried_again_until_the_attempts_are_spent(error: Exception) -> None:
    *before, last = waits_after(error, error, error, error)

    assert all(map(is_backoff, before))
    assert last is None


def test_each_request_that_the_client_made_spends_an_attempt() -> None:
    first, second = waits_after(ModelUnavailable("down", tries=3), ModelUnavailable("down"))

    assert is_backoff(first)
    assert second is None
    assert waits_after(ModelUnavailable("down", tries=4)) == [None]


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("no"),
        BadOutput("text", "no number"),
        Failed("the session refuses"),
        StoreUnavailable("the disk is gone"),
        ModelUnavailable("said so itself", should_retry=False),
    ],
)
def test_what_another_attempt_would_meet_again_is_not_tried_again(error: Exception) -> None:
    assert waits_after(error) == [None]


@pytest.mark.parametrize("kind", [RateLimited, ModelUnavailable])
@pytest.mark.parametrize(("wish_s", "wait_s"), [(120.0, 120.0), (0.25, 0.25), (121.0, None)])
def test_a_servers_wish_goes_before_the_backoff_whatever_the_error(
    kind: type[ModelError], wish_s: float, wait_s: float | None
) -> None:
    assert waits_after(kind("later", retry_after_s=wish_s)) == [wait_s]


def test_a_wish_of_no_time_is_none() -> None:
    waits = [waits_after(RateLimited("now", retry_after_s=0.0))[0] for _ in range(3)]

    assert all(map(is_backoff, waits))
    assert any(waits)


def test_a_crash_between_failures_of_the_model_spends_one() -> None:
    waits = waits_after(ModelUnavailable("down", tries=2), RuntimeError("a bug"), RuntimeError("a bug"))

    assert [is_backoff(wait_s) for wait_s in waits] == [True, True, False]

"""Fewer at once after a 429, more after successes, and the gate closed meanwhile: all without a clock of its own."""

from hypothesis import given, strategies as st

from callboard.actors.throttle import SUCCESSES_PER_STEP, Throttle


def test_a_round_that_meets_429s_halves_what_was_in_use_once() -> None:
    throttle = Throttle(1_000)
    numbers = [throttle.let_in() for _ in range(100)]

    for left, number in enumerate(numbers):
        throttle.struck(number, in_use=100 - left)

    assert (throttle.limit, throttle.strikes) == (50, 1)


def test_the_next_round_halves_again_down_to_one() -> None:
    throttle = Throttle(8)

    limits: list[int] = []
    for _ in range(5):
        throttle.struck(throttle.let_in(), in_use=throttle.limit)
        limits.append(throttle.limit)

    assert limits == [4, 2, 1, 1, 1]
    assert throttle.strikes == 5


def test_so_many_successes_give_one_more_up_to_what_was_allowed() -> None:
    throttle = Throttle(4)
    throttle.struck(throttle.let_in(), in_use=4)

    limits: list[int] = []
    for _ in range(3 * SUCCESSES_PER_STEP):
        throttle.succeeded()
        limits.append(throttle.limit)

    assert limits == [2] * 3 + [3] * 4 + [4] * 5
    assert throttle.strikes == 0


def test_a_429_between_successes_begins_their_count_anew() -> None:
    throttle = Throttle(100)
    throttle.struck(throttle.let_in(), in_use=100)
    for _ in range(SUCCESSES_PER_STEP - 1):
        throttle.succeeded()

    throttle.struck(throttle.let_in(), in_use=50)
    throttle.succeeded()

    assert throttle.limit == 25


def test_it_is_closed_until_the_latest_time_that_was_told() -> None:
    throttle = Throttle(10)

    for until in (4.0, 5.0, 3.0):
        throttle.close(until)

    assert [throttle.is_closed(now) for now in (0.0, 3.0, 4.9, 5.0)] == [True, True, True, False]
    assert throttle.opens_at is None


@given(
    st.integers(1, 50),
    st.lists(st.sampled_from(["let_in", "succeed", "strike", "strike_old"]), max_size=200),
)
def test_the_limit_is_always_within_its_bounds_and_one_success_gives_one_more_at_most(
    limit_max: int, steps: list[str]
) -> None:
    throttle, numbers = Throttle(limit_max), [0]

    for step in steps:
        before = throttle.limit
        if step == "let_in":
            numbers.append(throttle.let_in())
        elif step == "succeed":
            throttle.succeeded()
        else:
            throttle.struck(numbers[-1 if step == "strike" else 0], in_use=len(numbers))

        assert 1 <= throttle.limit <= limit_max
        assert throttle.limit <= before + (step == "succeed")
        assert throttle.limit == before or step != "strike_old"

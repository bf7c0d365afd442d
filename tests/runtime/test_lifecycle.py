from itertools import product

import pytest

from callboard.runtime.lifecycle import Event, State, next_state

LEGAL = {
    (State.ABSENT, Event.ACTIVATE): State.LOADING,
    (State.ABSENT, Event.FORGET): State.GONE,
    (State.LOADING, Event.LOADED): State.READY,
    (State.LOADING, Event.CRASHED): State.BACKING_OFF,
    (State.LOADING, Event.GAVE_UP): State.FAILED,
    (State.READY, Event.CRASHED): State.BACKING_OFF,
    (State.READY, Event.GAVE_UP): State.FAILED,
    (State.READY, Event.RETIRE): State.ABSENT,
    (State.READY, Event.HALT): State.STOPPING,
    (State.BACKING_OFF, Event.RETRY): State.LOADING,
    (State.BACKING_OFF, Event.GAVE_UP): State.FAILED,
    (State.FAILED, Event.RESUME): State.ABSENT,
    (State.STOPPED, Event.RESUME): State.ABSENT,
    **{(state, Event.STOP): State.STOPPED for state in State if state is not State.GONE},
}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=lambda value: value.name)
def test_every_pair_of_state_and_event_is_in_the_drawing_or_refused(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert next_state(state, event) is LEGAL[state, event]
    else:
        with pytest.raises(AssertionError, match=f"{state.name} cannot take {event.name}"):
            next_state(state, event)


def test_every_state_can_be_reached_and_only_gone_is_final() -> None:
    reached = {State.ABSENT}
    while more := {after for (state, _), after in LEGAL.items() if state in reached} - reached:
        reached |= more

    assert reached == set(State)
    assert {state for state, _ in LEGAL} == set(State) - {State.GONE}

"""The life of one actor's activation, as a table. Pure: no clock, no I/O.

    ABSENT ──activate──> LOADING ──loaded──> READY
       ^                    │                  │ crashed
       │                    ├──crashed─────────┤
       │                    │                  v
       └──retire── READY    │             BACKING_OFF ──retry──> LOADING
                            │                  │
                            └──gave_up──> FAILED <──gave_up
                                             │
                                             └──resume──> ABSENT
    every state ──stop──> STOPPED

An actor's id and its mailbox outlive all of this; the state says only whether somebody is there to handle a message.
"""

from enum import Enum, auto

__all__ = ["Event", "State", "next_state"]


class State(Enum):
    """Where an activation stands."""

    ABSENT = auto()
    LOADING = auto()
    READY = auto()
    BACKING_OFF = auto()
    FAILED = auto()
    STOPPED = auto()


class Event(Enum):
    """What can happen to it."""

    ACTIVATE = auto()
    LOADED = auto()
    CRASHED = auto()
    RETRY = auto()
    GAVE_UP = auto()
    RESUME = auto()
    RETIRE = auto()
    STOP = auto()


_TABLE: dict[tuple[State, Event], State] = {
    (State.ABSENT, Event.ACTIVATE): State.LOADING,
    (State.LOADING, Event.LOADED): State.READY,
    (State.LOADING, Event.CRASHED): State.BACKING_OFF,
    (State.LOADING, Event.GAVE_UP): State.FAILED,
    (State.READY, Event.CRASHED): State.BACKING_OFF,
    (State.READY, Event.GAVE_UP): State.FAILED,
    (State.READY, Event.RETIRE): State.ABSENT,
    (State.BACKING_OFF, Event.RETRY): State.LOADING,
    (State.BACKING_OFF, Event.GAVE_UP): State.FAILED,
    (State.FAILED, Event.RESUME): State.ABSENT,
    **{(state, Event.STOP): State.STOPPED for state in State},
}


def next_state(state: State, event: Event) -> State:
    """The state after `event`. An event that the table does not know in this state is a broken invariant."""
    after = _TABLE.get((state, event))
    assert after is not None, f"an actor that is {state.name} cannot take {event.name}"
    return after

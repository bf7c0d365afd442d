"""The life of one actor's activation, as a table. Pure: no clock, no I/O.

    GONE <──forget── ABSENT ──activate──> LOADING ──loaded──> READY ──halt──> STOPPING
                       ^ ^                   │                  │ crashed
                       │ │                   ├──crashed─────────┤
                       │ └──retire── READY   │                  v
                       │                     │             BACKING_OFF ──retry──> LOADING
                       │                     │                  │
                       │                     └──gave_up──> FAILED <──gave_up
                       └──resume──── FAILED, STOPPED
    every state but GONE ──stop──> STOPPED

An actor's id and its mailbox outlive all of this; the state says only whether somebody is there to handle a message.
GONE is the end of a cell, not of an actor: whoever still holds the cell asks the registry for the one of now.
"""

from enum import IntEnum, auto

__all__ = [
    "ABSENT",
    "ACTIVATE",
    "BACKING_OFF",
    "FAILED",
    "GONE",
    "LOADED",
    "LOADING",
    "READY",
    "STOPPED",
    "STOPPING",
    "Event",
    "State",
    "next_state",
]


class State(IntEnum):
    """Where an activation stands."""

    ABSENT = auto()
    LOADING = auto()
    READY = auto()
    BACKING_OFF = auto()
    FAILED = auto()
    STOPPING = auto()
    STOPPED = auto()
    GONE = auto()


# For the hot path, see Phase. IntEnum, because the hash of a plain Enum's member is computed in Python.
ABSENT, LOADING, READY, BACKING_OFF, FAILED, STOPPING, STOPPED, GONE = State


class Event(IntEnum):
    """What can happen to it."""

    ACTIVATE = auto()
    LOADED = auto()
    CRASHED = auto()
    RETRY = auto()
    GAVE_UP = auto()
    RESUME = auto()
    RETIRE = auto()
    FORGET = auto()
    HALT = auto()
    STOP = auto()


ACTIVATE, LOADED = Event.ACTIVATE, Event.LOADED

_TABLE: dict[tuple[State, Event], State] = {
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


def next_state(state: State, event: Event) -> State:
    """The state after `event`. An event that the table does not know in this state is a broken invariant."""
    after = _TABLE.get((state, event))
    assert after is not None, f"an actor that is {state.name} cannot take {event.name}"
    return after

"""What can be asked of state: of a session's own, and of the actors that have that of app and of users."""

from typing import Any

from msgspec import Struct

from ..runtime.envelope import Request
from .session_messages import OneStep
from .session_records import SessionDefaults
from .state import StateDelta

__all__ = [
    "ChangeScope",
    "ChangeSessionState",
    "Changed",
    "ForgetDelivery",
    "ReadLatest",
    "ReadScope",
    "ReadSessionState",
    "ReadTurnState",
    "TakeDeltas",
    "TurnStateView",
    "WaitOutbox",
]


class Changed(Struct, frozen=True):
    """The values of a scope after a change from outside of a turn; or why it was refused, and it is as it was."""

    values: dict[str, Any]
    refusal: str | None = None
    too_large: bool = False


class ReadScope(Request[dict[str, Any]], frozen=True):
    """The committed values. They are the actor's own: whoever gets them changes nothing in them."""


class ReadLatest(Request[dict[str, Any]], frozen=True):
    """The same with all that has come before, answered once that is committed."""


class ChangeScope(Request[Changed], frozen=True):
    """Apply these deltas now."""

    deltas: tuple[StateDelta, ...]


class TakeDeltas(Request[None], frozen=True):
    """Deltas that a turn has committed: apply them, unless that was done already.

    Attributes:
        id: of the delivery.
        after: the delivery that must be applied before, where one is on its way; else "".
    """

    id: str
    after: str
    deltas: tuple[StateDelta, ...]


class ForgetDelivery(Request[None], frozen=True):
    """This delivery will not come again."""

    id: str


class ReadSessionState(Request[dict[str, Any]], frozen=True):
    """The committed values of the session's own scope; as with ReadScope."""


class ChangeSessionState(OneStep[Changed], frozen=True, gc=False):
    """Apply these deltas to the session's own scope, as a turn of its own."""

    deltas: tuple[StateDelta, ...]
    defaults: SessionDefaults


class TurnStateView(Struct, frozen=True):
    """What a turn that begins needs of its session: the values of its scope, and whose session it is."""

    values: dict[str, Any]
    owner: str | None


class ReadTurnState(Request[TurnStateView], frozen=True):
    """For the running turn; answered once all that earlier turns have changed in app and user is applied there."""


class WaitOutbox(Request[None], frozen=True):
    """Answered once all that turns of the session have changed in app and user is applied there."""

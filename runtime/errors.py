"""What becomes of a request: every `ask` ends in a reply or in exactly one of these.

CallboardError
├─ Rejected        it did not run: safe to send again
│  ├─ MailboxFull  the actor's queue is at its bound
│  ├─ Expired      its deadline passed while it was queued
│  ├─ Stopping     the runtime or the actor is shutting down
│  ├─ UnknownActor nothing is registered under this kind
│  ├─ ActorFailed  the actor's restart budget is spent
│  └─ CyclicAsk    it asks an actor that waits for the asker
├─ Failed          it ran and nothing was stored; `__cause__` is the handler's error
└─ Unknown         it may have been stored: send it again only with an idempotency key
"""

from ..store.errors import CallboardError

__all__ = [
    "ActorFailed",
    "CyclicAsk",
    "Expired",
    "Failed",
    "MailboxFull",
    "Rejected",
    "Stopping",
    "Unknown",
    "UnknownActor",
]


class Rejected(CallboardError):
    """The request did not run. Sending it again is safe."""


class MailboxFull(Rejected):
    """The actor's mailbox is at its bound of messages or bytes."""


class Expired(Rejected):
    """The request's deadline passed while it was still queued."""


class Stopping(Rejected):
    """The runtime is shutting down, or is not open."""


class UnknownActor(Rejected):
    """No actor kind of this name is registered with the runtime."""


class ActorFailed(Rejected):
    """The actor crashed more often than its restart policy allows; see `Runtime.resume`."""


class CyclicAsk(Rejected):
    """The actor that is asked is waiting, directly or not, for the one that asks: neither could ever go on."""


class Failed(CallboardError):
    """The request ran, and nothing of it was stored. `__cause__` is the handler's error."""


class Unknown(CallboardError):
    """The request may have been carried out: its deadline passed, or its commit's outcome cannot be known."""

"""The kernel: actors with mailboxes, supervised, that commit to a store. Knows messages, not conversations.

identity, envelope, signals, errors     what is sent, to whom, and what can become of it
lifecycle, mailbox, gate, budget        state machines without I/O
actor, context                          what a user writes, and what a handler may do
cell, registry                          one place for each actor id
dispatch, supervisor, children, guard   who runs what, and what happens when it crashes
committer                               group commit to the store
post_office, ref                        tell and ask
reminders, reminding, reminder_records  what an actor has itself reminded of, in this process or a later one
timers, waking                          time, and the one file that knows trio from asyncio
metrics, introspect, dump, observing    what it shows of itself: figures, a picture, events as they happen
sabotage                                crashes to order, for tests
showing, runtime                        composition
"""

from .actor import Actor, handles
from .budget import Backoff, RestartPolicy
from .context import Context, Ticket
from .dump import Dump
from .envelope import Request
from .errors import (
    ActorFailed,
    CyclicAsk,
    Expired,
    Failed,
    MailboxFull,
    Rejected,
    Stopping,
    Unknown,
    UnknownActor,
)
from .histogram import HistogramSnapshot
from .identity import ActorId
from .introspect import ActorStatistics, RuntimeStatistics, TraceRecord
from .observing import Observer, RuntimeEvent
from .ref import Ref
from .runtime import Runtime
from .signals import Abandoned, Answered, ChildEnded, Reminder

__all__ = [
    "Abandoned",
    "Actor",
    "ActorFailed",
    "ActorId",
    "ActorStatistics",
    "Answered",
    "Backoff",
    "ChildEnded",
    "Context",
    "CyclicAsk",
    "Dump",
    "Expired",
    "Failed",
    "HistogramSnapshot",
    "MailboxFull",
    "Observer",
    "Ref",
    "Rejected",
    "Reminder",
    "Request",
    "RestartPolicy",
    "Runtime",
    "RuntimeEvent",
    "RuntimeStatistics",
    "Stopping",
    "Ticket",
    "TraceRecord",
    "Unknown",
    "UnknownActor",
    "handles",
]

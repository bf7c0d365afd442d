"""The kernel: actors with mailboxes, supervised, that commit to a store. Knows messages, not conversations.

identity, envelope, signals, errors         what is sent, to whom, and what can become of it
lifecycle, mailbox, gate, budget, breaker,  pure: tables, queues and rules without I/O, clock or await
  families, wait_graph, dead_letters,
  quarantine, histogram, reminder_records
actor, context, options                     what a user writes, what a handler may do, what is given to make both
cell, registry                              one place for each actor id
dispatch, supervisor, workers, guard        who runs what, and where; what shields the others from it
activation, residency                       how an actor comes into memory, and leaves it
restarts, endings, children                 its crashes, its end, the tasks that it has started
committer, gathering, switch_interval       group commit to the store; which batches go together; the thread's share
post_office, ref, deadlines                 tell and ask
timers, ticks, reminders, reminding         time: the runtime's, an activation's, and what is stored of it
waking                                      the one file that knows trio from asyncio
metrics, introspect, dump, observing        what it shows of itself: figures, a picture, events as they happen
sabotage                                    crashes to order, for tests
showing, runtime                            composition
"""

from .actor import Actor, handles
from .budget import Backoff, RestartPolicy
from .context import Context, Ticket
from .dead_letters import DeadLetter
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
from .quarantine import Quarantined
from .ref import Ended, Ref
from .runtime import Runtime
from .signals import Abandoned, ActorEnded, Answered, ChildEnded, Reminder, Tick

__all__ = [
    "Abandoned",
    "Actor",
    "ActorEnded",
    "ActorFailed",
    "ActorId",
    "ActorStatistics",
    "Answered",
    "Backoff",
    "ChildEnded",
    "Context",
    "CyclicAsk",
    "DeadLetter",
    "Dump",
    "Ended",
    "Expired",
    "Failed",
    "HistogramSnapshot",
    "MailboxFull",
    "Observer",
    "Quarantined",
    "Ref",
    "Rejected",
    "Reminder",
    "Request",
    "RestartPolicy",
    "Runtime",
    "RuntimeEvent",
    "RuntimeStatistics",
    "Stopping",
    "Tick",
    "Ticket",
    "TraceRecord",
    "Unknown",
    "UnknownActor",
    "handles",
]

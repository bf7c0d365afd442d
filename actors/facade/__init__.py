"""callboard: supervised, durable conversations with language models, as actors.

    async with Runtime("support.lmdb") as runtime:
        session = Session(runtime, "user-123")
        agent = Agent("Support Agent", instructions="Be brief.", model=OpenAIChat(), session=session)
        reply = await agent.chat("My name is John and I need help with billing")
        print(reply.text)

The kernel (your own actors) is in `callboard.runtime`, stores in `callboard.store`, fakes for tests in
`callboard.testing`.
"""

from importlib.metadata import version

from callboard.actors.agent import Agent, ChatStream
from callboard.actors.archive import SessionPage
from callboard.actors.errors import (
    BadRequest,
    BadResponse,
    Busy,
    ContextOverflow,
    InvalidTransition,
    ModelError,
    ModelUnavailable,
    RateLimited,
    Refused,
    RunFailed,
    StaleTurn,
    Stalled,
    TooLarge,
    Truncated,
    UnknownRun,
    UnknownSession,
)
from callboard.actors.execution import RunPolicy
from callboard.actors.host import Runtime
from callboard.actors.instructions import InstructionContext, Template
from callboard.actors.message import Message, ToolCall, Usage
from callboard.actors.model import Delta, Model, ModelAnswer, ModelRequest, ModelSettings, ToolSchema
from callboard.actors.openai_chat import OpenAIChat
from callboard.actors.reply import AttemptFailed, Reply, RunEvent, RunStarted, ToolFinished
from callboard.actors.run import Run
from callboard.actors.run_record import RunRecord, SpanRecord
from callboard.actors.session import Session
from callboard.actors.session_manager import SessionManager
from callboard.actors.session_records import SessionHead
from callboard.actors.tools import Tool, ToolContext
from callboard.runtime.errors import CyclicAsk, Failed, MailboxFull, Rejected, Stopping, Unknown
from callboard.store.errors import (
    CallboardError,
    Corrupt,
    NewerFormat,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
)

__version__ = version("callboard")

__all__ = [
    "Agent",
    "AttemptFailed",
    "BadRequest",
    "BadResponse",
    "Busy",
    "CallboardError",
    "ChatStream",
    "ContextOverflow",
    "Corrupt",
    "CyclicAsk",
    "Delta",
    "Failed",
    "InstructionContext",
    "InvalidTransition",
    "MailboxFull",
    "Message",
    "Model",
    "ModelAnswer",
    "ModelError",
    "ModelRequest",
    "ModelSettings",
    "ModelUnavailable",
    "NewerFormat",
    "OpenAIChat",
    "RateLimited",
    "Refused",
    "Rejected",
    "Reply",
    "Run",
    "RunEvent",
    "RunFailed",
    "RunPolicy",
    "RunRecord",
    "RunStarted",
    "Runtime",
    "Session",
    "SessionHead",
    "SessionManager",
    "SessionPage",
    "SpanRecord",
    "StaleTurn",
    "Stalled",
    "Stopping",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreUnavailable",
    "Template",
    "TooLarge",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolFinished",
    "ToolSchema",
    "Truncated",
    "Unknown",
    "UnknownRun",
    "UnknownSession",
    "Usage",
]

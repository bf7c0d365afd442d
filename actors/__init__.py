"""Conversations and models: sessions, agents, runs, tools. Knows what a turn is, and nothing of files or event loops.

message, conversation, limits               what is said, and what is fit to be sent or stored
run_record, turns, ledger, session_records  state machines and records of a session, without I/O
archive, history                            reading what is stored
session_messages, session_actor             the actor that is one session
agent_actor, execution, spans, reentry      the actor that is one agent, and the runs that it supervises
model, openai_chat, wire, sse, pool         the model path
tools, json_schema, instructions            what an agent is given
output, run_output, strict_schema, schema_check, json_in_text   answers as values
host, session, session_manager, agent, run, reply   the public handles
errors, ids
"""

from .agent import Agent, ChatStream
from .agent_spec import RunPolicy
from .approvals import ApprovalRequest, Denied
from .archive import SessionPage
from .errors import (
    ApprovalRequired,
    BadOutput,
    BadRequest,
    BadResponse,
    Busy,
    ContextOverflow,
    InvalidTransition,
    ModelError,
    ModelUnavailable,
    RateLimited,
    Refusal,
    Refused,
    RunFailed,
    StaleTurn,
    Stalled,
    TooLarge,
    Truncated,
    UnknownRun,
    UnknownSession,
)
from .fallback import FallbackMember, FallbackModel
from .host import Runtime
from .instructions import InstructionContext, Template
from .message import Message, ToolCall, Usage
from .model import Delta, Model, ModelAnswer, ModelRequest, ModelSettings, OutputSchema, ToolSchema
from .openai_chat import OpenAIChat
from .output import Output
from .reply import ApprovalRequested, AttemptFailed, OutputRepair, Reply, RunEvent, RunStarted, ToolFinished
from .retention import Expiry, Retention
from .retry import RetryPolicy
from .run import Run
from .run_record import RunRecord, SpanRecord
from .session import Session
from .session_manager import SessionManager
from .session_records import SessionHead
from .tools import Tool, ToolContext, tool

__all__ = [
    "Agent",
    "ApprovalRequest",
    "ApprovalRequested",
    "ApprovalRequired",
    "AttemptFailed",
    "BadOutput",
    "BadRequest",
    "BadResponse",
    "Busy",
    "ChatStream",
    "ContextOverflow",
    "Delta",
    "Denied",
    "Expiry",
    "FallbackMember",
    "FallbackModel",
    "InstructionContext",
    "InvalidTransition",
    "Message",
    "Model",
    "ModelAnswer",
    "ModelError",
    "ModelRequest",
    "ModelSettings",
    "ModelUnavailable",
    "OpenAIChat",
    "Output",
    "OutputRepair",
    "OutputSchema",
    "RateLimited",
    "Refusal",
    "Refused",
    "Reply",
    "Retention",
    "RetryPolicy",
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
    "Template",
    "TooLarge",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolFinished",
    "ToolSchema",
    "Truncated",
    "UnknownRun",
    "UnknownSession",
    "Usage",
    "tool",
]

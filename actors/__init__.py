"""Conversations and models: sessions, agents, runs, tools. Knows what a turn is, and nothing of files or event loops.

message, conversation, limits               what is said, and what is fit to be sent or stored
perspective, window, tokens, run_prompt     a shared history, as the model of one agent gets it
overlay, compaction, session_window, session_overlays, session_views   summaries, and what a session shows of itself
run_record, turns, ledger, session_records, budgets  state machines and records of a session, without I/O
archive, history, run_queries               reading what is stored
seq_ranges, edit_record, edit_messages, session_edits, cursors, message_page, fork, search, session_search   history
                                            edited, by pages, forked, searched
session_messages, session_reads, session_waits, session_turns, session_stops, session_spans, session_actor   the
                                            actor that is one session; quiet and outcomes: input that is held, keys that
                                            were answered
agent_requests, agent_actor, execution, attempts, answer_check, persistence, spans, reentry   the actor that is one
                                            agent, and the runs that it supervises
run_wishes, run_outcome, run_feeds, event_queue   what others want of a run, and get of it
model, openai_chat, fallback                what answers
exchange, provider_gate, retry, throttle    one request and its answer, and when it may be made, and made again
wire_request, wire_answer, wire_errors, tool_call_joiner, wire_usage, sse   the chat completions API on the wire, pure
providers, dialect, endpoint                who departs from it, and how
upstream, pool, pooled_transport, http_connection, http1, dialing, socket_stream   HTTP, from the top to the socket
tools, tool_parameters, tool_context, tool_threads, json_schema, instructions   what an agent is given
tool_calls, journal, progress, approvals    tool calls, each at most once
state, turn_state, outbox, state_records    state that turns share, and change with their commits
state_messages, session_state, state_actor, scopes   who keeps it, and the public handles on it
run_ending                                  runs that a tool call ends
output, run_output, strict_schema, schema_check, json_in_text     answers as values
team_flows, team_turns, team_tools          who of a team speaks next, and how it is told
team, team_chat, team_line                  agents that answer together
event_rows, event_log, session_events, boards, event_stream   what happens in a session, for its readers
run_observing, run_context, run_log   what runs do, for observers and for logs
host, session, session_manager, session_storage, resuming, agent, chat_input, chat_options, chat_stream, submission,
                                            hand_made_turn, run, reply: the public handles
errors, ids, per_loop
"""

from .agent import Agent
from .agent_spec import RunPolicy
from .approvals import ApprovalRequest, Denied
from .archive import SessionPage
from .budgets import Budget, Exceeded, Price, Prices, Spending
from .chat_options import ChatOptions
from .chat_stream import ChatStream
from .dialect import Dialect
from .edit_record import Audit, EditRecord
from .embedder import Embedder, OpenAIEmbedder
from .errors import (
    ApprovalRequired,
    BadOutput,
    BadRequest,
    BadResponse,
    BudgetExceeded,
    Busy,
    ContextOverflow,
    EmbedderMismatch,
    InvalidTransition,
    KeyReused,
    ModelError,
    ModelUnavailable,
    NotCompacted,
    RateLimited,
    Refusal,
    Refused,
    RunFailed,
    SessionExists,
    StaleTurn,
    Stalled,
    Superseded,
    TooLarge,
    Truncated,
    UnknownRun,
    UnknownSession,
)
from .event_stream import EventStream
from .fallback import FallbackMember, FallbackModel
from .hand_made_turn import HandMadeTurn
from .host import Runtime
from .instructions import InstructionContext, Template
from .memory import Memory
from .memory_records import MemoryHit, MemorySource
from .message import Message, ToolCall, Usage
from .message_page import MessagePage
from .model import Delta, Model, ModelAnswer, ModelRequest, ModelSettings, OutputSchema, ToolSchema
from .openai_chat import OpenAIChat
from .output import Output
from .overlay import Overlay
from .perspective import GO_ON, NoInput
from .pooled_transport import PooledTransport
from .providers import PROVIDERS, Provider
from .reply import ApprovalRequested, AttemptFailed, Delivered, OutputRepair, Reply, RunEvent, RunStarted, ToolFinished
from .resuming import ResumedRuns
from .retention import Expiry, Retention
from .retry import RetryPolicy
from .run import Run
from .run_queries import RunPage
from .run_record import RunRecord, SpanRecord
from .scopes import AppState, OwnerState, SessionState, UserState
from .search import SearchHit, SearchPage
from .session import Session
from .session_events import (
    EventsDropped,
    HistoryEdited,
    MessageAdded,
    MetadataChanged,
    RunChanged,
    RunProgress,
    SessionDeleted,
    SessionEvent,
)
from .session_manager import SessionManager
from .session_records import ForkOrigin, SessionHead
from .session_storage import SessionStorage, create_postgres_session_storage, create_redis_session_storage
from .spans import LiveSpan
from .state import ScopedState
from .submission import Submission
from .team import Agents, Team, TeamStream
from .team_flows import Flow, Handoff, Parallel, Review, RoundRobin, Router, Sequence
from .team_turns import Stop, TeamEvent, TeamFailed, TeamReply, TeamTurn, TurnCompleted, TurnFailed
from .tokens import TiktokenCounter, TokenCounter, TokenEstimate
from .tools import Tool, ToolContext, tool
from .window import Window, WindowView

__all__ = [
    "GO_ON",
    "PROVIDERS",
    "Agent",
    "Agents",
    "AppState",
    "ApprovalRequest",
    "ApprovalRequested",
    "ApprovalRequired",
    "AttemptFailed",
    "Audit",
    "BadOutput",
    "BadRequest",
    "BadResponse",
    "Budget",
    "BudgetExceeded",
    "Busy",
    "ChatOptions",
    "ChatStream",
    "ContextOverflow",
    "Delivered",
    "Delta",
    "Denied",
    "Dialect",
    "EditRecord",
    "Embedder",
    "EmbedderMismatch",
    "EventStream",
    "EventsDropped",
    "Exceeded",
    "Expiry",
    "FallbackMember",
    "FallbackModel",
    "Flow",
    "ForkOrigin",
    "HandMadeTurn",
    "Handoff",
    "HistoryEdited",
    "InstructionContext",
    "InvalidTransition",
    "KeyReused",
    "LiveSpan",
    "Memory",
    "MemoryHit",
    "MemorySource",
    "Message",
    "MessageAdded",
    "MessagePage",
    "MetadataChanged",
    "Model",
    "ModelAnswer",
    "ModelError",
    "ModelRequest",
    "ModelSettings",
    "ModelUnavailable",
    "NoInput",
    "NotCompacted",
    "OpenAIChat",
    "OpenAIEmbedder",
    "Output",
    "OutputRepair",
    "OutputSchema",
    "Overlay",
    "OwnerState",
    "Parallel",
    "PooledTransport",
    "Price",
    "Prices",
    "Provider",
    "RateLimited",
    "Refusal",
    "Refused",
    "Reply",
    "ResumedRuns",
    "Retention",
    "RetryPolicy",
    "Review",
    "RoundRobin",
    "Router",
    "Run",
    "RunChanged",
    "RunEvent",
    "RunFailed",
    "RunPage",
    "RunPolicy",
    "RunProgress",
    "RunRecord",
    "RunStarted",
    "Runtime",
    "ScopedState",
    "SearchHit",
    "SearchPage",
    "Sequence",
    "Session",
    "SessionDeleted",
    "SessionEvent",
    "SessionExists",
    "SessionHead",
    "SessionManager",
    "SessionPage",
    "SessionState",
    "SessionStorage",
    "SpanRecord",
    "Spending",
    "StaleTurn",
    "Stalled",
    "Stop",
    "Submission",
    "Superseded",
    "Team",
    "TeamEvent",
    "TeamFailed",
    "TeamReply",
    "TeamStream",
    "TeamTurn",
    "Template",
    "TiktokenCounter",
    "TokenCounter",
    "TokenEstimate",
    "TooLarge",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolFinished",
    "ToolSchema",
    "Truncated",
    "TurnCompleted",
    "TurnFailed",
    "UnknownRun",
    "UnknownSession",
    "Usage",
    "UserState",
    "Window",
    "WindowView",
    "create_postgres_session_storage",
    "create_redis_session_storage",
    "tool",
]

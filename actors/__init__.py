"""Conversations and models: sessions, agents, runs, tools. Knows what a turn is, and nothing of files or event loops.

message, conversation, limits               what is said, and what is fit to be sent or stored
run_record, turns, ledger, session_records  state machines and records of a session, without I/O
archive, history                            reading what is stored
session_messages, session_actor             the actor that is one session
agent_actor, execution, spans, reentry      the actor that is one agent, and the runs that it supervises
model, openai_chat, wire, sse, pool         the model path
tools, json_schema, instructions            what an agent is given
host, session, session_manager, agent, run, reply   the public handles
errors, ids
"""

__all__: list[str] = []

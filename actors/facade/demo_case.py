"""What the demo plays: two support cases, three agents, and who is asked what in which order.

The answers come from a model, so the texts here are only the customers' and the desk's. The second turn of the first
case asks for a list, because the demo kills its worker while that answer streams and a small model is brief otherwise.
"""

from types import MappingProxyType

from msgspec import Struct

__all__ = ["AGENTS", "CASES", "TOKENS_MAX", "Case", "Turn"]

TOKENS_MAX = 60
"""Tokens of one answer. SmolLM2-135M writes about 50 a second on one core."""

AGENTS: MappingProxyType[str, str] = MappingProxyType(
    {
        "Intake": "You are the intake agent of a support desk. Thank ${customer} and sum the problem up in a sentence.",
        "Solution": "You are the solution agent of a support desk. Tell ${customer} how the problem is solved.",
        "Follow-up": "You are the follow-up agent of a support desk. Say goodbye to ${customer} in one sentence.",
    }
)
"""Each agent's instructions, a template over the session's metadata."""


class Turn(Struct, frozen=True):
    """`author` says `text`, and `agent` answers."""

    agent: str
    author: str
    text: str


class Case(Struct, frozen=True):
    """One session and its turns, in order."""

    session_id: str
    customer: str
    tags: tuple[str, ...]
    turns: tuple[Turn, ...]


CASES = (
    Case(
        session_id="case-4711",
        customer="Dana Fox",
        tags=("billing",),
        turns=(
            Turn("Intake", "Dana Fox", "I was charged twice for invoice 4711: 49 euros on March 3 and on March 4."),
            Turn("Solution", "Intake", "List five steps by which we check the two payments and refund one of them."),
            Turn("Follow-up", "Dana Fox", "Thank you, that is all."),
        ),
    ),
    Case(
        session_id="case-88",
        customer="Lee Chan",
        tags=("shipping",),
        turns=(
            Turn("Intake", "Lee Chan", "My parcel 88 was due on Monday and has not arrived."),
            Turn("Solution", "Intake", "List three things that we do now to find the parcel."),
            Turn("Follow-up", "Lee Chan", "Good, thank you."),
        ),
    ),
)
"""The first case is the one whose second turn is killed."""

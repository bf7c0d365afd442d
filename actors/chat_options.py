"""What a chat may be given beside its input and the form of its answer. Explained at `Agent.chat`."""

from typing import TypedDict

from .budgets import Spending
from .session import Session
from .turns import Overlap

__all__ = ["ChatOptions"]


class ChatOptions(TypedDict, total=False):
    """Options of `Agent.chat`, `stream` and `submit`."""

    session: Session | None
    overlap: Overlap | None
    key: str | None
    spending: Spending | None
    keep_input: bool

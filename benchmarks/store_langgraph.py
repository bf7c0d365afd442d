"""LangGraph in the rows of bench_store.py: a graph of one node that answers, on its AsyncSqliteSaver.

`durability="exit"`: one checkpoint a turn, when the answer is there, with the whole history in it. That is its fastest
mode; the others write one per step.
"""

import importlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from store_load import Conversations, Measure
from store_rows import ConversationRows

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
graphs: Any = importlib.import_module("langgraph.graph")
saving: Any = importlib.import_module("langgraph.checkpoint.sqlite.aio")
messages: Any = importlib.import_module("langchain_core.messages")


async def answer(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node: the assistant says what goes with the user's text."""
    return {"messages": [messages.AIMessage("a" + state["messages"][-1].content[1:])]}


class Graph:
    """A compiled graph; a session is a thread of it."""

    def __init__(self, saver: Any) -> None:
        builder = graphs.StateGraph(graphs.MessagesState)
        builder.add_node("answer", answer)
        builder.add_edge(graphs.START, "answer")
        builder.add_edge("answer", graphs.END)
        self._graph = builder.compile(checkpointer=saver)

    async def add(self, session: str, texts: Sequence[str]) -> None:
        user, assistant = texts
        config = {"configurable": {"thread_id": session}}
        state = await self._graph.ainvoke({"messages": [messages.HumanMessage(user)]}, config, durability="exit")
        assert state["messages"][-1].content == assistant

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Any]:
        state = await self._graph.aget_state({"configurable": {"thread_id": session}})
        said = state.values["messages"]
        return said if limit is None else said[-limit:]

    def text_of(self, message: Any) -> str:
        return message.content


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Conversations]:
    async with saving.AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        await saver.conn.execute("PRAGMA synchronous=FULL")
        yield Graph(saver)


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return ConversationRows(opened).measures()

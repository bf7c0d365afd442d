"""How messages, runs and sessions look on a terminal: used by the command line and by the demo.

What people or models wrote is shown as text, never obeyed: control characters are replaced, markup is not read.
"""

import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from callboard.actors.message import Message
from callboard.actors.run_record import RunRecord
from callboard.actors.session_records import SessionHead

__all__ = ["conversation", "head_json", "head_text", "printable", "runs_table", "sessions_table"]

_AUTHOR_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "bold yellow"}
_STATUS_STYLES = {"completed": "green", "failed": "red", "interrupted": "yellow", "cancelled": "yellow"}


def printable(text: str) -> str:
    """The text without control characters, save newline and tab: a terminal would obey an escape sequence."""
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    obeyed = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return "\N{REPLACEMENT CHARACTER}" if obeyed else character


def _time_text(at_ms: int) -> str:
    """A time in the local zone, to the second; "" for 0."""
    if not at_ms:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _duration_text(duration_ms: int | None) -> str:
    """ "1.23 s", or "–" where there is none."""
    return "–" if duration_ms is None else f"{duration_ms / 1000:.2f} s"


def conversation(messages: Iterable[Message]) -> Group:
    """The messages in order: number, who speaks, what."""
    return Group(*map(_message_text, messages))


def _message_text(message: Message) -> Text:
    who = printable(message.author or message.role)
    kind = "" if who == message.role else f" ({message.role})"
    text = Text.assemble(
        (f"{message.seq:>4}  ", "dim"), (who, _AUTHOR_STYLES.get(message.role, "bold")), (kind, "dim"), ": "
    )
    text.append(printable(message.text).strip())
    for call in message.tool_calls:
        text.append(f"\n      → {printable(call.name)}({printable(call.arguments)})", "yellow")
    if message.interrupted:
        text.append(" [interrupted]", "yellow")
    return text


_WIDE_COLUMNS = 120
_ID_END = 8
"""The end of a run's id is its random part: enough to tell runs apart where the terminal is narrow."""


def runs_table(runs: Iterable[RunRecord], *, columns: int) -> Table:
    """One row a run: agent, status, duration, attempts, tokens, and the reason where it did not complete.

    `columns` is the terminal's width: on a narrow one only the end of a run's id is shown.
    """
    wide = columns >= _WIDE_COLUMNS
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "agent", "status"):
        table.add_column(heading, overflow="fold")
    for heading in ("duration", "tries", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for run in runs:
        usage = run.usage
        table.add_row(
            Text(run.id if wide else f"…{run.id[-_ID_END:]}"),
            Text(printable(run.agent)),
            Text(run.status, _STATUS_STYLES.get(run.status, "")),
            _duration_text(run.duration_ms),
            str(run.attempts),
            f"{usage.prompt_tokens} + {usage.completion_tokens} = {usage.total_tokens}",
            Text(printable(run.error or "")),
        )
    return table


def sessions_table(heads: Iterable[SessionHead]) -> Table:
    """One row a session, without its content."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("session", "owner", "tags"):
        table.add_column(heading, overflow="fold")
    for heading in ("messages", "runs", "updated"):
        table.add_column(heading, justify="right", no_wrap=True)
    for head in heads:
        table.add_row(
            Text(printable(head.id), "bold"),
            Text(printable(head.owner or "")),
            Text(printable(", ".join(head.tags))),
            str(head.message_count),
            str(head.run_count),
            _time_text(head.updated_at_ms),
        )
    return table


def head_json(head: SessionHead) -> dict[str, Any]:
    """A session's head for programs: as it is stored, save that it counts the messages that edits have left."""
    stored: dict[str, Any] = msgspec.to_builtins(head)
    return {**stored, "message_count": head.message_count, "last_seq": head.last_seq}


def head_text(head: SessionHead) -> Text:
    """A session in one line, and its metadata in another where it has some."""
    facts = [f"owner {head.owner}"] * (head.owner is not None) + [f"tags {', '.join(head.tags)}"] * bool(head.tags)
    facts += [f"{head.message_count} messages", f"{head.run_count} runs", f"updated {_time_text(head.updated_at_ms)}"]
    text = Text.assemble((printable(head.id), "bold"), (printable(" · " + " · ".join(facts)), "dim"))
    if head.metadata:
        text.append("\n" + printable(msgspec.json.encode(head.metadata).decode()), "dim")
    return text

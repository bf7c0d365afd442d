"""The rows of messages: those of every released version are read, a few to a row are written."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest

from callboard import Message, NewerFormat, ToolCall
from callboard.actors.archive import Archive
from callboard.actors.session_records import ROW_MESSAGES_MAX, message_key, message_rows, stream_of
from callboard.store import Batch, MemoryStore, Row, Table

GOLDEN = Path(__file__).parent.parent / "golden" / "message_rows.json"
"""Rows of the messages below, as each released version wrote them. A new version adds its own; none is ever changed."""

MESSAGES = [
    Message(
        role="user",
        content="hi, grüße",
        id="msg_00000007",
        seq=7,
        author="ann",
        created_at_ms=1_700_000_000_000,
    ),
    Message(
        role="assistant",
        tool_calls=(ToolCall(id="c1", name="weather", arguments='{"city": "Ghent"}', extra={"signature": "s"}),),
        id="msg_00000008",
        seq=8,
        author="Agent",
        run_id="run_1",
        created_at_ms=1_700_000_000_001,
    ),
    Message(
        role="tool",
        content="rain",
        tool_call_id="c1",
        id="msg_00000009",
        seq=9,
        run_id="run_1",
        created_at_ms=1_700_000_000_002,
    ),
    Message(
        role="assistant",
        content=[{"type": "text", "text": "It rains."}],
        name="Agent",
        id="msg_00000010",
        seq=10,
        run_id="run_1",
        created_at_ms=1_700_000_000_003,
        interrupted=True,
        extra={"reasoning_content": "…"},
    ),
]


def golden(version: str) -> list[Row]:
    rows = json.loads(GOLDEN.read_text())[version]
    return [Row(Table.MESSAGE, base64.b64decode(key), base64.b64decode(value)) for key, value in rows]


def archive_of(rows: list[Row]) -> Archive:
    store = MemoryStore()
    assert store.commit([Batch(stream_of("s"), 1, 0, rows=tuple(rows))]) == [None]
    return Archive(store)


@pytest.mark.parametrize("version", ["1", "2"])
def test_messages_of_every_released_version_are_read(version: str) -> None:
    archive = archive_of(golden(version))

    assert archive.messages("s") == MESSAGES
    assert archive.messages("s", limit=2) == MESSAGES[2:]
    assert archive.messages("s", limit=2, before_seq=9) == MESSAGES[:2]
    assert archive.messages("s", before_seq=10) == MESSAGES[:3]
    assert archive.damage.list() == []


def test_what_is_written_today_is_what_the_newest_golden_rows_are() -> None:
    assert message_rows(MESSAGES) == golden("2")


def test_rows_of_an_older_version_stand_before_those_of_today() -> None:
    later = [Message(role="user", content=str(seq), seq=seq) for seq in range(11, 21)]
    archive = archive_of([*golden("1"), *message_rows(later[:5]), *message_rows(later[5:])])

    assert archive.messages("s") == [*MESSAGES, *later]
    assert archive.messages("s", limit=12) == [*MESSAGES, *later][-12:]


def test_row_of_a_newer_version_is_refused_and_named() -> None:
    archive = archive_of([*golden("2"), Row(Table.MESSAGE, message_key(11), b"\x03?")])

    with pytest.raises(NewerFormat, match=r"messages from 11 on of session 's' has version 3; .* up to 2: upgrade"):
        archive.messages("s")


def test_messages_that_came_together_are_one_row_but_never_a_long_one() -> None:
    many = [Message(role="user", content=str(seq), seq=seq) for seq in range(1, 2 * ROW_MESSAGES_MAX + 2)]
    rows = message_rows(many)

    assert [row.key for row in rows] == [message_key(1 + n * ROW_MESSAGES_MAX) for n in range(3)]
    assert archive_of(rows).messages("s") == many
    assert message_rows([]) == []


@pytest.mark.parametrize("limit", range(1, 12))
@pytest.mark.parametrize("before_seq", [None, 1, 4, 11, 99])
def test_any_end_of_a_history_in_rows_of_any_length_is_cut_at_the_message(limit: int, before_seq: int | None) -> None:
    messages = [Message(role="user", content=str(seq), seq=seq) for seq in range(1, 12)]
    cuts = [0, 1, 3, 6, 7, 11]
    rows = [row for start, end in pairwise(cuts) for row in message_rows(messages[start:end])]
    before = [each for each in messages if before_seq is None or each.seq < before_seq]

    assert archive_of(rows).messages("s", limit=limit, before_seq=before_seq) == before[-limit:]

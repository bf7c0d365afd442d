"""Cursors lead from page to page of one session, and are good for no other."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from callboard import Message, MessagePage, Runtime, Session
from callboard.actors.session_records import message_key, stream_of
from callboard.store import Batch, MemoryStore, Row, Table

ODD: Any = 3
"""What a careless caller gives."""

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def numbered(count: int) -> list[Message]:
    return [Message(role="user", content=f"text {number}") for number in range(1, count + 1)]


def seqs_of(page: MessagePage) -> list[int]:
    return [message.seq for message in page.messages]


def test_pages_begin_at_the_end_of_history_or_at_its_beginning(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(5))
            latest = await session.page(limit=2)
            earliest = await session.page(limit=2, newest_first=False)
            before = await session.page(limit=2, cursor=latest.older)
            oldest = await session.page(limit=2, cursor=before.older)

            assert (seqs_of(latest), latest.newer) == ([4, 5], None)
            assert (seqs_of(earliest), earliest.older) == ([1, 2], None)
            assert (seqs_of(before), seqs_of(oldest), oldest.older) == ([2, 3], [1], None)
            assert seqs_of(await session.page(limit=9, cursor=oldest.newer)) == [2, 3, 4, 5]
            assert seqs_of(await session.page()) == [1, 2, 3, 4, 5]

    run(body)


def test_pages_are_full_whatever_edits_have_left_between(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(5))
            await session.pop(2)
            await session.add_messages(numbered(3))

            assert seqs_of(await session.page(limit=4, newest_first=False)) == [1, 2, 3, 6]
            assert seqs_of(await session.page(limit=4)) == [3, 6, 7, 8]

    run(body)


def test_who_was_at_the_end_comes_back_for_what_is_new(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            empty = await session.page()
            assert (empty.messages, empty.older, empty.newer) == ([], None, None)
            await session.add_messages(numbered(2))
            first = await session.page(cursor=empty.resume)
            nothing = await session.page(cursor=first.resume)
            await session.pop()
            await session.add_messages(numbered(1))
            later = await session.page(cursor=nothing.resume)

            assert (seqs_of(first), first.newer) == ([1, 2], None)
            assert (seqs_of(nothing), nothing.newer) == ([], None)
            assert (seqs_of(later), seqs_of(await session.page(cursor=later.older))) == ([3], [1])

    run(body)


def test_a_cursor_is_good_for_its_session_alone(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, other = Session(runtime, "s"), Session(runtime, "other")
            cursor = (await session.page()).resume
            with pytest.raises(ValueError, match=r"is no cursor of session 'other': pass page\.older"):
                await other.page(cursor=cursor)
            for wrong in (
                "",
                "?",
                cursor[:-4],
                cursor + "AAAA",
                cursor[:8] + base64.b64encode(b"=" + b"\x00" * 8).decode(),
            ):
                with pytest.raises(ValueError, match="is no cursor of session 's'"):
                    await session.page(cursor=wrong)
            beyond = base64.urlsafe_b64encode(base64.urlsafe_b64decode(cursor)[:7] + b"\xff" * 8).decode()
            with pytest.raises(ValueError, match="is no cursor"):
                await session.page(cursor=beyond)
            with pytest.raises(TypeError, match="cursor must be a string, not int"):
                await session.page(cursor=ODD)
            limits: list[tuple[Any, type[Exception]]] = [(0, ValueError), (1001, ValueError), (True, TypeError)]
            for limit, error in limits:
                with pytest.raises(error, match="limit must be"):
                    await session.page(limit=limit)

    run(body)


@pytest.mark.parametrize("direction", [b"<", b">"])
@pytest.mark.parametrize("seq", [0, 1, 99, 2**63 - 1])
def test_a_cursor_that_was_made_up_does_no_harm(run: Run, direction: bytes, seq: int) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(3))
            name = base64.urlsafe_b64decode((await session.page()).resume)[:6]
            cursor = base64.urlsafe_b64encode(name + direction + seq.to_bytes(8, "big")).decode()
            page = await session.page(cursor=cursor)

            expected = [n for n in (1, 2, 3) if (n < seq if direction == b"<" else n > seq)]
            assert seqs_of(page) == expected
            assert (
                seqs_of(await session.page(cursor=page.resume))
                == [n for n in (1, 2, 3) if n > max([0, *expected])][: 3 if expected or direction == b"<" else 0]
            )

    run(body)


def test_messages_that_cannot_be_read_do_not_stop_the_pages(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            for _ in range(6):
                await session.add_messages(numbered(1))
        left = store.reopened()
        stored = left.load(stream_of("s"))
        assert stored is not None
        spoilt = tuple(Row(Table.MESSAGE, message_key(seq), b"\x02 no messages") for seq in (3, 4))
        assert left.commit([Batch(stream_of("s"), stored.epoch, stored.version, rows=spoilt)]) == [None]
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            pages = [await session.page(limit=2)]
            while pages[-1].older is not None:
                pages.append(await session.page(limit=2, cursor=pages[-1].older))

            assert [seqs_of(page) for page in pages] == [[5, 6], [], [1, 2]]

    run(body)

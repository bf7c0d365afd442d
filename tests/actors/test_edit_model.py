"""A session that is appended to, edited, restarted, read and paged through, against a plain list of messages."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
from hypothesis import given, settings, strategies as st

from callboard import Message, Runtime, Session
from callboard.actors.archive import Archive
from callboard.actors.session_check import check_sessions
from callboard.actors.transfer import export_store, import_store
from callboard.store import MemoryStore

Op: TypeAlias = tuple[str, int]

OPS = st.tuples(
    st.sampled_from(["append", "append", "append", "pop", "rewind", "clear", "restart", "load"]), st.integers(1, 40)
)


class Model:
    """What a session is: all that was ever said, and what of it is visible, as (place, text)."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []
        self.visible: list[tuple[int, str]] = []
        self.edits = 0

    def append(self, count: int) -> list[Message]:
        places = range(len(self.said) + 1, len(self.said) + count + 1)
        self.said += (new := [(place, f"text {place}") for place in places])
        self.visible += new
        return [Message(role="user", content=text) for _, text in new]

    def keep(self, count: int) -> int:
        """Only the first `count` stay visible; how many do not."""
        gone = len(self.visible) - len(self.visible[:count])
        self.visible = self.visible[:count]
        self.edits += bool(gone)
        return gone


def shown(messages: list[Message]) -> list[tuple[int, str]]:
    return [(message.seq, message.text) for message in messages]


async def apply(op: Op, session: Session, model: Model) -> None:
    """Do one thing to both, and see that both say the same of it."""
    what, number = op
    if what == "append":
        await session.add_messages(model.append(number % 5 + 1))
    elif what == "pop":
        popped = model.visible[-(number % 7 + 1) :]
        assert shown(await session.pop(number % 7 + 1)) == popped
        model.keep(len(model.visible) - len(popped))
    elif what == "rewind":
        kept = [place for place, _ in model.visible if place <= number]
        assert await session.rewind(number) == model.keep(len(kept))
    elif what == "clear":
        if number > 30:  # else too little would be left to see
            assert await session.clear() == model.keep(0)
    elif what == "load":
        await session.pop(1)  # what it gives back is looked at above
        model.keep(max(0, len(model.visible) - 1))


async def check(session: Session, model: Model) -> None:
    assert shown(await session.messages()) == model.visible
    assert await session.message_count() == len(model.visible)
    for limit in (1, 3):
        assert shown(await session.messages(limit=limit)) == model.visible[-limit:]
    middle = len(model.said) // 2 + 1
    before = [each for each in model.visible if each[0] < middle]
    assert shown(await session.messages(before_seq=middle, limit=4)) == before[-4:]
    archive = Archive(session.runtime.store)
    assert shown(archive.messages(session.id)) == model.visible
    assert shown(archive.messages(session.id, limit=3, before_seq=middle)) == before[-3:]
    audit = await session.audit()
    assert shown(audit.messages) == model.said
    assert len(audit.edits) == model.edits
    seen = {place for place, _ in model.visible}
    assert {each.seq for each in audit.messages if audit.removed_by(each) is None} == seen


def with_restarts(ops: list[Op], step: Callable[[Op, Session], Awaitable[None]]) -> MemoryStore:
    """Do a step with each of these, in one process after the other; the store that is left."""
    store = MemoryStore()
    left = list(ops)

    async def process() -> None:
        async with Runtime.on(lambda: store) as runtime:
            while left:
                op = left.pop(0)
                if op[0] == "restart":
                    return
                await step(op, Session(runtime, "s"))

    while left:
        anyio.run(process, backend="trio")
        store = store.reopened()
    return store


@settings(max_examples=60, deadline=None)
@given(st.lists(OPS, max_size=14))
def test_history_is_what_a_plain_list_is_after_any_edits_and_restarts(ops: list[Op]) -> None:
    model = Model()

    async def step(op: Op, session: Session) -> None:
        await apply(op, session, model)
        await check(session, model)

    store = with_restarts(ops, step)

    assert list(check_sessions(store)) == []
    copy = MemoryStore()
    import_store(copy, export_store(store))
    assert shown(Archive(copy).messages("s")) == model.visible
    assert shown(Archive(copy).audit("s").messages) == model.said


@settings(max_examples=60, deadline=None)
@given(st.lists(OPS, max_size=12), st.integers(1, 6), st.booleans())
def test_pages_give_each_message_once_while_others_append_and_edit(
    ops: list[Op], limit: int, newest_first: bool
) -> None:
    model = Model()
    model.append(20)
    given: list[tuple[int, str]] = []
    cursors: list[str | None] = [None]
    turned: list[bool] = []

    async def turn_page(session: Session) -> None:
        page = await session.page(limit=limit, cursor=cursors[-1], newest_first=newest_first)
        assert len(page.messages) <= limit
        given[:] = [*shown(page.messages), *given] if newest_first else [*given, *shown(page.messages)]
        cursors.append(page.older if newest_first else page.newer)
        turned.append(True)

    async def step(op: Op, session: Session) -> None:
        if not turned:
            await session.add_messages([Message(role="user", content=text) for _, text in model.said])
        if not turned or cursors[-1] is not None:
            await turn_page(session)
        await apply(op, session, model)

    with_restarts([*ops, *[("turn", 0)] * 120], step)

    assert cursors[-1] is None
    assert given == sorted(set(given))
    still_visible = [each for each in model.visible if each[0] <= 20]
    assert [each for each in given if each in still_visible] == still_visible


@given(st.lists(OPS, max_size=10), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_pages_lead_back_to_where_they_came_from(ops: list[Op], limit: int) -> None:
    model = Model()

    async def step(op: Op, session: Session) -> None:
        await apply(op, session, model)
        forwards: list[tuple[int, str]] = []
        page = await session.page(limit=limit, newest_first=False)
        forwards += shown(page.messages)
        while page.newer is not None:
            page = await session.page(limit=limit, cursor=page.newer)
            forwards += shown(page.messages)
        backwards = shown(page.messages)
        assert page.newer is None
        while page.older is not None:
            page = await session.page(limit=limit, cursor=page.older)
            backwards = shown(page.messages) + backwards
        assert forwards == backwards == model.visible

    with_restarts(ops, step)

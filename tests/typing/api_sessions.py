"""Examples that mypy and pyright must accept, with the types that a caller sees. `make check` reads them; none runs."""

from datetime import UTC, datetime
from typing import Any, assert_type

import callboard
from callboard import (
    Agent,
    Audit,
    EditRecord,
    ForkOrigin,
    Message,
    MessageAdded,
    MessagePage,
    Model,
    Overlay,
    Run,
    RunEvent,
    RunProgress,
    RunRecord,
    Runtime,
    SearchHit,
    SearchPage,
    Session,
    SessionEvent,
    SessionManager,
    TokenCounter,
    TokenEstimate,
    Window,
    WindowView,
)
from callboard.observing import RunIds, RunLog, current_run


async def open_and_close() -> None:
    async with Runtime("support.lmdb", durability="sync", drain_timeout_s=30.0) as runtime:
        assert_type(runtime, Runtime)
    async with Runtime.in_memory() as runtime:
        assert_type(runtime, Runtime)


async def write_and_read(runtime: Runtime) -> None:
    session = Session(runtime, "user-123", metadata={"tier": "gold"}, owner="user-123", tags=("billing",))

    assert_type(await session.add_message("user", "It does not work."), Message)
    assert_type(await session.add_message("assistant", "What does not?", author="Intake"), Message)
    assert_type(
        await session.add_messages([Message(role="user", content="a"), {"role": "user", "content": "b"}]),
        list[Message],
    )
    assert_type(await session.messages(), list[Message])
    assert_type(await session.messages(limit=20, before_seq=40), list[Message])
    assert_type(await session.messages_for_llm(), list[dict[str, Any]])
    assert_type(await session.message_count(), int)
    assert_type(await session.metadata(), dict[str, Any])
    assert_type(await session.update_metadata({"tier": "silver", "trial": None}), dict[str, Any])


async def edit_and_look(session: Session, manager: SessionManager) -> None:
    assert_type(await session.pop(), list[Message])
    assert_type(await session.pop(2, by="ann", reason="a typo"), list[Message])
    assert_type(await session.rewind(4), int)
    assert_type(await session.rewind(before_run="run_1"), int)
    assert_type(await session.clear(), int)
    assert_type(await session.fork("other", at_seq=3, metadata={"of": "user-123"}), Session)
    audit = await session.audit()
    assert_type(audit, Audit)
    assert_type(audit.edits, list[EditRecord])
    assert_type(audit.removed_by(audit.messages[0]), EditRecord | None)
    page = await session.page(limit=20)
    assert_type(page, MessagePage)
    assert_type(page.older, str | None)
    assert_type(page.newer, str | None)
    assert_type(page.resume, str)
    hits = await session.search("billing", role="user", author="ann", limit=5)
    assert_type(hits, SearchPage)
    assert_type((await manager.search("billing", owner="ann", tag="t", cursor=hits.cursor)).hits, list[SearchHit])
    assert_type((await session.head()).forked_from, ForkOrigin | None)


async def read_the_head(session: Session) -> None:
    head = await session.head()

    assert_type(head.id, str)
    assert_type(head.owner, str | None)
    assert_type(head.tags, tuple[str, ...])
    assert_type(head.metadata, dict[str, Any])
    assert_type(head.revision, int)
    assert_type(head.message_count, int)
    assert_type(head.run_count, int)
    assert_type(head.created_at_ms, int)
    assert_type(head.updated_at_ms, int)


async def drive_a_run_by_hand(session: Session) -> None:
    run = await session.create_run()

    assert_type(run, Run)
    assert_type(run.id, str)
    await run.start()
    await run.complete(tokens_used=150)
    assert_type(run.duration_ms, int | None)

    other = await session.create_run()
    await other.start()
    await other.fail("the printer is on fire")

    records = await session.runs(limit=10)
    assert_type(records, list[RunRecord])
    assert_type(records[0].usage.total_tokens, int)
    assert_type(records[0].duration_ms, int | None)
    assert_type(records[0].error, str | None)
    assert_type(records[0].input, tuple[Message, ...])


async def manage(runtime: Runtime) -> None:
    manager = SessionManager(runtime)

    assert_type(await manager.get_or_create("user-123", metadata={"tier": "gold"}, owner="u", tags=["vip"]), Session)
    assert_type(await manager.get("user-123"), Session | None)
    assert_type(await manager.delete("user-123"), bool)

    page = await manager.list(owner="u", tag="vip", updated_after=datetime(2026, 1, 1, tzinfo=UTC), limit=50)
    while page.cursor is not None:
        assert_type([head.id for head in page.sessions], list[str])
        page = await manager.list(updated_after=1_767_225_600_000, cursor=page.cursor)


def facts() -> None:
    assert_type(callboard.__version__, str)


async def read_along(session: Session, runtime: Runtime) -> None:
    async for event in session.events(after=41, progress=True):
        assert_type(event, SessionEvent)
        if isinstance(event, MessageAdded):
            assert_type(event.message, Message)
        elif isinstance(event, RunProgress):
            assert_type(event.event, RunEvent)
    async with session.events() as events:
        assert_type(await anext(events), SessionEvent)
        assert_type(events.number, int)
    stop = runtime.observe_runs(RunLog(content=False))
    assert_type(stop(), None)
    assert_type(current_run(), RunIds | None)


async def see_as_a_model(runtime: Runtime, model: Model) -> None:
    session = Session(runtime, "s", max_messages=50, max_tokens=8_000, strategy="head_and_tail")
    assert_type(await session.messages_for_llm(), list[dict[str, Any]])
    assert_type(await session.messages_for_llm(max_tokens=4_000, strategy="recent"), list[dict[str, Any]])
    counter: TokenCounter = TokenEstimate()
    view = await session.view(max_tokens=4_000, counter=counter)
    assert_type(view, WindowView)
    assert_type(view.messages, tuple[Message, ...])
    assert_type(view.tokens, int | None)
    assert_type(await session.compact(model, keep_messages=20), Overlay | None)
    assert_type(await session.overlay(), Overlay | None)
    Agent("Clerk", model=model, session=session, window=Window(max_tokens=8_000, strategy="summary", summarizer=model))

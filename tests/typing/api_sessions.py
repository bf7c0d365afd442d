"""Examples that mypy and pyright must accept, with the types that a caller sees. `make check` reads them; none runs."""

from datetime import UTC, datetime
from typing import Any, assert_type

import callboard
from callboard import Message, Run, RunRecord, Runtime, Session, SessionManager


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

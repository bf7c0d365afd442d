"""Writes the golden store of the present format: `python tests/golden/make_store.py tests/golden/format-N`.

Run it once with the code that a format was released with, then never again: what lies in `format-N` is what that code
wrote, and every later callboard must read or migrate it. Beside it lies `contents.json`: what that store gave back
through its contract (bytes as base64).

Source: format-1 was made by commit 0ad095b, with this program as of commit 7d239b5.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import anyio
import lmdb

from callboard import Agent, Runtime, Session, SessionManager
from callboard.actors.ledger import Ledger
from callboard.actors.message import Message
from callboard.actors.run_record import RunRecord
from callboard.actors.session_records import SessionDefaults, Step, stream_of
from callboard.runtime import Actor, Context, Reminder, Request, handles
from callboard.store import Batch, Index, IndexRow, LmdbStore, Row, Table
from callboard.testing import ScriptedModel

NAMES = (
    "session:user-1", "session:grüße", "session:trial", "session:deleted", "session:open", "session:large",
    "session:crashed", "counter:visits", "own:bytes",
)  # fmt: skip


class Add(Request[int], frozen=True):
    amount: int


class Counter(Actor):
    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        context.remind("hourly", every_s=3600.0)
        context.remind("once", at_ms=4_000_000_000_000)
        return self.total

    @handles(Reminder)
    def remind(self, message: Reminder, context: Context) -> None:
        """Nothing but its acknowledgement."""


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def contents(store: LmdbStore) -> dict[str, Any]:
    """All that the store gives back through its contract."""
    streams: dict[str, Any] = {}
    for name in NAMES:
        head = store.load(name)
        assert head is not None, name
        rows = [[table.name, encoded(k), encoded(v)] for table in Table for k, v in store.scan(name, table)]
        streams[name] = {"epoch": head.epoch, "version": head.version, "head": encoded(head.head), "rows": rows}
    entries = [[index.name, encoded(hit.value), hit.stream] for index in Index for hit in store.scan_index(index)]
    return {"owner": store.claim() - 1, "streams": streams, "entries": entries}


async def converse(path: Path) -> None:
    async with Runtime(path) as runtime:
        runtime.register("counter", Counter)
        await runtime.actor("counter", "visits").ask(Add(3))
        model = ScriptedModel()
        first = Session(runtime, "user-1", metadata={"plan": "pro", "n": 1.5}, owner="ann", tags=("billing", "vip"))
        for text in ("My name is Ann.", "What is my name?", "And my plan?"):
            await Agent("Helper", model=model, session=first).chat(text)
        await Session(runtime, "grüße", owner="Jürgen").add_message("user", "Grüß Gott \N{GRINNING FACE}")
        await Session(runtime, "trial", tags=("trial",)).add_messages(
            [{"role": "user", "content": f"message {number} " + "." * 100} for number in range(60)]
        )
        await SessionManager(runtime).get_or_create("deleted", owner="ann", tags=("trial",))
        await SessionManager(runtime).delete("deleted")
        by_hand = await Session(runtime, "open", owner="ann").create_run(agent="By hand")
        await by_hand.start()
        await Session(runtime, "large").add_message("user", "".join(f"{number:05d} " for number in range(5000)))


def add_by_hand(store: LmdbStore) -> None:
    """What a store that was closed in order does not have: a turn cut off after a step, odd bytes, an outcome."""
    ledger = Ledger("crashed", None)
    ledger.ensure(SessionDefaults(owner="ann"), at_ms=1_700_000_000_000)
    run = RunRecord(id="run_1", session_id="crashed", created_at_ms=1_700_000_000_000, agent="Helper")
    ledger.open_turn(1, run, at_ms=1_700_000_000_001)
    ledger.journal(Step(1, (Message(role="assistant", content="half of an answer"),)))
    change = ledger.take()
    assert change is not None
    epoch = store.claim() << 32
    turn = Batch(stream_of("crashed"), epoch, 0, change.head, change.rows, change.index_rows)
    rows = (
        Row(Table.OUTCOME, b"", b"empty key"),
        Row(Table.OUTCOME, b"\xff" * 64, b""),
        Row(Table.STEP, b"\0\1", bytes(range(256))),
    )
    entries = (IndexRow(Index.OWNER, b"a\0b\xff\0"), IndexRow(Index.UPDATED, b""))
    own = Batch("own:bytes", epoch, 0, head=b"\0head", rows=rows, index_rows=entries)
    assert store.commit([turn, own]) == [None, None]


def leave_in_the_log(store: LmdbStore) -> None:
    """As a crash leaves it: rows for a part, and the log for the rest."""
    store.checkpoint()
    head = store.load("own:bytes")
    assert head is not None
    rows = (Row(Table.OUTCOME, b"late", b"in the log"), Row(Table.STEP, b"\0\1", None))
    assert store.commit([Batch("own:bytes", head.epoch, head.version, rows=rows)]) == [None]


def main(target: Path) -> None:
    work = target.with_name(target.name + ".making")
    anyio.run(converse, work, backend="trio")
    store = LmdbStore(work)
    add_by_hand(store)
    leave_in_the_log(store)
    told = contents(store)
    store._give_back()  # pyright: ignore[reportPrivateUsage] -- closing would move the log into rows
    target.mkdir()
    (target / "contents.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    with lmdb.open(str(work), readonly=True) as env:
        env.copy(str(target), compact=True)
    for file in work.iterdir():
        file.unlink()
    work.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The process that is tested, many times over: one that has imported all, and forks a child for each life.

It runs with interpose.c loaded, and reads a JSON `Order` a line: play the scenario in one forked child, with the plan
armed; then open what is left in another, with no plan, and note what the store shows and whether it can still be used.
It answers with how each child ended; Children have no threads and no store from here: forking is safe.
"""

import ctypes
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from fault_journal import Note, Notebook
from fault_model import Dump, look
from fault_scenario import Scenario

from callboard.store import Batch, LmdbStore, Store, StoreError
from callboard.store.contract import Refusal
from callboard.store.lmdb_check import check_directory
from callboard.store.lmdb_copy import NEW_FILE
from callboard.store.migration import migrate

__all__ = ["Found", "Order", "Outcome"]

LIFE_S_MAX = 30
"""A life takes some 50 ms. A child that hangs is ended by SIGALRM and counts as broken."""


class Order(msgspec.Struct):
    """What to do in `folder`, which is there.

    `plan` None: only look at what lies there. `broken`: see BROKEN. `golden`: migrate the store with this data.mdb,
    of an older format, instead of playing the scenario.
    """

    folder: str
    plan: str | None = ""
    seed: int = 0
    durability: Literal["sync", "async"] = "sync"
    with_bytes: bool = False
    broken: str = ""
    golden: str = ""


class Outcome(msgspec.Struct):
    """How the children ended: exit status, or the negative number of the signal; what they raised."""

    life: int
    look: int
    crash: str = ""


class Found(msgspec.Struct):
    """What the second child saw, where it could look and the store could be used."""

    dump: Dump = []
    claimed: int = 0
    backup: Dump | None = None


class _AnswersEarly(LmdbStore):
    """Broken on purpose: says that a commit is stored, and stores it with the next."""

    _held: tuple[Batch, ...] = ()

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        held, self._held = self._held, tuple(batches)
        if held:
            super().commit(held)
        return [None for _ in batches]


class _Halves(LmdbStore):
    """Broken on purpose: stores the batches of one commit one by one."""

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        return [answer for batch in batches for answer in super(_Halves, self).commit([batch])]


class _HidesErrors(LmdbStore):
    """Broken on purpose: a commit that failed is said to be stored."""

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        try:
            return super().commit(batches)
        except StoreError:
            return [None for _ in batches]


BROKEN = {"": LmdbStore, "answers early": _AnswersEarly, "halves": _Halves, "hides errors": _HidesErrors}


def open_store(order: Order, path: Path, readonly: bool) -> Store:
    """A small map and a small log, so that both overflow all the time."""
    make = BROKEN[order.broken]
    return make(path, durability=order.durability, map_size_bytes=1 << 17, log_bytes_max=2_000, readonly=readonly)


def play(order: Order) -> None:
    folder = Path(order.folder)
    shim = ctypes.CDLL(None)
    arm(order, order.plan or "")
    notebook = Notebook(folder / "journal")
    Scenario(folder / "root", notebook, heal=shim.faults_heal, open_store=partial(open_store, order)).run(order.seed)


def play_migration(order: Order) -> None:
    """Twice, where it fails with what a store may raise."""
    folder = Path(order.folder)
    path = folder / "root" / "store"
    path.mkdir()
    shutil.copyfile(order.golden, path / "data.mdb")
    arm(order, order.plan or "")
    notebook = Notebook(folder / "journal")
    notebook.write(Note("step", "migrate"))
    for _ in range(2):
        try:
            migrate(path)
            return
        except StoreError as error:
            notebook.write(Note("raised", f"migrate: {error}", error=type(error).__name__))


def look_at_the_migrated(order: Order) -> None:
    """Migrate what has the old format still; then Found as of any store."""
    path = Path(order.folder) / "root" / "store"
    found = Found()
    migrate(path)
    assert not (path / NEW_FILE).exists()
    assert not check_directory(path).findings
    store = LmdbStore(path)
    found.dump = look(store)
    found.claimed = store.claim()
    store.close()
    (Path(order.folder) / "found").write_bytes(msgspec.msgpack.encode(found))


def arm(order: Order, plan: str) -> None:
    settings = {"FAULTS_ROOT": f"{order.folder}/root", "FAULTS_JOURNAL": f"{order.folder}/journal", "FAULTS_PLAN": plan}
    os.environ.update(settings)
    if order.with_bytes:
        os.environ["FAULTS_BYTES"] = "1"
    ctypes.CDLL(None).faults_arm()


def look_at_what_is_left(order: Order) -> None:
    """Open, look, use, close, open again: Found goes to `folder`/found."""
    path = Path(order.folder) / "root" / "store"
    found = Found()
    store = LmdbStore(path, map_size_bytes=1 << 17, log_bytes_max=2_000)
    found.dump = look(store)
    found.claimed = store.claim()
    head = store.load("session:a")
    batch = Batch("session:a", 1 << 40, head.version if head is not None else 0, head=b"usable")
    assert store.commit([batch]) == [None]
    store.close()
    store = LmdbStore(path, readonly=True)
    head = store.load("session:a")
    assert head is not None
    assert head.head == b"usable"
    store.close()
    findings = check_directory(path).findings
    assert not findings, findings
    backup = path.with_name("backup")
    if backup.exists():
        store = LmdbStore(backup, readonly=True)
        found.backup = look(store)
        store.close()
    (Path(order.folder) / "found").write_bytes(msgspec.msgpack.encode(found))


def in_child(work: Callable[[Order], None], order: Order) -> int:
    pid = os.fork()
    if not pid:
        signal.alarm(LIFE_S_MAX)
        code = 1
        try:
            work(order)
            code = 0
        except BaseException:  # noqa: BLE001 - a forked child must never return into the server
            with (Path(order.folder) / "crashed").open("a") as file:
                file.write(traceback.format_exc())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    logging.disable(logging.CRITICAL)  # the store warns of what it met, on and on
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        work, inspect = (play_migration, look_at_the_migrated) if order.golden else (play, look_at_what_is_left)
        life = in_child(work, order) if order.plan is not None else 0
        outcome = Outcome(life, in_child(inspect, order))
        crash = Path(order.folder) / "crashed"
        if crash.exists():
            outcome.crash = crash.read_text()
        os.write(1, msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()

"""One life of a store, in steps that use every operation of the contract; what is done and what came of it is noted.

The program does what an application would. An error after which nothing was stored: the same call once more on the same
open store. One that leaves it uncertain: look whether it was stored, on the same store if it still answers, else on one
opened anew. What still fails is left, and the next step is tried. At the end the disk is well again, and the store must
be too.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

from fault_journal import Note, Notebook
from fault_model import BACK_UP, digest, look

from callboard.store import Batch, Index, IndexRow, LmdbStore, Row, Store, StoreError, StoreUnavailable, Table, keys
from callboard.store.lmdb_check import check_directory, repair_directory
from callboard.store.lmdb_copy import back_up, compact

__all__ = ["FINAL", "Scenario"]

FINAL = "the disk is well again"
"""The last step."""
STREAMS = ("session:a", "session:b", "agent:c", "sesión:d")
LONG = 17_000
"""Bytes: past what a store may put in its rows as it is."""


class _Watched:
    """A store that remembers which of its methods were used."""

    def __init__(self, store: Store, called: set[str]) -> None:
        self._store = store
        self._called = called

    def __getattr__(self, name: str) -> object:
        self._called.add(name)
        return getattr(self._store, name)


class Scenario:
    """A program on the store in `folder`.

    Args:
        heal: called before the last step.
        open_store: opens the store, given its path and whether it is to be read only.
    """

    def __init__(
        self, folder: Path, notebook: Notebook, *, heal: Callable[[], None], open_store: Callable[[Path, bool], Store]
    ) -> None:
        self._path = folder / "store"
        self._notebook = notebook
        self._heal = heal
        self._open_store = open_store
        self._store: Store | None = None
        self._owner = 1
        self._failed = False
        self._called: set[str] = set()

    def run(self, seed: int = 0) -> None:
        """Take all steps. Seed 0 is the program of every run, others add steps by chance."""
        for name, step in self._steps(seed):
            self._note("step", name)
            step()
        self._notebook.write(Note("called", answers=sorted(self._called)))

    def _steps(self, seed: int) -> list[tuple[str, Callable[[], object]]]:
        steps: list[tuple[str, Callable[[], object]]] = [
            ("open a new store", self._open),
            ("claim", self._claim),
            ("first commit of three streams", self._first),
            ("commit with refused batches", self._refused),
            *[(f"append {number}", lambda n=number: self._append(STREAMS[n % 2], n)) for number in range(3)],
            ("large values, twice the same", self._large),
            ("look around", self._look_around),
            ("delete rows, move entries", self._change),
            ("the map grows", lambda: self._append(STREAMS[0], 9, size_bytes=150_000)),
            ("erase", self._erase),
            ("append after erasing", lambda: self._append(STREAMS[1], 10)),
            ("checkpoint", self._checkpoint),
            ("append behind the checkpoint", lambda: self._append(STREAMS[1], 11)),
            ("replace and delete large values", self._replace_large),
            ("close", self._close),
            ("read only", self._read_only),
            (BACK_UP, self._back_up),
            ("check", self._check),
            ("compact", lambda: self._try("compact", lambda: compact(self._path))),
            ("repair", lambda: self._try("repair", lambda: repair_directory(self._path))),
            ("reopen", self._open),
            ("claim again", self._claim),
            ("the new owner appends", lambda: self._append(STREAMS[0], 12)),
            ("the old owner is refused", self._late),
        ]
        chance = random.Random(seed)
        for number in range(20 * bool(seed)):
            steps.append(self._any_step(chance, 100 + number))
        return [*steps, (FINAL, self._recover)]

    def _any_step(self, chance: random.Random, number: int) -> tuple[str, Callable[[], object]]:
        stream = chance.choice(STREAMS)
        size_bytes = chance.choice([10, 700, 5_000, LONG, 60_000])
        return chance.choice(
            [
                ("append", lambda: self._append(stream, number, size_bytes=size_bytes)),
                ("append", lambda: self._append(stream, number, size_bytes=size_bytes)),
                ("erase", self._erase),
                ("change", self._change),
                ("large", self._large),
                ("replace large", self._replace_large),
                ("checkpoint", self._checkpoint),
                ("reopen", self._reopen),
            ]
        )

    # Steps ----------------------------------------------------------------------------------------------------------

    def _first(self) -> None:
        def batches() -> list[Batch]:
            entries = (IndexRow(Index.UPDATED, b"1"), IndexRow(Index.OWNER, b"ann"))
            return [
                self._batch(
                    name, head=f"head of {name}".encode(), rows=(self._row(0), self._row(1)), index_rows=entries
                )
                for name in STREAMS[:3]
            ]

        self._commit(batches)

    def _refused(self) -> None:
        def batches() -> list[Batch]:
            return [
                self._batch(STREAMS[0], rows=(self._row(2),)),
                Batch("never", 1, 7, rows=(self._row(3),), index_rows=(IndexRow(Index.TAG, b"never"),)),
                Batch(STREAMS[1], 0, 1, rows=(self._row(3),)),
                self._batch(STREAMS[2], rows=(self._row(4),)),
            ]

        self._commit(batches)

    def _append(self, stream: str, number: int, *, size_bytes: int = 700) -> None:
        def batches() -> list[Batch]:
            batch = self._batch(stream, head=f"head {number}".encode(), rows=(self._row(number, size_bytes),))
            other = self._batch(STREAMS[2], rows=(Row(Table.RUN, b"r", f"run {number}".encode()),))
            return [batch, other]

        self._commit(batches)

    def _large(self) -> None:
        value = bytes(range(256)) * (LONG // 256 + 1)
        rows = (Row(Table.SPAN, b"large", value), Row(Table.SPAN, b"small", b"s"))
        self._commit(lambda: [self._batch(name, rows=rows) for name in (STREAMS[0], STREAMS[3])])

    def _replace_large(self) -> None:
        self._commit(
            lambda: [
                self._batch(STREAMS[0], rows=(Row(Table.SPAN, b"large", b"z" * LONG),)),
                self._batch(STREAMS[3], rows=(Row(Table.SPAN, b"large", None),)),
            ]
        )

    def _change(self) -> None:
        rows = (Row(Table.MESSAGE, keys.number(1), None), Row(Table.RUN, b"r", None))
        entries = (
            IndexRow(Index.UPDATED, b"1", present=False),
            IndexRow(Index.UPDATED, b"2"),
            IndexRow(Index.TAG, b"zero\0"),
        )
        self._commit(lambda: [self._batch(name, rows=rows, index_rows=entries) for name in STREAMS[:2]])

    def _erase(self) -> None:
        entries = (IndexRow(Index.TAG, b"erased"),)
        self._commit(lambda: [self._batch(STREAMS[1], erase=True, index_rows=entries), self._batch(STREAMS[0])])

    def _late(self) -> None:
        self._commit(lambda: [self._batch(STREAMS[0], epoch=self._owner - 1, rows=(self._row(99),))])

    def _look_around(self) -> None:
        if self._store is None:
            return
        store = self._opened()
        store.scan(STREAMS[0], Table.MESSAGE, start=keys.number(1), limit=2, newest_first=True)
        store.scan_index(Index.UPDATED, prefix=b"1", limit=1)
        assert store.statistics().streams == len(store.streams())

    def _claim(self) -> None:
        def claim() -> None:
            number = self._opened().claim()
            self._owner = max(number, self._owner)
            self._notebook.write(Note("claimed", number=number))

        self._try("claim", claim)

    def _checkpoint(self) -> None:
        def checkpoint() -> None:
            assert isinstance(self._store, LmdbStore)
            self._store.checkpoint()

        self._try("checkpoint", checkpoint)

    def _read_only(self) -> None:
        def read() -> None:
            store = self._open_store(self._path, True)
            try:
                self._notebook.write(Note("seen", "read only", dump=digest(look(store))))
            finally:
                store.close()

        self._try("read only", read)

    def _back_up(self) -> None:
        # Whole or not there, that is seen at the end: after an error too a second try finds nothing in its way.
        self._try(BACK_UP, lambda: back_up(self._path, self._path.with_name("backup")))

    def _check(self) -> None:
        def check() -> None:
            findings = check_directory(self._path).findings
            assert not findings, findings

        self._try("check", check)

    def _open(self) -> None:
        def open_it() -> None:
            self._store = self._open_store(self._path, False)
            self._note("opened")

        self._try("open", open_it)
        self._see("after opening")

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            self._try("close", store.close)
            self._try("close again", store.close)

    def _reopen(self) -> None:
        self._close()
        self._open()

    def _recover(self) -> None:
        # Nothing is left to fail: whatever is raised here is raised.
        self._heal()
        self._see("with the disk well again")
        if self._store is None:
            self._store = self._open_store(self._path, False)
            self._note("opened")
        batches = [self._batch(name, rows=(self._row(1000),)) for name in STREAMS]
        answers = self._commit_once(batches)
        assert answers == [""] * len(batches), answers
        self._notebook.write(Note("claimed", number=self._opened().claim()))
        self._see("at the end")
        self._close()

    # What an application does --------------------------------------------------------------------------------------

    def _commit(self, make: Callable[[], list[Batch]]) -> None:
        """Commit what `make` builds on what is stored now."""

        def commit() -> None:
            batches = make()
            self._commit_once(batches)

        self._try("commit", commit)
        if self._failed:  # before that it takes half of the time and shows nothing new
            self._see("after a commit")

    def _commit_once(self, batches: list[Batch]) -> list[str]:
        self._notebook.write(Note("try", batches=batches))
        answers = ["" if answer is None else type(answer).__name__ for answer in self._opened().commit(batches)]
        self._notebook.write(Note("done", answers=answers))
        return answers

    def _try(self, what: str, call: Callable[[], object]) -> None:
        """Call it, and once more if it failed with nothing stored."""
        for _ in range(2):
            if self._store is None and what in ("commit", "claim", "checkpoint"):
                self._open()
                if self._store is None:
                    return
            try:
                call()
                self._called.add(what)
                return
            except StoreError as error:
                self._failed = True
                name = type(error).__name__
                self._notebook.write(Note("raised", f"{what}: {error}", error=name, uncertain=error.uncertain))
                if error.uncertain and self._store is not None:
                    self._see("after an uncertain error")
                    return

    def _see(self, when: str) -> None:
        """Note what the open store shows. One that does not answer any more is given up."""
        if self._store is None:
            return
        try:
            self._notebook.write(Note("seen", when, dump=digest(look(self._opened()))))
        except StoreUnavailable as error:
            self._notebook.write(Note("raised", f"look: {error}", error=type(error).__name__))
            self._close()

    def _batch(
        self,
        stream: str,
        *,
        epoch: int | None = None,
        head: bytes | None = None,
        rows: tuple[Row, ...] = (),
        index_rows: tuple[IndexRow, ...] = (),
        erase: bool = False,
    ) -> Batch:
        stored = self._opened().load(stream)
        version = stored.version if stored is not None else 0
        return Batch(stream, self._owner if epoch is None else epoch, version, head, rows, index_rows, erase)

    @staticmethod
    def _row(number: int, size_bytes: int = 300) -> Row:
        return Row(Table.MESSAGE, keys.number(number), random.Random(number).randbytes(size_bytes))

    def _opened(self) -> Store:
        if self._store is None:
            raise StoreUnavailable("the store could not be opened")
        return cast(Store, _Watched(self._store, self._called))

    def _note(self, what: str, text: str = "") -> None:
        self._notebook.write(Note(what, text))

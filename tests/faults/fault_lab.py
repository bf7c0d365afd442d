"""Where lives of a store are played: servers with interpose.c loaded, and the verdict on each life."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from queue import SimpleQueue

import msgspec
from fault_disk import Files
from fault_journal import Entry, Note, read_journal
from fault_model import Broken, Possible
from fault_server import Found, Order, Outcome

__all__ = ["Lab", "Life", "open_lab"]

HERE = Path(__file__).parent


class Life(msgspec.Struct):
    """One life that was played: its plan, its journal, how it ended, what was found then, and "" or what was broken."""

    plan: str
    root: str
    journal: list[Entry]
    outcome: Outcome
    found: Found
    fault: str = ""

    @property
    def hit(self) -> bool:
        return any(entry.hit for entry in self.journal)

    def notes(self) -> Iterator[Note]:
        return (entry.note for entry in self.journal if entry.note is not None)


class _Server:
    def __init__(self, shim: Path, folder: Path) -> None:
        # What is measured here dies: coverage would see nothing of it, and would make each life three times as long.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fault_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**with_our_modules(kept), "LD_PRELOAD": str(shim), "PYTHONHASHSEED": "0"},
        )

    def ask(self, order: Order) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Outcome)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def with_our_modules(environment: dict[str, str]) -> dict[str, str]:
    """So that the server finds them also under PYTHONSAFEPATH."""
    return {**environment, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}


class Lab:
    """Plays lives on all its servers at once."""

    def __init__(self, servers: list[_Server]) -> None:
        self._free: SimpleQueue[_Server] = SimpleQueue()
        for server in servers:
            self._free.put(server)
        self._count = len(servers)
        self._numbers = iter(range(1 << 62))
        self._lock = threading.Lock()
        self._looked: dict[bytes, tuple[Outcome, Found]] = {}

    def play(self, plan: str = "", **order: object) -> Life:
        """One life and the verdict on it."""
        with self._folder() as (server, folder):
            outcome = server.ask(msgspec.convert({**order, "folder": str(folder), "plan": plan}, Order))
            journal, found = read_journal(folder / "journal"), _read_found(folder)
            life = Life(plan, str(folder / "root"), journal, outcome, found)
            life.fault = _fault(life, contents_known=not order.get("golden"))
        return life

    def play_all(self, plans: Iterable[str], **order: object) -> Iterator[Life]:
        with ThreadPoolExecutor(self._count) as pool:
            yield from pool.map(partial(self.play, **order), plans)

    def look_all(self, disks: Iterable[tuple[Files, Possible]]) -> list[str]:
        """Open each of these disks and judge what is there: "" or what is broken. Equal ones are opened once."""
        with ThreadPoolExecutor(self._count) as pool:
            return list(pool.map(self._look, disks))

    def _look(self, disk: tuple[Files, Possible]) -> str:
        files, possible = disk
        known = blake2b(repr(sorted(files.items())).encode()).digest()
        if known not in self._looked:
            with self._folder() as (server, folder):
                _lay_out(files, folder / "root")
                outcome = server.ask(Order(str(folder), plan=None))
                self._looked[known] = outcome, _read_found(folder)
        try:
            _judge(possible, *self._looked[known])
        except Broken as broken:
            return str(broken)
        return ""

    @contextmanager
    def _folder(self) -> Generator[tuple[_Server, Path]]:
        server = self._free.get()
        with self._lock:
            folder = server.folder / str(next(self._numbers))
        try:
            (folder / "root").mkdir(parents=True)
            yield server, folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._free.put(server)


def _fault(life: Life, *, contents_known: bool) -> str:
    possible = Possible()
    try:
        for note in life.notes():
            possible.note(note)
        killed = life.plan.split(" ")[0] in ("kill", "half", "tear") and life.hit
        if life.outcome.life != (-signal.SIGKILL if killed else 0):
            raise Broken(f"the process ended with {life.outcome.life}: {life.outcome.crash}")
        if killed:
            possible = possible.died()
        else:
            _judge_errors(life)
        _judge(possible if contents_known else None, life.outcome, life.found)
    except Broken as broken:
        return str(broken)
    return ""


def _lay_out(files: Files, root: Path) -> None:
    for name, content in sorted(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


def _read_found(folder: Path) -> Found:
    path = folder / "found"
    return msgspec.msgpack.decode(path.read_bytes(), type=Found) if path.exists() else Found()


def _judge(possible: Possible | None, outcome: Outcome, found: Found) -> None:
    if outcome.look != 0:
        raise Broken(f"the process that opened the store anew ended with {outcome.look}: {outcome.crash}")
    if possible is None:
        return
    possible.check(found.dump)
    possible.check_backup(found.backup)
    if found.claimed <= possible.claimed:
        raise Broken(f"owner number {found.claimed} was given after {possible.claimed}")


def _judge_errors(life: Life) -> None:
    """What failed was told in a way that says what to do, and where it can be, the same open store went on."""
    raised = [note for note in life.notes() if note.what == "raised"]
    for note in raised:
        if life.root not in note.text and "could not be opened" not in note.text:
            raise Broken(f"an error that does not say where: {note.text!r}")
    if life.plan.startswith("short") or life.plan.endswith(" 28 on"):
        for note in raised:
            if note.text.startswith(("commit", "claim")) and not note.uncertain and note.error != "StoreFull":
                raise Broken(f"no room is left, and it is called {note.error}: {note.text}")
    if life.plan.endswith("once") and len(raised) > 1:
        raise Broken(f"one failure was felt more than once: {[note.text for note in raised]}")


@contextmanager
def open_lab(servers: int = os.cpu_count() or 1) -> Generator[Lab]:
    """Compile interpose.c and start the servers; their files are in memory where there is a file system for it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="callboard-faults-", dir=memory if memory.is_dir() else None) as name:
        shim = Path(name) / "interpose.so"
        compile_shim(shim)
        started = [_Server(shim, Path(name) / f"server-{number}") for number in range(servers)]
        try:
            yield Lab(started)
        finally:
            for server in started:
                server.close()


def compile_shim(shim: Path) -> None:
    command = ["cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(shim), str(HERE / "interpose.c")]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)

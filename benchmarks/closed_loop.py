"""Load for benchmarks: callers in a closed loop, the upstream as a process of its own, and its limit."""

import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx

__all__ = [
    "Caller",
    "Round",
    "allow_open_files",
    "closed_loop",
    "fdatasync_s",
    "open_upstream",
    "percentile_ms",
    "requests_per_s_max",
    "serving",
    "steady_loop",
]

Caller = Callable[[], Awaitable[None]]
"""Makes one call and returns when it is answered."""


@dataclass(slots=True)
class Round:
    """What the callers did in one round: how long each call took, and the time and CPU time that all took together."""

    latencies_s: list[float] = field(default_factory=lambda: list[float]())
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.elapsed_s


async def closed_loop(
    callers: Sequence[Caller], *, seconds: float, spread_s: float = 0.0, first: Sequence[Caller] | None = None
) -> Round:
    """Let each caller call again and again for so long; calls that have begun by then are finished and counted.

    Args:
        callers: each works in a task of its own. The first call of each, which connects, is not counted.
        seconds: how long calls are begun.
        spread_s: the callers begin evenly over this time, so that they do not come in one burst.
        first: what each calls first, in place of itself.
    """
    done = Round()
    go = anyio.Event()
    warm = anyio.Semaphore(0)
    # By the wall, not by the loop's clock: a loop that is behind must not look fast.
    clock = time.perf_counter

    async def work(caller: Caller, first: Caller, delay_s: float) -> None:
        await first()
        warm.release()
        await go.wait()
        await anyio.sleep(delay_s)
        while (began_s := clock()) < until_s:
            await caller()
            done.latencies_s.append(clock() - began_s)

    cpu_s = start_s = until_s = 0.0
    async with anyio.create_task_group() as tasks:
        for number, (caller, beginning) in enumerate(zip(callers, first or callers, strict=True)):
            tasks.start_soon(work, caller, beginning, spread_s * number / len(callers))
        for _ in callers:
            await warm.acquire()
        cpu_s, start_s = time.process_time(), clock()
        until_s = start_s + seconds
        go.set()
    done.elapsed_s, done.cpu_s = clock() - start_s, time.process_time() - cpu_s
    return done


async def steady_loop(callers: Sequence[Caller], *, seconds: float, warm_s: float, spread_s: float) -> Round:
    """Let each caller call again and again, and count the calls that end within so long, without a pause before it.

    Args:
        callers: each works in a task of its own.
        seconds: how long calls are counted.
        warm_s: how long the callers have called when counting begins.
        spread_s: the callers begin evenly over this time.
    """
    done = Round()
    counting = False

    async def work(caller: Caller, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        while True:
            began_s = time.perf_counter()
            await caller()
            if counting:
                done.latencies_s.append(time.perf_counter() - began_s)

    async with anyio.create_task_group() as tasks:
        for number, caller in enumerate(callers):
            tasks.start_soon(work, caller, spread_s * number / len(callers))
        await anyio.sleep(warm_s)
        counting, cpu_s, start_s = True, time.process_time(), time.perf_counter()
        await anyio.sleep(seconds)
        done.elapsed_s, done.cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        counting = False
        tasks.cancel_scope.cancel()
    return done


def percentile_ms(latencies_s: list[float], percent: int) -> float:
    """The nearest-rank percentile, in milliseconds."""
    ordered = sorted(latencies_s)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000


@contextmanager
def open_upstream(*, text: str, delay_s: float) -> Generator[str]:
    """A fake upstream in a process of its own, which answers `text`; the URL of its API."""
    command = [sys.executable, "-m", "callboard.fake_upstream", "--until-stdin-ends", "--backend", "asyncio"]
    with serving([*command, "--text", text, "--delay-s", str(delay_s)]) as url:
        yield url


@contextmanager
def serving(command: list[str]) -> Generator[str]:
    """A server in a process of its own, which ends with its standard input; the URL that it prints."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=10)


def requests_per_s_max(url: str, body: bytes, *, connections: int, seconds: float) -> float:
    """How many requests a second the upstream answers to a client that does next to nothing: bare sockets, no parsing.

    All answers are equally long: the first one tells how many bytes each has.
    """
    address = httpx.URL(url)
    head = f"POST {address.path}/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    sockets = {each.fileno(): each for each in (_connected(address) for _ in range(connections))}
    sockets[next(iter(sockets))].sendall(request)
    size_bytes = _size_of_answer(sockets[next(iter(sockets))])
    poll = select.epoll()
    for number, each in sockets.items():
        poll.register(number, select.EPOLLIN)
        each.sendall(request)
    missing = dict.fromkeys(sockets, size_bytes)
    answered = 0
    start_s = time.perf_counter()
    while time.perf_counter() < start_s + seconds:
        for number, _ in poll.poll():
            missing[number] -= len(sockets[number].recv(65536))
            if missing[number] == 0:
                answered += 1
                missing[number] = size_bytes
                sockets[number].sendall(request)
    per_s = answered / (time.perf_counter() - start_s)
    poll.close()
    for each in sockets.values():
        each.close()
    return per_s


def _connected(address: httpx.URL) -> socket.socket:
    assert address.port is not None
    connected = socket.create_connection((address.host, address.port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _size_of_answer(connected: socket.socket) -> int:
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += connected.recv(65536)
    lines = received[:end].decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    size_bytes = end + 4 + length
    while len(received) < size_bytes:
        received += connected.recv(65536)
    return size_bytes


def fdatasync_s(path: Path, *, times: int) -> list[float]:
    """How long the disk takes to have four more kilobytes of a file, each time; in seconds."""
    took_s: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took_s.append(time.perf_counter() - began_s)
    return took_s


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit, which is often 1 024, where the hard one allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard >= 0 else count, hard))

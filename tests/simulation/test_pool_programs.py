"""Programs of requests through the connection pool, made from seeds, on both backends; see pool_program.py.

    CALLBOARD_SEEDS=1000:9000 pytest tests/simulation/test_pool_programs.py       other programs than those of CI

A seed that fails is printed, and `pool_checks.play(seed, backend)` plays its draws again. Deliberately broken pools
follow, one for each promise: the programs must catch every one of them.
"""

# A mutation reaches into the pool, and takes whatever the function takes that it replaces.
# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false

import contextlib
import gc
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import anyio
import httpx
import pytest
from pool_checks import play
from pool_program import BEHAVIOURS, Backend

from callboard.actors import http_connection
from callboard.actors.dialing import dial
from callboard.actors.http1 import ResponseParser
from callboard.actors.http_connection import HttpConnection
from callboard.actors.pool import ConnectionPool, PooledResponse
from callboard.actors.pooled_transport import PooledBody, PooledTransport
from callboard.first_error import first_error

SHARE = 10
"""So many seeds of the kernel's programs, which take no time, to one of these, which take a tenth of a second."""
_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:500").split(":"))
SEEDS = range(_first, _first + max((_last - _first) // SHARE, 1))
GROUP = 10
SEEDS_FOR_MUTATIONS = range(300)
"""Each mutation is caught by one of these, most by one of the first five; a busy machine hides some for long."""

pytest.importorskip("cryptography")


played = cache(play)


@pytest.mark.parametrize("seeds", [SEEDS[start : start + GROUP] for start in range(0, len(SEEDS), GROUP)], ids=str)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_programs_hold_every_invariant(backend: Backend, seeds: range) -> None:
    for seed in seeds:
        print(f"seed {seed} on {backend}: pool_checks.play({seed}, {backend!r}) plays its draws again")
        played(seed, backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_programs_reach_every_behaviour_and_every_kind_of_end(backend: Backend) -> None:
    programs = [played(seed, backend) for seed in range(30)]

    met = Counter(each for program in programs for request in program.requests for each in request.met)
    ended = Counter(request.ended for program in programs for request in program.requests)
    retried = sum(len(request.met) == 2 for program in programs for request in program.requests)

    assert set(met) == set(BEHAVIOURS)
    assert min(ended[each] for each in ("answered", "given up", "cancelled", "ReadTimeout", "ReadError")) > 0
    assert retried > 0
    assert {program.tls for program in programs} == {True, False}


# The broken pools.

_close_response = PooledResponse.close
_begin = HttpConnection.begin


def kept_whatever_comes(self: PooledResponse) -> None:
    connection, self._connection = self._connection, None
    if connection is not None:
        self._origin.in_use -= 1
        self._origin.idle.append((time.monotonic(), connection))


def lost_when_not_reusable(self: PooledResponse) -> None:
    if self._connection is not None and not self._connection.reusable:
        self._origin.in_use -= 1
        self._connection = None
    _close_response(self)


def counted_no_more(self: PooledResponse) -> None:
    self._origin.in_use += self._connection is not None and not self._connection.reusable
    _close_response(self)


async def repeated_after_the_first_byte(self: HttpConnection, request: bytes, **options: Any) -> Any:
    try:
        return await _begin(self, request, **options)
    except httpx.HTTPError:
        self.heard = False
        raise


async def never_repeated(self: HttpConnection, request: bytes, **options: Any) -> Any:
    try:
        return await _begin(self, request, **options)
    except httpx.HTTPError:
        self.heard = True
        raise


async def remembered(self: ConnectionPool, route: Any) -> HttpConnection:
    connection = await _connect(self, route)
    _ways[connection] = lambda: dial(route, ssl_context=self.ssl_context)
    return connection


async def repeated_on_a_first_use(self: HttpConnection, request: bytes, **options: Any) -> Any:
    way = _ways.pop(self, None)
    try:
        return await _begin(self, request, **options)
    except httpx.HTTPError:
        if self.heard or way is None:
            raise
    self.close()
    self.__init__(*await way())
    return await _begin(self, request, **options)


class BrokenLimiter:
    """In place of a transport's limiter, which it still asks."""

    released = 0

    def __init__(self, real: anyio.CapacityLimiter) -> None:
        self._real = real
        self.acquire_on_behalf_of = real.acquire_on_behalf_of
        self.release_on_behalf_of = real.release_on_behalf_of
        self.statistics = real.statistics


class WearsOut(BrokenLimiter):
    def __init__(self, real: anyio.CapacityLimiter) -> None:
        super().__init__(real)
        self.release_on_behalf_of = self.release

    def release(self, holder: object) -> None:
        self._real.release_on_behalf_of(holder)
        WearsOut.released += 1
        if WearsOut.released % 20 == 0:
            with contextlib.suppress(anyio.WouldBlock):
                self._real.acquire_on_behalf_of_nowait(object())


class HasNoOrder(BrokenLimiter):
    def __init__(self, real: anyio.CapacityLimiter) -> None:
        super().__init__(real)
        self.acquire_on_behalf_of = self.acquire

    async def acquire(self, holder: object) -> None:
        while True:
            try:
                return self._real.acquire_on_behalf_of_nowait(holder)
            except anyio.WouldBlock:
                await anyio.sleep(0.001)


def one_too_many(real: anyio.CapacityLimiter) -> anyio.CapacityLimiter:
    if not real.statistics().borrowed_tokens:
        real.total_tokens = _tokens.setdefault(real, real.total_tokens + 1)
    return real


async def only_the_response(self: PooledBody) -> None:
    whole = self._response._ended
    self._response.close()
    release, self._release = self._release, None
    if release is not None and whole:
        release()


_connect = ConnectionPool._connect
_limiter = PooledTransport._limiter
_ways: dict[HttpConnection, Callable[[], Any]] = {}
_tokens: dict[anyio.CapacityLimiter, float] = {}

MUTATIONS: dict[str, list[tuple[Any, str, Any]]] = {
    "a connection goes back whatever came": [(PooledResponse, "close", kept_whatever_comes)],
    "what is left over does not matter": [
        (ResponseParser, "keep_alive", property(lambda self: self.complete and not self._closes))
    ],
    "what says close is kept": [
        (ResponseParser, "keep_alive", property(lambda self: self.complete and not self._left_over))
    ],
    "what lies in the TLS layer does not matter": [(http_connection, "_has_no_more", lambda _: True)],
    "a connection that is done with stays open": [(PooledResponse, "close", lost_when_not_reusable)],
    "a connection that is done with counts on": [(PooledResponse, "close", counted_no_more)],
    "idle ones stay open": [(ConnectionPool, "close_idle", lambda self: None)],
    "repeated after the first byte": [(HttpConnection, "begin", repeated_after_the_first_byte)],
    "never repeated": [(HttpConnection, "begin", never_repeated)],
    "repeated on a first use": [
        (ConnectionPool, "_connect", remembered),
        (HttpConnection, "begin", repeated_on_a_first_use),
    ],
    "a response that is not read to its end keeps its slot": [(PooledBody, "aclose", only_the_response)],
    "slots wear out": [(PooledTransport, "_limiter", lambda self, route: WearsOut(_limiter(self, route)))],
    "slots are given in no order": [
        (PooledTransport, "_limiter", lambda self, route: HasNoOrder(_limiter(self, route)))
    ],
    "a slot too many": [(PooledTransport, "_limiter", lambda self, route: one_too_many(_limiter(self, route)))],
}


@pytest.mark.parametrize("broken", MUTATIONS)
def test_a_broken_pool_is_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, replacement in MUTATIONS[broken]:
        monkeypatch.setattr(owner, name, replacement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sockets that a broken pool drops, here and not in the test that follows
        fault = first_fault()
        gc.collect()

    assert fault, "no program of these seeds has noticed"
    print(fault)


def first_fault() -> str:
    for seed in SEEDS_FOR_MUTATIONS:
        try:
            play(seed, "trio")
        except (AssertionError, TimeoutError) as error:
            first = first_error(error)
            return f"seed {seed}: {type(first).__name__}: {first}"
    return ""

"""The figures to reach in bench_model_path.py."""

from collections.abc import Iterator, Sequence

from targets import Target

__all__ = ["OTHERS", "TARGETS", "backends_of"]

OTHERS = ("httpx", "httpx2", "aiohttp", "openai")
SOCKET = "socket on {backend}"


def backends_of(other: str) -> tuple[str, ...]:
    """The event loops that it knows."""
    return ("asyncio",) if other == "aiohttp" else ("trio", "asyncio")


def _beside_all(work: str, row: str, figure: str, *, ours: str, at_most: float | None = None) -> Iterator[Target]:
    """Our cost beside each other client's on the same event loop; the limit is for trio beside httpx."""
    for other in OTHERS:
        for backend in backends_of(other):
            limit = at_most if (other, backend) == ("httpx", "trio") else None
            beside, backends = f"{other} on {{backend}}", (backend,)
            yield Target(work, row, figure, beside, limit=limit, faster=False, backends=backends, ours=ours)


def _tokens(work: str, row: str, *, at_least: float) -> Iterator[Target]:
    """How many times the others' tokens; the limit is for both event loops beside the openai client."""
    for other in OTHERS:
        beside, limit = f"{other} on {{backend}}", at_least if other == "openai" else None
        yield Target(work, row, "tokens_per_cpu_s", beside, limit=limit, backends=backends_of(other), ours="client")
    yield Target(f"{work}, turns", row, "tokens_per_cpu_s", "openai on {backend}", ours="turn")


def _of_ours(work: str, row: str, figure: str, against: str) -> Target:
    limit = 1.3 if row == "connections" else 1.1
    return Target(work, row, figure, "ours", against, limit=limit, faster=False, ours="client")


def _left(what: str, figure: str) -> Iterator[Target]:
    for ours, cancelled in (("client", "calls"), ("turn", "turns")):
        yield Target(f"{what} left by 10 000 cancelled {cancelled}", "cancel", figure, limit=0, faster=False, ours=ours)


TARGETS: Sequence[Target] = (
    *_beside_all("CPU of a call, 10 at once", "post", "cpu_us", ours="client", at_most=0.15),
    Target("CPU of a call, 10 at once", "post", "cpu_us", SOCKET, faster=False, ours="client"),
    *_beside_all("CPU of a whole turn, 10 at once", "post", "cpu_us", ours="turn"),
    *_beside_all("CPU of a turn of 200 tokens, bursts", "burst", "cpu_us", ours="turn", at_most=0.5),
    *_beside_all("CPU of a turn of 200 tokens, paced", "paced", "cpu_us", ours="turn", at_most=0.6),
    *_tokens("tokens per second and core, bursts", "burst", at_least=30),
    *_tokens("tokens per second and core, paced", "paced", at_least=4),
    _of_ours("CPU of a call, 5 000 connections in use over 100", "connections", "many_cpu_us", "few_cpu_us"),
    Target(
        "the same, as many calls as it can", "many", "5000_cpu_us", "ours", "100_cpu_us", faster=False, ours="client"
    ),
    _of_ours("CPU of a call beside 1 000 idle over none", "idle", "beside_idle_cpu_us", "without_idle_cpu_us"),
    _of_ours("time of a call beside 1 000 idle over none", "idle", "beside_idle_us", "without_idle_us"),
    Target("p99 over p50, 100 at once", "hundred", "p99_over_p50", limit=1.8, faster=False, ours="client"),
    Target(
        "the same, the server takes 50 ms", "connections", "few_p99_over_p50", limit=1.8, faster=False, ours="client"
    ),
    Target("the same over that of bare sockets", "hundred", "p99_over_p50", SOCKET, faster=False, ours="client"),
    Target("p99 over p50, 100 turns at once", "hundred", "p99_over_p50", faster=False, ours="turn"),
    *_left("slots", "slots_left"),
    *_left("sockets", "sockets_left"),
    *_left("tasks", "tasks_left"),
)

"""The figures to reach in bench_store.py."""

from collections.abc import Sequence

from targets import Target

__all__ = ["TARGETS"]


def _turns(work: str, row: str, beside: str, *, limit: float | None = None, aim: float | None = None) -> Target:
    return Target(work, row, "turns_per_s", beside, "", limit, aim)


def _at_most(work: str, row: str, figure: str, *, limit: float | None = None, aim: float | None = None) -> Target:
    return Target(work, row, figure, "", "", limit, aim, faster=False)


WRITERS = "100 writers x 1 000 sessions"
ONE = "one session, turn after turn"
AGENTS = "20 agents on one session"

TARGETS: Sequence[Target] = (
    _turns(WRITERS, "writers", "openai", limit=40, aim=75),
    _turns(WRITERS, "writers", "langgraph", limit=200, aim=400),
    _turns(WRITERS, "writers", "sqlite", limit=15, aim=30),
    _turns(WRITERS, "writers", "adk"),
    _at_most("bytes written per turn of 660 bytes", "writers", "written_bytes", limit=5_000, aim=2_000),
    _at_most("bytes on disk per message", "writers", "stored_message_bytes"),
    Target("1 000 committers", "committers", "turns_per_s", "ours", "log_turns_per_s", 0.4, 0.5),
    _turns(ONE, "one", "lmdb", limit=0.8, aim=0.85),
    _turns(ONE, "one", "openai", limit=1.3, aim=1.6),
    _turns(ONE, "one", "sqlite"),
    _turns(ONE, "one", "langgraph"),
    _turns(ONE, "one", "adk"),
    _turns(AGENTS, "agents", "openai", limit=12, aim=20),
    _at_most("lost, doubled, reordered there", "agents", "wrong", limit=0, aim=0),
    Target(
        "append at 100 000 over at 10", "append", "append_100000_us", "ours", "append_10_us", 1.15, 1.05, faster=False
    ),
    Target("append at 1 000 over at 10", "append", "append_1000_us", "ours", "append_10_us", faster=False),
    Target("cold activation, 1 000 x 100 messages", "cold", "cold_us", "openai", "", 25, 40),
    Target("the same, 100 at once", "cold", "cold_together_us", "openai"),
    Target("last 50 of 10 000", "last", "last_50_us", "openai", "", 5, 8),
    _at_most("loop busy for 1 ms at a time: commit wait p99, ms", "busy", "busy_p99_ms", limit=10, aim=8),
    _at_most("the same with a writer process", "busy", "busy_process_p99_ms", limit=10, aim=8),
    _at_most("loop busy for 0.1 ms at a time: the same", "busy", "busy_short_p99_ms", limit=10, aim=8),
    _at_most("the same with a writer process", "busy", "busy_short_process_p99_ms", limit=10, aim=8),
    _at_most("loop blocked by a commit, ms", "ticker", "lmdb_blocked_max_ms", limit=1),
    _at_most("the same with a writer process", "ticker", "process_blocked_max_ms", limit=1),
    _at_most("the same without a disk", "ticker", "memory_blocked_max_ms"),
    _turns("flushes 1 ms slower, 100 writers", "slow", "openai", limit=50, aim=100),
)

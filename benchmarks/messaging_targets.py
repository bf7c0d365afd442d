"""The figures to reach in bench_messaging.py; all are times, so that less is better."""

from collections.abc import Sequence

from targets import Target

__all__ = ["TARGETS"]


def _bare(work: str, row: str, figure: str, *, limit: float, aim: float | None = None) -> list[Target]:
    """Beside a channel on bare trio, which is what is to be beaten; for information beside the same on asyncio."""
    against = f"channel_{figure}"
    judged = Target(work, row, figure, "bare on trio", against, limit, aim)
    return [judged, Target(work, row, figure, "bare on asyncio", against, backends=("asyncio",))]


TARGETS: Sequence[Target] = (
    Target("ask", "ask", "ask_us", "pykka pinned", "ask_us", 8, 15),
    Target("ask", "ask", "ask_us", "pykka", "ask_us", 50),
    Target("ask", "ask", "ask_us", "xoscar", "ask_us", 1.4, 3),
    Target("ask", "ask", "ask_us", "autogen-core", "ask_us", 40),
    Target("ask", "ray", "ask_us", "ray", "ask_us", 300),
    Target("ask", "ask", "ask_us", "bare on trio", "ping_pong_us", 3, backends=("trio",)),
    Target("ask", "ask", "ask_us", "bare on asyncio", "ping_pong_us", backends=("asyncio",)),
    Target("ask with a deadline over without", "ask", "ask_us", "ours", "ask_no_deadline_us", 1.15, 1.05, faster=False),
    *_bare("ask, async handler", "async", "async_us", limit=1.2, aim=7),
    *_bare("ask, handler waits once", "waits", "waits_us", limit=1.2),
    Target("ask, handler waits once", "waits", "waits_us", "bare on {backend}", "parked_waits_us"),
    *_bare("the same, 50 callers", "waits", "waits_50_callers_us", limit=1.2),
    Target(
        "the same, 50 callers", "waits", "waits_50_callers_us", "bare on {backend}", "parked_waits_50_callers_us", 1
    ),
    *_bare("1 000 callers x 1 000 actors", "many", "many_us", limit=8, aim=13),
    Target("1 000 callers x 1 000 actors", "many", "many_us", "xoscar", "many_us", 1.6, 2.8),
    *_bare("tells, 100 senders to one", "tells", "tell_us", limit=5),
    Target("tells, 100 senders to one", "tells", "tell_us", "pykka pinned", "tell_us", 2),
    Target("tells, pykka from one thread", "tells", "tell_us", "pykka pinned", "tell_1_sender_us"),
    Target("bytes of an idle actor", "memory", "idle_bytes", limit=1024, aim=200, faster=False),
    Target("tasks of an idle actor", "memory", "idle_tasks", limit=0, faster=False),
    Target("bytes of a passivated actor", "memory", "passivated_bytes", limit=0.5, faster=False),
    *_bare("create 10 000 by first message", "create", "create_us", limit=12, aim=30),
    Target("create 10 000 by first message", "create", "create_us", "xoscar", "create_us", 25, 50),
    Target("seconds to stop 100 000 idle", "live", "stop_s", limit=1, faster=False),
    *_bare("one hot actor, 50 agents", "hot", "hot_us", limit=5, aim=8),
    Target("one hot actor, 50 agents", "hot", "hot_us", "xoscar", "hot_us", 2, 2.7),
    Target("ask at 100 000 live over at 100", "live", "live_all_same_100_us", "ours", "live_100_us", 1.3, faster=False),
    Target("the same, all 100 000 in turn", "live", "live_all_in_turn_us", "ours", "live_100_us", faster=False),
    Target(
        "activate from LMDB over memory", "activate", "activate_lmdb_us", "ours", "activate_memory_us", faster=False
    ),
)

"""What does a turn cost on a session of 10 000 messages whose model sees 50, beside one on a session of 100?

A session is filled, its process ends, and another opens it: the first turn there has to load what it needs. Then turns
run one after the other, with a model that answers at once, on LMDB with durability "async", so that the disk is not
what is measured; each round has a session of its own. One JSON line per session and window: `first_ms` is the CPU time
of the first turn after the start, `turn_us` the median of the others', both of the best round, and `memory_mb` what the
process has taken in the first round.

Read off: with a window, `turn_us`, `first_ms` and `memory_mb` are about the same for 100 and for 10 000 messages;
without one (`window` null) they grow with history.
"""

import argparse
import gc
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec

from callboard import Agent, Runtime, Session, Window
from callboard.testing import ScriptedModel

QUESTION = "My invoice of last month lists the same position twice, and the second one is in another currency."
ANSWER = " ".join(["I have looked at your invoice, and you are right about the second position."] * 4)

WINDOWS: dict[str, Window | None] = {
    "none": None,
    "messages": Window(max_messages=50),
    "tokens": Window(max_tokens=4_000),
    "head_and_tail": Window(max_messages=50, strategy="head_and_tail"),
}


class Silent(ScriptedModel):
    """It answers at once, and keeps nothing of what it was asked."""

    async def complete(self, request: Any, *, on_delta: Any = None) -> Any:
        answer = await super().complete(request, on_delta=on_delta)
        self.requests.clear()
        return answer


async def fill(path: Path, size: int) -> None:
    async with Runtime(path, durability="async") as runtime:
        for start in range(0, size, 500):
            talk = [("user", QUESTION), ("assistant", ANSWER)] * (min(500, size - start) // 2)
            messages = [{"role": role, "content": f"{n} {text}"} for n, (role, text) in enumerate(talk, start)]
            await Session(runtime, "s").add_messages(messages)


async def measure(path: Path, window: Window | None, turns: int) -> dict[str, Any]:
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Runtime(path, durability="async") as runtime:
        session = Session(runtime, "s")
        agent = Agent("Clerk", model=Silent(lambda _request: ANSWER), session=session, window=window)
        times: list[float] = []
        for _ in range(turns + 1):
            started = time.process_time()
            await agent.chat(QUESTION)
            times.append(time.process_time() - started)
    return {
        "first_ms": round(times[0] * 1e3, 2),
        "turn_us": round(statistics.median(times[1:]) * 1e6),
        "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--windows", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--turns", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="asyncio", choices=["asyncio", "trio"])
    options = parser.parse_args()
    for name in options.windows:
        for size in options.sizes:
            rounds: list[dict[str, Any]] = []
            for _ in range(options.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "bench.lmdb"
                    anyio.run(fill, path, size, backend=options.backend)
                    rounds.append(anyio.run(measure, path, WINDOWS[name], options.turns, backend=options.backend))
            best = {key: min(each[key] for each in rounds) for key in ("first_ms", "turn_us")}
            line = {"messages": size, "window": name, **best, "memory_mb": rounds[0]["memory_mb"]}
            print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    main()

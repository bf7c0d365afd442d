"""The model server of `load.py`, in a process of its own: FakeUpstream with answers by the plan, and faults by chance.

    load_upstream.py PLAN_JSON

It prints its URL, then each second how many requests it had and which faults it made, as a JSON line. It ends with its
standard input. What it is sent it checks: the turns of a history must rise, and be of one session.
"""

import random
import sys
from collections import Counter
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from load_plan import Plan, answer_to, conversation, turn_of

from callboard.testing import Body, FakeUpstream, FaultKind, UpstreamAnswer, answer, fault, refuse

_REPORT_EVERY_S = 1.0

STREAM_FAULTS: tuple[FaultKind, ...] = ("reset_mid_stream", "close_mid_stream", "hang_mid_stream", "error_in_stream")
FAULTS: tuple[FaultKind, ...] = ("reset", "close", "hang", "malformed_json", "html")
REFUSALS: tuple[int, ...] = (429, 500, 503)


class Server:
    """Decides what each request is answered."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self.faults: Counter[str] = Counter()
        self.requests = 0

    def __call__(self, body: Body) -> UpstreamAnswer:
        self.requests += 1
        delay_s = self._chance.uniform(0.5, 1.5) * self._plan.server_s
        if self._chance.random() < self._plan.fault_share:
            return self._fault(delay_s, streamed=bool(body.get("stream")))
        return self._answer(body["messages"], delay_s)

    def _fault(self, delay_s: float, *, streamed: bool) -> UpstreamAnswer:
        kind = self._chance.choice((*REFUSALS, *FAULTS, *(STREAM_FAULTS if streamed else ())))
        self.faults[str(kind)] += 1
        if not isinstance(kind, int):
            return fault(kind, delay_s=delay_s)
        return refuse(kind, retry_after=0.02 if kind == 429 else None, delay_s=delay_s)

    def _answer(self, messages: list[dict[str, Any]], delay_s: float) -> UpstreamAnswer:
        places = [place for place, message in enumerate(messages) if message["role"] == "user"]
        asked = [turn_of(messages[place]["content"]) for place in places]
        last = asked[-1]
        known = [each for each in asked if each is not None]
        if last is None or known != sorted(set(known)) or {session for session, _ in known} != {last[0]}:
            return refuse(400, f"the model was sent turns {asked}")
        said = [each for each in conversation(*last) if each[0] == "assistant"]
        done = sum(message["role"] == "assistant" for message in messages[places[-1] :])
        if done >= len(said):
            return refuse(400, f"the model was asked again after {answer_to(*last)[:40]!r}")
        _, text, _, calls = said[done]
        return answer(text, tool_calls=[("lookup", arguments) for _, arguments in calls], delay_s=delay_s)


async def serve(plan: Plan) -> None:
    server = Server(plan)
    async with FakeUpstream(server, keep_requests=False) as upstream, anyio.create_task_group() as tasks:
        print(upstream.url, flush=True)
        tasks.start_soon(report, server)
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        tasks.cancel_scope.cancel()


async def report(server: Server) -> None:
    while True:
        await anyio.sleep(_REPORT_EVERY_S)
        line = {"requests": server.requests, "faults": server.faults}
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(serve, msgspec.json.decode(sys.argv[1], type=Plan), backend="asyncio")

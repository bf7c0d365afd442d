"""Rounds of kills: a process under load is killed, what it left is read and checked, and another goes on with it.

    parent: FakeUpstream ◄── HTTP ── child: worker.py, 30 sessions x 12 turns on one store
       ▲ └── SIGKILL ─────────────────► │
       └── acknowledgements (pipe) ──────┘

After each kill the store is read as it lies there, and half of the times opened with a Runtime and read again; else the
next child is who recovers it. The children alternate between the backends. When all turns are done a fresh store
follows. Most kills come after a random number of acknowledgements, some while the child opens the store, so that
recovery is cut off as well. The store's log is kept so short that checkpoints go on all the time.
"""

import random
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
from kill_nursery import Nursery, Worker, open_nursery

from callboard import Message, RunRecord, Runtime, Session
from callboard.actors.archive import Archive
from callboard.store import LmdbStore
from callboard.testing import Body, FakeUpstream, UpstreamAnswer, answer

__all__ = ["LOG_BYTES_MAX", "Tally", "play_rounds"]

SESSIONS = [f"s{number:02}" for number in range(30)]
TURNS = 12
ACKNOWLEDGEMENTS_MAX = 70
"""Before a kill: a store of 360 turns sees about ten of them."""
LOG_BYTES_MAX = 20_000
"""Of the store's log: about a dozen turns."""

# What is said: a function of session and turn, so that any message can be recognised ----------------------------------


def topics_of(turn: int) -> list[list[str]]:
    """What the model looks up in this turn, round by round: nothing, one thing, two side by side, one after another."""
    return [[], [["tides"]], [["tides", "winds"]], [["tides"], ["winds"]]][turn % 4]


Said: TypeAlias = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""A message: role, text, the call that it answers, its calls (id and arguments)."""


def conversation(turn: int, session: str) -> list[Said]:
    """All messages of a turn."""
    said: list[Said] = [("user", f"turn {turn} of {session}", "", ())]
    for topics in topics_of(turn):
        wanted = [f"{topic} in turn {turn} of {session}" for topic in topics]
        calls = tuple((f"call_{i}", f'{{"topic":"{topic}"}}') for i, topic in enumerate(wanted, 1))
        said.append(("assistant", "", "", calls))
        said.extend(("tool", f"facts on {topic}", id, ()) for (id, _), topic in zip(calls, wanted, strict=True))
    return [*said, ("assistant", f"answer to turn {turn} of {session}", "", ())]


def as_said(message: Message) -> Said:
    calls = tuple((call.id, call.arguments) for call in message.tool_calls)
    return message.role, message.text, message.tool_call_id or "", calls


def model(body: Body) -> UpstreamAnswer:
    """The next assistant message of the turn that the request is about, after 0 to 8 ms."""
    messages: list[dict[str, Any]] = body["messages"]
    start = max(place for place, message in enumerate(messages) if message["role"] == "user")
    asked = re.fullmatch(r"turn (\d+) of (s\d+)", messages[start]["content"])
    assert asked is not None, messages[start]
    said = [each for each in conversation(int(asked[1]), asked[2]) if each[0] == "assistant"]
    _, text, _, calls = said[sum(message["role"] == "assistant" for message in messages[start:])]
    delay_s = random.random() * 0.008
    return answer(text, tool_calls=[("lookup", arguments) for _, arguments in calls], delay_s=delay_s)


# The child ------------------------------------------------------------------------------------------------------------


class Line(msgspec.Struct):
    """What the child prints; `kind` "ack": this turn's chat has returned."""

    kind: str
    session: str = ""
    turn: int = 0
    seqs: list[int] = []
    text: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill: so long after so many acknowledgements, or, with 0, after the child began to open the store."""

    acknowledgements: int
    delay_s: float

    @classmethod
    def draw(cls, chance: random.Random) -> "Moment":
        if chance.random() < 0.15:
            return cls(0, chance.uniform(0, 0.06))
        return cls(chance.randint(1, ACKNOWLEDGEMENTS_MAX), chance.choice([0.0, chance.uniform(0, 0.01)]))


NEVER = Moment(-1, 0.0)


async def run_until(moment: Moment, child: Worker) -> tuple[list[Line], bool]:
    """All that the child said from "open" on, and whether it was killed; False where it was done before the moment."""
    said: list[Line] = []
    async with aclosing(child.lines()) as lines:
        async for raw in lines:
            line = msgspec.json.decode(raw, type=Line)
            if line.kind != "opening":
                said.append(line)
            # The kill's moment by what has come; what still stands in the pipe then was acknowledged too, and is read.
            due = "opening" if moment.acknowledgements == 0 else "ack"
            if line.kind == due and sum(each.kind == "ack" for each in said) == moment.acknowledgements:
                await anyio.sleep(moment.delay_s)
                child.kill()
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.how_it_ended()
    return said, code != 0


# What must hold -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Witness:
    """What is known of one store: acknowledgements since it was made, and how many turns each session showed.

    `opened` is True once a child, or the parent after a kill, has had it open.
    """

    opened: bool = False
    acknowledged: dict[str, list[Line]] = field(default_factory=lambda: defaultdict[str, list[Line]](list))
    turns: Counter[str] = field(default_factory=Counter[str])

    def note(self, lines: list[Line]) -> None:
        for line in lines:
            self.opened = True
            if line.kind == "ack":
                self.acknowledged[line.session].append(line)

    def check_history(self, session: str, messages: list[Message]) -> None:
        """Whole turns from the first on, each once, no more than one beyond what was acknowledged; and remember."""
        assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
        turns = list(whole_turns(session, messages))
        certain = max([self.turns[session], *(line.turn for line in self.acknowledged[session])])
        assert certain <= len(turns) <= certain + 1, f"{session}: {certain} turns are certain, {len(turns)} are there"
        for line in self.acknowledged[session]:
            stored = turns[line.turn - 1]
            assert [message.seq for message in stored] == line.seqs
            assert stored[-1].text == line.text
            assert {message.run_id for message in stored} == {line.run_id}
        self.turns[session] = len(turns)


def whole_turns(session: str, messages: list[Message]) -> Iterator[list[Message]]:
    """History cut into turns 1, 2, ...; fails where a message is missing, doubled or out of place."""
    start, turn = 0, 1
    while start < len(messages):
        expected = conversation(turn, session)
        found = messages[start : start + len(expected)]
        assert [as_said(message) for message in found] == expected, f"turn {turn} of {session}"
        yield found
        start, turn = start + len(expected), turn + 1


def check_runs(runs: list[RunRecord], messages: list[Message], *, open_before: set[str]) -> None:
    """After recovery: each turn has one completed run, what was open is interrupted, and nothing else is there."""
    by_status: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        by_status[run.status].add(run.id)
    assert set(by_status) <= {"completed", "interrupted"}
    assert open_before <= by_status["interrupted"]
    completed = sorted((run.first_seq, run.last_seq, run.id) for run in runs if run.status == "completed")
    written: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        written[message.run_id or ""].append(message.seq)
    assert completed == sorted((seqs[0], seqs[-1], run_id) for run_id, seqs in written.items())


@dataclass(frozen=True, slots=True)
class Found:
    """One session as it lay in the store after the kill."""

    messages: list[Message]
    open_runs: set[str]


def read_as_it_lies(store: Path, witness: Witness) -> dict[str, Found]:
    """Check all sessions before anything is recovered: no reader ever sees a half turn."""
    if not witness.opened:  # killed before there was a store
        return dict.fromkeys(SESSIONS, Found([], set()))
    found: dict[str, Found] = {}
    with Archive.open(store) as archive:
        for session in SESSIONS:
            messages, head = archive.messages(session), archive.head(session)
            assert len(messages) == (head.message_count if head is not None else 0)
            witness.check_history(session, messages)
            open_runs = {run.id for run in archive.runs(session) if run.is_open}
            assert len(open_runs) <= 1
            found[session] = Found(messages, open_runs)
        assert set(archive.with_open_runs()) == {session for session, each in found.items() if each.open_runs}
    return found


async def reopen(store: Path, before: Mapping[str, Found]) -> None:
    """Open with a Runtime: history is untouched, and no run is open any more."""
    async with Runtime(store) as runtime:
        for id in SESSIONS:
            session, messages = Session(runtime, id), before[id].messages
            assert await session.messages() == messages
            assert await session.message_count() == len(messages)
            check_runs(await session.runs(), messages, open_before=before[id].open_runs)
    with Archive.open(store) as archive:
        assert archive.with_open_runs() == []


# The rounds -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What the kills hit; without it a test could pass by killing only what had nothing to lose.

    Attributes:
        runs_cut: runs that were open when their process was killed.
        replayed: kills after which there was a log to be replayed, and the most bytes that it had.
    """

    kills: int = 0
    stores: int = 0
    acknowledged: int = 0
    runs_cut: int = 0
    replayed: int = 0
    log_bytes_most: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        most = max(self.log_bytes_most, other.log_bytes_most)
        return Tally(
            self.kills + other.kills,
            self.stores + other.stores,
            self.acknowledged + other.acknowledged,
            self.runs_cut + other.runs_cut,
            self.replayed + other.replayed,
            most,
        )


class Rounds:
    """Children on one store after another, until enough of them have been killed."""

    def __init__(
        self, folder: Path, upstream: FakeUpstream, nursery: Nursery, *, kills: int, chance: random.Random
    ) -> None:
        self._folder = folder
        self._upstream = upstream
        self._nursery = nursery
        self._kills = kills
        self._chance = chance
        self._backends = cycle(["trio", "asyncio"])
        self.tally = Tally()

    async def run(self) -> Tally:
        while self.tally.kills < self._kills:
            self.tally.stores += 1
            await self._use_up(self._folder / f"{self.tally.stores}.lmdb")
        return self.tally

    async def _use_up(self, store: Path) -> None:
        """Kill child after child on this store until its turns are done, or there were enough kills."""
        witness = Witness()
        killed = True
        while killed and self.tally.kills < self._kills:
            lines, killed = await self._run_child(store, Moment.draw(self._chance))
            witness.note(lines)
            before = read_as_it_lies(store, witness)
            self._count(store, witness, lines, before, killed=killed)
            if not killed or self._chance.random() < 0.5:
                await reopen(store, before)
                witness.opened = True
        if not killed:
            assert witness.turns == dict.fromkeys(SESSIONS, TURNS)

    def _count(
        self, path: Path, witness: Witness, lines: list[Line], found: Mapping[str, Found], *, killed: bool
    ) -> None:
        tally = self.tally
        tally.kills += killed
        tally.acknowledged += sum(line.kind == "ack" for line in lines)
        tally.runs_cut += sum(len(each.open_runs) for each in found.values())
        if witness.opened:
            store = LmdbStore(path, readonly=True)
            log_bytes = store.statistics().log_bytes
            store.close()
            tally.replayed += log_bytes > 0
            tally.log_bytes_most = max(tally.log_bytes_most, log_bytes)

    async def _run_child(self, store: Path, moment: Moment) -> tuple[list[Line], bool]:
        sizes = ["--sessions", len(SESSIONS), "--turns", TURNS, "--log", LOG_BYTES_MAX]
        arguments = [store, self._upstream.url, "--backend", next(self._backends), *sizes]
        with self._nursery.open_worker("worker", *arguments) as child:
            return await run_until(moment, child)


def play_rounds(folder: Path, backend: str, *, kills: int, seed: str) -> Tally:
    """So many kills with the parent on this backend; AssertionError where one did what it must not."""

    async def rounds() -> Tally:
        with open_nursery() as nursery:
            async with FakeUpstream(model, keep_requests=False) as upstream:
                return await Rounds(folder, upstream, nursery, kills=kills, chance=random.Random(seed)).run()

    return anyio.run(rounds, backend=backend)

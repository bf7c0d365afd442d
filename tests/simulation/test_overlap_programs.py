"""Generated programs over the ways in which inputs meet: overlap policies, keys, submissions, hand-made turns, stops of
every kind; with a store that fails, actors that crash, and processes that end well or crash and start again.

    CALLBOARD_SEEDS=1000:2000 pytest tests/simulation/test_overlap_programs.py      other programs than those of CI

In virtual time, repeatable by its seed, on both backends. What must hold is in `Journal`.
"""

import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    Busy,
    CallboardError,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    RunPolicy,
    RunRecord,
    Runtime,
    Session,
    SessionManager,
    StoreUnavailable,
    Superseded,
    ToolCall,
)
from callboard.actors.archive import Archive
from callboard.actors.conversation import units
from callboard.actors.model import OnDelta
from callboard.actors.turns import OVERLAP_RULES
from callboard.runtime import Backoff, RestartPolicy
from callboard.store import Index, MemoryStore
from callboard.testing import ScriptedModel, crash_next, model_answer, run_in_virtual_time

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:100").split(":"))

SESSIONS = ("a", "b")
AGENTS = ("Ann", "Bob", "Ann")
"""Two agents of one name are one author to a session, and two actors."""
AGENT_KEYS = tuple(f"{name}#{number}" for number, name in enumerate(AGENTS, 1))
POLICIES = tuple(OVERLAP_RULES)
DECIDED = ("cancelled by hand", "a newer input stopped it", "the newer run", "its input was", "session ")
"""How the error of a run begins that somebody wanted cancelled, or for which there was no room."""
POLICY = RunPolicy(attempts_max=2, backoff=Backoff(first_s=0.1, max_s=1.0), model_calls_max=5, timeout_s=60.0)
PATIENCE_S = 100_000.0
"""Of virtual seconds. Who waits so long waits for ever."""

Outcome: TypeAlias = Literal["told", "refused", "unknown"]


class Crash(Exception):
    """The process ends here."""


@dataclass(slots=True)
class Input:
    """A text that only this one has, how often it was asked, and with which outcomes."""

    session: str
    agent: str
    text: str
    options: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    run_ids: list[str] = field(default_factory=list[str])
    answers: list[tuple[Message, ...]] = field(default_factory=list[tuple[Message, ...]])
    under_way: int = 0


@dataclass
class Journal:
    """Hears of every input and what became of it, and checks what is stored against that."""

    inputs: dict[str, Input] = field(default_factory=dict[str, Input])
    faults: list[str] = field(default_factory=list[str])
    keeping: bool = False
    """Whether inputs of runs that fail, and parts of answers, are kept by some: these may be said again."""

    def check(self, store: MemoryStore) -> None:
        """After a recovery, before anything new."""
        assert self.faults == []
        assert store.scan_index(Index.OPEN_RUN) == [], "a run stays open"
        archive = Archive(store)
        for session in SESSIONS:
            messages = archive.messages(session)
            assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
            self._check_inputs(session, archive, messages)
            self._check_turns(session, archive, messages)

    def _check_inputs(self, session: str, archive: Archive, messages: Sequence[Message]) -> None:
        said = [message.text for message in messages if message.role == "user"]
        completed = [record for record in archive.runs(session) if record.status == "completed" and record.agent]
        answered = [message.text for record in completed for message in (*record.input, *record.heard)]
        doubled = [text for text in set(answered) if answered.count(text) > 1]
        assert not doubled, f"answered twice: {[self.inputs[text] for text in doubled]}"
        lost = set(answered) - set(said)
        assert not lost, f"answered, and not in history: {lost}"
        for text in said:
            assert self.inputs[text].session == session
            assert said.count(text) == 1 or self._may_be_doubled(text, archive), f"{text} stands there twice"
        for each in self.inputs.values():
            if each.session != session:
                continue
            for answer in each.answers:
                stored = tuple(messages[answer[0].seq - 1 : answer[-1].seq])
                assert stored == answer, f"{each.text} is not stored as it was told"
                assert answer[-1].run_id is not None
                record = archive.run(session, answer[-1].run_id)
                asked = [message.text for message in (*record.input, *record.heard)]
                assert each.text in asked, f"{each.text} got the answer of another: {record}"
            if each.outcomes and set(each.outcomes) == {"refused"} and not each.under_way:
                assert each.text not in said, f"{each.text} is stored, and all who asked were told that it is not"
            if "told" in each.outcomes:
                assert each.text in said, f"{each.text} is not stored, and its caller was told that it is"

    def _may_be_doubled(self, text: str, archive: Archive) -> bool:
        """A part of an answer, and input that was kept together with that of others, stay where it is tried again."""
        records = [
            record
            for record in archive.runs(self.inputs[text].session)
            if text in [message.text for message in (*record.input, *record.heard)]
        ]
        return self.keeping and any(record.partial or len(record.input) + len(record.heard) > 1 for record in records)

    def check_prompt(self, request: ModelRequest) -> None:
        """What a model is asked: a history that can be sent, with nothing in it twice."""
        try:
            units(request.messages)
        except ValueError as error:
            self.faults.append(f"sent to the model: {error}")
        said = [message.text for message in request.messages if message.role == "user"]
        if len(said) != len(set(said)) and not self.keeping:
            self.faults.append(f"sent to the model: {said}")

    def _check_turns(self, session: str, archive: Archive, messages: Sequence[Message]) -> None:
        records = {record.id: record for record in archive.runs(session)}
        assert not any(record.is_open for record in records.values())
        turns = [record.turn for record in records.values() if record.turn]
        assert len(turns) == len(set(turns)), "two runs had one turn"
        for each in self.inputs.values():
            for run_id in each.run_ids if each.session == session else ():
                assert run_id in records, f"{each.text} was accepted as {run_id}, and is gone"
        for record in records.values():
            stopped = record.error == "a newer input stopped it"  # by overlap="interrupt", which keeps what was said
            kept = self.keeping or stopped or record.status in ("completed", "interrupted")
            assert kept or not record.first_seq, f"run {record.id} failed and has written"
        seq = last_turn = 0
        for message in messages:
            if message.seq <= seq or message.run_id is None:
                continue
            record = records[message.run_id]
            if not record.first_seq <= message.seq <= record.last_seq:
                # Kept input; its run, or the one that tried it again with others, may have put it elsewhere since.
                assert record.keep_input
                assert message.text in [each.text for each in record.input], f"message {message.seq} is of no turn"
                continue
            group = messages[record.first_seq - 1 : record.last_seq]
            assert record.first_seq == message.seq
            assert {each.run_id for each in group} == {record.id}, "half a turn is visible"
            assert record.turn > last_turn, "turns go back"
            last_turn, seq = record.turn, record.last_seq
            if record.status == "completed" and not record.manual and record.agent:
                assert (group[-1].role, group[-1].tool_calls) == ("assistant", ())
            assert units(group)  # raises where a tool call and its results are parted


class MoodyModel(ScriptedModel):
    """Answers, calls tools and fails by chance, and sees that it is called as it may be."""

    def __init__(self, chance: random.Random, journal: Journal, *, tame: bool) -> None:
        super().__init__()
        self._chance = chance
        self._journal = journal
        self._tame = tame

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        self._journal.check_prompt(request)
        await anyio.sleep(self._chance.choice((0.0, 0.1, 1.0, 3.0)) * self._chance.random())
        lot = self._chance.random()
        if lot < 0.6 or self._tame:
            return model_answer("answered")
        if lot < 0.85:
            return model_answer(tool_calls=[ToolCall("call_1", "look")])
        if lot < 0.93:
            raise ModelUnavailable("busy")
        raise BadRequest("never")


async def look() -> str:
    await anyio.sleep(0.5)
    return "seen"


class OverlapProgram:
    """One seed's lives."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.journal = Journal(keeping=self.chance.random() < 0.5)
        self.policies = [each for each in POLICIES if self.journal.keeping or each != "interrupt"]
        self.store = MemoryStore()
        self.failed = False
        """Whether a session may have spent its restarts in this life."""

    async def run(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            with anyio.fail_after(PATIENCE_S):
                await self._live()
            self.store = self.store.reopened()
        await self._resume_all()
        self.store = self.store.reopened()
        async with Runtime.on(lambda: self.store):
            self.journal.check(self.store)
        assert not any(each.under_way for each in self.journal.inputs.values()), "a call never ended"

    async def _live(self) -> None:
        """One process: open, check what is there, work, end well or crash."""
        store, crashes, self.failed = self.store, self.chance.random() < 0.5, False
        async with anyio.create_task_group() as callers:
            try:
                async with Runtime.on(lambda: store, drain_timeout_s=self.chance.choice((0.0, 5.0))) as runtime:
                    self.journal.check(store)
                    agents = self._agents(runtime)
                    for _ in range(self.chance.randint(3, 8)):
                        callers.start_soon(self._caller, runtime, agents, random.Random(self.chance.random()))
                    for _ in range(self.chance.randint(0, 4)):
                        await anyio.sleep(self.chance.random() * 3)
                        self._trouble(runtime, store)
                    await anyio.sleep(self.chance.random() * 5)
                    if self.chance.random() < 0.5:
                        resume_all(runtime)
                    if crashes:
                        self.store = store.reopened()  # from here on nothing of this life is stored
                        raise Crash
                    await self._becomes_quiet(runtime, store)
            except Crash:
                pass

    async def _becomes_quiet(self, runtime: Runtime, store: MemoryStore) -> None:
        """Nothing goes on for ever: a session is free some time after the last input."""
        if self.chance.random() < 0.7:
            for _ in range(10):  # crashes that were ordered come with the next messages
                resume_all(runtime)
                await anyio.sleep(100.0)
            while self.failed and (left := open_runs(store)):
                with suppress(CallboardError):  # who was to end it has seen the session fail: it is ended by hand
                    await Session(runtime, left[0].session_id).cancel_run(left[0].id)
                await anyio.sleep(100.0)
            assert not open_runs(store), f"runs stay open: {open_runs(store)}"

    async def _resume_all(self) -> None:
        """What was accepted, and interrupted, can go on; on a store that holds and with a model that answers."""
        store = self.store
        async with Runtime.on(lambda: store) as runtime:
            self.journal.check(store)
            agents = self._agents(runtime, tame=True)
            with anyio.fail_after(PATIENCE_S):
                resumed = await SessionManager(runtime).resume_interrupted(agents[:2])
            assert resumed.errors == {}
            for each in self.journal.inputs.values():
                for run_id in each.run_ids:
                    record = await Session(runtime, each.session).run(run_id)
                    while record.joined:
                        record = await Session(runtime, each.session).run(record.joined)
                    decided = record.status == "cancelled" and (record.error or "").startswith(DECIDED)
                    assert decided or record.status in ("completed", "failed"), f"{each.text} is left: {record}"

    def _agents(self, runtime: Runtime, *, tame: bool = False) -> list[Agent]:
        return [
            Agent(
                name,
                model=MoodyModel(random.Random(self.chance.random()), self.journal, tame=tame),
                runtime=runtime,
                tools=[look],
                policy=POLICY,
            )
            for name in AGENTS
        ]

    def _trouble(self, runtime: Runtime, store: MemoryStore) -> None:
        lot = self.chance.random()
        if lot < 0.25:
            store.fail_next_commit(StoreUnavailable("refused"))
        elif lot < 0.5:
            store.fail_next_commit(StoreUnavailable("answer lost", uncertain=True), after_write=True)
        elif lot < 0.75:  # once, or until it has failed
            session = self.chance.choice(SESSIONS)
            crashes = self.chance.choice((1, 1, 1, RestartPolicy().restarts_max + 1))
            self.failed |= crashes > 1
            for _ in range(crashes):
                crash_next(runtime, "session", session)
        else:  # not three times: a grant that does that is in quarantine, and with it what would end its turn
            crash_next(runtime, "agent", self.chance.choice(AGENT_KEYS))

    async def _caller(self, runtime: Runtime, agents: list[Agent], chance: random.Random) -> None:
        for _ in range(chance.randint(1, 6)):
            await anyio.sleep(chance.choice((0.0, 0.0, 0.3, 2.0)) * chance.random())
            try:
                session = Session(runtime, chance.choice(SESSIONS), debounce_s=0.5)
                lot = chance.random()
                if lot < 0.7:
                    await self._ask(session, agents, chance)
                elif lot < 0.8:
                    await self._by_hand(session, chance)
                elif lot < 0.9:
                    await self._stop_one(session, chance)
                else:
                    await self._append(session)
            except CallboardError:
                pass

    def _input(self, session: Session, agent: str, **options: Any) -> Input:
        text = f"text {len(self.journal.inputs) + 1}"
        each = self.journal.inputs[text] = Input(session.id, agent, text, options)
        return each

    def _chosen(self, session: Session, chance: random.Random) -> Input:
        """Something new, or what was asked under a key before."""
        repeatable = [
            each for each in self.journal.inputs.values() if each.session == session.id and "key" in each.options
        ]
        if repeatable and chance.random() < 0.4:
            return chance.choice(repeatable)
        each = self._input(session, chance.choice(AGENTS), overlap=chance.choice(self.policies))
        if chance.random() < 0.5:
            each.options["key"] = f"key of {each.text}"
        if self.journal.keeping and chance.random() < 0.3:
            each.options["keep_input"] = True
        return each

    async def _ask(self, session: Session, agents: list[Agent], chance: random.Random) -> None:
        each = self._chosen(session, chance)
        agent = chance.choice([agent for agent in agents if agent.name == each.agent])
        patience_s = chance.choice((0.0, 0.2, 2.0, 10.0)) if chance.random() < 0.25 else PATIENCE_S
        outcome: Outcome = "unknown"  # also of one whose caller goes away
        each.under_way += 1
        try:
            with anyio.move_on_after(patience_s):
                outcome = await self._answer(agent, session, each, chance)
        finally:
            each.under_way -= 1
            each.outcomes.append(outcome)

    async def _answer(self, agent: Agent, session: Session, each: Input, chance: random.Random) -> Outcome:
        try:
            if chance.random() < 0.4:
                submission = await agent.submit(each.text, session=session, **each.options)
                each.run_ids.append(submission.run_id)
                if chance.random() < 0.3:
                    return "unknown"
                reply = await submission.wait()
            elif chance.random() < 0.3:
                async with agent.stream(each.text, session=session, **each.options) as events:
                    async for _ in events:
                        pass
                reply = events.reply
            else:
                reply = await agent.chat(each.text, session=session, **each.options)
        except (Busy, Superseded):
            return "refused"
        except CallboardError:
            return "unknown"
        each.answers.append(reply.messages)
        return "told"

    async def _by_hand(self, session: Session, chance: random.Random) -> None:
        each = self._input(session, "")
        each.under_way += 1
        try:
            async with session.turn() as turn:
                turn.add("user", each.text)
                await anyio.sleep(chance.random() * 2)
                if chance.random() < 0.3:
                    raise Crash
            each.outcomes.append("told")
        except Crash:
            each.outcomes.append("refused")
        finally:
            each.under_way -= 1

    async def _stop_one(self, session: Session, chance: random.Random) -> None:
        going = [record for record in await session.runs() if record.is_open]
        if going:
            keep = self.journal.keeping and chance.random() < 0.5
            when = chance.choice(("now", "after_step", "after_turn"))
            await session.cancel_run(chance.choice(going).id, when=when, keep_partial=keep)

    async def _append(self, session: Session) -> None:
        each = self._input(session, "")
        each.under_way += 1
        try:
            await session.add_message("user", each.text)
            each.outcomes.append("told")
        finally:
            each.under_way -= 1


def open_runs(store: MemoryStore) -> list[RunRecord]:
    """Runs that have not ended, as they are stored."""
    return [record for each in SESSIONS for record in Archive(store).runs(each) if record.is_open]


def resume_all(runtime: Runtime) -> None:
    """Let those go on that have failed."""
    for kind, keys in (("session", SESSIONS), ("agent", AGENT_KEYS)):
        for key in keys:
            with suppress(CallboardError):
                runtime.resume(kind, key)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("seed", range(_first, _last))
def test_inputs_that_meet_in_any_way_are_answered_once_or_refused(
    seed: int, backend: Literal["trio", "asyncio"]
) -> None:
    print(f"seed {seed}: CALLBOARD_SEEDS={seed}:{seed + 1} repeats it")
    random.seed(seed)  # backoffs
    run_in_virtual_time(OverlapProgram(seed).run, backend=backend, seed=seed, limit_s=4 * PATIENCE_S)

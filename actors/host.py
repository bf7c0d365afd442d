"""The runtime with conversations installed: the kernel, sessions, agents, and the sweep at start-up."""

import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self
from weakref import WeakSet, WeakValueDictionary

import anyio
from msgspec import Struct

from ..runtime.cell import IDLE_S
from ..runtime.errors import ActorFailed
from ..runtime.identity import ActorId
from ..runtime.options import check_number
from ..runtime.ref import Ref
from ..runtime.residency import ACTORS_BYTES_MAX, ACTORS_MAX
from ..runtime.runtime import DRAIN_TIMEOUT_S, Runtime as Kernel
from ..runtime.switch_interval import SWITCH_INTERVAL_S
from ..store import opening
from ..store.contract import Store
from ..store.errors import CallboardError, StoreUnavailable
from ..store.master_key import MasterKey
from ..store.memory_store import MemoryStore
from .agent_actor import AGENT_KIND, AgentActor
from .agent_spec import AgentSpec
from .archive import Archive
from .boards import Boards
from .memory_actor import MemoryActor
from .memory_records import MEMORY_KIND
from .model import Model
from .outcomes import OUTCOMES_KEPT_MS
from .persistence import persist
from .reentry import TurnWaits
from .retention import RETENTION_KIND, RetentionActor, expire
from .run_feeds import RunFeeds
from .run_observing import RunObserver, RunObservers
from .session_actor import SessionActor
from .session_messages import Settled
from .session_records import SESSION_KIND
from .state_actor import StateActor
from .state_messages import WaitOutbox
from .state_records import STATE_KIND
from .tokens import TokenMeters

__all__ = ["Runtime"]

OUTCOMES_KEPT_S = OUTCOMES_KEPT_MS / 1000
_log = logging.getLogger("callboard.runtime")

AGENT_IDLE_S = 60.0
"""How long an agent without a run stays in memory: another chat makes its actor anew, which costs microseconds."""

EXPIRE_EVERY_S = 0.5
"""Connections are idle for 4 s at most, and servers close theirs after 5."""

DELIVERY_TIMEOUT_S = 5.0
"""How long a process that starts waits for what an earlier one has left on its way: it is sent until it arrives."""

RECOVERIES_AT_ONCE = 64
"""Sessions that are put right side by side at start-up: enough to share each commit, few enough to stay small."""


class _Bounds(Struct, frozen=True):
    """See the arguments of Runtime."""

    drain_timeout_s: float
    actors_max: int
    actors_bytes_max: int
    idle_s: float
    outcomes_kept_s: float
    switch_interval_s: float | None = SWITCH_INTERVAL_S


class Runtime(Kernel):
    """Hosts sessions and agents in the present event loop: `async with Runtime("support.lmdb") as runtime: ...`.

    Before the block begins, every run that an earlier process left open is marked "interrupted". When it is left, new
    work is refused, turns that run are finished within `drain_timeout_s` and then interrupted, and all is stored. Left
    by an exception or a cancellation, turns are interrupted at once. What was cut is in `runtime.cut`.

    Args:
        path: a directory for the LMDB store, made where there is none. One process at a time may have it open.
        durability: "sync": what was answered survives power loss. "async": it survives a crash of the process, but the
            last moments may be lost with the machine.
        writer: "thread": commits are made by a thread of this process. "process": by a process of its own, for programs
            whose Python code keeps the event loop busy all the time; a lone commit then takes about 0.1 ms longer.
        switch_interval_s: sys.setswitchinterval while commits are made, for all threads of the process: how long busy
            Python code may keep the committing thread waiting. None leaves it as it is (5 ms by default).
        master_key: 32 bytes, or their text in hex or base64, with which all that is stored is sealed: for a new
            directory, or one that was made with it. Needs `pip install 'callboard[encryption]'`.
        drain_timeout_s: seconds for turns that run when the block is left.
        actors_max, actors_bytes_max: so many sessions and agents, and roughly so many bytes of them, stay in memory;
            over that the least recently used leave it. What is under way always stays, so does what is stored.
        idle_s: how long a session stays in memory without a call; inf: until it is closed, whatever the bounds.
        outcomes_kept_s: how long an idempotency key (`agent.chat(key=)`) stands for its first request.

    Raises (on entering):
        StoreLocked: another process has this store open; the message names it.
        NewerFormat: a newer callboard wrote it.
        StoreUnavailable: the path is no directory that can be used.
        WrongKey: the store is sealed with another master key, or needs none, or one is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["sync", "async"] = "sync",
        writer: Literal["thread", "process"] = "thread",
        switch_interval_s: float | None = SWITCH_INTERVAL_S,
        master_key: bytes | str | MasterKey | None = None,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        actors_max: int = ACTORS_MAX,
        actors_bytes_max: int = ACTORS_BYTES_MAX,
        idle_s: float = IDLE_S,
        outcomes_kept_s: float = OUTCOMES_KEPT_S,
    ) -> None:
        if not os.fspath(path):
            raise ValueError('a Runtime needs the path of a directory, as in Runtime("support.lmdb"), not ""')
        bounds = _Bounds(drain_timeout_s, actors_max, actors_bytes_max, idle_s, outcomes_kept_s, switch_interval_s)
        key = MasterKey(master_key) if master_key is not None else None  # refused here, and shown by no repr
        opener = partial(opening.open_store, Path(path), master_key=key, durability=durability, writer=writer)
        self._set_up(opener, bounds)

    @classmethod
    def in_memory(
        cls,
        *,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        actors_max: int = ACTORS_MAX,
        actors_bytes_max: int = ACTORS_BYTES_MAX,
        idle_s: float = IDLE_S,
        outcomes_kept_s: float = OUTCOMES_KEPT_S,
    ) -> Self:
        """A runtime that keeps nothing: for tests, and for conversations that may be lost."""
        return cls._made(MemoryStore, _Bounds(drain_timeout_s, actors_max, actors_bytes_max, idle_s, outcomes_kept_s))

    @classmethod
    def on(
        cls,
        open_store: Callable[[], Store],
        *,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        actors_max: int = ACTORS_MAX,
        actors_bytes_max: int = ACTORS_BYTES_MAX,
        idle_s: float = IDLE_S,
        outcomes_kept_s: float = OUTCOMES_KEPT_S,
    ) -> Self:
        """A runtime on another store: one that keeps to `callboard.store.Store`."""
        return cls._made(open_store, _Bounds(drain_timeout_s, actors_max, actors_bytes_max, idle_s, outcomes_kept_s))

    @classmethod
    def _made(cls, open_store: Callable[[], Store], bounds: "_Bounds") -> Self:
        runtime = cls.__new__(cls)
        runtime._set_up(open_store, bounds)
        return runtime

    def _set_up(self, open_store: Callable[[], Store], bounds: "_Bounds") -> None:
        super().__init__(
            open_store,
            drain_timeout_s=bounds.drain_timeout_s,
            actors_max=bounds.actors_max,
            actors_bytes_max=bounds.actors_bytes_max,
            switch_interval_s=bounds.switch_interval_s,
        )
        check_number("outcomes_kept_s", bounds.outcomes_kept_s)
        if not 0 < bounds.outcomes_kept_s < math.inf:
            raise ValueError(f"outcomes_kept_s is a finite number of seconds above 0, not {bounds.outcomes_kept_s}")
        self._outcomes_kept_ms = round(bounds.outcomes_kept_s * 1000)
        self.turn_waits: TurnWaits = TurnWaits()
        self.boards: Boards = Boards()
        self.feeds: RunFeeds = RunFeeds()
        self.token_meters: TokenMeters = TokenMeters()
        self.on_close(self.boards.aclose)
        self.run_observers: RunObservers = RunObservers()
        self._specs: WeakValueDictionary[str, AgentSpec] = WeakValueDictionary()
        self._agents = count(1)
        self._used_models: dict[int, Any] = {}
        self._models: WeakSet[Any] = WeakSet()
        self.on_close(self._close_models)
        self.register(SESSION_KIND, self._make_session, idle_s=bounds.idle_s)
        self.register(STATE_KIND, StateActor, idle_s=bounds.idle_s)
        self.register(MEMORY_KIND, MemoryActor, idle_s=bounds.idle_s)
        self.register(AGENT_KIND, self._make_agent, durable=False, idle_s=AGENT_IDLE_S)
        self.register(RETENTION_KIND, lambda id: RetentionActor(id, partial(expire, self)), durable=False)

    def session_actor(self, session_id: str) -> Ref:
        """The actor of a session; use `Session` instead."""
        return self.actor(SESSION_KIND, session_id)

    def agent_actor(self, spec: AgentSpec, key: str) -> Ref:
        """The actor of an agent, which lives as long as somebody holds the spec; use `Agent` instead."""
        self._specs[key] = spec
        self._close_later(spec.model)
        return self.actor(AGENT_KIND, key)

    def next_agent_key(self, name: str) -> str:
        """A key for one more agent of this name."""
        return f"{name}#{next(self._agents)}"

    def observe_runs(self, observer: RunObserver) -> Callable[[], None]:
        """Tell `observer` what the runs do that begin from now on: for spans, metrics and logs, see run_observing.py.

        Cost: nothing without observers; with one, what it does itself and 3 us for each run and each call in it.

        Returns: a function that ends it.
        """
        self.run_observers.add(observer)
        return partial(self.run_observers.remove, observer)

    def waits(self) -> list[tuple[ActorId, ActorId]]:
        """Who waits for whom: among actors, and turns of sessions for turns of other sessions."""
        turns = [
            (ActorId(SESSION_KIND, waiter), ActorId(SESSION_KIND, target)) for waiter, target in self.turn_waits.edges()
        ]
        return [*super().waits(), *turns]

    def note_use(self, client: object) -> None:
        """A client of a server, an embedder say, was used outside of runs: as with a model, what connections it leaves
        idle are closed, and it is closed with the runtime, if it can do that by itself (`close_expired`, `aclose`)."""
        if hasattr(client, "close_expired"):
            self._models.add(client)
            self._model_used(client)

    async def recover(self) -> None:
        """Mark every run that an earlier process left open, and deliver the changes of app and user state that it left
        on their way. A session that cannot be read is logged and left as it is; so is a delivery that takes long.

        Raises:
            StoreUnavailable: the store does not take it, for 30 s.
        """
        limiter = anyio.CapacityLimiter(RECOVERIES_AT_ONCE)
        failures: list[StoreUnavailable] = []

        async def put_right(session_id: str) -> None:
            session = self.session_actor(session_id)
            async with limiter:
                try:
                    # Loading is what marks them; the answer comes when that is durable.
                    await persist(lambda: session.ask(Settled()))
                except ActorFailed as error:
                    # One user's loss, which must not shut out all others.
                    _log.error("runs of session %r stay open, it cannot be loaded: %s", session_id, error)
                except CallboardError as error:
                    reason = self.inspect(SESSION_KIND, session_id).last_error or str(error)
                    failure = StoreUnavailable(f"runs of session {session_id!r} cannot be marked as ended: {reason}")
                    failure.__cause__ = error
                    failures.append(failure)

        archive = Archive(self.store)
        async with anyio.create_task_group() as tasks:
            for session_id in dict.fromkeys([*archive.with_open_runs(), *archive.with_outbox()]):
                tasks.start_soon(put_right, session_id)
        if failures:
            raise failures[0]
        async with anyio.create_task_group() as tasks:
            for session_id in archive.with_outbox():
                tasks.start_soon(self._wait_delivered, session_id, limiter)

    async def _wait_delivered(self, session_id: str, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                await self.session_actor(session_id).ask(WaitOutbox(), timeout_s=DELIVERY_TIMEOUT_S)
            except CallboardError as error:
                _log.warning("what session %r did to app or user state is still on its way: %s", session_id, error)

    def _make_session(self, id: ActorId) -> SessionActor:
        actor = SessionActor(id, outcomes_kept_ms=self._outcomes_kept_ms)
        actor.boards = self.boards
        return actor

    def _make_agent(self, id: ActorId) -> AgentActor:
        return AgentActor(id, self._specs.get(id.key), self._model_used)

    def _close_later(self, model: Model) -> None:
        """Close the model with the runtime. One that closes what it leaves idle by itself is not kept for that."""
        if hasattr(model, "close_expired"):
            with suppress(TypeError):  # of a type without weak references
                self._models.add(model)
                return
        self.on_close(model.aclose)

    async def _close_models(self) -> None:
        for model in list(self._models):
            try:
                await model.aclose()
            except Exception:  # noqa: BLE001 - one that fails must not keep the others open
                _log.exception("closing the model %r raised", model.name)

    def _model_used(self, model: Any) -> None:
        """A run of this model has ended: what connections it leaves idle are to be closed before the server does."""
        if id(model) not in self._used_models and hasattr(model, "close_expired"):
            if not self._used_models:
                self.at(self.now() + EXPIRE_EVERY_S, self._expire_connections)
            self._used_models[id(model)] = model

    def _expire_connections(self) -> None:
        used: dict[int, Any] = self._used_models
        self._used_models = {}
        for key, model in used.items():
            try:
                if model.close_expired():
                    self._used_models[key] = model
            except Exception:  # noqa: BLE001 - a model may be the user's own, and this is nobody's request
                _log.exception("close_expired of the model %r raised: it is not called any more", model.name)
        if self._used_models:
            self.at(self.now() + EXPIRE_EVERY_S, self._expire_connections)

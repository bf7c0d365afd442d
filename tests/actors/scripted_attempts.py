"""Attempts as a gate meets them, in virtual time: what they do is told beforehand, and who began when is noted."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import anyio
import pytest

from callboard.actors.model import ModelAnswer
from callboard.actors.provider_gate import GateStatistics, ProviderGate
from callboard.testing import model_answer, run_in_virtual_time

Backend: TypeAlias = Literal["trio", "asyncio"]
BACKENDS: tuple[Backend, ...] = ("trio", "asyncio")
Step: TypeAlias = float | BaseException | tuple[float, BaseException]


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> Callable[[Backend], None]:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: Backend) -> None:
        run_in_virtual_time(body, backend=backend, limit_s=100_000)

    return test


@dataclass(slots=True)
class Upstream:
    """What attempts meet, `steps` in order: an answer after so many seconds, an error, or an error after so many. Notes
    who began, and when."""

    steps: list[Step] = field(default_factory=lambda: list[Step]())
    takes_s: float = 1.0
    begun: list[tuple[str, float]] = field(default_factory=lambda: list[tuple[str, float]]())
    in_use: int = 0
    in_use_max: int = 0

    async def attempt(self, name: str = "call") -> ModelAnswer:
        self.begun.append((name, anyio.current_time()))
        self.in_use += 1
        self.in_use_max = max(self.in_use_max, self.in_use)
        try:
            step = self.steps.pop(0) if self.steps else self.takes_s
            takes_s, error = (
                step if isinstance(step, tuple) else (0.0, step) if isinstance(step, BaseException) else (step, None)
            )
            if takes_s:
                await anyio.sleep(takes_s)
            if error is not None:
                raise error
            return model_answer(name)
        finally:
            self.in_use -= 1

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.begun]


async def call(gate: ProviderGate, upstream: Upstream, name: str = "call", *, shown: bool = False) -> ModelAnswer:
    return await gate.call(lambda: upstream.attempt(name), shown=lambda: shown)


async def call_at(at: float, gate: ProviderGate, upstream: Upstream, name: str) -> None:
    await anyio.sleep_until(at)
    await call(gate, upstream, name)


def at_rest(statistics: GateStatistics) -> bool:
    return (statistics.in_use, statistics.waiting) == (0, 0)

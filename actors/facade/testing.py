"""What tests of programs on callboard need: models that need no network, a model server that has one, virtual time.

`ScriptedModel` is a `Model` without I/O, for tests in virtual time, which `run_in_virtual_time` gives on both backends.
`FakeUpstream` is a real HTTP server with faults to order, for tests of the whole way:
`OpenAIChat(base_url=upstream.url, model="fake")`. `crash_next`, `fail_commit` and `fail_read` order faults within a
runtime, and `until_quiet` waits until it has come to rest.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import anyio
import anyio.lowlevel

from callboard.actors.message import Message, ToolCall, Usage
from callboard.actors.model import Delta, ModelAnswer, ModelRequest, OnDelta

from .fake_answers import Body, FaultKind, Script, ScriptStep, UpstreamAnswer, answer, fault, refuse, words_of
from .fake_upstream import FakeUpstream
from .faults import crash_next, fail_commit, fail_read, until_quiet
from .virtual_time import Stuck, run_in_virtual_time

__all__ = [
    "Body",
    "FakeUpstream",
    "FaultKind",
    "ModelScript",
    "ModelStep",
    "Script",
    "ScriptStep",
    "ScriptedModel",
    "Stuck",
    "UpstreamAnswer",
    "answer",
    "crash_next",
    "fail_commit",
    "fail_read",
    "fault",
    "model_answer",
    "refuse",
    "run_in_virtual_time",
    "until_quiet",
]

ModelStep: TypeAlias = ModelAnswer | str | BaseException
"""What a `ScriptedModel` does for one request: answer, answer with this text, or raise."""

ModelScript: TypeAlias = Iterable[ModelStep] | Callable[[ModelRequest], ModelStep]


def model_answer(
    text: str = "",
    *,
    tool_calls: Iterable[ToolCall] = (),
    usage: Usage | None = None,
    finish_reason: str | None = None,
) -> ModelAnswer:
    """An answer for a `ScriptedModel`; usage None: one token per word of the answer, as one request."""
    calls = tuple(tool_calls)
    completion = len(words_of(text))
    return ModelAnswer(
        Message(role="assistant", content=text if text or not calls else None, tool_calls=calls),
        finish_reason or ("tool_calls" if calls else "stop"),
        usage or Usage(completion_tokens=completion, total_tokens=completion, requests=1),
        "scripted",
    )


class ScriptedModel:
    """A model that says what it is told to. No I/O: time passes only in its delays, so a virtual clock works.

    Args:
        script: answers in order (after the last one: "echo: " and the last user message), or a function of the request.
        delay_s: before each answer, or exception.
        piece_delay_s: before each piece, where the answer is streamed.
        name: the model's name.

    Attributes:
        requests: what was asked, in order.
        in_flight, in_flight_max: requests in progress now, and the most at once.
    """

    def __init__(
        self,
        script: ModelScript = (),
        *,
        delay_s: float = 0.0,
        piece_delay_s: float = 0.0,
        name: str = "scripted",
    ) -> None:
        self._function = script if callable(script) else None
        self._queue = deque[ModelStep](() if callable(script) else script)
        self._delay_s = delay_s
        self._piece_delay_s = piece_delay_s
        self._name = name
        self.requests: list[ModelRequest] = []
        self.in_flight: int = 0
        self.in_flight_max: int = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    def queue(self, *steps: ModelStep) -> None:
        """Add steps to the end of the script; they go before a function."""
        self._queue.extend(steps)

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """Do the script's next step; with `on_delta` the text comes word by word."""
        self.requests.append(request)
        step = self._step(request)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await anyio.sleep(self._delay_s)
            if isinstance(step, BaseException):
                raise step
            if on_delta is not None:
                await self._stream(step, on_delta)
        finally:
            self.in_flight -= 1
        return step

    async def _stream(self, said: ModelAnswer, on_delta: OnDelta) -> None:
        for piece in words_of(said.message.text):
            await anyio.sleep(self._piece_delay_s)
            on_delta(Delta("text", piece))
        for call in said.message.tool_calls:
            on_delta(Delta("tool_call", call.arguments))

    def _step(self, request: ModelRequest) -> ModelAnswer | BaseException:
        if self._queue:
            step = self._queue.popleft()
        elif self._function is not None:
            step = self._function(request)
        else:
            said = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
            step = f"echo: {said}"
        return model_answer(step) if isinstance(step, str) else step

    async def aclose(self) -> None:
        """Nothing to close."""
        await anyio.lowlevel.checkpoint()

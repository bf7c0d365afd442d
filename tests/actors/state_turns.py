"""Turns that change state, for its tests: the model calls one tool, `work`, which does what the test says."""

from collections.abc import Callable
from typing import TypeAlias

import anyio.lowlevel

from callboard import Agent, BadRequest, ModelAnswer, ModelRequest, RunPolicy, Runtime, ToolCall, ToolContext
from callboard.actors.instructions import Instructions
from callboard.runtime import Backoff
from callboard.testing import ModelScript, ScriptedModel, model_answer

__all__ = ["QUICK", "Work", "call_once", "call_tool", "fail_behind_the_call", "set_all", "worker_on"]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))

Work: TypeAlias = Callable[[ToolContext], object]


def call_tool(name: str) -> Callable[[ModelRequest], ModelAnswer]:
    """A model that calls this tool in each turn, then says "done"."""

    def say(request: ModelRequest) -> ModelAnswer:
        called = request.messages[-1].role == "tool"
        return model_answer("done") if called else model_answer(tool_calls=[ToolCall("call_1", name)])

    return say


call_once = call_tool("work")


def fail_behind_the_call(request: ModelRequest) -> ModelAnswer | BadRequest:
    """Call `work`, then refuse for good."""
    return BadRequest("never") if request.messages[-1].role == "tool" else call_once(request)


def set_all(context: ToolContext, value: object = 1) -> None:
    """The same key in each scope."""
    for state in (context.session_state, context.user_state, context.app_state):
        state["key"] = value


def worker_on(
    runtime: Runtime,
    act: Work,
    *,
    instructions: Instructions = "",
    delay_s: float = 0.0,
    script: ModelScript = call_once,
) -> Agent:
    """An agent each of whose turns does `act` once, `delay_s` after it began and as long before it ends."""

    async def work(context: ToolContext) -> str:
        await anyio.lowlevel.checkpoint()
        return str(act(context))

    model = ScriptedModel(script, delay_s=delay_s)
    return Agent("Worker", model=model, runtime=runtime, tools=[work], instructions=instructions, policy=QUICK)

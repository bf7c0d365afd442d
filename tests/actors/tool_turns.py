"""A turn with tools whose effects are counted: what tests of the journal and of resuming play, in one process or more.

The model asks for two rounds of two calls, `charge` (once only) and `look` (repeatable), and then says "done". What it
says follows from the request alone, so that another process goes on with the same conversation.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from callboard import Agent, Message, ModelAnswer, ModelRequest, RunPolicy, Runtime, Session, ToolCall, ToolContext
from callboard.actors.approvals import Approver
from callboard.actors.conversation import INTERRUPTED_RESULT, units
from callboard.actors.errors import ApprovalRequired
from callboard.actors.session_records import stream_of
from callboard.actors.tools import NeedsApproval, Tool
from callboard.runtime import Backoff
from callboard.store import Index, Table
from callboard.testing import ModelScript, ScriptedModel, model_answer

ROUNDS = 2
ALL_CALLS = [f"{tool}-{number}" for number in range(1, ROUNDS + 1) for tool in ("charge", "look")]
"""The ids of all calls, in the order of history."""
QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


def rounds_so_far(messages: Iterable[Message]) -> int:
    """How many answers with calls stand behind the last message of a user."""
    rounds = 0
    for message in messages:
        rounds = 0 if message.role == "user" else rounds + bool(message.tool_calls)
    return rounds


def say(request: ModelRequest) -> ModelAnswer:
    """The model's part."""
    number = rounds_so_far(request.messages) + 1
    if number > ROUNDS:
        return model_answer("done")
    calls = [ToolCall(f"charge-{number}", "charge", f'{{"round": {number}}}'), ToolCall(f"look-{number}", "look", "")]
    return model_answer(tool_calls=calls)


@dataclass(slots=True)
class World:
    """What tools have done: how often for each key of idempotency. `begun` is counted before, `done` after a wait."""

    begun: Counter[str] = field(default_factory=Counter[str])
    done: Counter[str] = field(default_factory=Counter[str])
    wait_s: float = 0.0

    async def act(self, context: ToolContext) -> str:
        self.begun[context.idempotency_key] += 1
        await (anyio.sleep(self.wait_s) if self.wait_s else anyio.lowlevel.checkpoint())
        self.done[context.idempotency_key] += 1
        context.state.setdefault("acted", []).append(context.call_id)
        return f"{context.call_id} done, attempt {context.attempt}"

    def copy(self) -> "World":
        return World(Counter(self.begun), Counter(self.done), self.wait_s)

    def times(self, tool: str) -> dict[str, int]:
        """How often each call of this tool began, by its key without the run."""
        return {key.split(":")[1]: count for key, count in self.begun.items() if key.split(":")[1].startswith(tool)}


def agent_of(
    world: World,
    session: Session,
    *,
    approval: NeedsApproval = False,
    approver: Approver | None = None,
    policy: RunPolicy = QUICK,
    script: ModelScript = say,
) -> Agent:
    """An agent with the two tools; `approval` is that of `charge`."""

    async def charge(round: int, context: ToolContext) -> str:
        """Charge a card."""
        return await world.act(context)

    async def look(context: ToolContext) -> str:
        """Look something up."""
        return await world.act(context)

    tools = [Tool(charge, approval=approval), Tool(look, repeatable=True)]
    model = ScriptedModel(script)
    return Agent("Clerk", model=model, session=session, tools=tools, approver=approver, policy=policy)


def results_of(messages: Iterable[Message]) -> dict[str, str]:
    """The results by call id, of a history that obeys the pairing rule."""
    history = list(messages)
    assert units(history)
    return {message.tool_call_id or "": message.text for message in history if message.role == "tool"}


def cut_off(result: str) -> bool:
    """True for the result of a call that was interrupted."""
    return result == INTERRUPTED_RESULT


async def paused(agent: Agent, text: str = "go") -> ApprovalRequired:
    """Chat until the run pauses."""
    with pytest.raises(ApprovalRequired) as caught:
        await agent.chat(text)
    return caught.value


async def approve_all(agent: Agent, run_id: str) -> str:
    """Approve whatever comes, one answer at a time; the last answer."""
    for _ in range(10):
        try:
            return (await agent.resume(run_id, approve=True)).text
        except ApprovalRequired:
            continue
    pytest.fail("it asks for ever")


def what_is_open(runtime: Runtime) -> int:
    """Runs of all sessions that the store calls open, and entries of journals in session "s"."""
    return len(runtime.store.scan_index(Index.OPEN_RUN)) + len(runtime.store.scan(stream_of("s"), Table.STEP))

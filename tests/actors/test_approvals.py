"""Tool calls that must be approved: decided in place, or by a run that pauses, is stored, and goes on anywhere."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from tool_turns import ALL_CALLS, World, agent_of, results_of, what_is_open

from callboard import (
    Agent,
    ApprovalRequired,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
)
from callboard.actors.approvals import ApprovalRequest, Denied, Verdict, as_decisions, as_denied, denied_result
from callboard.actors.tools import tool
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def request(index: int, call_id: str) -> ApprovalRequest:
    return ApprovalRequest("run_1", call_id, "charge", index=index)


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "denied"), [(True, None), (False, Denied()), (Denied("no"), Denied("no"))])
def test_verdict_is_true_false_or_denied(verdict: Verdict, denied: Denied | None) -> None:
    assert as_denied(verdict) == denied


@pytest.mark.parametrize("verdict", [1, 0, "yes", None, [True], Denied])
def test_nothing_but_true_approves(verdict: object) -> None:
    with pytest.raises(TypeError, match="a verdict is True, False or Denied"):
        as_denied(verdict)


def test_verdicts_go_to_the_calls_that_wait_and_to_no_others() -> None:
    pending = [request(0, "a"), request(2, "c")]

    assert as_decisions(None, pending) == {}
    assert as_decisions(True, pending) == {0: None, 2: None}
    assert as_decisions(Denied("no"), pending) == {0: Denied("no"), 2: Denied("no")}
    assert as_decisions({"c": True}, pending) == {2: None}
    with pytest.raises(ValueError, match="names the call 'b', which does not wait for a verdict; waiting: 'a', 'c'"):
        as_decisions({"b": True}, pending)
    with pytest.raises(TypeError, match="a verdict is"):
        as_decisions({"a": 1}, pending)


def test_model_reads_why_a_call_was_denied_however_long_the_reason_is() -> None:
    assert denied_result("a", Denied()).text == "[denied] This call was not approved."
    long = denied_result("a", Denied("no: " + "x" * 10_000 + "\ud800"))

    assert long.text.startswith("[denied] This call was not approved: no: xxx")
    assert (long.role, long.tool_call_id, len(long.text)) == ("tool", "a", 2_000)


# In place -----------------------------------------------------------------------------------------------------------


def test_approver_decides_in_place_while_calls_that_need_none_run(run: Run) -> None:
    async def body() -> None:
        world, asked = World(), list[ApprovalRequest]()

        async def approve(request: ApprovalRequest) -> bool | Denied:
            asked.append(request)
            await anyio.sleep(0.05)
            assert f"{request.run_id}:look-{len(asked)}" in world.done
            return True if len(asked) == 1 else Denied("too much")

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            reply = await agent_of(world, session, approval=True, approver=approve).chat("go")
            results = results_of(await session.messages())

            assert list(results) == ALL_CALLS
            assert results["charge-1"] == "charge-1 done, attempt 1"
            assert results["charge-2"] == "[denied] This call was not approved: too much"
            assert world.times("charge") == {"charge-1": 1}
            first = ApprovalRequest(reply.run_id, "charge-1", "charge", '{"round": 1}', "Clerk", "s", 0)
            assert asked[0] == first
            assert len(asked) == 2
            assert what_is_open(runtime) == 0

    run(body)


def test_approver_that_fails_leaves_its_call_waiting_and_no_call_beside_it_is_repeated(run: Run) -> None:
    async def body() -> None:
        world, asked = World(wait_s=0.1), list[str]()

        async def approve(request: ApprovalRequest) -> bool:
            asked.append(request.call_id)
            if len(asked) == 1:
                raise ConnectionError("nobody answers")
            return True

        async with Runtime.in_memory() as runtime:
            agent = agent_of(world, Session(runtime, "s"), approval=True, approver=approve)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.chat("go")
            reply = await agent.resume(caught.value.run_id, approve=True)

            assert isinstance(caught.value.__cause__, ConnectionError)
            assert [call.call_id for call in caught.value.calls] == ["charge-1"]
            assert reply.text == "done"
            assert asked == ["charge-1", "charge-2"]
            assert set(world.begun.values()) == {1}

    run(body)


def test_approver_that_gives_no_verdict_leaves_the_call_waiting(run: Run) -> None:
    async def body() -> None:
        world = World()

        async def approve(request: ApprovalRequest) -> Any:
            return "yes"

        async with Runtime.in_memory() as runtime:
            agent = agent_of(world, Session(runtime, "s"), approval=True, approver=approve)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.chat("go")

            assert "a verdict is True, False or Denied" in str(caught.value.__cause__)
            assert world.times("charge") == {}

    run(body)


def test_approver_that_is_not_async_is_told_so(run: Run) -> None:
    async def body() -> None:
        def approve(request: ApprovalRequest) -> Any:
            return True

        async with Runtime.in_memory() as runtime:
            agent = agent_of(World(), Session(runtime, "s"), approval=True, approver=approve)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.chat("go")

            assert "approver= must be an async function" in str(caught.value.__cause__)

    run(body)


def test_approver_that_waits_for_an_approval_itself_does_not_have_its_calls_approved_in_its_name(run: Run) -> None:
    async def body() -> None:
        world = World()

        async def judge(request: ApprovalRequest) -> bool:
            raise ApprovalRequired("run_of_the_judge", (ApprovalRequest("run_of_the_judge", "launch-1", "launch"),))

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(world, session, approval=True, approver=judge)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.chat("go")
            (record,) = await session.runs()

            assert caught.value.run_id == record.id
            assert [(call.run_id, call.tool) for call in record.pending] == [(record.id, "charge")]
            assert world.times("charge") == {}

    run(body)


def test_approver_takes_of_the_runs_own_time(run: Run) -> None:
    async def body() -> None:
        async def approve(request: ApprovalRequest) -> bool:
            await anyio.sleep(60)
            return True

        async with Runtime.in_memory() as runtime:
            policy = RunPolicy(timeout_s=0.2)
            agent = agent_of(World(), Session(runtime, "s"), approval=True, approver=approve, policy=policy)
            with pytest.raises(RunFailed, match=r"longer than its 0\.2 s"):
                await agent.chat("go")

    run(body)


def test_run_without_a_session_needs_an_approver(run: Run) -> None:
    async def body() -> None:
        @tool(approval=True)
        async def charge() -> str:
            return "charged"

        async def approve(request: ApprovalRequest) -> bool:
            return request.session_id is None

        async with Runtime.in_memory() as runtime:
            calls = model_answer(tool_calls=[ToolCall("c", "charge")])
            model = ScriptedModel([calls, calls, "done"])
            agent = Agent("Clerk", model=model, runtime=runtime, tools=[charge])
            with pytest.raises(RunFailed, match="charge must be approved: give the Agent an approver="):
                await agent.chat("go")
            agent = Agent("Clerk", model=model, runtime=runtime, tools=[charge], approver=approve)

            assert [message.text for message in (await agent.chat("go")).messages] == ["go", "", "charged", "done"]

    run(body)


@pytest.mark.parametrize(("cents", "asks"), [(5, False), (50, True), (None, True)])
def test_approval_may_depend_on_the_arguments_defaults_included(run: Run, cents: int | None, asks: bool) -> None:
    async def body() -> None:
        asked = list[str]()

        @tool(approval=lambda arguments: arguments["cents"] > 10)
        async def charge(cents: int = 20) -> str:
            return f"charged {cents}"

        async def approve(request: ApprovalRequest) -> bool:
            asked.append(request.arguments)
            return True

        async with Runtime.in_memory() as runtime:
            arguments = "" if cents is None else f'{{"cents": {cents}}}'
            model = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "charge", arguments)])])
            agent = Agent("Clerk", model=model, session=Session(runtime, "s"), tools=[charge], approver=approve)
            reply = await agent.chat("go")

            assert reply.messages[2].text == f"charged {cents or 20}"
            assert asked == ([arguments] if asks else [])

    run(body)

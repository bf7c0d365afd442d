"""The calls of one answer: side by side up to a limit, each with its own context, and what their failures become."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias, cast

import anyio
import pytest
from slow_store import SlowStore

from callboard import (
    Agent,
    CyclicAsk,
    Message,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    StoreUnavailable,
    ToolCall,
    ToolContext,
    ToolFinished,
)
from callboard.actors.archive import Archive
from callboard.actors.tools import NeedsApproval, Tool, tool
from callboard.store import MemoryStore, Table
from callboard.testing import ScriptedModel, model_answer, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def calls_of(*calls: tuple[str, str]) -> ScriptedModel:
    """A model that asks for these calls, (tool, arguments) each, and then answers."""
    asked = [ToolCall(f"c{number}", name, arguments) for number, (name, arguments) in enumerate(calls)]
    return ScriptedModel([model_answer(tool_calls=asked), "done"])


def results_of(messages: tuple[Message, ...]) -> list[str]:
    return [message.text for message in messages if message.role == "tool"]


@pytest.mark.parametrize(("at_once", "seconds"), [(1, 9.0), (4, 3.0), (8, 2.0), (9, 1.0)])
def test_calls_of_one_answer_run_side_by_side_up_to_the_limit(run: Run, at_once: int, seconds: float) -> None:
    async def body() -> None:
        running = most = 0

        async def work(number: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.1)
            running -= 1
            return number

        async with Runtime.in_memory() as runtime:
            model = calls_of(*(("work", f'{{"number": {number}}}') for number in range(9)))
            policy = RunPolicy(tool_calls_at_once=at_once)
            agent = Agent("A", model=model, session=Session(runtime, "s"), tools=[work], policy=policy)
            begun = anyio.current_time()
            reply = await agent.chat("go")

            assert most == at_once
            assert seconds * 0.1 - 0.01 <= anyio.current_time() - begun < seconds * 0.1 + 0.08
            assert results_of(reply.messages) == [str(number) for number in range(9)]

    run(body)


@pytest.mark.parametrize(
    ("option", "error", "reason"),
    [
        ({"tool_calls_at_once": 0}, ValueError, "tool_calls_at_once must be 1 or more, not 0"),
        ({"model_calls_max": -1}, ValueError, "model_calls_max must be 1 or more, not -1"),
        ({"output_repairs_max": -1}, ValueError, "output_repairs_max must be 0 or more, not -1"),
        ({"attempts_max": 1.5}, TypeError, r"attempts_max must be a whole number, not 1\.5"),
        ({"attempts_max": True}, TypeError, "attempts_max must be a whole number, not True"),
        ({"timeout_s": "5"}, TypeError, "timeout_s is a number, not '5'"),
        ({"timeout_s": 0}, ValueError, "timeout_s must be above 0, not 0"),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s is a number, not nan"),
        ({"backoff": 3}, TypeError, "backoff must be a Backoff"),
    ],
)
def test_policy_that_no_run_can_keep_is_refused_at_the_door(
    option: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        RunPolicy(**option)


def test_call_is_journaled_before_it_begins_and_its_result_before_the_next_answer(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        journaled = list[int]()

        async def look() -> str:
            journaled.append(len(store.scan("session:s", Table.STEP)))
            return "seen"

        def say(_request: Any) -> Any:
            journaled.append(len(store.scan("session:s", Table.STEP)))
            rounds = journaled.count(0)
            return model_answer(tool_calls=[ToolCall("c", "look")]) if rounds == len(journaled) else "done"

        async with Runtime.on(lambda: store) as runtime:
            await Agent("A", model=ScriptedModel(say), session=Session(runtime, "s"), tools=[look]).chat("go")

            assert journaled == [0, 1, 2]
            assert store.scan("session:s", Table.STEP) == []

    run(body)


def test_calls_that_settle_while_a_result_is_on_its_way_are_stored_together(run_in_real_time: Run) -> None:
    async def body() -> None:
        store, journaled = SlowStore(), list[int]()

        async def look() -> str:
            return "seen"

        async with Runtime.on(lambda: store) as runtime, anyio.create_task_group() as tasks:
            model = calls_of(*[("look", "")] * 8)
            agent = Agent("A", model=model, session=Session(runtime, "s"), tools=[look])
            store.held = True
            tasks.start_soon(agent.chat, "go")
            for _ in range(5):  # the turn, the answer, a result, the seven others, the end
                await store.wait_for_commit()
                await anyio.wait_all_tasks_blocked()
                journaled.append(len(store.scan("session:s", Table.STEP)))
                store.let()

        assert journaled == [0, 0, 1, 2, 3]
        assert results_of(tuple(Archive(store.reopened()).messages("s"))) == ["seen"] * 8

    run_in_real_time(body)


def test_turn_without_tools_costs_two_commits(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        commits = 0
        commit = store.commit

        def counting(batches: Any) -> Any:
            nonlocal commits
            commits += 1
            return commit(batches)

        store.commit = counting

        async def look() -> str:
            return "seen"

        async with Runtime.on(lambda: store) as runtime:
            await Agent("A", model=ScriptedModel(), session=Session(runtime, "s"), tools=[look]).chat("go")

            assert commits == 2

    run(body)


def test_each_call_has_a_context_of_its_own(run: Run) -> None:
    async def body() -> None:
        seen = list[ToolContext]()

        async def look(context: ToolContext) -> str:
            seen.append(context)
            return "seen"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"plan": "pro"})
            agent = Agent("A", model=calls_of(("look", ""), ("look", "")), session=session, tools=[look])
            reply = await agent.chat("go")
            first, second = sorted(seen, key=lambda context: context.call_id)

            assert (first.call_id, second.call_id) == ("c0", "c1")
            assert first.idempotency_key == f"{reply.run_id}:c0"
            assert (first.agent, first.run_id, first.turn, first.attempt) == ("A", reply.run_id, 1, 1)
            assert dict(first.metadata) == {"plan": "pro"}
            assert first.session is second.session
            assert first.state is second.state
            assert first.session is not None
            assert (first.session_id, first.session.id) == ("s", "s")

    run(body)


def test_id_that_a_server_uses_again_in_the_same_run_is_another_key(run: Run) -> None:
    async def body() -> None:
        keys = list[str]()

        async def pay(context: ToolContext) -> str:
            keys.append(context.idempotency_key)
            return "paid"

        async with Runtime.in_memory() as runtime:
            again = [model_answer(tool_calls=[ToolCall("call_0", "pay")]) for _ in range(3)]
            agent = Agent("A", model=ScriptedModel([*again, "done"]), session=Session(runtime, "s"), tools=[pay])
            run_id = (await agent.chat("go")).run_id

            assert keys == [f"{run_id}:call_0", f"{run_id}:call_0#2", f"{run_id}:call_0#3"]

    run(body)


def test_tool_may_read_its_session_and_is_kept_from_waiting_for_its_own_turn(run: Run) -> None:
    async def body() -> None:
        async def look(context: ToolContext) -> str:
            assert context.session is not None
            await context.session.update_metadata({"seen": True})
            with pytest.raises(CyclicAsk):
                await context.session.add_message("user", "never")
            return " ".join(message.text for message in await context.session.messages())

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            reply = await Agent("A", model=calls_of(("look", "")), session=session, tools=[look]).chat("go")

            assert results_of(reply.messages) == ["before"]
            assert await session.metadata() == {"seen": True}

    run(body)


def test_state_of_the_turn_is_shared_by_its_tools_and_ends_with_it(run: Run) -> None:
    async def body() -> None:
        async def count(context: ToolContext) -> int:
            context.state["n"] = context.state.get("n", 0) + 1
            return int(context.state["n"])

        async with Runtime.in_memory() as runtime:
            once = model_answer(tool_calls=[ToolCall("c", "count")])
            model = ScriptedModel([once, once, "done", once, "done"])
            agent = Agent("A", model=model, session=Session(runtime, "s"), tools=[count])

            assert results_of((await agent.chat("go")).messages) == ["1", "2"]
            assert results_of((await agent.chat("again")).messages) == ["1"]

    run(body)


@pytest.mark.parametrize(
    ("value", "reason"), [({1, 2}, r'context\.state\["x"\] is a set'), ("y" * 70_000, "context.state is 70")]
)
def test_state_that_cannot_be_stored_ends_the_run_and_says_why(run: Run, value: Any, reason: str) -> None:
    async def body() -> None:
        async def spoil(context: ToolContext) -> str:
            context.state["x"] = value
            return "done"

        async with Runtime.in_memory() as runtime:
            agent = Agent("A", model=calls_of(("spoil", "")), session=Session(runtime, "s"), tools=[spoil])
            with pytest.raises(RunFailed, match=f"a tool's state cannot be stored: {reason}") as caught:
                await agent.chat("go")

            assert isinstance(caught.value.__cause__, TypeError | ValueError)

    run(body)


def test_tools_without_a_session_have_state_and_no_session(run: Run) -> None:
    async def body() -> None:
        async def count(context: ToolContext) -> str:
            context.state["n"] = context.state.get("n", 0) + 1
            return f"{context.state['n']} {context.session} {context.turn}"

        async with Runtime.in_memory() as runtime:
            agent = Agent("A", model=calls_of(("count", ""), ("count", "")), runtime=runtime, tools=[count])

            assert sorted(results_of((await agent.chat("go")).messages)) == ["1 None 0", "2 None 0"]

    run(body)


# Failures -----------------------------------------------------------------------------------------------------------


def test_tool_that_takes_too_long_is_a_result_that_the_model_reads(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:

            @tool(timeout_s=0.1)
            async def slow() -> str:
                await anyio.sleep(60)
                return "never"

            agent = Agent("A", model=calls_of(("slow", "")), session=Session(runtime, "s"), tools=[slow])
            reply = await agent.chat("go")

            (result,) = results_of(reply.messages)
            assert result.startswith("Error: slow failed: it took longer than its 0.1 s and was given up")
            assert reply.text == "done"

    run(body)


@pytest.mark.parametrize("how", ["raises", "late", "too large"])
def test_tool_whose_errors_end_the_run_does_so_and_cuts_off_the_calls_beside_it(run: Run, how: str) -> None:
    async def body() -> None:
        ended = list[str]()

        @tool(on_error="fail", timeout_s=0.1)
        async def strict() -> str:
            await anyio.sleep(0.05)
            if how == "raises":
                raise LookupError("no such order")
            if how == "late":
                await anyio.sleep(60)
            return "x" * 2_000_000

        async def beside() -> str:
            try:
                await anyio.sleep(30)
            finally:
                ended.append("cut off")
            return "never"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = calls_of(("beside", ""), ("strict", ""))
            agent = Agent("A", model=model, session=session, tools=[strict, beside])
            with pytest.raises(RunFailed, match="strict failed: ") as caught:
                await agent.chat("go")

            causes = {"raises": LookupError, "late": TimeoutError, "too large": type(None)}
            assert isinstance(caught.value.__cause__, causes[how])
            assert ended == ["cut off"]
            assert len(model.requests) == 1  # a run that a tool has ended is not tried again
            (record,) = await session.runs()
            assert (record.status, record.error) == ("failed", caught.value.reason)
            assert await session.messages() == []
            assert runtime.store.scan("session:s", Table.STEP) == []

    run(body)


def test_arguments_that_do_not_fit_are_the_models_mistake_whatever_the_policy(run: Run) -> None:
    async def body() -> None:
        @tool(on_error="fail")
        async def strict(number: int) -> str:
            return "done"

        async with Runtime.in_memory() as runtime:
            model = calls_of(("strict", '{"number": "x"}'), ("strict", '{"number": 1}'), ("none", ""))
            reply = await Agent("A", model=model, session=Session(runtime, "s"), tools=[strict]).chat("go")
            wrong, right, unknown = results_of(reply.messages)

            assert wrong.startswith("Error: the arguments of strict do not fit")
            assert right == "done"
            assert unknown.startswith("Error: there is no tool 'none'")

    run(body)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_result_that_cannot_be_stored_is_shown_to_nobody_and_ends_the_run(backend: Literal["trio", "asyncio"]) -> None:
    async def body() -> None:
        store = MemoryStore()
        events = list[object]()

        async def look() -> str:
            for _ in range(1_000):
                store.fail_next_commit(StoreUnavailable("the disk is gone"))
            return "seen"

        async with Runtime.on(lambda: store) as runtime:
            model = calls_of(("look", ""))
            agent = Agent("A", model=model, session=Session(runtime, "s"), tools=[look])

            async def read() -> None:
                async with agent.stream("go") as stream:
                    async for event in stream:
                        events.append(event)

            with pytest.raises(RunFailed, match="the disk is gone"):
                await read()

            assert not any(isinstance(event, ToolFinished) for event in events)
            assert len(model.requests) == 1

    run_in_virtual_time(body, backend=backend)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"timeout_s": 0}, ValueError, "timeout_s must be a finite number of seconds above 0"),
        ({"timeout_s": float("inf")}, ValueError, "timeout_s must be a finite number"),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s must be a finite number"),
        ({"timeout_s": "5"}, TypeError, "timeout_s must be a number of seconds or None"),
        ({"timeout_s": True}, TypeError, "timeout_s must be a number of seconds or None"),
        ({"on_error": "raise"}, ValueError, 'on_error must be "result" or "fail"'),
        ({"approval": "always"}, TypeError, "approval must be True, False or a plain function"),
        ({"approval": None}, TypeError, "approval must be True, False or a plain function"),
        ({"retries": 3}, TypeError, "retries"),
    ],
)
def test_option_that_no_tool_has_is_refused_at_the_door(options: dict[str, Any], error: type, reason: str) -> None:
    def look() -> str:
        return "seen"

    with pytest.raises(error, match=reason):
        Tool(look, **options)
    with pytest.raises(error, match=reason):
        tool(**options)(look)


def test_async_function_cannot_say_whether_a_call_needs_approval() -> None:
    async def decide(_arguments: object) -> bool:
        return True

    def look() -> str:
        return "seen"

    with pytest.raises(TypeError, match="approval must be True, False or a plain function"):
        Tool(look, approval=decide)  # pyright: ignore[reportArgumentType] -- that is what is tried


def test_call_needs_approval_unless_the_function_says_plainly_that_it_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def pay(cents: int, note: str = "-") -> str:
        return "paid"

    def needs(answer: bool | Callable[[dict[str, Any]], object], arguments: str = '{"cents": 1}') -> bool:
        return Tool(pay, approval=cast("NeedsApproval", answer)).needs_approval(arguments)

    assert needs(True)
    assert not needs(False)
    assert not needs(lambda given: given != {"cents": 1, "note": "-"})
    assert needs(lambda _given: None)
    assert needs(lambda _given: 0)
    assert needs(lambda given: given["euros"] > 1)
    assert "the call waits for an approval" in caplog.text
    assert not needs(True, '{"cents": "many"}')  # it cannot run: the model reads why


def test_decorated_function_is_a_tool_and_can_still_be_called() -> None:
    @tool
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    @tool(name="triple", description="Three times.", repeatable=True)
    def three(number: int) -> int:
        return 3 * number

    assert isinstance(double, Tool)
    assert (double(4), three(number=4)) == (8, 12)
    assert (double.name, double.schema.description, double.repeatable) == ("double", "Twice the number.", False)
    assert (three.name, three.schema.description, three.repeatable) == ("triple", "Three times.", True)

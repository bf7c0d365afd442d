"""Spans: model and tool calls with their parents, a tool's own work, and runs that are traced by hand."""

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from hypothesis import given, strategies as st
from tool_turns import World, agent_of, approve_all, paused

from callboard import (
    Agent,
    Failed,
    InvalidTransition,
    LiveSpan,
    Runtime,
    Session,
    SpanRecord,
    ToolCall,
    ToolContext,
    Unknown,
    UnknownRun,
    Usage,
)
from callboard.actors.spans import SPANS_MAX, SpanLog, current_span, inside_span
from callboard.testing import ScriptedModel, fail_commit, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def tree(spans: list[SpanRecord]) -> list[tuple[int, int, str, str]]:
    return [(span.number, span.parent, span.kind, span.name) for span in spans]


def call(name: str, id: str = "c") -> ToolCall:
    return ToolCall(id, name, "{}")


# In the runs of agents ------------------------------------------------------------------------------------------------


def test_a_tool_call_is_part_of_the_model_call_that_asked_for_it_and_holds_the_tools_own_spans(run: Run) -> None:
    async def dig(context: ToolContext) -> str:
        with context.span("outer") as outer:
            outer.set(rows=3, where={"table": ["a"]})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inner, context)
            with context.span("behind"):
                await anyio.sleep(1.0)
        return "found"

    async def inner(context: ToolContext) -> None:
        with context.span("inner"):
            await anyio.sleep(2.0)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            script = [model_answer(tool_calls=[call("dig")]), model_answer(tool_calls=[call("dig", "d")]), "done"]
            reply = await Agent("A", model=ScriptedModel(script), session=session, tools=[dig]).chat("go")
            spans = await session.spans(reply.run_id)

            assert tree(spans) == [
                (1, 0, "model", "scripted"),
                (2, 1, "tool", "dig"),
                (3, 2, "custom", "outer"),
                (4, 3, "custom", "inner"),
                (5, 3, "custom", "behind"),
                (6, 0, "model", "scripted"),
                (7, 6, "tool", "dig"),
                (8, 7, "custom", "outer"),
                (9, 8, "custom", "inner"),
                (10, 8, "custom", "behind"),
                (11, 0, "model", "scripted"),
            ]
            assert spans[2].attributes == {"rows": 3, "where": {"table": ["a"]}}
            assert [spans[number].duration_ms for number in (2, 3, 4)] == [3000, 2000, 1000]

    run(body)


def test_calls_side_by_side_keep_their_spans_apart(run: Run) -> None:
    async def dig(number: int, context: ToolContext) -> str:
        with context.span(f"dig {number}"):
            await anyio.sleep(1.0)
            with context.span(f"deeper {number}"):
                await anyio.sleep(1.0)
        return "found"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = [ToolCall(f"c{number}", "dig", f'{{"number": {number}}}') for number in range(5)]
            model = ScriptedModel([model_answer(tool_calls=calls), "done"])
            reply = await Agent("A", model=model, session=session, tools=[dig]).chat("go")
            spans = {span.number: span for span in await session.spans(reply.run_id)}

            deeper = [span for span in spans.values() if span.name.startswith("deeper")]
            assert len(deeper) == 5
            for span in deeper:
                outer = spans[span.parent]
                tool = spans[outer.parent]
                assert (outer.name, tool.kind, tool.parent) == (span.name.replace("deeper", "dig"), "tool", 1)
                assert tool.attributes["call_id"] == f"c{span.name[-1]}"

    run(body)


def test_a_tool_in_a_thread_has_spans_too(run_in_real_time: Run) -> None:
    def dig(context: ToolContext) -> str:
        with context.span("in a thread") as span:
            span.set(thread=threading.current_thread() is not threading.main_thread())
        return "found"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[call("dig")]), "done"])
            reply = await Agent("A", model=model, session=session, tools=[dig]).chat("go")
            spans = await session.spans(reply.run_id)

            assert (spans[2].name, spans[2].parent, spans[2].attributes) == ("in a thread", 2, {"thread": True})

    run_in_real_time(body)


def test_an_exception_marks_the_spans_that_it_leaves(run: Run) -> None:
    async def dig(context: ToolContext) -> str:
        with context.span("fine"):
            pass
        with context.span("breaks"):
            raise RuntimeError("rock")

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[call("dig")]), "done"])
            reply = await Agent("A", model=model, session=session, tools=[dig]).chat("go")
            spans = await session.spans(reply.run_id)

            assert [span.status for span in spans] == ["ok", "error", "ok", "error", "ok"]
            assert spans[3].attributes == {"error": "RuntimeError: rock"}

    run(body)


def test_a_run_that_paused_goes_on_under_the_span_that_asked(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            pause = await paused(agent)
            before = await session.spans(pause.run_id)
            assert await approve_all(agent, pause.run_id) == "done"
            spans = await session.spans(pause.run_id)

            assert tree(before) == [(1, 0, "model", "scripted"), (2, 1, "tool", "look")]
            assert spans[:2] == before
            assert tree(spans)[2:] == [
                (3, 1, "tool", "charge"),
                (4, 0, "model", "scripted"),
                (5, 4, "tool", "look"),
                (6, 4, "tool", "charge"),
                (7, 0, "model", "scripted"),
            ]

    run(body)


def test_more_spans_than_fit_are_not_kept_and_cost_nothing(run: Run) -> None:
    beyond: list[tuple[int, int]] = []

    async def dig(context: ToolContext) -> str:
        for number in range(SPANS_MAX + 10):
            with context.span("much") as span:
                span.set(number=number)
        with context.span("outside") as outside, context.span("inside") as inside:
            beyond.extend((each.number, each.parent) for each in (outside, inside))
        return "found"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[call("dig")]), "done"])
            reply = await Agent("A", model=model, session=session, tools=[dig]).chat("go")
            spans = await session.spans(reply.run_id)

            assert [span.number for span in spans] == list(range(1, SPANS_MAX + 2))
            assert (spans[-1].kind, spans[-1].parent) == ("model", 0)
            assert beyond == [(0, 2), (0, 2)]

    run(body)


def test_what_cannot_be_stored_is_refused_at_once_and_never_costs_the_turn(run: Run) -> None:
    async def dig(context: ToolContext) -> str:
        wrong: Any = {1, 2}
        with context.span("dig") as span:
            span.set(kept=1)
            with pytest.raises(TypeError, match=r'attributes\["rows"\] is a set'):
                span.set(rows=wrong)
            with pytest.raises(ValueError, match="more than"):
                span.set(text="x" * 70_000)
        with context.span("forced") as span:
            span.attributes["rows"] = wrong
            span.usage = wrong
        with pytest.raises(ValueError, match="span name must not be empty"):
            context.span("")
        return "found"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[call("dig")]), "done"])
            reply = await Agent("A", model=model, session=session, tools=[dig]).chat("go")
            spans = await session.spans(reply.run_id)

            assert spans[2].attributes == {"kept": 1}
            assert spans[3].attributes["error"].startswith("its attributes are lost: ")

    run(body)


def test_a_context_that_a_test_makes_has_spans_that_go_nowhere() -> None:
    with ToolContext(agent="A", run_id="r").span("work") as span:
        span.set(rows=1)

    assert (span.number, span.attributes, span.failed) == (1, {"rows": 1}, False)


@given(steps=st.lists(st.sampled_from(["open", "close", "fail"]), max_size=30), earlier=st.integers(0, 9))
def test_spans_have_their_parents_whatever_opens_and_closes(steps: list[str], earlier: int) -> None:
    clock = iter(range(10_000))
    log = SpanLog("run", lambda: next(clock), earlier=earlier)
    expected: list[int] = []
    failed: set[int] = set()

    def play(depth_parent: int, at: int) -> int:
        while at < len(steps):
            if steps[at] == "open":
                number = earlier + len(expected) + 1
                expected.append(depth_parent)
                with suppress(RuntimeError), log.span("s", "custom") as live:
                    assert live.number == number
                    at = play(number, at + 1)
                    if at <= len(steps) and steps[at - 1] == "fail":
                        failed.add(number)
                        raise RuntimeError("failed")
            else:
                return at + 1
        return at

    at = 0
    while at < len(steps):
        at = play(0, at)
    records = log.finished()
    assert [record.parent for record in records] == expected
    assert [record.number for record in records] == [earlier + place for place in range(1, len(expected) + 1)]
    assert all(record.ended_at_ms is not None and record.ended_at_ms > record.started_at_ms for record in records)
    assert {record.number for record in records if record.status == "error"} == failed
    assert current_span("run") == 0


def test_spans_of_one_run_inside_those_of_another_find_their_own() -> None:
    with inside_span("a", 1), inside_span("b", 7):
        assert (current_span("a"), current_span("b"), current_span("c")) == (1, 7, 0)
        with inside_span("a", 2):
            assert (current_span("a"), current_span("b")) == (2, 7)
        assert current_span("a") == 1


# By hand --------------------------------------------------------------------------------------------------------------


def test_a_run_by_hand_is_traced_with_nested_spans(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            await by_hand.start()
            async with by_hand.trace("plan") as plan:
                plan.set(steps=2)
                await anyio.sleep(1.0)
                async with by_hand.trace("gpt", kind="model") as model:
                    model.usage = Usage(5, 2, 7, requests=1)
                    await anyio.sleep(2.0)
                async with by_hand.trace("look up", kind="tool"):
                    await anyio.sleep(0.5)
            async with by_hand.trace("after"):
                pass
            await by_hand.complete(tokens_used=7)
            spans = await by_hand.spans()

            assert tree(spans) == [
                (1, 0, "custom", "plan"),
                (2, 1, "model", "gpt"),
                (3, 1, "tool", "look up"),
                (4, 0, "custom", "after"),
            ]
            assert [span.duration_ms for span in spans] == [3500, 2000, 500, 0]
            assert (spans[0].attributes, spans[1].usage) == ({"steps": 2}, Usage(5, 2, 7, requests=1))
            assert plan.ended_at_ms == spans[0].ended_at_ms
            assert await session.spans(by_hand.id) == spans

    run(body)


def test_tasks_that_trace_one_run_at_once_get_numbers_of_their_own(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            await by_hand.start()

            async def work(name: str) -> None:
                async with by_hand.trace(name):
                    await anyio.sleep(0.1)
                    async with by_hand.trace(f"{name} inside"):
                        await anyio.sleep(0.1)

            async with by_hand.trace("all"), anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(work, f"w{number}")
            spans = {span.number: span for span in await by_hand.spans()}

            assert sorted(spans) == list(range(1, 42))
            for span in spans.values():
                if span.name.endswith("inside"):
                    assert spans[span.parent].name == span.name.removesuffix(" inside")
                elif span.name != "all":
                    assert span.parent == 1

    run(body)


def test_an_exception_or_a_cancellation_in_the_block_ends_the_span_as_an_error(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            by_hand = await Session(runtime, "s").create_run()
            await by_hand.start()
            with pytest.raises(KeyError):
                async with by_hand.trace("breaks"):
                    raise KeyError("x")
            with anyio.move_on_after(1.0):
                async with by_hand.trace("is cut off"):
                    await anyio.sleep(60.0)
            async with by_hand.trace("says so") as span:
                span.fail("no such page")
            await by_hand.fail("no")
            spans = await by_hand.spans()

            assert [span.status for span in spans] == ["error"] * 3
            assert spans[0].attributes == {"error": "KeyError: 'x'"}
            assert spans[1].duration_ms == 1000
            assert spans[2].attributes == {"error": "no such page"}

    run(body)


def test_work_that_is_cut_off_waits_until_the_end_of_its_span_is_stored(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            by_hand = await Session(runtime, "s").create_run()
            await by_hand.start()
            begun: list[LiveSpan] = []
            with anyio.CancelScope() as scope:
                async with by_hand.trace("is cut off") as span:
                    begun.append(span)
                    scope.cancel()
                    await anyio.sleep_forever()

            (span,) = begun
            assert (span.failed, span.ended_at_ms is None) == (True, False)
            (stored,) = await by_hand.spans()
            assert (stored.status, stored.ended_at_ms) == ("error", span.ended_at_ms)

    run_in_real_time(body)


def test_only_a_run_by_hand_that_runs_is_traced(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            with pytest.raises(InvalidTransition, match="'queued' and cannot become 'traced'"):
                async with by_hand.trace("early"):
                    pass
            await by_hand.start()
            async with by_hand.trace("over the end"):
                await by_hand.complete()
            with pytest.raises(InvalidTransition, match="'completed'"):
                async with by_hand.trace("late"):
                    pass
            wrong: Any = "music"
            with pytest.raises(ValueError, match="no kind 'music'"):
                by_hand.trace("x", kind=wrong)
            trace = by_hand.trace("deleted")
            await session.delete()
            with pytest.raises(UnknownRun):
                await trace.__aenter__()

            assert await session.spans(by_hand.id) == []

    run(body)


def test_a_trace_is_entered_once(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            by_hand = await Session(runtime, "s").create_run()
            await by_hand.start()
            trace = by_hand.trace("once")
            async with trace:
                pass
            with pytest.raises(RuntimeError, match="entered once"):
                await trace.__aenter__()

    run(body)


def test_a_crash_shows_which_span_it_cut_off_and_numbers_go_on_behind_it(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            await by_hand.start()
            async with by_hand.trace("whole"):
                pass
            await by_hand.trace("cut off").__aenter__()  # and the process dies in it
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            (record,) = await session.runs()
            spans = await session.spans(record.id)

            assert record.status == "interrupted"
            assert [(span.name, span.ended_at_ms is None) for span in spans] == [("whole", False), ("cut off", True)]

    run_in_real_time(body)


@pytest.mark.parametrize("after_write", [False, True])
def test_a_commit_that_fails_loses_no_span_that_was_told_of(run: Run, after_write: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            by_hand = await Session(runtime, "s").create_run()
            await by_hand.start()
            async with by_hand.trace("before"):
                pass
            fail_commit(runtime, after_write=after_write)
            with pytest.raises(Unknown if after_write else Failed):
                await by_hand.trace("does not begin").__aenter__()
            async with by_hand.trace("its end is sent again") as span:
                fail_commit(runtime, after_write=after_write)
            async with by_hand.trace("after"):
                pass
            spans = await by_hand.spans()

            lost = ["does not begin"] if after_write else []
            assert [each.name for each in spans] == ["before", *lost, "its end is sent again", "after"]
            assert [each.name for each in spans if each.ended_at_ms is None] == lost
            assert span.ended_at_ms == spans[-2].ended_at_ms

    run(body)

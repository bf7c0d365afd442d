"""A summary stands for the beginning of a history where it is smaller and that has not changed; nothing is lost."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from window_talk import as_chat, numbered, prompts_of, summaries, talk

from callboard import (
    Agent,
    Budget,
    BudgetExceeded,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    NotCompacted,
    Price,
    Prices,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    Window,
)
from callboard.actors.session_records import message_key
from callboard.actors.transfer import export_store, import_store
from callboard.runtime import Backoff
from callboard.runtime.context import ACTIVATION_BITS
from callboard.store import Batch, MemoryStore, Row, Table
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


async def until_summarised(agent: Agent[Any], session: Session, *, first: int = 1) -> int:
    """Chat until there is a summary; the number of the turn in which it came."""
    number = first
    while await session.overlay() is None:
        await talk(agent, 1, first=number)
        number += 1
    return number - 1


def test_a_summary_takes_the_place_of_what_is_cut_and_nothing_is_lost(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8, strategy="summary"), ScriptedModel(as_chat)
            agent = Agent("Agent", model=model, session=session, instructions="Count.")
            turn = await until_summarised(agent, session)
            run_record = (await session.runs())[-1]
            await talk(agent, 40 - turn, first=turn + 1)

            prompts = prompts_of(model)
            covered = [int(prompt[1].split()[3]) for prompt in prompts if prompt[1].startswith("[Summary of the")]
            assert len(covered) == 40 - turn + 1
            assert all(text == "they counted" for text in {prompt[1].split("\n")[1] for prompt in prompts[turn:]})
            assert all(len(prompt) - 1 <= 10 for prompt in prompts)
            # Between the summary and what is shown nothing is missing.
            shown = [prompt[2] for prompt in prompts[turn - 1 :]]
            assert shown == [f"q{count // 2 + 1}" for count in covered]
            assert await session.message_count() == 80
            assert [span.name for span in await session.spans(run_record.id)] == ["summary", "scripted"]
            assert run_record.usage.requests == 2

    run(body)


def test_a_summary_grows_from_the_one_before(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8, strategy="summary"), ScriptedModel(as_chat)
            await talk(Agent("Agent", model=model, session=session), 20)

            asked = [request.messages[1].text for request in model.requests if summaries(request)]
            assert len(asked) >= 2
            assert "summary_so_far" not in asked[0]
            assert all("<summary_so_far>\nthey counted\n" in text for text in asked[1:])
            told = "".join(asked)
            assert all(told.count(f"user: q{n}\n") == 1 for n in range(1, 10))  # each message goes in once
            assert len(runtime.store.scan("session:s", Table.OVERLAY)) == 1  # the one before is dropped

    run(body)


def test_a_long_history_is_summarised_in_pieces_that_a_model_takes(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(as_chat)
            await session.add_messages([{"role": "user", "content": f"{n} " + "word " * 1_000} for n in range(40)])
            await session.add_message("user", "x" * 100_000)
            await session.add_message("user", "the last")
            overlay = await session.compact(model, keep_messages=1)

            assert overlay is not None
            assert (overlay.last_seq, overlay.message_count, overlay.text) == (41, 41, "they counted")
            lengths = [len(request.messages[1].text) for request in model.requests]
            assert len(lengths) >= 5
            assert max(lengths) < 50_000
            assert "92000 characters left out" in model.requests[-1].messages[1].text

    run(body)


def test_tool_calls_are_told_to_whom_summarises_and_never_split(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(as_chat)
            call = Message(role="assistant", tool_calls=(ToolCall(id="c", name="find", arguments='{"order": 8}'),))
            result = Message(role="tool", content="it is late", tool_call_id="c")
            await session.add_messages([*numbered(10), call, result, *numbered(2, first=11)])
            overlay = await session.compact(model, keep_messages=3)

            assert overlay is not None
            assert overlay.last_seq == 12  # the call and its result went together
            assert '[calls find with {"order": 8}]\nresult of a tool: it is late' in model.requests[0].messages[1].text
            view = await session.view(max_messages=10, strategy="summary")
            assert [message.text for message in view.messages] == [overlay.message().text, "m11", "m12"]

    run(body)


@pytest.mark.parametrize("said", ["", "   ", "word " * 200, ModelUnavailable("down"), RuntimeError("broken")])
def test_where_no_smaller_summary_can_be_had_a_run_goes_on_without(run: Run, said: Any) -> None:
    def script(request: ModelRequest) -> Any:
        return said if summaries(request) else as_chat(request)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8, strategy="summary"), ScriptedModel(script)
            await talk(Agent("Agent", model=model, session=session, policy=QUICK), 12)

            assert await session.overlay() is None
            assert [len(prompt) <= 10 for prompt in prompts_of(model)].count(False) == 0
            assert {record.status for record in await session.runs()} == {"completed"}

    run(body)


def test_a_summary_is_refused_where_history_changed_under_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(20))

            class Meanwhile(ScriptedModel):
                async def complete(self, request: ModelRequest, *, on_delta: Any = None) -> ModelAnswer:
                    await session.rewind(5)
                    await session.add_messages(numbered(20))
                    return model_answer("short")

            with pytest.raises(NotCompacted, match="have changed meanwhile"):
                await session.compact(Meanwhile(), keep_messages=5)

            assert await session.overlay() is None

    run(body)


def test_a_summary_of_a_session_that_was_begun_anew_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(20))
            await anyio.sleep(0.01)

            class Meanwhile(ScriptedModel):
                async def complete(self, request: ModelRequest, *, on_delta: Any = None) -> ModelAnswer:
                    await session.delete()
                    await anyio.sleep(0.01)
                    await session.add_messages(numbered(20))
                    return model_answer("short")

            with pytest.raises(NotCompacted):
                await session.compact(Meanwhile(), keep_messages=5)

            assert await session.overlay() is None

    run(body)


def test_of_two_summaries_that_are_made_at_once_one_is_taken(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(30))
            taken: list[str] = []

            async def compact(name: str, keep: int) -> None:
                try:
                    await session.compact(ScriptedModel([name], delay_s=1.0), keep_messages=keep)
                    taken.append(name)
                except NotCompacted:
                    pass

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(compact, "one", 5)
                tasks.start_soon(compact, "other", 9)

            overlay = await session.overlay()
            assert overlay is not None
            assert taken == [overlay.text]

    run(body)


def test_an_edit_of_what_a_summary_stands_for_makes_it_void_and_a_later_edit_does_not(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(as_chat)
            await session.add_messages(numbered(20))
            overlay = await session.compact(model, keep_messages=5)
            assert overlay is not None
            await session.pop(2)
            assert await session.overlay() == overlay
            await session.rewind(overlay.last_seq - 1)

            assert await session.overlay() is None
            view = await session.view(max_messages=8, strategy="summary")
            assert [message.seq for message in view.messages] == list(range(9, 16))
            again = await session.compact(model, keep_messages=3)
            assert again is not None
            assert await session.overlay() == again

    run(body)


def test_a_summary_outlives_the_process(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(20))
            first = await session.compact(ScriptedModel(as_chat), keep_messages=9)
            overlay = await session.compact(ScriptedModel(["shorter"]), keep_messages=5)
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            session, model = Session(runtime, "s", max_messages=9, strategy="summary"), ScriptedModel(as_chat)
            await talk(Agent("Agent", model=model, session=session), 1)

            assert first is not None
            assert overlay is not None
            assert first.last_seq < overlay.last_seq
            assert await session.overlay() == overlay
            assert prompts_of(model)[0] == [overlay.message().text, *(f"m{n}" for n in range(17, 21)), "q1"]
            assert [message.text for message in await session.messages()][:20] == [f"m{n}" for n in range(1, 21)]

    run_in_real_time(body)


def test_another_model_may_write_the_summaries(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model, writer = Session(runtime, "s"), ScriptedModel(as_chat), ScriptedModel(as_chat, name="small")
            window = Window(max_messages=8, strategy="summary", summarizer=writer)
            agent = Agent("Agent", model=model, session=session, window=window)
            await until_summarised(agent, session)

            assert len(writer.requests) == 1
            assert not any(summaries(request) for request in model.requests)

    run(body)


def test_a_budget_that_is_spent_by_a_summary_ends_the_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8, strategy="summary"), ScriptedModel(as_chat)
            await session.add_messages(numbered(30))
            policy = RunPolicy(budget=Budget(model_calls=1))
            with pytest.raises(BudgetExceeded):
                await Agent("Agent", model=model, session=session, policy=policy).chat("q1")

            assert len(model.requests) == 1
            assert await session.overlay() is not None  # what was paid for is kept

    run(body)


def test_a_summary_goes_where_its_session_is_exported_to(run: Run) -> None:
    async def body() -> None:
        source, target = MemoryStore(), MemoryStore()
        async with Runtime.on(lambda: source) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(20))
            overlay = await session.compact(ScriptedModel(as_chat), keep_messages=5)
            lines = list(export_store(runtime.store))
        import_store(target, lines)
        async with Runtime.on(lambda: target) as runtime:
            assert overlay is not None
            assert await Session(runtime, "s").overlay() == overlay

    run(body)


def test_a_summary_that_cannot_be_read_hides_no_message(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(20))
            overlay = await session.compact(ScriptedModel(as_chat), keep_messages=5)
        assert overlay is not None
        store = store.reopened()
        stored = store.load("session:s")
        assert stored is not None
        broken = Row(Table.OVERLAY, message_key(overlay.last_seq), b"\x01nonsense")
        epoch = store.claim() << ACTIVATION_BITS
        assert store.commit([Batch("session:s", epoch, stored.version, stored.head, (broken,))]) == [None]
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            session, model = Session(runtime, "s", max_messages=40, strategy="summary"), ScriptedModel(as_chat)
            await talk(Agent("Agent", model=model, session=session), 1)

            assert await session.overlay() is None
            assert len(model.requests[0].messages) == 21
            assert any("summary of session" in each.where for each in store.damage.list())

    run(body)


def test_a_budget_of_cost_wants_a_price_for_whom_writes_the_summaries(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            budget = Budget(cost=1.0, prices=Prices({"scripted": Price(input=1.0, output=1.0)}))
            window = Window(max_messages=8, strategy="summary", summarizer=ScriptedModel(name="small"))
            options: dict[str, Any] = {"model": ScriptedModel(), "policy": RunPolicy(budget=budget)}
            Agent("Agent", runtime=runtime, **options)
            with pytest.raises(ValueError, match="'small'"):
                Agent("Agent", runtime=runtime, window=window, **options)

    run(body)

"""A session's model sees a window; all of history stays, its cut and its summary outlive the process."""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    Budget,
    BudgetExceeded,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    NotCompacted,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    Usage,
    Window,
)
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


class Words:
    """Each word is a token."""

    name = "words"
    exact = False

    def count(self, text: str) -> int:
        return len(text.split())


def summaries(request: ModelRequest) -> bool:
    return request.messages[0].text.startswith("You condense")


def as_chat(request: ModelRequest) -> str | ModelAnswer:
    """What a model says: "a7" to "q7", and a summary where one is wanted."""
    if summaries(request):
        return "they counted"
    return "a" + request.messages[-1].text[1:]


def prompts_of(model: ScriptedModel) -> list[list[str]]:
    return [[message.text for message in request.messages] for request in model.requests if not summaries(request)]


async def talk(agent: Agent[Any], turns: int, *, first: int = 1) -> None:
    for number in range(first, first + turns):
        await agent.chat(f"q{number}")


def numbered(count: int, *, first: int = 1) -> list[dict[str, Any]]:
    return [{"role": ("assistant", "user")[n % 2], "content": f"m{n}"} for n in range(first, first + count)]


# What models see ------------------------------------------------------------------------------------------------------


def test_a_model_sees_the_latest_messages_and_all_are_kept(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8), ScriptedModel(as_chat)
            await talk(Agent("Agent", model=model, session=session), 30)

            prompts = prompts_of(model)
            assert all(len(prompt) <= 1.25 * 8 for prompt in prompts)
            assert max(map(len, prompts[10:])) > 8
            assert all(prompt[-1] == f"q{number}" for number, prompt in enumerate(prompts, 1))
            assert all(prompt[0][0] == "q" for prompt in prompts)
            assert await session.message_count() == 60

    run(body)


def test_prompts_begin_as_those_before_them_also_in_another_process(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        models = [ScriptedModel(as_chat) for _ in range(4)]
        for life, model in enumerate(models):
            async with Runtime(tmp_path / "s.lmdb", durability="async") as runtime:
                session = Session(runtime, "s", max_messages=20)
                await talk(Agent("Agent", model=model, session=session), 13, first=13 * life + 1)

        prompts = [prompt for model in models for prompt in prompts_of(model)]
        cuts = [other for one, other in pairwise(prompts) if one[0] != other[0]]
        assert 4 <= len(cuts) <= 7  # one in five or six turns, and not with each restart
        assert all(one == other[: len(one)] for one, other in pairwise(prompts) if one[0] == other[0])

    run_in_real_time(body)


def test_the_window_of_an_agent_goes_before_that_of_the_session_and_has_its_own_cut(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, narrow, wide = (
                Session(runtime, "s", max_messages=8),
                ScriptedModel(as_chat),
                ScriptedModel(as_chat),
            )
            of_session = Agent("Narrow", model=narrow, session=session)
            own = Agent("Wide", model=wide, session=session, window=Window(max_messages=24))
            for number in range(1, 40, 2):
                await talk(of_session, 1, first=number)
                await talk(own, 1, first=number + 1)

            assert max(map(len, prompts_of(narrow))) <= 10
            assert max(map(len, prompts_of(wide))) > 24
            moved = sum(one[0] != other[0] for one, other in pairwise(prompts_of(wide)))
            assert moved <= 4  # the other agent's cut has not moved this one's
            assert dict((await session.head()).window_cuts).keys() == {"recent/8/-", "recent/24/-"}

    run(body)


def test_a_run_that_calls_many_tools_keeps_the_beginning_of_its_prompt(run: Run) -> None:
    async def look(number: int) -> str:
        """Look."""
        return f"seen {number}"

    def script(request: ModelRequest) -> str | ModelAnswer:
        looked = sum(message.role == "tool" for message in request.messages[-40:])
        if request.messages[-1].text.startswith("q") or looked < 15:
            call = ToolCall(id=f"c{len(request.messages)}", name="look", arguments='{"number": 1}')
            return model_answer(tool_calls=[call])
        return "done"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=8), ScriptedModel(script)
            await session.add_messages(numbered(30))
            await Agent("Agent", model=model, session=session, tools=[look]).chat("q1")

            prompts = [request.messages for request in model.requests]
            assert len(prompts) == 16
            assert all(one == other[: len(one)] for one, other in pairwise(prompts))
            assert len(await session.messages_for_llm()) <= 8

    run(body)


def test_a_window_by_tokens_moves_within_a_run_that_writes_more_than_fits(run: Run) -> None:
    async def read() -> str:
        """Read."""
        return "word " * 150

    def script(request: ModelRequest) -> str | ModelAnswer:
        if len([message for message in request.messages if message.role == "tool"]) < 3:
            return model_answer(tool_calls=[ToolCall(id=f"c{len(request.messages)}", name="read")])
        return "done"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(script)
            await session.add_messages([{"role": "user", "content": "old " * 60}] * 10)
            window = Window(max_tokens=800, counter=Words())
            await Agent("Agent", model=model, session=session, tools=[read], window=window).chat("q1")

            old = [sum(m.text.startswith("old") for m in request.messages) for request in model.requests]
            assert old[0] > old[-1]
            for request in model.requests:
                assert sum(len(message.text.split()) for message in request.messages) <= 1.25 * 800

    run(body)


def test_what_servers_report_corrects_the_estimate_of_the_next_runs(run: Run) -> None:
    def script(request: ModelRequest) -> ModelAnswer:
        words = sum(len(message.text.split()) for message in request.messages)
        return model_answer("a " * 20, usage=Usage(prompt_tokens=3 * words, requests=1))  # three tokens a word

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(script)
            window = Window(max_tokens=1_000, counter=Words())
            agent = Agent("Agent", model=model, session=session, window=window)
            for number in range(60):
                await agent.chat(f"q{number} " + "w " * 20)

            words = [sum(len(message.text.split()) for message in request.messages) for request in model.requests]
            assert 250 < max(words[40:]) < 450  # words are all that is sent, and three tokens each; it began with one
            spans = await session.spans((await session.runs())[-1].id)
            assert spans[0].attributes["window_counter"].startswith("words x 2.")
            assert (await session.view(max_tokens=300, counter=Words())).counter.startswith("words x 2.")

    run(body)


@pytest.mark.parametrize("strategy", ["recent", "head_and_tail"])
def test_the_beginning_is_shown_where_that_is_wanted_and_its_instructions_always(run: Run, strategy: Any) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=20, strategy=strategy), ScriptedModel(as_chat)
            await session.add_message("system", "be kind")
            await session.add_messages(numbered(2_001, first=2))
            await talk(Agent("Agent", model=model, session=session), 1)

            prompt = prompts_of(model)[0]
            assert prompt[:4] == ["be kind", *(["m2", "m3", "m4"] if strategy == "head_and_tail" else prompt[1:4])]
            assert prompt[-2:] == ["m2002", "q1"]
            assert 10 < len(prompt) <= 20
            assert ("m2" in prompt) == (strategy == "head_and_tail")

    run(body)


def test_what_had_to_be_repaired_is_told(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(as_chat)
            open_call = Message(role="assistant", tool_calls=(ToolCall(id="c", name="f"),))
            await session.add_messages([open_call, Message(role="tool", content="lost", tool_call_id="x")])
            reply = await Agent("Agent", model=model, session=session).chat("q1")

            view = await session.view()
            assert [message.tool_call_id for message in view.repaired.inserted] == ["c"]
            assert [message.text for message in view.repaired.dropped] == ["lost"]
            attributes = (await session.spans(reply.run_id))[0].attributes
            assert (attributes["repaired_inserted"], attributes["repaired_dropped"]) == (1, 1)

    run(body)


def test_a_run_that_is_retried_sees_its_kept_input_once_and_last(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=6), ScriptedModel()
            await session.add_messages(numbered(20))
            agent = Agent("Agent", model=model, session=session, policy=RunPolicy(attempts_max=1))
            model.queue(ModelUnavailable("down"))
            with pytest.raises(Exception, match="down"):
                await agent.chat("mine", keep_input=True)
            await session.add_message("user", "later")
            await agent.retry((await session.runs())[-1].id)

            assert [message.text for message in model.requests[-1].messages][-2:] == ["later", "mine"]
            assert [message.text for message in model.requests[-1].messages].count("mine") == 1

    run(body)


# Views by hand --------------------------------------------------------------------------------------------------------


def test_messages_for_llm_keeps_strictly_to_what_is_given(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", max_messages=6)
            await session.add_messages(numbered(9))

            async def texts(**options: Any) -> list[str]:
                return [message["content"] for message in await session.messages_for_llm(**options)]

            assert await texts() == ["m5", "m6", "m7", "m8", "m9"]  # begins where a user speaks
            assert await texts(max_messages=3) == ["m7", "m8", "m9"]
            assert await texts(max_messages=100) == [f"m{n}" for n in range(1, 10)]
            assert await texts(max_tokens=15, counter=Words()) == ["m7", "m8", "m9"]
            assert await texts(max_tokens=1, counter=Words()) == ["m9"]  # nothing less can be shown
            assert await texts(max_messages=8, strategy="head_and_tail") == ["m1", "m2", "m5", "m6", "m7", "m8", "m9"]
            view = await session.view(max_messages=3)
            assert (view.cut, view.shown, view.left_out, view.tokens) == (7, 3, 6, None)
            assert [message.seq for message in await session.messages()] == list(range(1, 10))

    run(body)


def test_a_view_by_hand_does_not_stop_at_the_cut_of_runs(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=12), ScriptedModel(as_chat)
            await talk(Agent("Agent", model=model, session=session), 9)

            assert (await session.head()).window_cuts == (("recent/12/-", 11),)
            assert [message.seq for message in (await session.view()).messages] == list(range(7, 19))

    run(body)


def test_a_session_that_does_not_exist_shows_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", max_messages=5, strategy="summary")

            assert await session.messages_for_llm() == []
            assert await session.overlay() is None
            assert await session.compact(ScriptedModel()) is None

    run(body)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_messages": 0}, "max_messages must be 1 or more"),
        ({"max_tokens": -1}, "max_tokens must be 1 or more"),
        ({"max_messages": 3, "strategy": "newest"}, "use one of recent, head_and_tail, summary"),
        ({"strategy": "summary"}, "needs max_messages= or max_tokens="),
        ({"strategy": "newest"}, "use one of"),
    ],
)
def test_a_window_that_is_none_is_refused_at_the_door(run: Run, options: dict[str, Any], said: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            with pytest.raises(ValueError, match=said):
                Session(runtime, "s", **options)
            with pytest.raises(ValueError, match=said):
                await Session(runtime, "s").messages_for_llm(**options)

    run(body)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, ValueError),
        ({"max_messages": 2.5}, TypeError),
        ({"max_messages": True}, TypeError),
        ({"max_messages": 5, "keep_until": 0.9}, ValueError),
        ({"max_messages": 5, "cut_to": 1.1}, ValueError),
        ({"max_messages": 1, "strategy": "summary"}, ValueError),
    ],
)
def test_a_window_says_what_is_wrong_with_it(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Window(**options)


# Summaries ------------------------------------------------------------------------------------------------------------


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

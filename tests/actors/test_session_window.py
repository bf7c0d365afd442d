"""A session's model sees a window; all of history stays, its cut and its summary outlive the process."""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from window_talk import Words, as_chat, numbered, prompts_of, talk

from callboard import (
    Agent,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    Usage,
    Window,
)
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


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

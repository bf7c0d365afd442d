"""ScriptedModel: a model without I/O, for tests in virtual time."""

import anyio
import pytest
import trio
import trio.testing

from callboard import Delta, Message, Model, ModelAnswer, ModelRequest, ModelUnavailable, ToolCall, Usage
from callboard.testing import ScriptedModel, model_answer

REQUEST = ModelRequest((Message(role="user", content="hello there"),))


async def test_it_answers_raises_and_echoes_in_order() -> None:
    model = ScriptedModel(["one", ModelUnavailable("down"), model_answer("two", usage=Usage(total_tokens=9))])
    model.queue("three")

    first = await model.complete(REQUEST)
    with pytest.raises(ModelUnavailable, match="down"):
        await model.complete(REQUEST)
    rest = [await model.complete(REQUEST) for _ in range(3)]

    assert first == ModelAnswer(
        Message(role="assistant", content="one"),
        "stop",
        Usage(completion_tokens=1, total_tokens=1, requests=1),
        "scripted",
    )
    assert [answer.message.text for answer in rest] == ["two", "three", "echo: hello there"]
    assert rest[0].usage == Usage(total_tokens=9)
    assert model.requests == [REQUEST] * 5


async def test_a_stream_comes_in_pieces_that_joined_are_the_text() -> None:
    pieces: list[Delta] = []
    model = ScriptedModel([model_answer("one  two ", tool_calls=[ToolCall("c", "f", "{}")])])

    answer = await model.complete(REQUEST, on_delta=pieces.append)

    assert pieces == [
        Delta("text", "one"),
        Delta("text", " "),
        Delta("text", " two"),
        Delta("text", " "),
        Delta("tool_call", "{}"),
    ]
    assert answer.finish_reason == "tool_calls"


async def test_a_function_decides_by_the_request() -> None:
    model = ScriptedModel(lambda request: request.messages[-1].text.upper())

    assert (await model.complete(REQUEST)).message.text == "HELLO THERE"


def test_its_delays_are_virtual_time() -> None:
    async def main() -> float:
        model = ScriptedModel(["one two"], delay_s=1000, piece_delay_s=100)
        await model.complete(REQUEST, on_delta=lambda _: None)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)

    assert trio.run(main, clock=clock) == pytest.approx(1200)


async def test_it_counts_what_runs_at_once_also_when_cancelled() -> None:
    model = ScriptedModel(delay_s=3600)
    running: list[int] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(model.complete, REQUEST)
        await trio.testing.wait_all_tasks_blocked()
        running.append(model.in_flight)
        tasks.cancel_scope.cancel()

    assert (running, model.in_flight, model.in_flight_max) == ([3], 0, 3)


def test_it_is_a_model() -> None:
    model: Model = ScriptedModel(name="m")

    assert model.name == "m"

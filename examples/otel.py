"""Seeing what runs do: OpenTelemetry spans and metrics by the GenAI conventions, and logs with the ids of runs.

Here spans are printed and logs are lines of JSON; in a program of yours, exporters send them to wherever you look at
them. Neither holds what was said, unless you ask for it.

Run it: pip install 'callboard[otel]' opentelemetry-sdk
OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/otel.py
"""

import logging
import sys

import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from callboard import Agent, OpenAIChat, Runtime, Session
from callboard.observing import JSONFormatter, RunIdsFilter, RunLog
from callboard.otel import OpenTelemetry

shop = logging.getLogger("shop")


async def order_status(order: int) -> str:
    """Look up where an order is."""
    shop.info("looked up an order")  # the filter below puts the ids of the run on it
    return f"Order {order} left the warehouse on Monday."


def as_line(span: ReadableSpan) -> str:
    """A span in a line."""
    attributes = span.attributes or {}
    tokens = attributes.get("gen_ai.usage.output_tokens")
    return f"span {span.name}" + (f", {tokens} tokens out" if tokens else "") + "\n"


async def main(path: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(RunIdsFilter())
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("callboard.run").setLevel(logging.DEBUG)

    tracers, metrics = TracerProvider(), InMemoryMetricReader()
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=as_line)))

    async with Runtime(path) as runtime:
        runtime.observe_runs(RunLog())
        runtime.observe_runs(OpenTelemetry(tracer_provider=tracers, meter_provider=MeterProvider([metrics])))
        session = Session(runtime, "case-4711")
        agent = Agent("Support", model=OpenAIChat(), session=session, tools=[order_status])
        with tracers.get_tracer("shop").start_as_current_span("GET /chat"):  # the run is a part of this request
            await agent.chat("Where is order 88?")

    data = metrics.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            print("metrics:", ", ".join(sorted(metric.name for metric in scope.metrics)))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")

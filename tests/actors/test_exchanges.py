"""Every known deviation of a provider, replayed over a real socket: what goes out, and what comes of the answer.

The files under `exchanges/` are written by hand from FACTS.md; see `callboard.replay` for their form.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import Delta, ModelAnswer, ModelError, OpenAIChat, Usage
from callboard.actors.providers import COMPATIBLE, PROVIDERS
from callboard.actors.retry import RetryPolicy
from callboard.replay import ExpectedAnswer, ExpectedError, RecordedExchange, departures, load_exchange, replay
from callboard.testing import FakeUpstream

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

FOLDER = Path(__file__).parent / "exchanges"
FILES = sorted(FOLDER.glob("*/*.json"))
ONE_TRY = RetryPolicy(retries_max=0, rate_limit_patience_s=0)

DEVIATIONS = {
    "openai": {
        "usage_in_a_last_chunk_without_choices",
        "interleaved_parallel_tool_calls",
        "refusal",
        "obfuscation_and_unknown_fields",
        "insufficient_quota",
        "rate_limit_with_retry_after_ms",
        "x_should_retry_false",
        "context_length_exceeded",
        "whole_body_with_tool_calls",
        "thoughts_of_others_stay_here",
        "strict_schema",
    },
    "azure": {
        "filter_results_before_and_after",
        "deployment_in_the_path",
        "content_filter_error",
        "unknown_limits_are_minus_one",
    },
    "vllm": {
        "reasoning",
        "reasoning_content",
        "both_names_of_reasoning",
        "continuous_usage",
        "flat_error_body",
        "flat_error_in_the_stream",
        "stop_with_a_named_tool",
    },
    "llama.cpp": {
        "first_delta_null_and_timings",
        "unknown_model_is_accepted",
        "exceed_context_size_error",
        "name_and_arguments_in_one_delta",
        "output_that_its_parser_refuses",
        "stream_ends_without_a_word",
        "error_event_in_the_stream",
        "bare_error_line",
    },
    "ollama": {"all_calls_have_index_0", "no_index", "reasoning"},
    "lmstudio": {
        "no_object_as_tool_choice",
        "error_is_a_text",
        "error_event_without_a_type",
        "error_event_with_a_text",
        "tool_calls_as_text",
    },
    "gemini": {
        "calls_without_index_and_id",
        "thought_signature_comes",
        "thought_signature_goes_back",
        "error_in_a_list",
    },
    "deepseek": {
        "keep_alive_comments_and_reasoning",
        "empty_lines_before_a_body",
        "reasoning_goes_back_on_turns_with_calls",
        "reasoning_that_was_not_sent_back",
        "json_object_only",
    },
    "mistral": {
        "content_is_a_list_with_thinking",
        "nothing_that_it_does_not_know",
        "ids_of_nine_letters",
        "any_for_required",
        "flat_error_body",
        "findings_in_a_flat_error",
    },
    "openrouter": {
        "processing_comments",
        "error_in_mid_stream",
        "error_in_a_200_body",
        "signed_thoughts_come",
        "signed_thoughts_go_back",
    },
    "openai-compatible": {
        "transformers_no_done",
        "transformers_findings",
        "transformers_detail",
        "transformers_plain_text_500",
        "transformers_ignores_the_form",
        "litellm_code_is_a_text",
        "litellm_usage_of_a_stream",
        "litellm_usage_of_a_body",
        "arguments_as_an_object",
        "empty_arguments",
        "no_index_and_an_id_that_continues",
        "finish_reason_null_to_the_end",
        "finish_reason_in_vendor_words",
        "text_after_the_finish_reason",
        "stream_asked_for_and_body_given",
        "html_error",
        "empty_error",
        "error_with_code_null",
        "unframed_stream",
        "unframed_stream_cut",
        "sse_crlf",
        "sse_cr",
        "sse_crlf_cut",
        "sse_without_space",
        "sse_bom",
        "sse_multi_line_data",
        "sse_line_separators_inside_json",
        "sse_last_event_unterminated",
        "utf8_cut_anywhere",
        "seven_bytes_at_a_time",
        "comments_between",
        "malformed_event",
        "invalid_utf8",
    },
}
"""FACTS.md, "What the real ones did differently", "Wire truth" and "Faults", row by row."""


def test_every_deviation_has_its_exchange_and_every_provider_its_deviations() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        found.setdefault(path.parent.name, set()).add(path.stem)

    assert found == DEVIATIONS
    assert found.keys() == {*PROVIDERS, COMPATIBLE.name}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recorded_exchange_goes_out_as_it_must_and_comes_back_as_what_it_means(
    path: Path, run_in_real_time: Run
) -> None:
    exchange = load_exchange(path)

    async def body() -> None:
        async with FakeUpstream([replay(exchange)]) as upstream:
            said: list[Delta] = []
            outcome = await ask(exchange, upstream, said)

        sent = upstream.request_targets[0], upstream.request_headers[0], upstream.requests[0]
        assert departures(exchange.request, *sent) == []
        if exchange.expect.error is not None:
            check_error(outcome, exchange.expect.error)
        else:
            check_answer(outcome, said, exchange)
        assert upstream.request_count == 1

    assert exchange.provider == path.parent.name
    run_in_real_time(body)


async def ask(exchange: RecordedExchange, upstream: FakeUpstream, said: list[Delta]) -> ModelAnswer | ModelError:
    chat = OpenAIChat(
        base_url=upstream.url.removesuffix("/v1") + exchange.base_path,
        provider=exchange.provider,
        api_key="sk-key",
        model="m",
        retries=ONE_TRY,
        progress_timeout_s=5,
    )
    try:
        return await chat.complete(exchange.asked, on_delta=said.append if exchange.streamed else None)
    except ModelError as error:
        return error
    finally:
        await chat.aclose()
        while upstream.connections_open:  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)


def check_answer(outcome: ModelAnswer | ModelError, said: list[Delta], exchange: RecordedExchange) -> None:
    assert isinstance(outcome, ModelAnswer), outcome
    expected, message = exchange.expect, outcome.message
    calls = [[call.name, call.arguments, call.id, call.extra] for call in message.tool_calls]
    facts = ExpectedAnswer(
        text=message.text,
        reasoning=joined(said, "reasoning"),
        tool_calls=tuple(tuple(call[: len(wanted)]) for call, wanted in zip(calls, expected.tool_calls, strict=True)),
        usage=expected.usage,
        finish_reason=outcome.finish_reason,
        extra=message.extra,
        model=outcome.model,
        request_id=outcome.request_id,
    )

    assert facts == expected
    assert outcome.usage == Usage(requests=1, estimated=0 if any(expected.usage.values()) else 1, **expected.usage)
    assert len({call.id for call in message.tool_calls}) == len(calls)
    assert all(call.id for call in message.tool_calls)
    if exchange.streamed:
        assert joined(said, "text") == expected.text
        assert sorted(joined(said, "tool_call")) == sorted("".join(call.arguments for call in message.tool_calls))


def check_error(outcome: ModelAnswer | ModelError, expected: ExpectedError) -> None:
    assert isinstance(outcome, ModelError), outcome
    facts = ExpectedError(
        kind=type(outcome).__name__,
        says=expected.says,
        status=outcome.status,
        request_id=outcome.request_id,
        retry_after_s=outcome.retry_after_s,
        should_retry=outcome.should_retry,
    )

    assert facts == expected
    assert expected.says in str(outcome)
    assert not [secret for secret in ("SECRET", "sk-key") if secret in str(outcome)]


def joined(said: list[Delta], kind: str) -> str:
    return "".join(delta.text for delta in said if delta.kind == kind)

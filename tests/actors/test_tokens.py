"""Tokens are estimated within some per cent in every script, learnt from what servers report, and exact by tiktoken."""

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings, strategies as st

from callboard import Message, ToolCall
from callboard.actors import tokens
from callboard.actors.model import OutputSchema, ToolSchema
from callboard.actors.tokens import TiktokenCounter, TokenEstimate, TokenMeter, TokenMeters, counter_for

unhurried = settings(deadline=None)  # other processes may take the machine's time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

# What tiktoken 0.14 counts by o200k_base.
COUNTED = {
    "The tracking page says it left the warehouse on Monday, but nothing has changed since then.": 18,
    "Den Paketdienst habe ich schon zweimal angerufen; beide Male hieß es, die Lieferung warte noch.": 22,
    "我给快递公司打了两次电话,他们每次都说包裹还在等第二个箱子。": 22,
    "配送会社に二回電話しましたが、どちらも「二つ目の箱を待っている」と言われました。": 27,
    "اتصلت بشركة الشحن مرتين، وفي كل مرة قالوا لي إن الطرد ينتظر صندوقا ثانيا.": 26,
    "    async def deliver(self, id: str, driver: Driver) -> Receipt:\n        return await driver.deliver(id)\n": 25,
    '{"order_id": "ORD-48213", "customer": {"name": "Dana Fox", "email": "dana@example.com", "plan": "pro"}}': 35,
}


class Words:
    """Each word is a token."""

    name = "words"

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact
        self.asked = 0

    def count(self, text: str) -> int:
        self.asked += 1
        return len(text.split())


class Encoding:
    """As much of tiktoken's as is used."""

    name = "by_letter"

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.mark.parametrize("text", COUNTED, ids=["en", "de", "zh", "ja", "ar", "code", "json"])
def test_the_estimate_is_within_a_quarter_for_a_single_sentence(text: str) -> None:
    assert TokenEstimate().count(text) == pytest.approx(COUNTED[text], rel=0.25)


@unhurried
@given(st.text(max_size=200))
def test_the_estimate_of_any_text_is_a_number_that_grows_with_it(text: str) -> None:
    tokens = TokenEstimate().count(text)

    assert (tokens == 0) == (text == "")
    assert tokens <= 4 * len(text)
    assert TokenEstimate().count(text + " and one more.") > tokens


def test_a_long_text_is_judged_by_pieces_of_it() -> None:
    sentence = "The tracking page says it left the warehouse on Monday, 14:05. "
    long = sentence * 10_000

    assert TokenEstimate().count(long) == pytest.approx(10_000 * TokenEstimate().count(sentence), rel=0.1)


def test_a_message_counts_with_its_calls_parts_and_what_wraps_it() -> None:
    meter = TokenMeter(Words())
    plain = Message(role="user", content="one two three")
    image = Message(role="user", content=[{"type": "text", "text": "what is this"}, {"type": "image_url"}])
    call = Message(role="assistant", tool_calls=(ToolCall(id="c", name="look up", arguments='{"a": 1}'),))
    named = Message(role="user", content="one", name="ann", extra={"reasoning_content": "so it is", "n": 1})

    assert meter.message(plain) == 3 + tokens.MESSAGE_TOKENS
    assert meter.message(image) == 3 + tokens.PART_TOKENS + tokens.MESSAGE_TOKENS
    assert meter.message(call) == tokens.CALL_TOKENS + 2 + 2 + tokens.MESSAGE_TOKENS
    assert meter.message(named) == 1 + 1 + 1 + 3 + 1 + tokens.MESSAGE_TOKENS
    assert meter.counted([plain, plain]) == 2 * meter.message(plain)


def test_tools_and_the_form_of_the_answer_count_by_their_json() -> None:
    meter = TokenMeter(TokenEstimate())
    tool = ToolSchema("find", "Find an order.", {"type": "object", "properties": {"order": {"type": "integer"}}})
    form = OutputSchema("answer", {"type": "object", "properties": {"city": {"type": "string"}}})

    assert meter.schemas([], None) == 0
    assert meter.schemas([tool], None) > 15
    assert meter.schemas([tool, tool], form) > 2 * meter.schemas([tool], None)


def test_a_text_is_counted_once() -> None:
    words = Words()
    meter = TokenMeter(words)
    message = Message(role="user", content="one two")

    assert [meter.message(message) for _ in range(3)] == [2 + tokens.MESSAGE_TOKENS] * 3
    assert words.asked == 1


@pytest.mark.parametrize("truth", [0.6, 1.0, 1.3, 2.5])
def test_what_servers_report_corrects_the_count(truth: float) -> None:
    meter = TokenMeter(Words())
    for _ in range(20):
        meter.learn(1_000, round(1_000 * truth))

    assert meter.factor == pytest.approx(truth, rel=0.05)
    assert meter.name == ("words" if truth == 1.0 else f"words x {meter.factor:.2f}")


def test_one_short_prompt_and_one_absurd_report_change_little() -> None:
    short, absurd = TokenMeter(Words()), TokenMeter(Words())
    short.learn(10, 40)  # a server that wraps messages in much
    for _ in range(50):
        absurd.learn(1, 10**9)

    assert short.factor < 1.1
    assert absurd.factor == 4.0


@pytest.mark.parametrize(("counted", "reported"), [(0, 10), (10, 0), (0, 0)])
def test_what_was_not_counted_or_not_reported_teaches_nothing(counted: int, reported: int) -> None:
    meter = TokenMeter(Words())
    meter.learn(counted, reported)

    assert meter.factor == 1.0


def test_an_exact_counter_is_not_corrected() -> None:
    meter = TokenMeter(Words(exact=True))
    meter.learn(1_000, 2_000)

    assert (meter.factor, meter.name) == (1.0, "words")


def test_tiktokens_encoding_is_asked_and_named() -> None:
    counter = TiktokenCounter(Encoding())

    assert (counter.count("<|endoftext|>"), counter.name, counter.exact) == (13, "tiktoken/by_letter", True)


def test_the_models_of_a_runtime_learn_each_by_itself(run: Run) -> None:
    async def body() -> None:
        meters, words = TokenMeters(), Words()
        one, other = await meters.of("one", words), await meters.of("other", words)
        one.learn(10_000, 20_000)

        assert (await meters.of("one", words)).factor == one.factor > 1.5
        assert other.factor == 1.0

    run(body)


def test_without_a_model_what_the_only_one_in_use_has_learnt_counts(run: Run) -> None:
    async def body() -> None:
        meters, words = TokenMeters(), Words()
        assert (await meters.of_any(words)).factor == 1.0
        (await meters.of("one", words)).learn(10_000, 20_000)
        assert (await meters.of_any(words)).factor > 1.5
        assert await meters.of_any(None) is await meters.of("one", words)
        await meters.of("other", words)

        assert (await meters.of_any(words)).factor == 1.0

    run(body)


def test_the_encoding_of_a_model_is_tiktokens_where_it_has_one(run_in_real_time: Run, monkeypatch: Any) -> None:
    class Tiktoken:
        __spec__ = object()  # of a module that is there

        @staticmethod
        def encoding_for_model(name: str) -> Encoding:
            if name == "no network":
                raise OSError("cannot be reached")
            if name != "gpt-x":
                raise KeyError(name)
            return Encoding()

    monkeypatch.setattr(tokens, "_counters", {})
    monkeypatch.setitem(sys.modules, "tiktoken", Tiktoken)

    async def body() -> None:
        assert (await counter_for("gpt-x")).name == "tiktoken/by_letter"
        assert await counter_for("gpt-x") is await counter_for("gpt-x")
        assert (await counter_for("llama")).name == "estimate"
        assert (await counter_for("no network")).name == "estimate"

    run_in_real_time(body)


def test_without_tiktoken_tokens_are_estimated(run_in_real_time: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(tokens, "_counters", {})
    monkeypatch.setitem(sys.modules, "tiktoken", None)

    async def body() -> None:
        assert (await counter_for("gpt-4o")).name == "estimate"

    run_in_real_time(body)


@pytest.mark.skipif(importlib.util.find_spec("tiktoken") is None, reason="needs the extra `tokens`")
def test_a_real_encoding_of_tiktoken_counts() -> None:
    tiktoken: Any = importlib.import_module("tiktoken")  # its types are there only with it

    encoding = tiktoken.Encoding(  # one without merges: those of models would come from the network
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )

    assert TiktokenCounter(encoding).count("zwölf") == 6

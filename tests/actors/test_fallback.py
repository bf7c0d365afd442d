"""Several models that are one: who is asked after a failure, who rests, and what the caller is told."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    BadResponse,
    ContextOverflow,
    Delta,
    Message,
    Model,
    ModelAnswer,
    ModelError,
    ModelRequest,
    ModelSettings,
    ModelUnavailable,
    OpenAIChat,
    RateLimited,
    Refused,
    Runtime,
    Session,
    Stalled,
    Truncated,
)
from callboard.actors.fallback import FallbackMember, FallbackModel
from callboard.actors.retry import RetryPolicy
from callboard.testing import FakeUpstream, ModelStep, ScriptedModel, fault, model_answer, refuse, run_in_virtual_time

Backend: TypeAlias = Literal["trio", "asyncio"]
BACKENDS: tuple[Backend, ...] = ("trio", "asyncio")
REQUEST = ModelRequest((Message(role="user", content="hello"),))


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> Callable[[Backend], None]:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: Backend) -> None:
        run_in_virtual_time(body, backend=backend)

    return test


def scripted(name: str, *steps: ModelStep) -> ScriptedModel:
    """A model that does these steps, and answers with its name afterwards."""
    queue = list(steps)
    return ScriptedModel(lambda _: queue.pop(0) if queue else name, name=name)


async def text_of(model: Model, request: ModelRequest = REQUEST) -> str:
    return (await model.complete(request)).message.text


def ignore(_: Delta) -> None:
    pass


def overflow() -> ContextOverflow:
    return ContextOverflow("too long", status=400)


# Who is asked ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_first_model_is_asked_as_long_as_it_answers() -> None:
    first, second = scripted("first"), scripted("second")
    model = FallbackModel([first, second])

    answers = [await text_of(model) for _ in range(3)]

    assert answers == ["first"] * 3
    assert (len(first.requests), second.requests) == (3, [])
    assert first.requests[0] == REQUEST


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ModelUnavailable("down", status=503),
        Stalled("silent"),
        BadResponse("html"),
        Truncated("cut"),
        RateLimited("slow down", status=429),
        Refused("quota", status=429),
        BadRequest("no such model", status=404),
        overflow(),
    ],
    ids=lambda error: type(error).__name__ + str(error.status),
)
def test_what_another_model_may_do_it_is_asked_for(error: ModelError, streamed: bool, backend: Backend) -> None:
    async def body() -> str:
        model = FallbackModel([scripted("first", error), scripted("second")])
        return (await model.complete(REQUEST, on_delta=ignore if streamed else None)).message.text

    assert run_in_virtual_time(body, backend=backend) == "second"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [BadRequest("your fault", status=400), ModelError("unknown"), RuntimeError("a bug")])
def test_what_no_other_model_mends_goes_up_at_once_and_nobody_rests(error: Exception, backend: Backend) -> None:
    async def body() -> str:
        first, second = scripted("first", error), scripted("second")
        model = FallbackModel([first, second])
        with pytest.raises(type(error)) as raised:
            await model.complete(REQUEST)
        assert raised.value is error
        assert second.requests == []
        return await text_of(model)

    assert run_in_virtual_time(body, backend=backend) == "first"


@in_virtual_time
async def test_no_other_model_is_asked_once_a_piece_was_shown() -> None:
    class BreaksOff(ScriptedModel):
        async def complete(self, request: ModelRequest, *, on_delta: Any = None) -> ModelAnswer:
            on_delta(Delta("text", "half an ans"))
            raise Truncated("cut")

    second, seen = scripted("second"), list[str]()
    model = FallbackModel([BreaksOff(), second])

    with pytest.raises(Truncated):
        await model.complete(REQUEST, on_delta=lambda delta: seen.append(delta.text))

    assert seen == ["half an ans"]
    assert second.requests == []


@in_virtual_time
async def test_pieces_of_the_one_that_answers_are_handed_out() -> None:
    seen: list[Delta] = []
    model = FallbackModel([scripted("first", ModelUnavailable("down")), scripted("second", "one two")])

    await model.complete(REQUEST, on_delta=seen.append)

    assert "".join(delta.text for delta in seen) == "one two"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("sizes", "answered_by"),
    [((8, 8, 32), 2), ((8, None, 32), 1), ((None, 4, 8), 1), ((8, 4, 8), None), ((32, 16, 64), 2)],
)
def test_after_an_overflow_only_a_model_is_asked_that_may_hold_more(
    sizes: tuple[int | None, ...], answered_by: int | None, backend: Backend
) -> None:
    async def body() -> None:
        models = [scripted("0", overflow()), scripted("1"), scripted("2")]
        pairs = zip(models, sizes, strict=True)
        chain = FallbackModel([FallbackMember(model, context_tokens=tokens) for model, tokens in pairs])
        if answered_by is None:
            with pytest.raises(ContextOverflow):
                await chain.complete(REQUEST)
        else:
            assert await text_of(chain) == str(answered_by)
        assert await text_of(chain) == "0"  # that was no fault of the model's: it does not rest

    run_in_virtual_time(body, backend=backend)


@in_virtual_time
async def test_the_largest_that_overflowed_says_who_may_hold_more() -> None:
    sizes = (32, None, 16, 64)
    models = [scripted("0", overflow()), scripted("1", overflow()), scripted("2"), scripted("3")]
    members = [FallbackMember(model, context_tokens=tokens) for model, tokens in zip(models, sizes, strict=True)]

    assert await text_of(FallbackModel(members)) == "3"


# Who rests ------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_model_that_failed_is_left_alone_for_a_while() -> None:
    first = scripted("first", ModelUnavailable("down"))
    model = FallbackModel([first, scripted("second")], cooldown_s=30.0)

    answers: list[str] = []
    for _ in range(4):
        answers.append(await text_of(model))
        await anyio.sleep(10.0)

    assert answers == ["second", "second", "second", "first"]
    assert len(first.requests) == 2


@in_virtual_time
async def test_a_longer_wish_of_the_server_goes_before_the_cooldown() -> None:
    first = scripted("first", RateLimited("x", retry_after_s=90.0))
    model = FallbackModel([first, scripted("second")], cooldown_s=30.0)

    answers: list[str] = []
    for _ in range(4):
        answers.append(await text_of(model))
        await anyio.sleep(30.0)

    assert answers == ["second", "second", "second", "first"]


@in_virtual_time
async def test_a_model_that_rests_is_asked_all_the_same_when_the_others_fail() -> None:
    model = FallbackModel(
        [scripted("first", ModelUnavailable("a")), scripted("second", "fine", ModelUnavailable("b"), "too late")]
    )

    answers = [await text_of(model), await text_of(model)]

    assert answers == ["fine", "first"]


@in_virtual_time
async def test_who_answers_while_it_rests_rests_no_more() -> None:
    first = scripted("first", RateLimited("a", retry_after_s=90.0))
    model = FallbackModel([first, scripted("second", "fine", ModelUnavailable("b"))], cooldown_s=30.0)

    answers = [await text_of(model) for _ in range(3)]

    assert answers == ["fine", "first", "first"]


@in_virtual_time
async def test_without_a_cooldown_the_first_one_is_asked_first_again() -> None:
    model = FallbackModel([scripted("first", ModelUnavailable("a")), scripted("second")], cooldown_s=0.0)

    assert [await text_of(model), await text_of(model)] == ["second", "first"]


def test_another_event_loop_finds_out_anew_who_fails() -> None:
    first = scripted("first", ModelUnavailable("a"))
    model = FallbackModel([first, scripted("second")], cooldown_s=1e9)

    answers = [run_in_virtual_time(lambda: text_of(model), backend=backend) for backend in BACKENDS]

    assert answers == ["second", "first"]


# What the caller is told ----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_when_all_fail_the_error_is_one_that_may_pass_and_counts_all_tries() -> None:
    model = FallbackModel(
        [
            scripted("first", RateLimited("a", tries=3)),
            scripted("second", ModelUnavailable("b", tries=2)),
            scripted("third", Refused("bad key", status=401)),
        ]
    )

    with pytest.raises(ModelUnavailable, match="b") as raised:
        await model.complete(REQUEST)

    assert raised.value.tries == 6
    assert raised.value.__notes__ == ["and first: RateLimited: a", "and third: Refused: bad key"]


@in_virtual_time
async def test_when_none_of_the_errors_may_pass_the_last_one_goes_up() -> None:
    model = FallbackModel([scripted("first", Refused("a")), scripted("second", BadRequest("b", status=400))])

    with pytest.raises(BadRequest, match="b"):
        await model.complete(REQUEST)


@in_virtual_time
async def test_the_answer_says_which_model_gave_it() -> None:
    def nameless(text: str) -> ModelAnswer:
        said = model_answer(text)
        return ModelAnswer(said.message, said.finish_reason)

    renamed = FallbackMember(scripted("second", nameless("b")), settings=ModelSettings(model="its name there"))
    model = FallbackModel([scripted("first", nameless("a"), ModelUnavailable("x")), renamed])

    answers = [await model.complete(REQUEST) for _ in range(2)]

    assert [answer.model for answer in answers] == ["first", "its name there"]
    assert model.name == "first|its name there"


# Settings -------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_members_settings_go_before_the_requests_and_the_models_name_is_for_the_first() -> None:
    first, second, third = (scripted(name, ModelUnavailable("x")) for name in ("first", "second", "third"))
    own = ModelSettings(model="large", temperature=0.0, stop=("END",), extra_body={"a": 1})
    model = FallbackModel([first, FallbackMember(second, settings=own), third])
    asked = ModelSettings(model="small", temperature=1.0, max_tokens=9, extra_body={"a": 0, "b": 2})

    with pytest.raises(ModelUnavailable):
        await model.complete(ModelRequest(REQUEST.messages, settings=asked))

    assert first.requests[0].settings == asked
    assert second.requests[0].settings == ModelSettings(
        model="large", temperature=0.0, max_tokens=9, stop=("END",), extra_body={"a": 1, "b": 2}
    )
    assert third.requests[0].settings == ModelSettings(temperature=1.0, max_tokens=9, extra_body={"a": 0, "b": 2})


@pytest.mark.parametrize(
    ("models", "options", "error"),
    [
        ([], {}, ValueError),
        (["gpt"], {}, TypeError),
        ("gpt", {}, TypeError),
        ([scripted("a")], {"cooldown_s": -1}, ValueError),
        ([scripted("a")], {"cooldown_s": None}, TypeError),
    ],
)
def test_a_chain_that_cannot_be_one_is_refused(models: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        FallbackModel(models, **options)


# Closing --------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_closing_closes_each_model_once_whatever_one_of_them_raises() -> None:
    closed: list[str] = []

    class Closing(ScriptedModel):
        async def aclose(self) -> None:
            closed.append(self.name)
            raise OSError(self.name)

        def close_expired(self) -> bool:
            closed.append(f"expired {self.name}")
            return self.name == "a"

    one, other = Closing(name="a"), Closing(name="b")
    model = FallbackModel([one, other, one, ScriptedModel()])

    with pytest.raises(OSError, match="a"):
        await model.aclose()

    assert sorted(closed) == ["a", "b"]
    closed.clear()
    assert model.close_expired()
    assert closed == ["expired a", "expired b"]
    assert not FallbackModel([ScriptedModel()]).close_expired()


# In runs --------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_runs_span_says_which_model_answered() -> None:
    async with Runtime.in_memory() as runtime:
        session = Session(runtime, "s")
        model = FallbackModel([scripted("first", ModelUnavailable("x")), FallbackMember(scripted("second"))])
        reply = await Agent("A", model=model, session=session).chat("hello")
        spans = await session.spans(reply.run_id)

        assert [(span.name, span.attributes["model"]) for span in spans] == [("first|second", "scripted")]


# With real servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_agents_turn_is_answered_by_the_server_that_is_up(backend: Backend) -> None:
    async def body() -> None:
        quick = RetryPolicy(retries_max=0, rate_limit_patience_s=0.0)
        async with (
            FakeUpstream([refuse(500), refuse(401), fault("reset_mid_stream")]) as down,
            FakeUpstream() as up,
            Runtime.in_memory() as runtime,
        ):
            upstreams = (("large", down), ("small", up))
            chats = [OpenAIChat(base_url=each.url, model=name, retries=quick) for name, each in upstreams]
            model = FallbackModel(chats, cooldown_s=0.0)
            agent = Agent("A", model=model, runtime=runtime)
            replies = [await agent.chat(text) for text in ("one", "two")]
            async with agent.stream("three") as stream:
                pieces = [event.text async for event in stream if isinstance(event, Delta)]

            assert [reply.text for reply in replies] == ["echo: one", "echo: two"]
            assert [reply.attempts for reply in replies] == [1, 1]
            assert (stream.reply.text, stream.reply.attempts) == ("echo: three", 2)
            assert "".join(pieces).endswith("echo: three")
            assert [body["model"] for body in up.requests] == ["small", "small"]
            assert down.request_count == 4
            await model.aclose()

    async def guarded() -> None:
        with anyio.fail_after(20):
            await body()

    anyio.run(guarded, backend=backend)

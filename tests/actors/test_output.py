"""Output forms: what is taken at the door, what the server is told, what is made of an answer."""

import dataclasses
import datetime
import json
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import jsonschema
import pytest
from hypothesis import given, strategies as st
from msgspec import Meta, Struct, json as msgspec_json

from callboard.actors.errors import BadOutput, Refusal
from callboard.actors.message import Message
from callboard.actors.model import ModelAnswer
from callboard.actors.output import PROBLEM_CHARACTERS_MAX, Output
from callboard.actors.run_output import RunOutput


class Place(Struct):
    """A place on a map."""

    city: Annotated[str, Meta(min_length=1)]
    country: str = "FR"
    near: "list[Place]" = []


@dataclasses.dataclass
class Item:
    name: str
    count: int | None
    price: Decimal = Decimal("1.5")
    kind: Literal["new", "used"] = "new"


@dataclasses.dataclass
class Order:
    number: int
    due: datetime.date
    items: list[Item]
    by_shelf: list[tuple[str, int]]
    note: str = ""
    first: Item | None = None


class Ticket(TypedDict):
    subject: str
    urgent: NotRequired[bool]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Cat(Struct, tag="cat"):
    lives: int


class Dog(Struct, tag="dog"):
    name: str


NESTED = f'{{"city": {"[" * 600 + "]" * 600}}}'
"""Not too deep to be decoded, but for Python functions that call themselves."""

PLACE_SCHEMA: dict[str, Any] = {
    "title": "A place!",
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city"],
}


def said(text: str, *, finish_reason: str = "stop", **extra: Any) -> ModelAnswer:
    return ModelAnswer(Message(role="assistant", content=text, extra=extra), finish_reason)


def problem_of(form: Any, text: str, *, finish_reason: str = "stop") -> str:
    with pytest.raises(BadOutput) as caught:
        Output.of(form).read(said(text, finish_reason=finish_reason))
    assert caught.value.text == text
    assert not caught.value.transient
    return caught.value.problem


def orders() -> st.SearchStrategy[Order]:
    prices = st.decimals(-99, 99, allow_nan=False, places=2)
    numbers = st.integers(-(2**63), 2**63 - 1)
    items = st.builds(Item, st.text(max_size=4), st.none() | numbers, prices, st.sampled_from(["new", "used"]))
    shelves = st.lists(st.tuples(st.text('`{}[]"a\n', max_size=6), numbers), max_size=2)
    lists = st.lists(items, max_size=2)
    return st.builds(Order, numbers, st.dates(), lists, shelves, st.text("`\njson{", max_size=9), st.none() | items)


# The door.


def test_output_is_its_own_form() -> None:
    form = Output.of(Place)

    assert Output.of(form) is form


@pytest.mark.parametrize("form", [5, "Place", Place("Paris"), Item("a", 1), object, print, ..., {int}])
def test_what_is_no_type_from_json_is_a_type_error(form: Any) -> None:
    with pytest.raises(TypeError, match="give a type that msgspec knows"):
        Output.of(form)


@pytest.mark.parametrize(
    ("form", "name", "strict"),
    [
        (Place, "Place", True),
        (Item, "Item", True),
        (Ticket, "Ticket", True),
        (PLACE_SCHEMA, "A_place", True),
        (Cat | Dog, "output", True),
        (list[Place], "list", True),
        (dict[str, int], "dict", False),
        (Order, "Order", False),
        (Pair, "Pair", False),
        (Any, "Any", False),
    ],
)
def test_server_is_told_a_name_a_schema_of_an_object_and_whether_it_is_strict(
    form: Any, name: str, strict: bool
) -> None:
    schema = Output.of(form).schema

    assert (schema.name, schema.strict) == (name, strict)
    assert schema.schema["type"] == "object"
    assert json.loads(schema.instruction.partition(": ")[2]) == schema.schema
    jsonschema.Draft202012Validator.check_schema(schema.schema)


def test_type_is_looked_at_once_and_an_unhashable_one_each_time() -> None:
    unhashable = Annotated[int, Meta(extra={"a": 1})]

    assert Output.of(list[Place]) is Output.of(list[Place])
    assert Output.of(list[Place]) is not Output.of(list[Cat])
    assert Output.of(unhashable).read(said("7")) == 7


# Reading.


@given(orders())
def test_every_value_comes_back_alone_and_among_words(order: Order) -> None:
    form, text = Output.of(Order), msgspec_json.encode(order).decode()

    assert form.read(said(text)) == order
    assert form.read(said(f"Here you are:\n```json\n{text}\n```\nAnything else?")) == order
    assert form.read(said(f"The order is {text}")) == order


@given(st.lists(orders(), max_size=2))
def test_form_that_is_no_object_comes_back_wrapped_and_bare(several: list[Order]) -> None:
    form, text = Output.of(list[Order]), msgspec_json.encode(several).decode()

    assert form.read(said(f'{{"value": {text}}}')) == several
    assert form.read(said(text)) == several
    assert form.read(said(f"```\n{text}\n```")) == several


def test_null_for_what_may_be_left_out_leaves_it_out() -> None:
    answer = said('{"city": "Paris", "country": null, "near": [{"city": "Lyon", "country": "F", "near": null}]}')

    assert Output.of(Place).read(answer) == Place("Paris", near=[Place("Lyon", "F")])
    assert Output.of(Ticket).read(said('{"subject": "a", "urgent": null}')) == {"subject": "a"}
    assert Output.of(PLACE_SCHEMA).read(said('{"city": "Paris", "country": null}')) == {"city": "Paris"}
    assert Output.of(list[Ticket]).read(said('{"value": [{"subject": "a", "urgent": null}]}')) == [{"subject": "a"}]


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        (Cat | Dog, '{"value": {"type": "dog", "name": "Rex"}}', Dog("Rex")),
        (Cat | Dog, '{"type": "cat", "lives": 9}', Cat(9)),
        (Pair, '{"value": [1]}', Pair(1)),
        (int, "7", 7),
        (str, '{"value": "x"}', "x"),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, '{"value": [1]}', [1]),
        ({"type": "array", "items": {"type": "integer"}}, "[1]", [1]),
        (Decimal, '{"value": 0.12345678901234567890123}', Decimal("0.12345678901234567890123")),
    ],
)
def test_forms_of_all_kinds_are_read(form: Any, text: str, value: Any) -> None:
    assert Output.of(form).read(said(text)) == value


def test_last_that_fits_is_the_answer() -> None:
    thinking = 'First {"city": "Lyon"}, or {"town": 1}? No: {"city": "Paris"}. See {"x": 5}.'

    assert Output.of(Place).read(said(thinking)) == Place("Paris")


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        (Place, '{"city": 5}', "Expected `str`, got `int` - at `$.city`"),
        (Place, "{}", "missing required field `city`"),
        (Place, '{"city": ""}', "length >= 1"),
        (Place, '{"city": null}', "at `$.city`"),
        (Place, "Paris, I think", "no JSON"),
        (Place, '{"city": "Par', "no JSON"),
        (Place, "", "empty"),
        (Place, " \n", "empty"),
        (Place, 'Well: {"town": 5}, no: {"city": 6}!', "at `$.city`"),
        (list[int], '{"value": ["a"]}', "at `$.value[0]`"),
        (PLACE_SCHEMA, '{"city": 5}', "5 is not of type 'string' - at `$.city`"),
        (dict[str, int], '{"a": "x"}', "at `$[...]`"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_for_the_model(form: Any, text: str, words: str) -> None:
    assert words in problem_of(form, text)


def test_answer_that_was_cut_off_is_said_to_be_too_long() -> None:
    assert "too long" in problem_of(Place, '{"city": "Par', finish_reason="length")
    assert Output.of(Place).read(said('{"city": "Paris"}', finish_reason="length")) == Place("Paris")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"city":' * 5_000, '{"city": 1e999}', '{"near": ' + "9" * 5_000 + "}", NESTED]
)
def test_odd_json_is_refused_like_any_other(text: str) -> None:
    assert problem_of(Place, text)
    assert problem_of(list[Place], text)
    assert problem_of(PLACE_SCHEMA, text)


def test_problem_is_bounded_however_long_the_answer() -> None:
    text = json.dumps({"city": ["x" * 100_000]})

    assert len(problem_of(PLACE_SCHEMA, text)) <= PROBLEM_CHARACTERS_MAX + 3


def test_type_may_refuse_what_it_is_given() -> None:
    class Even(Struct):
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError(f"{self.number} is odd")

    assert Output.of(Even).read(said('{"number": 2}')).number == 2
    assert "3 is odd" in problem_of(Even, '{"number": 3}')


def test_refusal_is_not_a_wrong_answer() -> None:
    form = Output.of(Place)

    with pytest.raises(Refusal) as refused:
        form.read(said("", refusal="I can't help with that."))
    with pytest.raises(Refusal) as filtered:
        form.read(said('{"city": "Paris"}', finish_reason="content_filter"))

    assert (refused.value.text, refused.value.problem) == ("I can't help with that.",) * 2
    assert str(refused.value) == "the model will not answer: I can't help with that."
    assert "filter" in str(filtered.value)


# A run's output.


def test_run_without_a_form_takes_every_answer() -> None:
    run_output = RunOutput(None, 2)

    assert run_output.take(said("Anything", refusal="No.")) is None
    assert (run_output.value, run_output.schema, run_output.aside) == (None, None, ())


def test_wrong_answer_goes_back_with_what_is_wrong_and_the_schema() -> None:
    run_output = RunOutput(Output.of(Place), 2)
    wrong = said('{"city": 5}', reasoning_content="hm")

    problem = run_output.take(wrong)

    assert problem is not None
    said_again, request = run_output.aside
    assert said_again == wrong.message
    assert request.role == "user"
    assert problem in request.text
    assert '"additionalProperties":false' in request.text


def test_empty_answer_does_not_go_back() -> None:
    run_output = RunOutput(Output.of(Place), 2)

    run_output.take(said(""))

    assert [message.role for message in run_output.aside] == ["user"]


def test_repairs_are_spent_in_all_and_not_per_step() -> None:
    run_output = RunOutput(Output.of(Place), 2)

    assert run_output.take(said("no")) is not None
    run_output.step_taken()
    assert run_output.aside == ()
    assert run_output.take(said("no")) is not None
    run_output.step_taken()
    with pytest.raises(BadOutput):
        run_output.take(said("no"))
    assert run_output.repairs == 2


def test_refusal_spends_no_repair() -> None:
    run_output = RunOutput(Output.of(Place), 2)

    with pytest.raises(Refusal):
        run_output.take(said("", refusal="No."))
    assert (run_output.repairs, run_output.aside) == (0, ())


def test_value_is_of_the_answer_that_was_taken() -> None:
    run_output = RunOutput(Output.of(Place), 1)

    assert run_output.take(said("no")) is not None
    assert run_output.take(said('{"city": "Paris"}')) is None
    assert run_output.value == Place("Paris")

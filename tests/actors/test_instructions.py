from typing import Any

import pytest

from callboard.actors.instructions import InstructionContext, Template, check_instructions, look_at_state, render

CONTEXT = InstructionContext(agent="Support", session_id="user-123", metadata={"customer": "Ann", "n": 5}, run_id="r1")
WITHOUT_SESSION = InstructionContext(agent="Support", metadata={})


def test_text_is_sent_as_it_is() -> None:
    assert render("Costs $5, ${customer}", CONTEXT) == "Costs $5, ${customer}"


def test_template_is_filled_from_metadata_agent_and_session() -> None:
    template = Template("$agent helps ${customer} (${n}) in $session_id for $$5")

    assert render(template, CONTEXT) == "Support helps Ann (5) in user-123 for $5"


def test_missing_key_is_named_with_the_keys_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"names \$\{plan\}, and there is: agent, customer, n, session_id") as caught:
        render(Template("The plan is ${plan}"), CONTEXT)

    assert "'Support'" in str(caught.value)


def test_session_id_is_missing_where_there_is_no_session() -> None:
    with pytest.raises(ValueError, match=r"names \$\{session_id\}, and there is: agent\."):
        render(Template("$session_id"), WITHOUT_SESSION)


def test_metadata_cannot_pass_for_the_agent_or_the_session() -> None:
    context = InstructionContext(agent="Support", session_id="s1", metadata={"agent": "Root", "session_id": "other"})
    without = InstructionContext(agent="Support", metadata={"session_id": "other"})

    assert render(Template("$agent $session_id"), context) == "Support s1"
    with pytest.raises(ValueError, match="session_id"):
        render(Template("$session_id"), without)


@pytest.mark.parametrize("text", ["costs $ 5", "${customer", "${}", "$"])
def test_dollar_sign_that_begins_no_key_is_refused_when_the_template_is_made(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \$\$"):
        Template(text)


@pytest.mark.parametrize("key", ["n..a", ".n", "n.", "n[a]", "first-name", "größe"])
def test_key_of_other_characters_needs_a_function(key: str) -> None:
    with pytest.raises(ValueError, match="fills in keys of a-z, A-Z, 0-9 and _") as caught:
        Template("for ${" + key + "}")

    assert "${" + key + "}" in str(caught.value)
    assert "a function of the InstructionContext" in str(caught.value)


DEEP: dict[str, Any] = {"address": {"city": "Bonn", "lines": ["Am Hof", 7]}, "a.b": "whole", "a": {"b": "inside"}}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("${address.city}", "Bonn"),
        ("${address.lines.0} ${address.lines.1}", "Am Hof 7"),
        ("${address.lines}", "['Am Hof', 7]"),
        ("$address.city", f"{DEEP['address']}.city"),  # dots count in braces only, as behind a name a sentence may end
        ("${a.b}", "whole"),
    ],
)
def test_path_leads_into_values(path: str, text: str) -> None:
    assert render(Template(path), InstructionContext(agent="Support", metadata=DEEP)) == text


@pytest.mark.parametrize("path", ["address.town", "address.city.0", "address.lines.2", "address.lines.x"])
def test_path_that_leads_nowhere_is_named(path: str) -> None:
    there = r"names \$\{address\..*'address' is there, but not what is to be inside of it"
    with pytest.raises(ValueError, match=there):
        render(Template("${" + path + "}"), InstructionContext(agent="Support", metadata=DEEP))


STATED = InstructionContext(
    agent="Support",
    metadata={"app_state": "a key of the user's", "tone": "kind"},
    session_state={"cart": [{"item": "tea"}]},
    user_state={"name": "Ann"},
    app_state={"motd": "hello"},
)


def test_template_is_filled_from_the_states() -> None:
    template = Template("${app_state.motd} ${user_state.name}, ${session_state.cart.0.item}? ($tone)")

    assert render(template, STATED) == "hello Ann, tea? (kind)"


def test_key_that_a_state_does_not_have_is_named_with_those_that_it_has() -> None:
    with pytest.raises(ValueError, match=r"names \$\{user_state\.age\}, and user_state has: name\."):
        render(Template("${user_state.age}"), STATED)
    with pytest.raises(ValueError, match=r"app_state has: nothing\."):
        render(Template("${app_state.age}"), WITHOUT_SESSION)


def speak(context: InstructionContext) -> str:
    return context.agent


@pytest.mark.parametrize(
    ("instructions", "looks"),
    [
        ("${app_state.x}", False),
        (Template("$tone ${address.city}"), False),
        (Template("${app_state.x}"), True),
        (Template("$user_state"), True),
        (speak, True),
    ],
)
def test_state_is_gathered_for_those_that_may_speak_of_it(instructions: Any, looks: bool) -> None:
    assert look_at_state(instructions) is looks


def test_states_are_read_only_for_a_function() -> None:
    context: Any = STATED

    for state in (context.session_state, context.user_state, context.app_state):
        with pytest.raises(TypeError):
            state["new"] = 1


def test_metadata_is_read_only_for_a_function() -> None:
    metadata: Any = {"plan": "gold"}
    context: Any = InstructionContext(agent="Support", metadata=metadata)
    metadata["plan"] = "none"

    with pytest.raises(TypeError):
        context.metadata["plan"] = "none"
    assert context.metadata == {"plan": "gold"}


def test_template_of_something_else_than_text_is_a_type_error() -> None:
    wrong: Any = 5

    with pytest.raises(TypeError, match="made from a string, not int"):
        Template(wrong)


def test_function_gets_the_context() -> None:
    assert render(lambda context: f"{context.metadata['customer']} {context.run_id}", CONTEXT) == "Ann r1"


@pytest.mark.parametrize("returned", [None, 5, b"text"])
def test_function_that_returns_no_text_is_a_type_error(returned: object) -> None:
    def wrong(context: InstructionContext) -> Any:
        return returned

    with pytest.raises(TypeError, match="must return a str"):
        render(wrong, CONTEXT)


def test_function_that_hides_a_coroutine_is_a_type_error_without_a_warning() -> None:
    async def fetch() -> str:
        return "never"

    def wrong(context: InstructionContext) -> Any:
        return fetch()

    with pytest.raises(TypeError, match="returned coroutine"):
        render(wrong, CONTEXT)


def test_error_of_the_users_function_is_not_hidden() -> None:
    with pytest.raises(KeyError, match="plan"):
        render(lambda context: str(context.metadata["plan"]), CONTEXT)


def test_text_template_and_function_pass_the_door() -> None:
    for value in ("text", "", Template("x"), repr):
        assert check_instructions(value) is value


def test_async_function_is_refused_at_the_door() -> None:
    async def instructions(context: InstructionContext) -> str:
        return context.agent

    with pytest.raises(TypeError, match="not an async one"):
        check_instructions(instructions)


@pytest.mark.parametrize("value", [None, 5, ["text"]])
def test_anything_else_is_refused_at_the_door(value: object) -> None:
    with pytest.raises(TypeError, match="must be a str, a Template or a function"):
        check_instructions(value)

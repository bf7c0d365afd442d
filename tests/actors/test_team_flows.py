"""Who of a team speaks next, without a team: a function of who has spoken."""

from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from callboard import (
    Flow,
    Handoff,
    Message,
    Parallel,
    Reply,
    Review,
    RoundRobin,
    RunFailed,
    Sequence,
    Stop,
    TeamTurn,
    ToolCall,
    Usage,
)
from callboard.actors.team_flows import Router, name_of
from callboard.actors.team_tools import approved_by_tool, handed_over, transfer_name, transfer_names

NAMES = ("Ann", "Bob", "Cid")


def reply(author: str, text: str = "said", calls: Iterable[str] = (), result: str = "done") -> Reply:
    """What an agent has answered: a text, with calls of these tools and one result for each."""
    made = tuple(ToolCall(f"c{number}", name) for number, name in enumerate(calls))
    answer = Message(role="assistant", content=text, author=author, tool_calls=made)
    results = [Message(role="tool", content=result, tool_call_id=call.id, author=author) for call in made]
    return Reply(answer, (answer, *results), "run", "s", 1, Usage(), "stop", 1)


def turn(author: str, text: str = "said", calls: Iterable[str] = (), result: str = "done") -> TeamTurn:
    return TeamTurn(author, reply(author, text, calls, result))


def failed(author: str) -> TeamTurn:
    return TeamTurn(author, error=RunFailed("run", "no"))


def course(flow: Flow, names: tuple[str, ...] = NAMES, said: dict[int, TeamTurn] | None = None) -> list[str | Stop]:
    """Who speaks, one after the other, and why nobody does any more; `said` are turns that are not plain."""
    turns: list[TeamTurn] = []
    spoken: list[str | Stop] = []
    while not spoken or not isinstance(spoken[-1], Stop):
        following = flow.next(names, turns)
        spoken.append(following)
        if isinstance(following, str):
            turns.append((said or {}).get(len(turns), turn(following)))
        assert len(spoken) < 100
    return spoken


# Sequence, parallel, round robin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [Sequence(), Parallel(), RoundRobin()], ids=repr)
def test_each_speaks_once_in_the_order_of_the_list(flow: Flow) -> None:
    assert course(flow) == ["Ann", "Bob", "Cid", Stop("done")]


def test_who_failed_and_was_skipped_is_not_asked_again() -> None:
    assert course(Sequence(on_failure="skip"), said={0: failed("Ann")}) == ["Ann", "Bob", "Cid", Stop("done")]


@given(st.integers(1, 9), st.integers(1, 5))
def test_a_round_robin_lets_each_speak_once_a_round(rounds: int, count: int) -> None:
    names = tuple(f"agent {number}" for number in range(count))

    *spoken, stop = course(RoundRobin(rounds=rounds), names)

    assert spoken == list(names) * rounds
    assert stop == Stop("done")


@given(st.integers(0, 8))
def test_a_round_robin_ends_with_the_turn_that_was_waited_for(place: int) -> None:
    flow = RoundRobin(rounds=3, until=lambda reply: "enough" in reply.text)

    *spoken, stop = course(flow, said={place: turn("Ann", "that is enough")})

    assert len(spoken) == place + 1
    assert stop == Stop("until")


def test_a_round_robin_does_not_look_at_a_turn_without_a_reply() -> None:
    flow = RoundRobin(rounds=1, until=lambda reply: bool(reply.text), on_failure="skip")

    assert course(flow, said={0: failed("Ann")}) == ["Ann", "Bob", Stop("until")]


# Hand-off -----------------------------------------------------------------------------------------------------------


def test_who_has_the_conversation_keeps_it_unless_it_hands_over() -> None:
    assert course(Handoff()) == ["Ann", Stop("done")]
    assert course(Handoff("Bob")) == ["Bob", Stop("done")]


@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_the_conversation_goes_where_each_call_says(targets: list[str]) -> None:
    said = {number: turn("Ann", "", [transfer_name(target)]) for number, target in enumerate(targets)}

    assert course(Handoff(), said=said) == ["Ann", *targets, Stop("done")]


def test_a_hand_over_that_did_not_succeed_is_none() -> None:
    denied = turn("Ann", "so be it", ["transfer_to_bob"], "Error: no")

    assert course(Handoff(), said={0: denied}) == ["Ann", Stop("done")]


def test_of_two_hand_overs_in_one_answer_the_first_counts() -> None:
    said = {0: turn("Ann", "", ["look", "transfer_to_cid", "transfer_to_bob"])}

    assert course(Handoff(), said=said) == ["Ann", "Cid", Stop("done")]


def test_only_the_last_answer_hands_over() -> None:
    first, second = reply("Ann", "", ["transfer_to_bob"]), reply("Ann", "I changed my mind")

    assert handed_over([*first.messages, *second.messages], NAMES) is None
    assert handed_over([], NAMES) is None


def test_tools_lead_to_all_others_or_where_it_was_said() -> None:
    flow = Handoff(to={"Bob": ["Ann"], "Cid": []}, about={"Ann": "Knows prices."})

    assert [tool.name for tool in flow.tools("Ann", NAMES)] == ["transfer_to_bob", "transfer_to_cid"]
    assert [tool.name for tool in flow.tools("Bob", NAMES)] == ["transfer_to_ann"]
    assert flow.tools("Cid", NAMES) == ()
    assert "Knows prices." in flow.tools("Bob", NAMES)[0].schema.description
    assert all(tool.ends_run for tool in flow.tools("Ann", NAMES))


@pytest.mark.parametrize(
    ("history", "first"),
    [
        ([], "Ann"),
        ([Message(role="user", content="hello")], "Ann"),
        ([*reply("Bob").messages, Message(role="user", content="and?")], "Bob"),
        ([*reply("Bob", "", ["transfer_to_cid"]).messages], "Cid"),
        ([*reply("Bob", "", ["transfer_to_cid"]).messages, *reply("Somebody").messages], "Cid"),
        ([*reply("Bob", "", ["transfer_to_cid"], "Error: no").messages], "Bob"),
        ([*reply("Bob").messages, *reply("Somebody", "", ["transfer_to_cid"]).messages], "Bob"),
    ],
    ids=["nothing", "a question", "who spoke", "who was handed over to", "others", "no hand-over", "a stranger's"],
)
def test_a_chat_begins_with_who_had_the_conversation_last(history: list[Message], first: str) -> None:
    assert Handoff().opening(history, NAMES).next(NAMES, []) == first
    assert Handoff(sticky=False).opening(history, NAMES).next(NAMES, []) == "Ann"
    assert Handoff("Cid", sticky=False).opening(history, NAMES).next(NAMES, []) == "Cid"


def test_names_of_tools_fit_the_api_and_two_agents_share_none() -> None:
    assert transfer_name("Billing & Refunds") == "transfer_to_billing_refunds"
    assert len(transfer_name("x" * 90)) == 64
    with pytest.raises(ValueError, match="'Bob' and 'bob' would both be 'transfer_to_bob'"):
        transfer_names(["Bob", "bob"])


# Review -------------------------------------------------------------------------------------------------------------


def test_a_review_goes_back_and_forth_until_the_reviewer_approves() -> None:
    flow = Review("Ann", "Bob")

    assert course(flow, said={1: turn("Bob", "", ["approve"])}) == ["Ann", "Bob", Stop("approved")]
    assert course(flow, said={3: turn("Bob", "", ["approve"])}) == ["Ann", "Bob", "Ann", "Bob", Stop("approved")]
    assert course(Review("Ann", "Bob", rounds_max=2)) == ["Ann", "Bob", "Ann", "Bob", Stop("rounds")]


def test_a_writer_cannot_approve_and_a_call_that_failed_does_not() -> None:
    flow = Review("Ann", "Bob", rounds_max=1)

    assert course(flow, said={0: turn("Ann", "", ["approve"])}) == ["Ann", "Bob", Stop("rounds")]
    assert course(flow, said={1: turn("Bob", "", ["approve"], "Error: no")})[-1] == Stop("rounds")


def test_approval_may_be_told_by_a_function_and_then_there_is_no_tool() -> None:
    flow = Review("Ann", "Bob", approved=lambda reply: reply.text == "fine")

    assert course(flow, said={1: turn("Bob", "fine")})[-1] == Stop("approved")
    assert flow.tools("Bob", NAMES) == ()
    assert [tool.name for tool in Review("Ann", "Bob").tools("Bob", NAMES)] == ["approve"]
    assert Review("Ann", "Bob").tools("Ann", NAMES) == ()
    assert not approved_by_tool(reply("Bob", "approve"))


def test_the_reply_of_a_review_is_the_writers_last() -> None:
    turns = [turn("Ann", "draft"), turn("Bob", "no"), turn("Ann", "better"), turn("Bob", "yes")]

    result = Review("Ann", "Bob").result(turns)

    assert result is not None
    assert result.text == "better"


# Results and routers ------------------------------------------------------------------------------------------------


def test_the_reply_that_counts_is_the_last_that_says_something() -> None:
    turns = [turn("Ann", "first"), turn("Bob", ""), failed("Cid")]

    assert Sequence().result(turns) is turns[0].reply
    assert Sequence().result([turn("Bob", "")]) is not None
    assert Sequence().result([failed("Cid")]) is None


def test_a_router_names_one_or_several() -> None:
    router = Router(lambda messages: "Ann")

    assert course(router.chosen("Bob", NAMES)) == ["Bob", Stop("done")]
    assert course(router.chosen(["Cid", "Ann"], NAMES)) == ["Cid", "Ann", Stop("done")]


@pytest.mark.parametrize(
    ("choice", "words"),
    [("Dan", "no agent 'Dan' in the team: 'Ann', 'Bob', 'Cid'"), ([], "named nobody"), (5, "not 5"), ([5], "string")],
)
def test_a_router_that_names_nobody_of_the_team_is_told_so(choice: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Router(lambda messages: "Ann").chosen(choice, NAMES)


# The door -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (Sequence(on_failure="ignore"), '"stop" or "skip"'),  # pyright: ignore[reportArgumentType] -- given by the user
        (Parallel(on="thread"), '"fork" or "shared"'),  # pyright: ignore[reportArgumentType] -- given by the user
        (RoundRobin(rounds=0), "rounds must be 1 or more"),
        (RoundRobin(rounds=1.5), "whole number"),  # pyright: ignore[reportArgumentType] -- given by the user
        (Handoff("Dan"), "no agent 'Dan'"),
        (Handoff(to={"Ann": ["Dan"]}), "no agent 'Dan'"),
        (Handoff(about={"Dan": "x"}), "no agent 'Dan'"),
        (Review("Ann", "Dan"), "no agent 'Dan'"),
        (Review("Ann", "Ann"), "name two agents"),
        (Review("Ann", "Bob", rounds_max=0), "rounds_max must be 1 or more"),
        (Router("Ann"), "a function of messages"),  # pyright: ignore[reportArgumentType] -- given by the user
        (Router(lambda messages: "Ann", latest=0), "latest must be 1 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_flow_that_does_not_fit_the_team_is_refused_with_what_would(flow: Flow, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        flow.check(NAMES)


def test_a_flow_of_ones_own_says_who_is_next() -> None:
    with pytest.raises(NotImplementedError, match="Flow does not say who is next"):
        Flow().next(NAMES, [])


def test_a_name_is_a_string_or_something_that_has_one() -> None:
    assert name_of("Ann") == "Ann"
    with pytest.raises(TypeError, match="agent name"):
        name_of(5)

"""What a journal comes to, entry by entry; records of released versions are read as what they were."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard import Message, ToolCall, Usage
from callboard.actors.approvals import ApprovalRequest
from callboard.actors.conversation import repair
from callboard.actors.progress import Progress
from callboard.actors.session_records import HEAD_CODEC, RUN_CODEC, STEP_CODEC, OpenTurn, Step

GOLDEN = Path(__file__).parent.parent / "golden" / "turn_records.json"
"""Records of turns as callboard wrote them at each stage of their format. A new stage adds its own; none is changed."""


def golden(stage: str) -> dict[str, Any]:
    return dict(json.loads(GOLDEN.read_text())[stage])


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def answer(*ids: str) -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(call_id, "look") for call_id in ids))


def result(call_id: str, text: str = "seen") -> Message:
    return Message(role="tool", content=text, tool_call_id=call_id)


def test_answer_opens_a_step_that_ends_with_its_last_result() -> None:
    progress = Progress([Step(1, (answer("a", "b"),), begun=(0,), usage=Usage(requests=1))])
    step = progress.open_step

    assert step is not None
    assert [index for index, _ in step.open] == [0, 1]
    assert (step.begun, step.approved) == ({0}, set())
    progress.take(Step(2, (), begun=(1,), settled={0: result("a")}))
    assert progress.open_step is step
    assert [(index, call.id) for index, call in step.open] == [(1, "b")]
    progress.take(Step(3, (), settled={1: result("b")}, state={"n": 1}))
    assert progress.open_step is None
    assert (progress.entries, progress.state, progress.usage) == (3, {"n": 1}, Usage(requests=1))


def test_results_stand_in_the_order_of_the_calls_however_they_came() -> None:
    progress = Progress([Step(1, (answer("a", "b", "c"),))])
    for number, index in enumerate((2, 0, 1), start=2):
        progress.take(Step(number, (), settled={index: result("abc"[index])}))

    assert [message.tool_call_id for message in progress.messages] == [None, "a", "b", "c"]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=4), st.randoms(use_true_random=False))
def test_what_is_journaled_at_any_moment_is_mended_to_a_history_that_is_valid(
    rounds: list[list[bool]], random: Any
) -> None:
    progress = Progress()
    number = 0
    for count, settles in enumerate(rounds):
        ids = [f"c{count}.{place}" for place in range(len(settles))]
        number += 1
        progress.take(Step(number, (answer(*ids),)))
        last = count == len(rounds) - 1
        places = [place for place, settled in enumerate(settles) if settled or not last]
        random.shuffle(places)
        for place in places:
            number += 1
            progress.take(Step(number, (), settled={place: result(ids[place])}))

    mended = repair(progress.messages)
    assert mended.dropped == ()
    assert not mended.reordered
    missing = [] if progress.open_step is None else [call.id for _, call in progress.open_step.open]
    assert [message.tool_call_id for message in mended.inserted] == missing
    assert missing == [
        f"c{len(rounds) - 1}.{place}" for place, settled in enumerate(rounds[-1:][0] if rounds else []) if not settled
    ]


def test_entry_that_does_not_follow_the_one_before_is_none_of_this_journal() -> None:
    with pytest.raises(AssertionError):
        Progress([Step(1, (answer("a"),)), Step(3, (), settled={0: result("a")})])


def test_step_that_an_older_callboard_journaled_whole_is_settled() -> None:
    record = STEP_CODEC.decode(decoded(golden("before the journal of calls")["step"]), where="step")
    progress = Progress([record])

    assert progress.open_step is None
    assert [message.text for message in progress.messages] == ["", "rain", "noon"]
    assert progress.messages[0].tool_calls[0] == ToolCall("c1", "weather", '{"city": "Ghent"}', {"signature": "s"})


def test_run_and_head_of_an_older_callboard_wait_for_no_approval() -> None:
    rows = golden("before the journal of calls")
    run = RUN_CODEC.decode(decoded(rows["run"]), where="run")
    head = HEAD_CODEC.decode(decoded(rows["head"]), where="head")

    assert (run.id, run.turn, run.attempts, run.usage) == ("run_1", 3, 2, Usage(5, 2, 7, requests=1))
    assert (run.pending, run.journal, run.journal_turn) == ((), 0, 3)
    assert (head.open_turn, head.open_runs, head.paused_runs) == (OpenTurn(3, "run_1"), ("run_0",), ())
    assert head.open_run_ids == ("run_0", "run_1")


def test_records_with_the_journal_of_calls_are_read_and_written_as_they_stand() -> None:
    rows = golden("with the journal of calls")
    steps = [STEP_CODEC.decode(decoded(text), where="step") for text in rows["steps"]]
    run = RUN_CODEC.decode(decoded(rows["run"]), where="run")
    head = HEAD_CODEC.decode(decoded(rows["head"]), where="head")
    progress = Progress(steps)
    step = progress.open_step

    assert step is not None
    assert [(index, call.id) for index, call in step.open] == [(1, "c2")]
    assert (step.begun, step.approved, progress.state) == ({0, 1}, {1}, {"n": 1})
    assert run.pending == (ApprovalRequest("run_1", "c2", "pay", "", "Agent", "s", 1),)
    assert (run.journal_turn, head.paused_runs, head.open_run_ids) == (3, ("run_1",), ("run_0", "run_1"))
    assert [STEP_CODEC.encode(each) for each in steps] == [decoded(text) for text in rows["steps"]]
    # A Struct of more than 15 fields has a longer header, so bytes of before are not written again; what they say is.
    written = RUN_CODEC.encode(run), HEAD_CODEC.encode(head)
    assert [msgspec.msgpack.decode(each[1:]) for each in written] == [
        msgspec.msgpack.decode(decoded(rows[name])[1:]) for name in ("run", "head")
    ]

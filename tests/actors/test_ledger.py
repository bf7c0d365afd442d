"""The ledger against a store: what it hands out, committed, reads back as what was asked of it."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from callboard import Corrupt, InvalidTransition, Message, RunRecord, SessionHead, Usage
from callboard.actors.approvals import ApprovalRequest
from callboard.actors.archive import Archive
from callboard.actors.ledger import Ledger, RunEnd
from callboard.actors.run_record import SpanRecord
from callboard.actors.session_check import check_sessions
from callboard.actors.session_records import OpenTurn, SessionDefaults, Step, index_changes, step_key, stream_of
from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, Table

DEFAULTS = SessionDefaults(owner="ann", tags=("billing", "vip"), metadata={"plan": "gold"})
STREAM = stream_of("s")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def queued(run_id: str, *, manual: bool = False) -> RunRecord:
    return RunRecord(id=run_id, session_id="s", created_at_ms=1_000, agent="Agent", input=(user("hi"),), manual=manual)


class Stored:
    """A ledger whose changes go to a store at once."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.archive = Archive(self.store)
        self.ledger = Ledger("s", None)
        self._version = 0

    def commit(self) -> bool:
        change = self.ledger.take()
        if change is None:
            return False
        rows, index_rows = change.rows, change.index_rows
        batch = Batch(STREAM, 1, self._version, change.head, rows, index_rows, change.erase)
        assert self.store.commit([batch]) == [None]
        self._version += 1
        for run_id in change.ended:
            self.ledger.ended.pop(run_id, None)
        return True

    def erase(self) -> None:
        self.commit()
        self.ledger.erase()
        self.commit()

    def resume_turn(self, number: int, run_id: str, steps: int, at_ms: int) -> None:
        self.commit()
        self.ledger.resume_turn(number, self.archive.run("s", run_id), steps=steps, at_ms=at_ms)

    @property
    def head(self) -> SessionHead:
        head = self.archive.head("s")
        assert head is not None
        return head

    def entries(self, index: Index) -> list[bytes]:
        return [hit.value for hit in self.store.scan_index(index)]

    def open_turn(self, number: int, run_id: str) -> None:
        self.ledger.ensure(DEFAULTS, at_ms=1_000)
        self.ledger.open_turn(number, queued(run_id), at_ms=2_000)
        self.commit()


def test_nothing_is_taken_where_nothing_has_changed() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=1)

    assert stored.commit()
    assert not stored.commit()
    stored.ledger.ensure(SessionDefaults(owner="bob"), at_ms=2)
    assert not stored.commit()
    assert stored.head.owner == "ann"


def test_session_is_made_from_the_defaults_and_found_by_them() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=5)
    stored.commit()

    assert (stored.head.owner, stored.head.tags, stored.head.metadata) == ("ann", ("billing", "vip"), {"plan": "gold"})
    assert (stored.head.created_at_ms, stored.head.updated_at_ms, stored.head.revision) == (5, 5, 1)
    at = (5).to_bytes(8, "big")
    assert stored.entries(Index.UPDATED) == [at]
    assert stored.entries(Index.OWNER) == [b"ann\x00" + at]
    assert stored.entries(Index.TAG) == [b"billing\x00" + at, b"vip\x00" + at]


def test_each_change_moves_the_index_entries_and_leaves_none_behind() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=5)
    stored.commit()
    stored.ledger.append([user("a")], at_ms=9)
    stored.commit()

    assert stored.entries(Index.UPDATED) == [(9).to_bytes(8, "big")]
    assert len(stored.entries(Index.OWNER)) == 1
    assert len(stored.entries(Index.TAG)) == 2
    assert stored.head.revision == 2


def test_change_within_the_same_millisecond_moves_no_entry_and_other_tags_move_only_theirs() -> None:
    old = SessionHead(id="s", created_at_ms=1, updated_at_ms=5, owner="ann", tags=("a", "b"))

    assert index_changes(old, replace(old, revision=2)) == []
    at = (5).to_bytes(8, "big")
    assert index_changes(old, replace(old, owner="bob", tags=("b", "c"))) == [
        IndexRow(Index.OWNER, b"ann\x00" + at, present=False),
        IndexRow(Index.TAG, b"a\x00" + at, present=False),
        IndexRow(Index.OWNER, b"bob\x00" + at),
        IndexRow(Index.TAG, b"c\x00" + at),
    ]


def test_clock_that_was_set_back_moves_no_session_back() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=100)
    stored.ledger.append([user("a")], at_ms=50)
    stored.commit()

    assert stored.head.updated_at_ms == 100


def test_closed_turn_shows_its_messages_its_run_and_its_spans_together_and_its_steps_no_more() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=1_000)
    stored.ledger.append([user("before")], at_ms=1_000)
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("draft"),)))
    stored.commit()
    assert len(stored.store.scan(STREAM, Table.STEP)) == 1
    assert stored.archive.messages("s")[-1].text == "before"

    span = SpanRecord(run_id="run_1", number=1, name="m", kind="model", started_at_ms=2_000)
    end = RunEnd("completed", usage=Usage(total_tokens=7), attempts=2, spans=(span,))
    given_back = stored.ledger.close_turn(end, [user("q"), Message(role="assistant", content="a")], at_ms=3_000)
    stored.commit()

    assert stored.archive.messages("s")[1:] == given_back
    assert [(m.seq, m.id, m.run_id) for m in given_back] == [(2, "msg_00000002", "run_1"), (3, "msg_00000003", "run_1")]
    record = stored.archive.run("s", "run_1")
    assert (record.status, record.turn, record.attempts, record.usage.total_tokens) == ("completed", 1, 2, 7)
    assert (record.first_seq, record.last_seq, record.duration_ms) == (2, 3, 1_000)
    assert stored.archive.spans("s", "run_1") == [span]
    assert stored.store.scan(STREAM, Table.STEP) == []
    assert stored.entries(Index.OPEN_RUN) == []
    assert (stored.head.open_turn, stored.head.run_count, stored.head.last_turn) == (None, 1, 1)


def test_step_that_is_kept_already_is_not_kept_twice() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("first"),)))
    stored.commit()
    stored.ledger.journal(Step(1, (user("again"),)))

    assert not stored.commit()
    assert stored.archive.step_count("s", 1) == 1


def test_ledger_that_is_loaded_in_mid_turn_goes_on_with_its_steps() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("first"),)))
    stored.commit()
    steps = stored.archive.step_count("s", 1)
    stored.ledger = Ledger("s", stored.head, open_runs=[stored.archive.run("s", "run_1")], journal_turn=1, steps=steps)
    stored.ledger.journal(Step(2, (user("second"),)))
    stored.commit()
    assert stored.archive.step_count("s", 1) == 2
    stored.ledger.close_turn(RunEnd("completed"), [], at_ms=3_000)
    stored.commit()

    assert stored.archive.step_count("s", 1) == 0


def test_places_ids_and_runs_are_the_sessions_own_and_a_given_time_is_kept() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=1)
    given_one = Message(role="user", content="old", id="mine", created_at_ms=7, seq=99, run_id="imported")
    kept, made = stored.ledger.append([given_one, user("new")], at_ms=50)

    assert (kept.id, kept.created_at_ms, kept.seq, kept.run_id) == ("msg_00000001", 7, 1, None)
    assert (made.id, made.created_at_ms, made.seq, made.run_id) == ("msg_00000002", 50, 2, None)


def test_run_by_hand_that_has_ended_is_open_no_more_and_cannot_move_again() -> None:
    stored = Stored()
    stored.ledger.ensure(DEFAULTS, at_ms=1)
    stored.ledger.create_run(queued("run_1", manual=True), at_ms=1_000)
    stored.commit()
    assert stored.head.open_runs == ("run_1",)
    running = stored.ledger.move_run(stored.ledger.runs["run_1"], RunEnd("running"), at_ms=2_000)
    ended = stored.ledger.move_run(running, RunEnd("completed", usage=Usage(total_tokens=150)), at_ms=2_500)
    stored.commit()

    assert stored.archive.run("s", "run_1") == ended
    assert (ended.duration_ms, ended.usage.total_tokens) == (500, 150)
    assert stored.head.open_runs == ()
    assert stored.ledger.runs == {}
    assert stored.entries(Index.OPEN_RUN) == []
    with pytest.raises(InvalidTransition):
        stored.ledger.move_run(ended, RunEnd("failed", "too late"), at_ms=3_000)
    assert not stored.commit()


def test_end_of_a_run_is_known_before_it_is_durable() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.close_turn(RunEnd("failed", "no"), [], at_ms=3_000)

    assert stored.ledger.ended["run_1"].status == "failed"
    stored.commit()
    assert stored.ledger.ended == {}


@pytest.mark.parametrize("reason", ["x" * 100_000, "half a character: \ud800"])
def test_reason_of_any_length_and_form_can_be_stored(reason: str) -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.close_turn(RunEnd("failed", reason), [], at_ms=3_000)
    stored.commit()

    error = stored.archive.run("s", "run_1").error
    assert error is not None
    assert len(error) <= 2_000
    assert error[:10] == reason[:10]


def test_patch_that_is_too_large_changes_nothing_and_makes_no_session() -> None:
    stored = Stored()
    with pytest.raises(ValueError, match="65536"):
        stored.ledger.patch_metadata({"big": "x" * 70_000}, DEFAULTS, at_ms=1)

    assert stored.ledger.head is None
    assert not stored.commit()


def test_patch_sets_and_removes_keys_over_the_defaults_of_a_new_session() -> None:
    stored = Stored()

    assert stored.ledger.patch_metadata({"plan": None, "n": [1, {"a": 2}]}, DEFAULTS, at_ms=1) == {"n": [1, {"a": 2}]}
    stored.commit()
    assert stored.head.metadata == {"n": [1, {"a": 2}]}
    assert stored.head.owner == "ann"


def test_erased_session_leaves_no_row_and_no_entry_and_can_be_made_again() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("draft"),)))
    stored.commit()
    stored.ledger.erase()
    stored.commit()

    assert stored.archive.head("s") is None
    assert [stored.store.scan(STREAM, table) for table in Table] == [[]] * len(Table)
    assert [stored.entries(index) for index in Index] == [[]] * len(Index)
    stored.ledger.ensure(SessionDefaults(owner="bob"), at_ms=9)
    stored.ledger.append([user("anew")], at_ms=9)
    stored.commit()
    assert (stored.head.owner, stored.head.message_count) == ("bob", 1)
    assert [message.text for message in stored.archive.messages("s")] == ["anew"]


def test_paused_run_gives_its_turn_back_and_keeps_its_journal_until_it_ends() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("draft"),)))
    pending = (ApprovalRequest("run_1", "c1", "pay"),)
    span = SpanRecord(run_id="run_1", number=1, name="m", kind="model", started_at_ms=2_000)
    stored.ledger.pause_turn(RunEnd("waiting", usage=Usage(total_tokens=7), spans=(span,)), pending, at_ms=3_000)
    stored.commit()

    paused = stored.archive.run("s", "run_1")
    assert (paused.status, paused.pending, paused.usage.total_tokens) == ("waiting", pending, 7)
    assert (stored.head.open_turn, stored.head.paused_runs, stored.head.run_count) == (None, ("run_1",), 1)
    assert stored.entries(Index.OPEN_RUN) == [b"run_1"]
    assert (stored.archive.step_count("s", 1), stored.archive.spans("s", "run_1")) == (1, [span])

    stored.ledger.append([user("meanwhile")], at_ms=3_500, turn=2)
    stored.ledger.resume_turn(3, paused, steps=1, at_ms=4_000)
    stored.ledger.journal(Step(2, (user("draft"),)))
    stored.commit()
    resumed = stored.archive.run("s", "run_1")
    assert (resumed.status, resumed.turn, resumed.journal_turn, resumed.attempts) == ("running", 3, 1, 2)
    assert (resumed.pending, resumed.started_at_ms) == ((), 2_000)
    assert (stored.head.open_turn, stored.head.paused_runs) == (OpenTurn(3, "run_1"), ())
    assert [step.number for step in stored.archive.steps("s", 1)] == [1, 2]

    end = RunEnd("completed", usage=Usage(total_tokens=5), attempts=2)
    stored.ledger.close_turn(end, [user("q"), Message(role="assistant", content="a")], at_ms=5_000)
    stored.commit()
    ended = stored.archive.run("s", "run_1")
    assert (ended.status, ended.usage.total_tokens, ended.duration_ms) == ("completed", 12, 3_000)
    assert [message.text for message in stored.archive.messages("s")] == ["meanwhile", "q", "a"]
    assert stored.store.scan(STREAM, Table.STEP) == []
    assert stored.entries(Index.OPEN_RUN) == []


def test_paused_run_that_is_given_up_leaves_no_journal_and_no_entry() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    stored.ledger.journal(Step(1, (user("draft"),)))
    stored.ledger.pause_turn(RunEnd("waiting"), (ApprovalRequest("run_1", "c1", "pay"),), at_ms=3_000)
    stored.commit()
    stored.ledger.end_paused(stored.ledger.runs["run_1"], RunEnd("cancelled", "no"), steps=1, at_ms=4_000)
    assert stored.ledger.ended["run_1"].status == "cancelled"
    stored.commit()

    ended = stored.archive.run("s", "run_1")
    assert (ended.status, ended.error, ended.pending) == ("cancelled", "no", ())
    assert (stored.head.paused_runs, stored.ledger.runs) == ((), {})
    assert stored.store.scan(STREAM, Table.STEP) == []
    assert stored.entries(Index.OPEN_RUN) == []


@pytest.mark.parametrize(("known", "journaled", "told"), [(0, 2, 2), (3, 2, 3), (2, 0, 2)])
def test_run_that_a_crash_interrupts_has_spent_what_its_journal_knows(known: int, journaled: int, told: int) -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    record = stored.ledger.runs["run_1"]
    stored.ledger.runs["run_1"] = replace(record, usage=Usage(requests=known))
    stored.ledger.interrupt_turn("gone", at_ms=3_000, usage=Usage(requests=journaled))
    stored.commit()

    assert stored.archive.run("s", "run_1").usage.requests == told


def test_journal_with_a_hole_is_not_read_as_if_it_had_none() -> None:
    stored = Stored()
    stored.open_turn(1, "run_1")
    for number in (1, 2, 3):
        stored.ledger.journal(Step(number, (user("draft"),)))
    stored.commit()
    assert [step.number for step in stored.archive.steps("s", 1)] == [1, 2, 3]
    assert stored.archive.steps("s", 2) == ()
    stored.store.commit([Batch(STREAM, 1, 2, rows=(Row(Table.STEP, step_key(1, 2), None),))])

    with pytest.raises(Corrupt, match="journal of turn 1 of session 's'"):
        stored.archive.steps("s", 1)


def check_messages(stored: Stored, texts: list[str]) -> None:
    messages, head = stored.archive.messages("s"), stored.archive.head("s")
    assert [message.text for message in messages] == texts
    assert [message.seq for message in messages] == list(range(1, len(texts) + 1))
    assert head == stored.ledger.head
    assert head is None or head.message_count == len(texts)
    assert len(stored.entries(Index.UPDATED)) == (head is not None)


def check_open(stored: Stored, statuses: dict[str, str], steps: Counter[str]) -> None:
    still_open = sorted(id.encode() for id, status in statuses.items() if status in ("queued", "running", "waiting"))
    assert stored.entries(Index.OPEN_RUN) == still_open
    assert sorted(id.encode() for id in stored.ledger.runs) == still_open
    kept = [count for id, count in steps.items() if statuses[id] in ("running", "waiting", "interrupted")]
    assert len(stored.store.scan(STREAM, Table.STEP)) == sum(kept)
    assert list(check_sessions(stored.store)) == []


def resumable(statuses: dict[str, str]) -> list[str]:
    return [id for id, status in statuses.items() if status in ("waiting", "interrupted")]


TURNS = ["turn", "step", "complete", "fail", "interrupt", "pause", "resume", "give up"]
Ops = st.lists(st.sampled_from([*TURNS, "append", "run", "end run", "erase", "commit"]), max_size=40)


@given(Ops)
def test_store_holds_what_was_asked_of_the_ledger_in_whatever_order(ops: list[str]) -> None:
    """The model keeps texts, statuses and how much is journaled; commits fall anywhere between the operations."""
    stored, texts, statuses, steps = Stored(), list[str](), dict[str, str](), Counter[str]()
    ledger, turn = stored.ledger, 0
    for number, op in enumerate(ops):
        at_ms, name = 1_000 + number, f"{number:04}"
        ledger.ensure(DEFAULTS, at_ms=at_ms)
        assert ledger.head is not None
        opened = ledger.head.open_turn
        if op == "append":
            ledger.append([user(name)], at_ms=at_ms)
            texts.append(name)
        elif op == "turn" and opened is None:
            turn += 1
            ledger.open_turn(turn, queued(name), at_ms=at_ms)
            statuses[name] = "running"
        elif op == "complete" and opened is not None:
            ledger.close_turn(RunEnd("completed"), [user(name), user("answer")], at_ms=at_ms)
            texts += [name, "answer"]
            statuses[opened.run_id] = "completed"
        elif op == "fail" and opened is not None:
            ledger.close_turn(RunEnd("failed", "no"), [], at_ms=at_ms)
            statuses[opened.run_id] = "failed"
        elif op == "interrupt" and opened is not None:
            ledger.interrupt_turn("gone", at_ms=at_ms)
            statuses[opened.run_id] = "interrupted"
        elif op == "step" and opened is not None:
            steps[opened.run_id] += 1
            ledger.journal(Step(steps[opened.run_id], (user("draft"),)))
        elif op == "pause" and opened is not None:
            ledger.pause_turn(RunEnd("waiting"), (ApprovalRequest(opened.run_id, "c", "pay"),), at_ms=at_ms)
            statuses[opened.run_id] = "waiting"
        elif op == "resume" and opened is None and (at_rest := resumable(statuses)):
            turn += 1
            stored.resume_turn(turn, at_rest[0], steps[at_rest[0]], at_ms)
            statuses[at_rest[0]] = "running"
        elif op == "give up" and ledger.head.paused_runs:
            run_id = ledger.head.paused_runs[-1]
            ledger.end_paused(ledger.runs[run_id], RunEnd("cancelled", "no"), steps=steps[run_id], at_ms=at_ms)
            statuses[run_id] = "cancelled"
        elif op == "run":
            ledger.create_run(queued(name, manual=True), at_ms=at_ms)
            statuses[name] = "queued"
        elif op == "end run" and ledger.head.open_runs:
            run_id = ledger.head.open_runs[0]
            ledger.move_run(ledger.runs[run_id], RunEnd("cancelled", "no"), at_ms=at_ms)
            statuses[run_id] = "cancelled"
        elif op == "erase":
            stored.erase()
            for told in (texts, statuses, steps):
                told.clear()
        elif op == "commit":
            stored.commit()
    stored.commit()

    check_messages(stored, texts)
    assert {record.id: record.status for record in stored.archive.runs("s")} == statuses
    check_open(stored, statuses, steps)

"""What goes out of an outbox when, over generated programs of puts, deliveries and failures."""

from hypothesis import given, strategies as st

from callboard.actors.outbox import Outbox
from callboard.actors.state import StateDelta
from callboard.actors.state_records import OUTBOX_CODEC, OutboxRecord
from callboard.store import Table


def record_of(id: str, target: str = "app") -> OutboxRecord:
    return OutboxRecord(id, target, (StateDelta("app", "key", "set", id),))


def stored(rows: dict[bytes, bytes]) -> list[tuple[int, OutboxRecord]]:
    return [(int.from_bytes(key, "big"), OUTBOX_CODEC.decode(rows[key], where="")) for key in sorted(rows)]


def test_deliveries_go_out_at_once_each_behind_the_one_before() -> None:
    outbox = Outbox()
    for id, target in (("1", "app"), ("2", "user:ann"), ("3", "app")):
        outbox.put(record_of(id, target))

    assert [(each.record.id, each.after) for each in outbox.send("app")] == [("1", ""), ("3", "1")]
    assert [(each.record.id, each.after) for each in outbox.send("user:ann")] == [("2", "")]
    assert outbox.send("app") == []
    outbox.put(record_of("4"))
    assert [(each.record.id, each.after) for each in outbox.send("app")] == [("4", "3")]


def test_after_a_failure_all_come_back_before_they_are_sent_again_in_order() -> None:
    outbox = Outbox()
    for id in "123":
        outbox.put(record_of(id))
    outbox.send("app")
    outbox.failed("app", "1")
    assert outbox.pause_due("app") == 0
    assert outbox.send("app") == []
    outbox.delivered("app", "2")
    outbox.put(record_of("4"))
    outbox.failed("app", "3")

    assert outbox.pause_due("app") == 1
    assert outbox.send("app") == []
    outbox.pause_over("app")
    assert [(each.record.id, each.after) for each in outbox.send("app")] == [("1", ""), ("3", "1"), ("4", "3")]
    outbox.failed("app", "1")
    outbox.failed("app", "3")
    outbox.failed("app", "4")
    assert outbox.pause_due("app") == 2


def test_answer_of_an_earlier_activation_is_taken_once() -> None:
    outbox = Outbox([(7, record_of("1"))])

    row = outbox.delivered("app", "1")

    assert row is not None
    assert (row.table, row.key, row.value) == (Table.OUTBOX, (7).to_bytes(8, "big"), None)
    assert outbox.delivered("app", "1") is None
    assert len(outbox) == 0


@given(
    st.lists(st.sampled_from(["put", "put user", "deliver", "fail", "pause over", "reload"]), max_size=40), st.data()
)
def test_every_delivery_is_applied_once_and_in_order_whatever_fails(program: list[str], data: st.DataObject) -> None:
    """The receiver applies what it has not, refuses what comes out of order; its answers may be lost."""
    rows: dict[bytes, bytes] = {}
    outbox, number = Outbox(), 0
    in_flight: dict[str, list[tuple[str, str]]] = {"app": [], "user:ann": []}
    applied: dict[str, list[str]] = {"app": [], "user:ann": []}
    put: dict[str, list[str]] = {"app": [], "user:ann": []}

    def send(target: str) -> None:
        in_flight[target] += [(each.record.id, each.after) for each in outbox.send(target)]

    def answer(target: str, *, refused: bool, lost: bool) -> None:
        id, after = in_flight[target].pop(0)
        if refused or (id not in applied[target] and after and after not in applied[target]):
            outbox.failed(target, id)
            return
        if id not in applied[target]:
            applied[target].append(id)
        if lost:
            outbox.failed(target, id)
        elif (row := outbox.delivered(target, id)) is not None:
            del rows[row.key]

    for step in program:
        target = data.draw(st.sampled_from(["app", "user:ann"]))
        if step.startswith("put"):
            number += 1
            target = "app" if step == "put" else "user:ann"
            row = outbox.put(record_of(str(number), target))
            assert row.key not in rows
            assert row.value is not None
            rows[row.key] = row.value
            put[target].append(str(number))
            send(target)
        elif step == "pause over":
            if outbox.pause_due(target):
                outbox.pause_over(target)
                send(target)
        elif step == "reload":
            outbox = Outbox(stored(rows))
            in_flight = {"app": [], "user:ann": []}
            send("app")
            send("user:ann")
        elif in_flight[target]:
            answer(target, refused=step == "fail" and data.draw(st.booleans()), lost=step == "fail")
    for target in ("app", "user:ann"):
        while outbox.pause_due(target) or in_flight[target]:
            while in_flight[target]:
                answer(target, refused=False, lost=False)
            if outbox.pause_due(target):
                outbox.pause_over(target)
                send(target)

    assert applied == put
    assert rows == {}
    assert len(outbox) == 0
    assert outbox.targets == []

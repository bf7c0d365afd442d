"""What must hold after a program of kernel_program.py: the kernel's promises, on what the actors and callers have seen.

That each of these can fail is shown by the broken kernels of test_mutations.py.

| invariant | where |
|---|---|
| at most one handler of an actor at a time | Seen.faults |
| each ask ends, once | `_check_asks` |
| an accepted message is processed, dead-lettered or in quarantine | `_check_accepted` |
| the messages of one sender to one actor run in order, and once | `_check_order` |
| what was acknowledged is stored, once; what was refused is not | `_check_outcomes` |
| no commit of an older epoch comes after one of a newer | `_check_store` |
| restarts stay within the budget, and nobody fails within it | Seen.faults |
| an actor's drain, and the runtime's, end in time | `_check_ends`, Seen.faults |
| nobody is idle with a message in its mailbox | Seen.faults |
| nobody waits in a circle, nested asks end by their caller's deadline | Seen.faults |
| what an actor has in memory is what is stored | Seen.faults |
| a watcher is told once; waits that have ended leave no edge | `_check_ends` |
| never two ticks of a timer pending, the period counts from completion | Seen.faults |
"""

from collections import Counter, defaultdict

from kernel_actors import RETRYABLE, DoInTwo, number_of
from kernel_program import Backend, Life, Program, played

from callboard.runtime.restarts import ATTEMPTS_MAX
from callboard.runtime.runtime import CANCEL_GRACE_S
from callboard.store import Table

__all__ = ["check", "play"]

NOT_STORED = {"Failed", "Refused", "MailboxFull", "Expired", "Stopping", "ActorFailed", "CyclicAsk"}
NEVER_RAN = {"MailboxFull", "Expired", "CyclicAsk"}
"""Also of a message that may be repeated: one that had begun ends as Unknown instead."""


def play(seed: int, backend: Backend = "trio") -> Program:
    """Run one program and check it."""
    program = played(seed, backend)
    check(program)
    return program


def check(program: Program) -> None:
    """Every invariant of the table above.

    Raises:
        AssertionError: one that does not hold, and for what.
    """
    for life in program.lives:
        assert not life.seen.faults, life.seen.faults
        _check_order(life)
        _check_accepted(life)
        _check_ends(life)
    _check_asks(program)
    stored = _check_store(program)
    _check_outcomes(program, stored)


def _check_asks(program: Program) -> None:
    assert not program.asked.keys() - program.outcomes.keys(), "an ask never ended"
    often = {number: ends for number, ends in program.outcomes.items() if len(ends) != 1}
    assert not often, f"an ask ended more than once: {often}"


def _check_order(life: Life) -> None:
    seen = life.seen
    for pair, orders in seen.orders.items():
        places = [order for order, _ in orders]
        once = [order for order, repeatable in orders if not repeatable]
        assert places == sorted(places), f"{pair}: messages of one sender ran out of order: {places}"
        assert len(once) == len(set(once)), f"{pair}: a message that is not retryable ran twice: {once}"
    for pair, numbers in seen.arrived.items():
        assert numbers == [number for number in seen.sent[pair] if number in set(numbers)], f"{pair}: out of order"
    times = Counter(number for _, number in seen.handled)
    for number in seen.repeatable:
        attempts_max = ATTEMPTS_MAX * (1 + seen.released[number])
        assert times[number] <= attempts_max, f"{number} was tried {times[number]} times"


def _check_accepted(life: Life) -> None:
    seen, runtime = life.seen, life.runtime
    dead = {number_of(letter.message) for letter in runtime.dead_letters}
    poison = {number_of(entry.message) for entry in runtime.quarantine.list()}
    lost = seen.accepted - seen.done - dead - poison - seen.purged
    assert not lost, f"accepted, and neither processed nor dead-lettered: {lost}"
    begun = {number for _, number in seen.handled}
    for letter in runtime.dead_letters:
        if letter.cause in ("dropped", "expired") and not isinstance(letter.message, RETRYABLE):
            assert number_of(letter.message) not in begun, f"{number_of(letter.message)}: {letter.cause}, but it ran"


def _check_ends(life: Life) -> None:
    # What is being written, and the group behind it, is never cut off.
    disk_s = 4 * life.disk_slowest_s
    assert life.closing_took_s <= life.drain_timeout_s + CANCEL_GRACE_S + disk_s + 0.001, "the drain took too long"
    twice = [watch for watch, times in life.seen.ended.items() if times > 1]
    assert not twice, f"a watcher was told twice: {twice}"
    waits = life.runtime._post.waits  # pyright: ignore[reportPrivateUsage] - what stays in memory shows nowhere else
    assert not len(waits), f"waits that have ended are still in the graph: {waits.edges()}"


def _check_store(program: Program) -> Counter[int]:
    """How often each message is stored."""
    rows: dict[str, list[int]] = defaultdict(list)
    epochs: dict[str, int] = {}
    for group in program.store.committed:
        for batch in group:
            assert batch.epoch >= epochs.get(batch.stream, 0), f"{batch.stream}: a commit of a stale epoch was accepted"
            epochs[batch.stream] = batch.epoch
            rows[batch.stream] += [int(row.value or b"") for row in batch.rows]
    reopened = program.store.reopened()
    for stream, numbers in rows.items():
        present = [int(value) for _, value in reopened.scan(stream, Table.MESSAGE)]
        assert present == numbers, f"{stream}: {numbers} were committed, and {present} are there"
    return Counter(number for numbers in rows.values() for number in numbers)


def _check_outcomes(program: Program, stored: Counter[int]) -> None:
    begun = {number for life in program.lives for _, number in life.seen.handled}
    assert not [number for number, times in stored.items() if times > 1], "a message was stored twice"
    for number, (_, message) in program.asked.items():
        (outcome,) = program.outcomes[number]
        retryable = isinstance(message, RETRYABLE)
        if outcome == "reply" and message.writes:
            assert stored[number] == 1, f"{number} was acknowledged and is not stored"
        second = message.second if isinstance(message, DoInTwo) else 0
        if outcome == "reply" and second:
            assert stored[second] == 1, f"{number} was acknowledged and its second half is not stored"
        if outcome in NOT_STORED:
            assert not stored[number] + stored[second], f"{number} ended with {outcome} and is stored"
        if outcome in NEVER_RAN or (outcome in ("Stopping", "ActorFailed") and not retryable):
            assert number not in begun, f"{number}: {outcome}, but it ran"
        if outcome == "Failed" and not retryable and message.forward is not None:
            assert message.forward[0] not in begun, f"{message.forward[0]} was sent by {number}, which is not stored"

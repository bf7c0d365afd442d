"""Deliberately broken kernels, one for each promise of kernel_checks.py: the programs must catch every one of them.

Each mutation takes one promise out of one function. That the unbroken kernel holds them on the same seeds is the first
test; a check that no mutation can fail would be no check.
"""

# A mutation reaches into the kernel, and takes whatever the function takes that it replaces.
# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from soak import judge

from callboard.runtime import Answered, restarts, runtime
from callboard.runtime.budget import RestartBudget
from callboard.runtime.cell import Cell
from callboard.runtime.context import Context, Ticket
from callboard.runtime.dead_letters import DeadLetters
from callboard.runtime.endings import Endings
from callboard.runtime.envelope import SETTLED, Delivery
from callboard.runtime.errors import Expired, Failed
from callboard.runtime.gate import Gate, HeldCall, release_all
from callboard.runtime.lifecycle import BACKING_OFF, READY
from callboard.runtime.mailbox import Mailbox
from callboard.runtime.post_office import PostOffice
from callboard.runtime.restarts import Restarts
from callboard.runtime.signals import Tick
from callboard.runtime.supervisor import Supervisor
from callboard.runtime.ticks import Ticks
from callboard.store import Batch, memory_store

SEEDS = range(45)
"""Each mutation is caught by one of these, most of them by one of the first five."""
SEEDS_FOR_RARE = range(155, 200)
"""For what hardly one program in a hundred shows."""

Mutation = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


def a_message_that_comes_while_a_handler_waits_is_handled_at_once(patch: pytest.MonkeyPatch) -> None:
    enqueue: Any = PostOffice._enqueue

    def broken(self: Any, cell: Cell, delivery: Delivery, *args: Any, **options: Any) -> None:
        enqueue(self, cell, delivery, *args, **options)
        first = next(iter(cell.box), None) if cell.box is not None else None
        handler = cell.handlers.get(type(first.message)) if first is not None else None
        if cell.running is not None and handler is not None and not handler.is_async and cell.state is READY:
            running, cell.running, context = cell.running, None, cell.context
            self._dispatcher.run(self._supervisor.step, cell)
            cell.running = running
            if cell.context is not context:
                running.settle(None, Failed("restarted by what was handled meanwhile"))

    patch.setattr(PostOffice, "_enqueue", broken)


def replies_behind_a_refused_commit_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    committed = Gate.committed

    def broken(self: Any, error: Any) -> None:
        if error is None:
            committed(self, error)
        else:
            self._pending.pop(0)

    patch.setattr(Gate, "committed", broken)


def an_actor_hears_the_answer_to_its_request_twice(patch: pytest.MonkeyPatch) -> None:
    signal: Any = PostOffice.signal

    def broken(self: Any, to: Any, message: Any, **options: Any) -> None:
        for _ in range(2 if isinstance(message, Answered) else 1):
            signal(self, to, message, **options)

    patch.setattr(PostOffice, "signal", broken)


def what_comes_to_nothing_is_no_dead_letter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeadLetters, "add", lambda self, letter: None)


def the_newest_message_is_handled_first(patch: pytest.MonkeyPatch) -> None:
    take = Mailbox.take

    def broken(self: Any) -> Delivery | None:
        self._user.rotate(1)
        return take(self)

    patch.setattr(Mailbox, "take", broken)


def any_message_that_crashed_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    again: Any = Restarts._again

    def broken(self: Any, cell: Cell, error: Any, delivery: Delivery | None, handler: Any) -> Delivery | None:
        if delivery is not None and delivery.phase is not SETTLED and delivery.attempt < restarts.ATTEMPTS_MAX:
            return delivery
        return again(self, cell, error, delivery, handler)

    patch.setattr(Restarts, "_again", broken)


def poison_is_tried_too_often(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(restarts, "ATTEMPTS_MAX", 4)


def replies_go_out_before_their_commit(patch: pytest.MonkeyPatch) -> None:
    commit: Any = Supervisor.commit

    def broken(self: Any, cell: Cell, batch: Batch, outputs: list[Any]) -> None:
        release_all(outputs)
        commit(self, cell, batch, [])

    patch.setattr(Supervisor, "commit", broken)


def a_store_that_lost_the_answer_is_taken_to_have_stored_nothing(patch: pytest.MonkeyPatch) -> None:
    committed = Gate.committed

    def broken(self: Any, error: Any) -> bool:
        if error is not None:
            error.uncertain = False
        return committed(self, error)

    patch.setattr(Gate, "committed", broken)


def an_owed_reply_forgets_that_its_request_had_begun(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ticket, "_begun_before", property(lambda self: False))


def messages_of_a_refused_commit_are_sent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeldCall, "refuse", lambda self, error: HeldCall.release(self))


def a_crashed_actor_goes_on_with_what_it_has_in_memory(patch: pytest.MonkeyPatch) -> None:
    crashed: Any = Restarts.crashed

    def broken(self: Any, cell: Cell, error: Any, delivery: Any = None, handler: Any = None) -> None:
        if cell.state is READY and cell.context is not None and cell.running is None:
            cell.context.begin(None)
            self._answer(cell, error, delivery)
        else:
            crashed(self, cell, error, delivery, handler)

    patch.setattr(Restarts, "crashed", broken)


def a_store_takes_commits_of_old_epochs(patch: pytest.MonkeyPatch) -> None:
    contents: Any = memory_store._Contents
    apply = contents.apply

    def broken(self: Any, batch: Batch) -> Any:
        stream = self.streams.get(batch.stream)
        if stream is not None:
            stream.epoch = min(stream.epoch, batch.epoch)
        return apply(self, batch)

    patch.setattr(contents, "apply", broken)


def a_spent_budget_is_fresh_again(patch: pytest.MonkeyPatch) -> None:
    crashed = RestartBudget.crashed

    def broken(self: RestartBudget, now: float, chance: float) -> float:
        delay_s = crashed(self, now, chance)
        return delay_s if delay_s is not None else 0.0

    patch.setattr(RestartBudget, "crashed", broken)


def a_budget_is_spent_one_crash_too_early(patch: pytest.MonkeyPatch) -> None:
    crashed = RestartBudget.crashed

    def broken(self: RestartBudget, now: float, chance: float) -> float | None:
        delay_s = crashed(self, now, chance)
        return delay_s if len(self.crashes) < self.policy.restarts_max else None

    patch.setattr(RestartBudget, "crashed", broken)


def crashes_are_never_too_old_to_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RestartBudget, "_forget_until", lambda self, now: None)


def a_drain_has_no_deadline(patch: pytest.MonkeyPatch) -> None:
    end_drain_at: Any = Endings._end_drain_at
    patch.setattr(Endings, "_end_drain_at", lambda self, cell, deadline: end_drain_at(self, cell, math.inf))


def the_runtime_waits_for_whatever_goes_on(patch: pytest.MonkeyPatch) -> None:
    wait_quiet: Any = runtime.Runtime._wait_quiet
    patch.setattr(runtime.Runtime, "_wait_quiet", lambda self, timeout_s: wait_quiet(self, math.inf))


def nobody_looks_at_the_mailbox_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, cell: Cell) -> None:
        if cell.reload_due and cell.state is BACKING_OFF and not cell.gate and cell.running is None:
            cell.reload_due = False
            self.activation.activate(cell)

    patch.setattr(Restarts, "reload_if_due", broken)


def watchers_are_kept_after_they_were_told(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, cell: Cell, reason: Any, error: Any) -> None:
        for watcher in list(cell.bonds.watchers.values()):
            watcher(reason, error)

    patch.setattr(Endings, "_tell_watchers", broken)


def waits_stay_in_the_graph(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PostOffice, "_waited", lambda self, delivery: None)


def nobody_looks_for_circles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PostOffice, "_circle", lambda self, target, chain: None)


def nested_asks_know_no_deadline_of_their_caller(patch: pytest.MonkeyPatch) -> None:
    variables_for = PostOffice.variables_for

    def broken(self: Any, context: Context, delivery: Delivery | None) -> Any:
        deadline = delivery.deadline if delivery is not None else math.inf
        try:
            if delivery is not None:
                delivery.deadline = math.inf
            return variables_for(self, context, delivery)
        finally:
            if delivery is not None:
                delivery.deadline = deadline

    patch.setattr(PostOffice, "variables_for", broken)


def what_ran_until_its_deadline_is_said_not_to_have_run(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, delivery: Delivery) -> None:
        self._give_up(delivery, Expired("it never ran"))

    patch.setattr(PostOffice, "_expire", broken)


def a_period_does_not_wait_for_the_end_of_a_tick(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, tag: Any, clockwork: Any) -> Callable[[], None]:
        def fire() -> None:
            clockwork.timer = None
            clockwork.count += 1
            if clockwork.period_s is not None:
                self._wind(tag, clockwork, clockwork.period_s)
            self._host.signal(self._id, Tick(tag=tag, count=clockwork.count, source=clockwork))

        return fire

    patch.setattr(Ticks, "_fire", broken)


MUTATIONS: list[tuple[Mutation, str]] = [
    (a_message_that_comes_while_a_handler_waits_is_handled_at_once, "two handlers of .* ran at once"),
    (replies_behind_a_refused_commit_are_forgotten, "the program is stuck"),
    (an_actor_hears_the_answer_to_its_request_twice, "an ask ended more than once"),
    (what_comes_to_nothing_is_no_dead_letter, "accepted, and neither processed nor dead-lettered"),
    (the_newest_message_is_handled_first, "messages of one sender ran out of order"),
    (any_message_that_crashed_is_tried_again, "a message that is not retryable ran twice"),
    (poison_is_tried_too_often, "was tried .* times"),
    (replies_go_out_before_their_commit, "was acknowledged and is not stored"),
    (a_store_that_lost_the_answer_is_taken_to_have_stored_nothing, "ended with Failed and is stored"),
    (an_owed_reply_forgets_that_its_request_had_begun, "ended with Failed and is stored"),
    (messages_of_a_refused_commit_are_sent, "was sent by .*, which is not stored"),
    (a_crashed_actor_goes_on_with_what_it_has_in_memory, "in memory at version"),
    (a_store_takes_commits_of_old_epochs, "a commit of a stale epoch was accepted"),
    (a_spent_budget_is_fresh_again, "was restarted after crashes at .* beyond its budget"),
    (a_budget_is_spent_one_crash_too_early, "has failed after .* within its budget"),
    (crashes_are_never_too_old_to_count, "has failed after .* within its budget"),
    (a_drain_has_no_deadline, "a drain of .* s took"),
    (the_runtime_waits_for_whatever_goes_on, "the drain took too long"),
    (nobody_looks_at_the_mailbox_after_a_restart, "idle and has .* messages in its mailbox"),
    (watchers_are_kept_after_they_were_told, "a watcher was told twice"),
    (waits_stay_in_the_graph, "waits that have ended are still in the graph"),
    (nobody_looks_for_circles, "ask each other in a circle|was asked of one that waits for it"),
    (nested_asks_know_no_deadline_of_their_caller, "asked within .*, ended .* s late"),
    (what_ran_until_its_deadline_is_said_not_to_have_run, "Expired, but it ran"),
    (a_period_does_not_wait_for_the_end_of_a_tick, "tick .* at .*, after"),
]

RARE: set[Mutation] = {an_owed_reply_forgets_that_its_request_had_begun}


def first_fault(seeds: range) -> str:
    """What the first program says in which something did not hold; "" where all was well."""
    return next((verdict.fault for seed in seeds if (verdict := judge("trio", seed)).fault), "")


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS_FOR_RARE])
def test_the_kernel_as_it_is_holds_on_these_seeds(seeds: range) -> None:
    assert not first_fault(seeds)


@pytest.mark.parametrize(("mutation", "caught"), MUTATIONS, ids=[mutation.__name__ for mutation, _ in MUTATIONS])
def test_a_broken_kernel_is_caught(mutation: Mutation, caught: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)

    fault = first_fault(SEEDS_FOR_RARE if mutation in RARE else SEEDS)

    assert re.search(caught, fault)

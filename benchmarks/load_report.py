"""What a run of `load.py` comes to: whether it failed, one JSON line with all figures, and the words for people."""

import os
import platform
from typing import Any

import msgspec
from load_ledger import FAULTS_OF_TURNS
from load_plan import Plan
from load_stage import Course, Outcome
from load_view import facts

import callboard

__all__ = ["problems", "record_of", "summary"]


def problems(outcome: Outcome) -> list[str]:
    """Why the run has failed; [] where it has not."""
    found = [
        f"{count} turns were {FAULTS_OF_TURNS[kind]} ({kind})" for kind, count in outcome.ledger.faults.items() if count
    ]
    for memory in outcome.memories:
        if memory.grows:
            found.append(
                f"memory grew by {memory.growth_mb} MB in {memory.judged_s} s, from {memory.median_mb} MB on average"
            )
    if outcome.failure:
        found.append(outcome.failure)
    if not outcome.ledger.acknowledged:
        found.append("no turn was acknowledged: nothing was proven")
    return found


def record_of(plan: Plan, course: Course, outcome: Outcome) -> dict[str, Any]:
    """All figures, by names that end in their unit."""
    ledger = outcome.ledger
    judged = [memory for memory in outcome.memories if memory.judged_s]
    return {
        "benchmark": "load",
        "callboard": callboard.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "plan": msgspec.to_builtins(plan),
        "course": msgspec.to_builtins(course),
        "acknowledged": ledger.acknowledged,
        "seen_in_store": ledger.turns,
        "per_s": round(ledger.acknowledged / outcome.loaded_s, 1) if outcome.loaded_s else 0.0,
        "latency_ms": outcome.latencies.as_record(),
        "turns_at_fault": {kind: ledger.faults[kind] for kind in FAULTS_OF_TURNS},
        "told": ledger.told,
        "kills": outcome.kills,
        "runs_cut": outcome.runs_cut,
        "stored_not_told": outcome.unacknowledged,
        "errors_told": dict(ledger.errors),
        "model_requests": outcome.requests,
        "model_faults": dict(outcome.model_faults),
        "store_faults": outcome.store_faults,
        "sessions_at_end": ledger.sessions,
        "prefill_s": round(outcome.prefill_s, 1),
        "open_s": _spread(outcome.opened_s),
        "check_s": _spread(outcome.checks_s),
        "recount_s": round(outcome.recount_s, 2),
        "memory": msgspec.to_builtins(judged[-1]) if judged else None,
        "memory_max_mb": max((memory.max_mb for memory in outcome.memories), default=0.0),
        "problems": problems(outcome),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    return {"median": round(ordered[len(ordered) // 2], 3), "max": round(ordered[-1], 3)}


def summary(outcome: Outcome) -> dict[str, str]:
    """The table for people."""
    told = facts(outcome)
    rate = outcome.ledger.acknowledged / outcome.loaded_s if outcome.loaded_s else 0.0
    told["turns/s"] = f"{rate:,.1f} over {outcome.loaded_s:,.0f} s of load"
    judged = [memory for memory in outcome.memories if memory.judged_s]
    last = judged[-1] if judged else None
    told["memory trend"] = (
        f"{last.growth_mb:+} MB in {last.judged_s:,.0f} s ({last.slope_mb_per_h:+} MB/h) on {last.median_mb:,} MB"
        if last is not None
        else "not judged: no life of the worker was long enough"
    )
    opened, checked = _spread(outcome.opened_s), _spread(outcome.checks_s)
    told["start to open"] = f"{opened['median']} s, at most {opened['max']}"
    told["checks"] = f"{len(outcome.checks_s)}, of {checked['median']} s, at most {checked['max']}"
    found = problems(outcome)
    told["verdict"] = "; ".join(["FAILED", *found, *outcome.ledger.told]) if found else "passed"
    return told

"""FallbackModel: several models in a row that are one `Model`: where one fails in a way that another may not, that is
asked.

    what the model asked first raises                    the next one is asked    it goes last for cooldown_s
    ModelUnavailable, Stalled, BadResponse, Truncated    yes                      yes
    RateLimited                                          yes                      yes, at least retry_after_s
    Refused (key, permission, quota)                     yes                      yes
    BadRequest with 404 (no such model, no such path)    yes                      yes
    ContextOverflow                                      one that may hold more   no
    other BadRequest: the request's own fault            no                       no
    what is no ModelError: a bug                         no                       no

No other model is asked once a piece of an answer was handed out: that is the run's to take back. A model's own retries
come first, so that a chain is quick to move on only where its members are told not to be patient, as in
`OpenAIChat(..., retries=RetryPolicy(retries_max=0, rate_limit_patience_s=0))`.

Source: the circuit breaker (Nygard, "Release It!"), with a time in place of its half-open state.
"""

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
from msgspec import Struct
from msgspec.structs import replace

from ..runtime.options import check_number
from .errors import BadRequest, ContextOverflow, ModelError, Refused
from .model import Delta, Model, ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .per_loop import PerLoop

__all__ = ["FallbackMember", "FallbackModel"]


class FallbackMember(Struct, frozen=True, eq=False):
    """A model of a chain, and what differs when it is asked.

    Attributes:
        model: asked.
        settings: what is set here goes before the request's settings; `extra_body` is merged field by field.
        context_tokens: how many tokens it takes; None where that is not known. After a ContextOverflow only members are
            asked that take more, or of which it is not known.
    """

    model: Model
    settings: ModelSettings = ModelSettings()
    context_tokens: int | None = None


class FallbackModel:
    """Asks the first of several models; where that fails, the next.

    Args:
        models: in order of preference; a model, or a `FallbackMember` with settings of its own. The model's name in a
            request's settings (an Agent's, say) is meant for the first one; the others are asked for their own.
        cooldown_s: for so many seconds a model that failed is asked only after all others failed too.

    The answer's `model` says who gave it. It belongs to an event loop which model has failed: in each it is found out
    anew.

    Raises:
        ValueError, TypeError: no models, or no model, or no number.
    """

    def __init__(self, models: Sequence[Model | FallbackMember], *, cooldown_s: float = 30.0) -> None:
        check_number("cooldown_s", cooldown_s)
        if cooldown_s < 0:
            raise ValueError(f"cooldown_s must be 0 or more, not {cooldown_s}")
        if not isinstance(models, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(
                f"a FallbackModel takes a list of models, as in FallbackModel([large, small]), not {models!r}"
            )
        self._members = tuple(map(_member, models))
        if not self._members:
            raise ValueError("a FallbackModel needs at least one model")
        self._cooldown_s = cooldown_s
        self._resting = PerLoop(dict[FallbackMember, float])

    def __repr__(self) -> str:
        return f"FallbackModel({[member.model for member in self._members]!r})"

    @property
    def name(self) -> str:
        """The names of all, in order."""
        return "|".join(member.settings.model or member.model.name for member in self._members)

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """The answer of the first model that gives one; see `Model.complete`.

        Raises:
            ModelError: all that were asked failed, or what one raised is not for another to mend. Of several the last
                one that is transient goes up, else the last; its `tries` are those of all, its notes name the others.
        """
        shown = False

        def show(delta: Delta) -> None:
            nonlocal shown
            shown = True
            assert on_delta is not None
            on_delta(delta)

        errors: list[tuple[FallbackMember, ModelError]] = []
        too_small = -1  # the most tokens that are known not to be enough
        for member in self._in_order():
            if member.context_tokens is not None and member.context_tokens <= too_small:
                continue
            try:
                answer = await member.model.complete(
                    self._request_to(member, request), on_delta=None if on_delta is None else show
                )
            except ModelError as error:
                errors.append((member, error))
                if isinstance(error, ContextOverflow):
                    too_small = max(too_small, member.context_tokens or 0)
                elif _may_do_elsewhere(error):
                    self._rest(member, error)
                else:
                    break
                if shown:
                    break
            else:
                self._resting.get().pop(member, None)
                return answer if answer.model else replace(answer, model=member.settings.model or member.model.name)
        raise _summed_up(errors)

    async def aclose(self) -> None:
        """Close the idle connections of all models, whatever one of them raises."""
        async with AsyncExitStack() as closing:
            for model in self._models():
                closing.push_async_callback(model.aclose)

    def close_expired(self) -> bool:
        """See `Model`: for those of the models that have it."""
        closers = [getattr(model, "close_expired", None) for model in self._models()]
        return any([close() for close in closers if close is not None])  # a list: each of them is called

    def _models(self) -> Iterator[Model]:
        """Each once, though it may have several places in the chain."""
        return iter({id(member.model): member.model for member in self._members}.values())

    def _in_order(self) -> list[FallbackMember]:
        """Those that rest come last, the one that has rested longest first."""
        resting, now = self._resting.get(), anyio.current_time()
        for member in [member for member, until in resting.items() if until <= now]:
            del resting[member]
        return sorted(self._members, key=lambda member: resting.get(member, 0.0))

    def _rest(self, member: FallbackMember, error: ModelError) -> None:
        seconds = max(self._cooldown_s, error.retry_after_s or 0.0)
        self._resting.get()[member] = anyio.current_time() + seconds

    def _request_to(self, member: FallbackMember, request: ModelRequest) -> ModelRequest:
        theirs = request.settings
        if member is not self._members[0] and theirs.model is not None:
            theirs = replace(theirs, model=None)
        return replace(request, settings=member.settings.over(theirs))


def _member(given: Any) -> FallbackMember:
    member = given if isinstance(given, FallbackMember) else FallbackMember(given)
    if not callable(getattr(member.model, "complete", None)):
        raise TypeError(f"a FallbackModel is made of models, such as OpenAIChat(...), and {member.model!r} is none")
    return member


def _may_do_elsewhere(error: ModelError) -> bool:
    return error.transient or isinstance(error, Refused) or (isinstance(error, BadRequest) and error.status == 404)


def _summed_up(errors: list[tuple[FallbackMember, ModelError]]) -> ModelError:
    """The error that stands for all: a transient one, or the run would give up though one model may come back."""
    assert errors, "the first member is always asked"
    last = next((error for _, error in reversed(errors) if error.transient), errors[-1][1])
    last.tries = sum(error.tries for _, error in errors)
    for member, error in errors:
        if error is not last:
            last.add_note(f"and {member.model.name}: {type(error).__name__}: {error}")
    return last

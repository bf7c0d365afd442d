"""What one run sends its model of a conversation: a window on history, its input, and what it has written itself.

The window is cut when the run begins. What the run writes makes a prompt longer and does not move the cut, so that each
prompt begins as the one before it; only one by tokens moves on, when what the run has written would not fit any more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from ..runtime.ref import Ref
from ..store.errors import CallboardError
from .compaction import Ask, compact
from .conversation import repair
from .errors import RunFailed
from .message import Message, Usage
from .model import ModelRequest
from .perspective import cue, seen_by
from .session_messages import Grant
from .tokens import TokenMeter, TokenMeters
from .window import Excerpt, Window, WindowView, cut_view

__all__ = ["RunPrompt"]

_SUMMARY_SHARE = 0.3
"""Of the window: more of it would leave too little for the conversation itself."""

_log = logging.getLogger("callboard.run")


@dataclass(slots=True)
class RunPrompt:
    """The conversation as the model of this agent gets it. `ask` asks the model that summarises; without `session`,
    which is to keep what it says, nothing is summarised."""

    agent: str
    model: str
    window: Window | None
    meters: TokenMeters
    grant: Grant
    input: tuple[Message, ...]
    session: Ref | None
    ask: Ask
    view: WindowView | None = None
    _excerpt: Excerpt = field(init=False)
    _asked: tuple[Message, ...] = field(init=False)
    _meter: TokenMeter | None = None
    _summarised: bool = False

    def __post_init__(self) -> None:
        excerpt, first = self.grant.excerpt, self.grant.input_seq
        earlier: Sequence[Message] = excerpt.messages
        gap_at = excerpt.gap_at
        if first:  # the input goes behind history, wherever it stands there
            behind = first + len(self.input)
            gap_at -= sum(first <= message.seq < behind for message in earlier[:gap_at])
            earlier = [message for message in earlier if not first <= message.seq < behind]
        self._asked = self.input or cue(self.agent, earlier)
        self._excerpt = replace(excerpt, messages=tuple(seen_by(self.agent, earlier)), gap_at=gap_at)

    @property
    def cut(self) -> tuple[str, int] | None:
        """What the session is to remember of the window; None where there is nothing to remember."""
        if self.window is None or self.view is None or self.view.cut == self._excerpt.cut:
            return None
        return self.window.name, self.view.cut

    @property
    def attributes(self) -> dict[str, object]:
        """What a model call's span tells of its prompt: nothing where all of a valid history was sent."""
        view, told = self.view, dict[str, object]()
        if view is None:
            return told
        if view.left_out:
            told["window_left_out"] = view.left_out
        if view.tokens is not None:
            told |= {"window_tokens": view.tokens, "window_counter": view.counter}
        if view.repaired.changed:
            told |= {"repaired_inserted": len(view.repaired.inserted), "repaired_dropped": len(view.repaired.dropped)}
        return told

    async def fill(self, request: ModelRequest, written: Sequence[Message], aside: Sequence[Message]) -> ModelRequest:
        """The request with the conversation behind its messages, which are the instructions. `written` is what the run
        has written so far, `aside` what comes behind that and is not stored.

        Cost: that of looking at the window; once for a run, unless it is one by tokens and full.
        """
        if self.window is not None and self._meter is None:
            self._meter = await self.meters.of(self.model, self.window.counter) if self._counts else None
        behind = (*repair(written).messages, *aside)
        extra = 0
        if self._meter is not None:
            extra = self._meter.counted((*request.messages, *behind))
            extra += self._meter.schemas(request.tools, request.output)
        view = self.view
        if view is None or self._is_full(view, extra):
            view = self.view = await self._look(extra)
        return replace(request, messages=(*request.messages, *view.messages, *behind))

    def learn(self, request: ModelRequest, usage: Usage) -> None:
        """A server has said how many tokens this request had."""
        meter = self._meter
        if meter is not None and usage.prompt_tokens and not usage.estimated and not meter.counter.exact:
            counted = meter.counted(request.messages) + meter.schemas(request.tools, request.output)
            meter.learn(counted, usage.prompt_tokens)

    async def _look(self, extra: int) -> WindowView:
        view = self._cut(extra)
        if view.summary_to and not self._summarised and self.session is not None:
            self._summarised = True  # once in a run, whatever comes of it
            meter = self._meter or await self.meters.of(self.model, None)
            assert self.window is not None
            room = inf if self.window.max_tokens is None else _SUMMARY_SHARE * self.window.max_tokens
            try:
                overlay = await compact(self.session, view.summary_to, self.ask, meter=meter, tokens_max=room)
            except RunFailed:  # its budget is spent
                raise
            except CallboardError as error:
                _log.info("a run of agent %r goes on without a summary: %s", self.agent, error)
                return view
            if overlay is not None:
                self._excerpt = replace(self._excerpt, overlay=overlay)
                view = self._cut(extra)
        return view

    def _cut(self, extra: int) -> WindowView:
        excerpt = self._excerpt if self.view is None else replace(self._excerpt, cut=self.view.cut)
        return cut_view(self.window, excerpt, self._meter, fixed=self._asked, extra_tokens=extra)

    def _is_full(self, view: WindowView, extra: int) -> bool:
        """What was written since would not fit into the window as it is."""
        window, meter = self.window, self._meter
        if window is None or window.max_tokens is None or meter is None:
            return False
        return meter.factor * (meter.counted(view.messages) + extra) > window.keep_until * window.max_tokens

    @property
    def _counts(self) -> bool:
        return self.window is not None and self.window.max_tokens is not None

"""The half of the public handle that shows a session as a model sees it: through a window, with summaries."""

from typing import Any

from msgspec.structs import replace

from ..runtime.ref import Ref
from .compaction import compact
from .conversation import as_chat_dict
from .host import Runtime
from .limits import check_count
from .model import Model, ModelAnswer, ModelRequest
from .overlay import Overlay
from .session_messages import ReadExcerpt
from .tokens import TokenCounter
from .window import ExcerptNeed, Strategy, Window, WindowView, check_strategy, cut_view

__all__ = ["SessionViews"]


class SessionViews:
    """See Session."""

    id: str
    runtime: Runtime
    window: Window | None
    _ref: Ref

    async def messages_for_llm(
        self,
        *,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        strategy: Strategy | None = None,
        counter: TokenCounter | None = None,
    ) -> list[dict[str, Any]]:
        """History in the API's own form, fit to be sent: no tool call without its result, no result without its call.

        Args:
            max_messages, max_tokens: the most of it, the latest; None for both: as the handle was made with.
            strategy: "recent", "head_and_tail" or "summary", see Window; None: the handle's, or "recent".
            counter: of tokens; None takes that of the model in use, where it is only one; else tiktoken's o200k_base
                where that is installed, or an estimate.

        It keeps strictly to what is given, and moves with each message; the cut that runs use is not looked at. What is
        not shown stays where it is. The latest message, with its tool calls, is shown even where it alone is too large.
        """
        view = await self.view(max_messages=max_messages, max_tokens=max_tokens, strategy=strategy, counter=counter)
        return [as_chat_dict(message) for message in view.messages]

    async def view(
        self,
        *,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        strategy: Strategy | None = None,
        counter: TokenCounter | None = None,
    ) -> WindowView:
        """As `messages_for_llm`, as messages, and with what was left out, how tokens were counted, and what had to be
        repaired."""
        window = self._strict_window(max_messages, max_tokens, strategy, counter)
        excerpt = await self._ref.ask(ReadExcerpt(None if window is None else _need(window)))
        if window is None or window.max_tokens is None:
            return cut_view(window, excerpt)
        return cut_view(window, excerpt, await self.runtime.token_meters.of_any(window.counter))

    async def compact(self, model: Model, *, keep_messages: int = 20) -> Overlay | None:
        """Let a summary stand for all but the latest messages, where windows of the strategy "summary" look at them.

        Nothing is lost: `messages` gives them all, as before. Runs with such a window do this by themselves, once it is
        full.

        Args:
            model: what writes the summary.
            keep_messages: how many of the latest stay as they are; fewer where they are part of a tool call.

        Returns: the summary; None where there is nothing to summarise, or that is done already.

        Raises:
            NotCompacted: the summary is not smaller than what it stands for, or that has changed meanwhile.
            ModelError: the model could not be asked. In either case nothing was changed.
        """
        check_count(keep_messages, what="keep_messages")
        window = Window(max_messages=keep_messages, keep_until=1, cut_to=1)
        view = cut_view(window, await self._ref.ask(ReadExcerpt(_need(window))))
        if not view.cut:
            return None

        async def ask(request: ModelRequest) -> ModelAnswer:
            return await model.complete(request)

        meter = await self.runtime.token_meters.of(model.name, None)
        return await compact(self._ref, view.cut - 1, ask, meter=meter, tokens_max=float("inf"))

    async def overlay(self) -> Overlay | None:
        """The summary that stands for the beginning of history; None where there is none, or edits made it void."""
        window = Window(max_messages=2, strategy="summary")
        return (await self._ref.ask(ReadExcerpt(_need(window)))).overlay

    def _strict_window(
        self,
        max_messages: int | None,
        max_tokens: int | None,
        strategy: Strategy | None,
        counter: TokenCounter | None,
    ) -> Window | None:
        own = self.window
        if max_messages is None and max_tokens is None and own is not None:
            max_messages, max_tokens = own.max_messages, own.max_tokens
        if max_messages is None and max_tokens is None:
            if strategy is not None:
                check_strategy(strategy)
                raise ValueError(f"strategy={strategy!r} needs max_messages= or max_tokens=: without one all is shown")
            return None
        return Window(
            max_messages=max_messages,
            max_tokens=max_tokens,
            strategy=strategy or (own.strategy if own is not None else "recent"),
            counter=counter or (own.counter if own is not None else None),
            keep_until=1,
            cut_to=1,
        )


def _need(window: Window) -> ExcerptNeed:
    """Without a cut: runs with a window of the same bounds have theirs, which may leave less than would fit."""
    return replace(window.need(), window="")

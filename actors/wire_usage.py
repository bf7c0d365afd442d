"""What an answer cost, as the servers word it. Pure. Whatever is odd in it does not cost the answer.

Source: FACTS.md, "Wire truth" (usage).
"""

from typing import Any

import msgspec

from .message import COUNT_MAX, Usage

__all__ = ["count_usage", "decode_usage"]

_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def decode_usage(usage: msgspec.Raw) -> dict[str, Any] | None:
    """The usage of a piece, or None where there is none or its JSON cannot be read, as with a number of 5 000
    digits."""
    try:
        return _decoder.decode(usage) if bytes(usage) else None
    except (ValueError, RecursionError):
        return None


def count_usage(usage: dict[str, Any]) -> Usage:
    """Tokens as reported, 0 for what is missing or odd. One request was made in any case; `estimated` counts it where
    no tokens were reported at all: somebody may put an estimate in their place."""
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens") or _count(usage.get("prompt_cache_hit_tokens"))
    total = _count(usage.get("total_tokens")) or _count(prompt + completion)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=cached,
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
        requests=1,
        estimated=int(not (prompt or completion or total)),
    )


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] # JSON


def _count(value: object) -> int:
    """A whole number that can be stored; anything else counts as not reported."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= COUNT_MAX:
        return 0
    return int(value) if value == int(value) else 0

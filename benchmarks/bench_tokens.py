"""How far is the estimate of tokens from what tiktoken counts, by language, and what does counting cost?

For each kind of text (token_samples.py: none of it was used to fit the estimate) one JSON line: the tokens by
tiktoken's encoding, by the estimate, and by the rule of thumb of four characters a token; the error of both in per
cent, over the whole text and over its pieces of --piece characters (mean of the absolute errors); and microseconds
per 1 000 characters. `learnt_percent` is the error over the pieces after the estimate has heard ten times what a
prompt of this kind really was: each language by itself, as an agent that works in it learns.

tiktoken fetches its encodings from the network. Where there is none, litellm's wheel brings them along (group
bench-tokens): TIKTOKEN_CACHE_DIR=.../litellm/litellm_core_utils/tokenizers is set by itself where litellm is installed.

Read off: `error_percent` is what a window by tokens is wrong by at first, `learnt_percent` after some turns.
"""

import argparse
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from token_samples import SAMPLES

from callboard import Message
from callboard.actors.tokens import TokenEstimate, TokenMeter

Count = Callable[[str], int]


def load_encoding(name: str) -> Any:
    """tiktoken's encoding, from litellm's copy where that is installed."""
    found = importlib.util.find_spec("litellm")
    if found is not None and found.origin is not None and "TIKTOKEN_CACHE_DIR" not in os.environ:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")
    tiktoken: Any = importlib.import_module("tiktoken")  # its types are there only with it
    return tiktoken.get_encoding(name)


def pieces_of(text: str, length: int) -> list[str]:
    return [piece for start in range(0, len(text), length) if len(piece := text[start : start + length]) > length // 2]


def error_percent(count: Count, exact: Count, texts: list[str]) -> float:
    errors = [abs(count(text) / exact(text) - 1) for text in texts]
    return round(100 * sum(errors) / len(errors), 1)


def us_per_1000(count: Count, text: str, rounds: int = 200) -> float:
    started = time.perf_counter()
    for _ in range(rounds):
        count(text)
    return round((time.perf_counter() - started) * 1e6 / rounds / len(text) * 1000, 1)


def learnt(text: str, exact: Count, piece: int) -> float:
    """The error over its pieces once the meter has heard ten times what the whole was."""
    meter = TokenMeter(TokenEstimate())
    for _ in range(10):
        meter.learn(meter.message(Message(role="user", content=text)), exact(text) + 4)  # a message's own tokens too
    return error_percent(lambda part: round(meter.factor * TokenEstimate().count(part)), exact, pieces_of(text, piece))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoding", default="o200k_base")
    parser.add_argument("--piece", type=int, default=200, help="characters of a piece (200: a short message)")
    options = parser.parse_args()
    encoding = load_encoding(options.encoding)

    def exact(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    estimate = TokenEstimate().count
    for kind, text in SAMPLES.items():
        pieces = pieces_of(text, options.piece)
        line = {
            "kind": kind,
            "encoding": options.encoding,
            "characters": len(text),
            "tokens": exact(text),
            "estimate": estimate(text),
            "error_percent": round(100 * (estimate(text) / exact(text) - 1), 1),
            "pieces_percent": error_percent(estimate, exact, pieces),
            "learnt_percent": learnt(text, exact, options.piece),
            "four_characters_percent": round(100 * (len(text) / 4 / exact(text) - 1), 1),
            "us_per_1000": us_per_1000(estimate, text),
            "tiktoken_us_per_1000": us_per_1000(exact, text),
        }
        print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    main()

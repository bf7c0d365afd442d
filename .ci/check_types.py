"""Fail unless a user's type checker knows every type of callboard.

Pyright judges the installed package as a user would see it. Nowhere may a type be unknown. In what `callboard.__all__`
names, each attribute must be annotated as well, since two checkers may infer different types for one that is not; of
other modules' attributes they only may.

Usage, with the virtual environment on PATH: python .ci/check_types.py
"""

import json
import subprocess
import sys
from typing import Any

import callboard

UNANNOTATED = "Type is missing type annotation"


def public_prefixes() -> tuple[str, ...]:
    """The full names of what the facade gives, and of the facade itself, as they begin a symbol's name."""
    things = (getattr(callboard, name) for name in callboard.__all__)
    homes = {
        f"{thing.__module__}.{thing.__qualname__}"
        for thing in things
        if hasattr(thing, "__module__") and hasattr(thing, "__qualname__")
    }
    return tuple(sorted(homes))


def messages(symbol: dict[str, Any]) -> list[str]:
    return [one["message"] for one in symbol["diagnostics"]]


def main() -> int:
    command = ["pyright", "--verifytypes", "callboard", "--ignoreexternal", "--outputjson"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    symbols = json.loads(output)["typeCompleteness"]["symbols"]
    exported = [symbol for symbol in symbols if symbol["isExported"]]
    if not exported:
        print("pyright found no symbol of callboard: is the virtual environment on PATH?")
        return 1
    prefixes = public_prefixes()
    public = [symbol for symbol in exported if symbol["name"].startswith(prefixes)]
    # Ambiguous is not unknown, and it spreads to all that mentions such a type: look for where it begins.
    wrong = [symbol for symbol in exported if not symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]]
    wrong += [symbol for symbol in public if any(UNANNOTATED in message for message in messages(symbol))]
    for symbol in wrong:
        print(f"{symbol['name']}: " + "; ".join(messages(symbol)))
    print(f"types: {len(exported)} symbols, {len(public)} of them of the facade; {len(wrong)} unknown or not annotated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

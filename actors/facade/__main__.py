"""The command `callboard`, also as `python -m callboard`.

The library is whole without it: typer and rich come with the extra `cli`, and where they are missing this file says so.
"""

import sys

__all__ = ["main"]

_OF_THE_EXTRA = {"typer", "rich"}


def main() -> None:
    """Run the command line and exit with its status; 2 where the extra `cli` is not installed."""
    try:
        from .cli import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise  # something else is broken: telling people to install the extra would send them the wrong way
        print("callboard's command line needs its extra: pip install 'callboard[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()

"""The master key of a sealed store, for the commands.

It comes from the environment: a command's arguments are seen by everybody who lists processes.
"""

import os

__all__ = ["MASTER_KEY_VARIABLE", "master_key"]

MASTER_KEY_VARIABLE = "CALLBOARD_MASTER_KEY"


def master_key() -> str | None:
    """What CALLBOARD_MASTER_KEY has, hex or base64; None where it is not set, or empty."""
    return os.environ.get(MASTER_KEY_VARIABLE) or None

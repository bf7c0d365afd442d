"""What the tests of programs need: Ctrl-C must reach them."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def heeded_interrupts() -> Iterator[None]:
    """Programs that a test starts heed SIGINT, also where the tests run as a shell's background job.

    Such a job begins with SIGINT ignored, which its children inherit; one that is handled here is theirs to handle.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""What must hold after a program of pool_program.py.

That each of these can fail is shown by the broken pools of test_pool_programs.py.

| invariant | where |
|---|---|
| a response goes to the request that it answers, whole or with an error | `_check_answers` |
| nothing but httpx's transport errors comes out | the program itself: anything else ends it |
| a request goes out twice only where a reused connection died before the first byte | `_check_retries` |
| and then it does; a third time never | `_check_retries` |
| a connection that may not be used again is not | `_check_connections` |
| slots are given in the order of asking, and never more than there are | `_check_slots` |
| no slot is lost: all can be had at once afterwards | `_check_slots` |
| nothing in use, nobody waiting, no socket left, and each was closed, not dropped | `_check_left`, `play` |
"""

import warnings
from collections import Counter, defaultdict

from both_backends import run_on
from pool_program import LAST_ONES, Backend, Program
from pool_server import Heard, open_sockets

__all__ = ["play"]

RETRIED = ("ReadError", "WriteError", "RemoteProtocolError")
"""What a connection that died before the first byte would end with, were it not retried."""


def play(seed: int, backend: Backend) -> Program:
    """Play the program of this seed and check it.

    Raises:
        AssertionError: an invariant did not hold.
    """
    before = open_sockets()
    program = Program(seed)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("error")
        warnings.simplefilter("always", ResourceWarning)  # it comes from a destructor, which cannot raise
        run_on(program.main, backend)
    _check_answers(program)
    _check_retries(program)
    _check_connections(program)
    _check_slots(program)
    _check_left(program)
    assert not warned, f"not closed: {warned[0].message}"
    assert open_sockets() <= before, f"{open_sockets() - before} sockets left"
    return program


def _check_answers(program: Program) -> None:
    for request in program.requests:
        assert request.ended, f"{request.number} never ended"
        if request.ended == "answered":
            assert request.text == (b"" if request.emptied else request.body), f"{request.number}: not its answer"
        else:
            assert (request.body + b"!").startswith(request.text), f"{request.number}: another's bytes"


def _check_retries(program: Program) -> None:
    arrivals: defaultdict[int, list[Heard]] = defaultdict(list)
    for heard in program.server.heard:
        if heard.body != b"together":
            arrivals[int(heard.body.partition(b":")[0])].append(heard)
    for request in program.requests:
        came = arrivals[request.number]
        assert len(came) <= 2, f"{request.number} was sent {len(came)} times"
        if len(came) == 2:
            assert came[0].place > 0, f"{request.number}: a first use was repeated"
            assert not request.sent_bytes[0], (
                f"{request.number}: repeated after {request.sent_bytes[0]} bytes, {request.met}"
            )
            assert came[1].place == 0, f"{request.number}: repeated on a used connection"
        elif came and request.ended in RETRIED:
            assert came[0].place == 0 or request.sent_bytes[0], f"{request.number}: {request.ended}, and no retry"


def _check_connections(program: Program) -> None:
    visits: Counter[int] = Counter()
    last_of: dict[int, str] = {}
    for heard in program.server.heard:
        before = last_of.get(heard.connection)
        assert before not in LAST_ONES, f"{heard.body[:6]!r} came on a connection after {before}"
        number = int(heard.body.partition(b":")[0]) if heard.body != b"together" else None
        if number is not None:
            last_of[heard.connection] = program.requests[number].met[visits[number]]
            visits[number] += 1


def _check_slots(program: Program) -> None:
    assert not program.overtaken, f"started while earlier ones waited: {program.overtaken}"
    assert program.in_use_max <= program.slots
    assert program.served_at_once == program.slots, f"{program.served_at_once} of {program.slots} slots are there"


def _check_left(program: Program) -> None:
    in_use, waiting, idle = program.left
    assert (in_use, waiting) == (0, 0)
    assert idle <= program.slots
    assert program.left_after_close == (0, 0, 0)
    assert program.server.connections_open == 0

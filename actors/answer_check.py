"""What a model answered, before anything is made of it: one that could not be stored or sent back is refused. Pure."""

import msgspec
from msgspec.structs import replace

from .conversation import as_message
from .errors import BadResponse
from .model import ModelAnswer
from .run_record import check_usage

__all__ = ["check_answer", "check_answer_usage"]

_FACTS = msgspec.msgpack.Decoder(tuple[str, str, str])


def check_answer_usage(answer: ModelAnswer) -> None:
    """Raises BadResponse where what the answer cost cannot be counted."""
    try:
        check_usage(answer.usage)
    except (TypeError, ValueError) as error:
        raise BadResponse(f"the model's answer cannot be used: {error}") from error


def check_answer(answer: ModelAnswer) -> ModelAnswer:
    """The answer. What could not be stored or sent back is refused: it would spoil the session for all turns to come.

    Raises:
        BadResponse: it is no message of an assistant, or something beside it is no good.
    """
    try:
        message = as_message(answer.message, where="the model's answer")
        facts = (answer.finish_reason, answer.model, answer.request_id or "")
        _FACTS.decode(msgspec.msgpack.encode(facts))
    except (TypeError, ValueError) as error:
        raise BadResponse(f"the model's answer cannot be used: {error}") from error
    if message.role != "assistant":
        raise BadResponse(f"the model's answer has the role {message.role!r} instead of 'assistant'")
    return replace(answer, message=message)

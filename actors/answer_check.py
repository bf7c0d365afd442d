"""What a model answered, before anything is made of it: one that could not be stored or sent back is refused."""

import msgspec
from msgspec.structs import replace

from .conversation import as_message
from .errors import BadResponse
from .message import Usage
from .model import ModelAnswer, ModelRequest
from .run_record import check_usage
from .tokens import TokenEstimate, TokenMeters

__all__ = ["check_answer", "check_answer_usage", "told_or_estimated"]

_ESTIMATE = TokenEstimate()

_FACTS = msgspec.msgpack.Decoder(tuple[str, str, str])


def check_answer_usage(answer: ModelAnswer) -> None:
    """Raises BadResponse where what the answer cost cannot be counted."""
    try:
        check_usage(answer.usage)
    except (TypeError, ValueError) as error:
        raise BadResponse(f"the model's answer cannot be used: {error}") from error


async def told_or_estimated(answer: ModelAnswer, request: ModelRequest, meters: TokenMeters, model: str) -> Usage:
    """What the call has used, as its server said; where that said nothing, by our own count, as `estimated` tells."""
    told = answer.usage
    if not told.estimated or told.total_tokens:
        return told
    meter = await meters.of(model, _ESTIMATE)  # at once: it is OpenAI's own models that an exact count would be for
    asked = meter.counted(request.messages) + meter.schemas(request.tools, request.output)
    prompt, completion = round(asked * meter.factor), round(meter.counted((answer.message,)) * meter.factor)
    return replace(told, prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


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

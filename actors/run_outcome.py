"""What a caller gets of a run that it did not follow: its reply, or its error, from what is stored of it. Pure."""

from .errors import ApprovalRequired, BadOutput, RunFailed
from .model import ModelAnswer
from .output import Output
from .reply import Reply
from .session_messages import RunOutcome

__all__ = ["reply_of"]


def reply_of(outcome: RunOutcome, output: Output | None) -> Reply:
    """The reply of a run that was completed. `output` is what the caller wants of the answer, which is read anew.

    Raises:
        RunFailed: the run has failed, was cancelled or interrupted; or its answer is not what `output` asks for.
        ApprovalRequired: it waits for verdicts.
    """
    record = outcome.record
    if record.pending:
        raise ApprovalRequired(record.id, record.pending)
    if record.status != "completed":
        raise RunFailed(record.id, record.error or f"it is {record.status}")
    answers = [message for message in outcome.messages if message.role == "assistant"]
    if not answers:
        raise RunFailed(record.id, "it has no answer that could be given: it was made by hand, or its history is lost")
    message, value = answers[-1], None
    if output is not None:
        try:
            value = output.read(ModelAnswer(message, record.finish_reason, record.usage))
        except BadOutput as error:
            raise RunFailed(record.id, str(error)) from error
    return Reply(
        message=message,
        messages=outcome.messages,
        run_id=record.id,
        session_id=record.session_id,
        turn=record.turn,
        usage=record.usage,
        finish_reason=record.finish_reason,
        attempts=record.attempts,
        output=value,
    )

"""What a run does about its output: takes an answer that fits, and has the model mend one that does not. Pure."""

from dataclasses import dataclass
from typing import Any

from .errors import BadOutput, Refusal
from .message import Message
from .model import ModelAnswer, OutputSchema
from .output import Output

__all__ = ["RunOutput"]


@dataclass(slots=True)
class RunOutput:
    """What a run knows of its output: the value, or what was refused and how often. Live; for one run.

    A refused answer and the words about it are shown to the model in its next call, and then forgotten: neither is
    journaled, and neither becomes history.

    Attributes:
        output: the form; None where answers are free.
        repairs_max: how often the model is asked again, in all attempts of the run together.
        value: of the answer that was taken.
        aside: the messages to be sent behind all others.
    """

    output: Output | None
    repairs_max: int
    repairs: int = 0
    value: Any = None
    aside: tuple[Message, ...] = ()

    @property
    def schema(self) -> OutputSchema | None:
        """For the request."""
        return None if self.output is None else self.output.schema

    def take(self, answer: ModelAnswer) -> str | None:
        """Take an answer without tool calls: None where it will do. Else what is wrong with it, and the model is to be
        asked again, with `aside`.

        Raises:
            BadOutput: it is wrong, and the repairs are spent.
            Refusal: the model will not answer.
        """
        if self.output is None:
            return None
        try:
            self.value = self.output.read(answer)
        except Refusal:
            raise
        except BadOutput as bad:
            if self.repairs >= self.repairs_max:
                raise
            self.repairs += 1
            words = f"Your answer cannot be used: {bad.problem}. {self.output.schema.instruction}"
            said = (answer.message,) if answer.message.text.strip() else ()  # servers take no empty answers back
            self.aside = (*self.aside, *said, Message(role="user", content=words))
            return bad.problem
        return None

    def step_taken(self) -> None:
        """The model called tools instead: what was said aside is past."""
        self.aside = ()

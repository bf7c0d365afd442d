"""The chat completions API on the wire, under its old names: see `wire_request` and `wire_answer`."""

from .wire_answer import AnswerJoiner, Piece, UnusableAnswer, decode_piece
from .wire_request import Dialect, MaxTokensField, encode_message, encode_request

__all__ = [
    "AnswerJoiner",
    "Dialect",
    "MaxTokensField",
    "Piece",
    "UnusableAnswer",
    "decode_piece",
    "encode_message",
    "encode_request",
]

"""The providers that are known: where each is, how it wants its key, in what its requests differ. Pure, one table.

What is not here is "openai-compatible": today's plain form of the API, which most servers take.

Source: FACTS.md, "Wire truth" (the table of deviations). For what is refused, threads of the repositories named:
Mistral knows neither `stream_options` (openai-agents-python 442) nor `max_completion_tokens` (eca 231) nor a user's
`name` (mistral-go 2), nor ids of other than nine letters (langchain 24668); DeepSeek has no json_schema (litellm 31466)
and wants thoughts beside calls (opencode 24722); LM Studio takes no object as tool_choice (lmstudio-bug-tracker 670).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import httpx
from msgspec import Struct

from .dialect import Dialect

__all__ = ["COMPATIBLE", "PROVIDERS", "Provider", "provider_named", "provider_of"]


class Provider(Struct, frozen=True, kw_only=True):
    """A kind of server. Make one of your own for a server that none of `PROVIDERS` fits.

    Attributes:
        name: what it is called in `PROVIDERS` and in errors.
        dialect: how it wants its requests.
        base_url: where it is unless told otherwise; None: must be told.
        hosts: the hosts that are surely this provider, with all below those that begin with a dot.
        key_header: the header that carries the key, as a bearer token if it is "authorization".
        key_needed: whether it serves nobody without a key.
        key_variable: the environment variable for its key; OPENAI_API_KEY is OpenAI's, and that of a server unknown.
    """

    name: str
    dialect: Dialect = Dialect()
    base_url: str | None = None
    hosts: tuple[str, ...] = ()
    key_header: Literal["authorization", "api-key"] = "authorization"
    key_needed: bool = False
    key_variable: str = "OPENAI_API_KEY"


COMPATIBLE = Provider(name="openai-compatible")

_OPENAI_FIELDS = frozenset({"refusal"})
"""Of what stands in `extra`, what OpenAI knows."""

_ROWS = (
    Provider(
        name="openai",
        dialect=Dialect(max_tokens_field="max_completion_tokens", sends_back=_OPENAI_FIELDS),
        base_url="https://api.openai.com/v1",
        hosts=("api.openai.com", ".api.openai.com"),
        key_needed=True,
    ),
    Provider(
        name="azure",
        dialect=Dialect(max_tokens_field="max_completion_tokens", sends_back=_OPENAI_FIELDS),
        hosts=(".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com"),
        key_header="api-key",
        key_needed=True,
        key_variable="AZURE_OPENAI_API_KEY",
    ),
    Provider(name="vllm", key_variable="VLLM_API_KEY", base_url="http://127.0.0.1:8000/v1"),
    Provider(name="llama.cpp", key_variable="LLAMA_API_KEY", base_url="http://127.0.0.1:8080/v1"),
    Provider(name="ollama", key_variable="OLLAMA_API_KEY", base_url="http://127.0.0.1:11434/v1"),
    Provider(
        name="lmstudio",
        key_variable="LMSTUDIO_API_KEY",
        dialect=Dialect(named_choice="alone"),
        base_url="http://127.0.0.1:1234/v1",
    ),
    Provider(
        name="gemini",
        dialect=Dialect(sends_back=frozenset({"extra_content"})),
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        hosts=("generativelanguage.googleapis.com",),
        key_needed=True,
        key_variable="GEMINI_API_KEY",
    ),
    Provider(
        name="deepseek",
        dialect=Dialect(
            sends_back=frozenset({"reasoning_content"}),
            reasoning_beside_calls="reasoning_content",
            output_form="json_object",
        ),
        base_url="https://api.deepseek.com/v1",
        hosts=("api.deepseek.com",),
        key_needed=True,
        key_variable="DEEPSEEK_API_KEY",
    ),
    Provider(
        name="mistral",
        dialect=Dialect(
            stream_usage=False,  # it says it unasked
            sends_back=frozenset(),
            message_names=False,
            nine_letter_ids=True,
            required_choice="any",
        ),
        base_url="https://api.mistral.ai/v1",
        hosts=("api.mistral.ai",),
        key_needed=True,
        key_variable="MISTRAL_API_KEY",
    ),
    Provider(
        name="openrouter",
        dialect=Dialect(sends_back=frozenset({"reasoning", "reasoning_details"})),
        base_url="https://openrouter.ai/api/v1",
        hosts=("openrouter.ai",),
        key_needed=True,
        key_variable="OPENROUTER_API_KEY",
    ),
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType({row.name: row for row in _ROWS})


def provider_named(name: str) -> Provider:
    """The row of this name.

    Raises:
        ValueError: there is none; the text lists them.
    """
    row = COMPATIBLE if name == COMPATIBLE.name else PROVIDERS.get(name)
    if row is None:
        raise ValueError(f"no provider {name!r}: there are {', '.join((*PROVIDERS, COMPATIBLE.name))}")
    return row


def provider_of(url: httpx.URL) -> Provider:
    """The provider that is surely at this address, else COMPATIBLE. A local server's port says nothing sure."""
    for row in _ROWS:
        if any(url.host.endswith(host) if host.startswith(".") else url.host == host for host in row.hosts):
            return row
    return COMPATIBLE

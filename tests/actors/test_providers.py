"""The table of providers, and how one is found."""

import httpx
import pytest

from callboard.actors.providers import COMPATIBLE, PROVIDERS, provider_named, provider_of

LOCAL = {"vllm", "llama.cpp", "ollama", "lmstudio"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com/openai/v1", "azure"),
        ("https://mine.services.ai.azure.com/openai/v1", "azure"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://API.MISTRAL.AI/v1", "mistral"),
        ("http://127.0.0.1:11434/v1", "openai-compatible"),
        ("https://api.openai.com.example.org/v1", "openai-compatible"),
        ("https://notopenrouter.ai/api/v1", "openai-compatible"),
        ("https://evilapi.openai.com/v1", "openai-compatible"),
    ],
)
def test_a_provider_is_known_by_its_host_alone(url: str, name: str) -> None:
    assert provider_of(httpx.URL(url)).name == name


def test_every_provider_is_found_under_its_name_and_at_its_own_address() -> None:
    for name, row in PROVIDERS.items():
        assert provider_named(name) is row
        if row.hosts and row.base_url:
            assert provider_of(httpx.URL(row.base_url)) is row
    assert provider_named("openai-compatible") is COMPATIBLE


def test_who_serves_on_this_machine_wants_no_key_and_everybody_else_does() -> None:
    assert {name for name, row in PROVIDERS.items() if not row.key_needed} == LOCAL
    assert {name for name, row in PROVIDERS.items() if row.key_variable == "OPENAI_API_KEY"} == {"openai"}


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"no provider 'openia': there are openai, azure, .*, openai-compatible"):
        provider_named("openia")

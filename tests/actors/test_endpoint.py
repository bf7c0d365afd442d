"""Where requests go and with which headers: every provider, every way to say it, every mistake named."""

import pytest

from callboard.actors.endpoint import address_of, find_endpoint
from callboard.actors.providers import COMPATIBLE, PROVIDERS, Provider

KEYS = ("OPENAI_API_KEY", *(row.key_variable for row in PROVIDERS.values()))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] # a fixture
    for name in ("OPENAI_BASE_URL", *KEYS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("provider", "base_url", "address"),
    [
        ("ollama", "http://box:11434/v1/", "http://box:11434/v1/chat/completions"),
        ("openai-compatible", "http://box", "http://box/chat/completions"),
        ("azure", "https://r.openai.azure.com", "https://r.openai.azure.com/openai/v1/chat/completions"),
        ("azure", "https://r.openai.azure.com/openai/", "https://r.openai.azure.com/openai/v1/chat/completions"),
        ("azure", "https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1/chat/completions"),
        (
            "azure",
            "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_chat_is_below_the_base_url_and_a_query_is_kept(provider: str, base_url: str, address: str) -> None:
    row = COMPATIBLE if provider == COMPATIBLE.name else PROVIDERS[provider]

    assert str(address_of(row, base_url)) == address


def test_a_deployment_without_its_version_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"add \?api-version="):
        address_of(PROVIDERS["azure"], "https://r.openai.azure.com/openai/deployments/d")


@pytest.mark.parametrize("name", [name for name, row in PROVIDERS.items() if row.base_url])
def test_a_name_alone_is_enough_where_the_provider_has_an_address(name: str) -> None:
    endpoint = find_endpoint(provider=name, api_key="sk-1")

    assert endpoint.provider is PROVIDERS[name]
    assert str(endpoint.url) == f"{PROVIDERS[name].base_url}/chat/completions"
    assert endpoint.headers["authorization"] == "Bearer sk-1"


def test_azure_gets_its_key_in_its_own_header() -> None:
    endpoint = find_endpoint(base_url="https://r.openai.azure.com", api_key="k")

    assert endpoint.provider.name == "azure"
    assert endpoint.headers["api-key"] == "k"
    assert "authorization" not in endpoint.headers


@pytest.mark.parametrize("name", [name for name, row in PROVIDERS.items() if row.key_needed])
def test_a_missing_key_is_named_with_its_variable_and_a_header_may_stand_for_it(name: str) -> None:
    base_url = PROVIDERS[name].base_url or "https://r.openai.azure.com"

    with pytest.raises(ValueError, match=f"api_key=.* or set {PROVIDERS[name].key_variable}"):
        find_endpoint(provider=name, base_url=base_url)
    endpoint = find_endpoint(provider=name, base_url=base_url, headers={"Authorization": "Bearer token"})

    assert (endpoint.api_key, endpoint.headers["authorization"]) == (None, "Bearer token")


def test_a_provider_finds_its_key_in_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("MISTRAL_API_KEY", "sk-mistral")

    assert find_endpoint(provider="mistral").api_key == "sk-mistral"
    assert find_endpoint(base_url="https://api.mistral.ai/v1").api_key == "sk-mistral"
    assert find_endpoint(provider="mistral", api_key="sk-given").api_key == "sk-given"
    assert find_endpoint(provider="openai").api_key == "sk-openai"


def test_the_key_for_openai_never_goes_to_another_provider_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")

    with pytest.raises(ValueError, match="DEEPSEEK_API_KEY"):
        find_endpoint(provider="deepseek")

    assert find_endpoint(base_url="http://box/v1").api_key == "sk-openai"


def test_an_address_given_goes_before_the_providers_own_and_that_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://from-env/v1")

    assert find_endpoint(provider="ollama", base_url="http://given/v1").where == "http://given"
    assert find_endpoint(provider="ollama").where == "http://127.0.0.1:11434"
    assert find_endpoint().where == "http://from-env"
    assert find_endpoint(provider="openai-compatible").where == "http://from-env"


def test_a_server_named_without_an_address_is_asked_for_one() -> None:
    with pytest.raises(ValueError, match="which server"):
        find_endpoint(provider="azure", api_key="k")


def test_a_row_of_ones_own_is_taken_as_it_is() -> None:
    own = Provider(name="mine", base_url="http://mine:1/v1", key_header="api-key", key_needed=True)

    endpoint = find_endpoint(provider=own, api_key="k")

    assert (endpoint.provider, endpoint.where, endpoint.headers["api-key"]) == (own, "http://mine:1", "k")


def test_headers_given_go_before_ours() -> None:
    endpoint = find_endpoint(base_url="http://box/v1", api_key="k", headers={"Authorization": "Basic x", "X-Own": "1"})

    assert (endpoint.headers["authorization"], endpoint.headers["x-own"]) == ("Basic x", "1")


@pytest.mark.parametrize("api_key", ["sk 1 ", "sk-ä", "sk\n"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(api_key: str) -> None:
    with pytest.raises(ValueError, match="MISTRAL_API_KEY") as caught:
        find_endpoint(provider="mistral", api_key=api_key)

    assert api_key not in str(caught.value)

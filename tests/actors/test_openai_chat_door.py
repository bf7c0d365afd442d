"""How an OpenAIChat is made: what it takes from arguments and environment, and what it refuses."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import httpx
import pytest

from callboard import Message, Model, ModelRequest, ModelSettings, OpenAIChat
from callboard.testing import FakeUpstream

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] # a fixture
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model": "m"}, ["base_url", "OPENAI_BASE_URL", "api_key", "OPENAI_API_KEY"]),
        ({"base_url": "https://api.openai.com/v1", "model": "m"}, ["api_key", "OPENAI_API_KEY", "OPENAI_BASE_URL"]),
        ({"base_url": "http://host/v1"}, ["model", "OPENAI_MODEL"]),
        ({"base_url": "localhost:8080/v1", "model": "m"}, ["base_url", "OPENAI_BASE_URL", "http://127.0.0.1"]),
        ({"base_url": "http://[::1/v1", "model": "m"}, ["base_url"]),
        ({"base_url": "http:///v1", "model": "m"}, ["base_url"]),
        ({"base_url": "http://a b/v1", "model": "m"}, ["base_url"]),
        ({"base_url": "http://a..b/v1", "model": "m"}, ["base_url"]),
        ({"base_url": "http://host:99999/v1", "model": "m"}, ["base_url"]),
        ({"base_url": "ftp://host/v1", "model": "m"}, ["base_url"]),
        ({"base_url": "http://host/v1/chat/completions", "model": "m"}, ["base_url", "before /chat/completions"]),
        ({"base_url": "http://host/v1", "model": "m", "api_key": "sk-1\n"}, ["api_key", "OPENAI_API_KEY"]),
        ({"base_url": "http://host/v1", "model": "m", "timeout_s": 0}, ["timeout_s"]),
        ({"base_url": "http://host/v1", "model": "m", "progress_timeout_s": -1}, ["progress_timeout_s"]),
    ],
)
def test_what_is_missing_or_malformed_is_named(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        OpenAIChat(**options)

    assert [name for name in names if name not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"settings": {"temperature": 0}}, "settings"),
        ({"retries": 3}, "retries"),
        ({"client": httpx.Client()}, "client"),
        ({"transport": httpx.HTTPTransport()}, "transport"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"connections_max": 1.5}, "connections_max"),
        ({"api_key": 5}, "api_key"),
        ({"provider": 5}, "provider"),
        ({"model": 5}, "model"),
        ({"headers": [("x", "y")]}, "headers"),
        ({"headers": {"x": 5}}, "headers"),
    ],
)
def test_what_is_of_another_type_is_named_at_the_door(options: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {"base_url": "http://host/v1", "model": "m", **options}

    with pytest.raises(TypeError, match=name):
        OpenAIChat(**given)


@pytest.mark.parametrize("header", [{"x": "a\nb"}, {"x": " a"}, {"x y": "a"}, {"x": "ä"}])
def test_a_header_that_no_server_would_take_is_refused_at_the_door(header: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="headers"):
        OpenAIChat(base_url="http://host/v1", model="m", headers=header)


def test_a_stop_that_is_one_text_is_not_taken_for_its_letters() -> None:
    with pytest.raises(TypeError, match=r"\('END',\)"):
        ModelSettings(stop="END")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # what is refused


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        OpenAIChat(base_url="http://user:pa55word@host/v1", model="m")

    assert "pa55word" not in str(caught.value)


def test_transport_and_client_together_are_refused() -> None:
    with pytest.raises(ValueError, match="either transport or client"):
        OpenAIChat(base_url="http://host", model="m", transport=httpx.AsyncHTTPTransport(), client=httpx.AsyncClient())


def test_the_environment_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            monkeypatch.setenv("OPENAI_BASE_URL", upstream.url + "/")
            monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
            monkeypatch.setenv("OPENAI_MODEL", "from-env")
            chat = OpenAIChat()
            await chat.complete(ModelRequest((Message(role="user", content="hello"),)))
            await chat.aclose()

            assert chat.name == upstream.requests[0]["model"] == "from-env"
            assert upstream.request_headers[0]["authorization"] == "Bearer sk-env"

    run_in_real_time(body)


def test_a_key_alone_means_openais_own_server() -> None:
    chat = OpenAIChat(api_key="sk-1", model="m")

    assert repr(chat) == "OpenAIChat(base_url='https://api.openai.com', model='m')"


def test_it_is_a_model() -> None:
    model: Model = OpenAIChat(base_url="http://host/v1", model="m")

    assert model.name == "m"

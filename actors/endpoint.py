"""Endpoint: where a model's requests go and with which headers, from arguments and environment. Checked at the door.

    base_url, provider, api_key, headers, environment ── find_endpoint ── Endpoint(provider, url, headers, api_key)

Source: OpenAI's and Azure's API references (addresses, headers).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from ..runtime.options import check_kind
from .providers import PROVIDERS, Provider, provider_named, provider_of

__all__ = ["Endpoint", "address_of", "find_endpoint"]

_CHAT = "/chat/completions"
_OTHER_SERVER = "for another server give base_url=... or set OPENAI_BASE_URL"


_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie", "proxy-authorization")


@dataclass(slots=True, frozen=True)
class Endpoint:
    """What is needed to send requests. `url` is the address of chat completions, `headers` go with each request."""

    provider: Provider
    url: httpx.URL
    headers: httpx.Headers
    api_key: str | None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of the headers no error may show: keys, with and without the word before them."""
        values = [self.headers[name] for name in _SECRET_HEADERS if name in self.headers]
        return (*values, *(value.rpartition(" ")[2] for value in values))

    @property
    def where(self) -> str:
        """Scheme, host and port, as errors name the server: without path, query and credentials."""
        return f"{self.url.scheme}://{self.url.netloc.decode('ascii')}"


def find_endpoint(
    *,
    base_url: str | None = None,
    provider: str | Provider | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint that is meant.

    Args:
        base_url: where the API is; else the provider's own address; else OPENAI_BASE_URL; else OpenAI's if there is a
            key.
        provider: what kind of server it is; None: known by its host, else "openai-compatible".
        api_key: else the provider's own variable, which is OPENAI_API_KEY for OpenAI and for a server that is not
            known: no key goes to whom it was not made for.
        headers: go before ours.

    Raises:
        ValueError: something is missing or malformed; the text names the argument and its environment variable.
    """
    check_kind("base_url", base_url, str, example='"http://127.0.0.1:8080/v1"')
    check_kind("provider", provider, (str, Provider), example='"ollama"')
    check_kind("api_key", api_key, str, example='"sk-..."')
    check_kind("headers", headers, Mapping, example='{"x-team": "support"}')
    named = provider_named(provider) if isinstance(provider, str) else provider
    given = base_url or (named and named.base_url) or os.environ.get("OPENAI_BASE_URL") or None
    if given is None and named is None and (api_key or os.environ.get("OPENAI_API_KEY")):
        named = PROVIDERS["openai"]
        given = named.base_url
    if given is None:
        raise ValueError(
            "which server? give base_url=... or set OPENAI_BASE_URL; "
            "for OpenAI's own give api_key=... or set OPENAI_API_KEY"
        )
    url = _checked(given)
    row = named or provider_of(url)
    url = _chat_below(url, row)
    key = api_key or os.environ.get(row.key_variable) or None
    return Endpoint(row, url, _checked_headers(row, key, headers or {}), key)


def address_of(provider: Provider, base_url: str) -> httpx.URL:
    """The address of chat completions below `base_url`; a query is kept.

    For Azure, `base_url` is the resource ("https://NAME.openai.azure.com", then the model is the deployment's name) or
    one deployment with its version ("https://NAME.openai.azure.com/openai/deployments/D?api-version=2024-10-21").

    Raises:
        ValueError: it is no such address; the text says what one looks like.
    """
    return _chat_below(_checked(base_url), provider)


def _checked(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # or the look-up of a name that cannot be one ends in a UnicodeError
    except (httpx.InvalidURL, TypeError, UnicodeError) as error:
        raise ValueError(f"base_url (or OPENAI_BASE_URL) is not a URL: {error}") from None
    if url.userinfo:
        raise ValueError("base_url (or OPENAI_BASE_URL) holds a password: send it as headers={'authorization': ...}")
    port_fits = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host or not port_fits:
        raise ValueError(f"base_url (or OPENAI_BASE_URL) must look like http://127.0.0.1:8080/v1, not {base_url!r}")
    return url


def _chat_below(url: httpx.URL, provider: Provider) -> httpx.URL:
    path = url.path.rstrip("/")
    if path.endswith(_CHAT):
        raise ValueError(f"base_url (or OPENAI_BASE_URL) must end before {_CHAT}")
    if provider.name == "azure":
        if path in ("", "/openai"):
            path = "/openai/v1"
        if "/deployments/" not in path and url.params.get("api-version", "preview")[:1].isdigit():
            raise ValueError(
                "base_url (or OPENAI_BASE_URL) names an Azure resource with a dated api-version, which goes with a "
                "deployment: leave it out, or give .../openai/deployments/NAME?api-version=..."
            )
        if "/deployments/" in path and "api-version" not in url.params:
            raise ValueError(
                "base_url (or OPENAI_BASE_URL) names an Azure deployment without its version: add "
                "?api-version=2024-10-21 or a later one, or give the resource alone and the deployment as model"
            )
    return url.copy_with(path=f"{path}{_CHAT}")


def _checked_headers(provider: Provider, api_key: str | None, headers: Mapping[str, str]) -> httpx.Headers:
    ours = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    theirs: dict[str, str] = {}
    for name, value in headers.items():
        check_kind(f"headers[{name!r}]", value, str, example='"support"')
        fits = value.isascii() and value.isprintable() and value == value.strip()
        if not fits or not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers[{name!r}] has characters that no header may have, or spaces around it")
        theirs[name.lower()] = value
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()) or api_key != api_key.strip():
            raise ValueError(
                f"api_key (or {provider.key_variable}) has spaces around it or characters that no header may have"
            )
        ours[provider.key_header] = f"Bearer {api_key}" if provider.key_header == "authorization" else api_key
    elif provider.key_needed and not theirs.keys() & {"authorization", "api-key", "x-goog-api-key"}:
        name = {"openai": "OpenAI"}.get(provider.name, provider.name)
        raise ValueError(f"{name} wants a key: give api_key=... or set {provider.key_variable} ({_OTHER_SERVER})")
    return httpx.Headers({**ours, **theirs})

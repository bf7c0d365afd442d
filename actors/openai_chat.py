"""OpenAIChat: a `Model` that is any server of the OpenAI chat completions API.

    complete ── ProviderGate: slots, retries ──► Exchange: one request ──► Upstream: our pool, or the user's httpx

Source: OpenAI API reference, chat completions; FACTS.md, "The client that follows from it".
"""

import os
import ssl
from collections.abc import Awaitable, Mapping

import httpx
from msgspec.structs import replace

from ..runtime.options import check_kind, check_number
from .dialect import Dialect, MaxTokensField
from .dialing import proxy_at
from .endpoint import Endpoint, find_endpoint
from .exchange import Exchange, Server
from .model import ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .pool import ConnectionPool
from .pooled_transport import CONNECTIONS_MAX
from .provider_gate import GateStatistics, ProviderGate
from .providers import Provider
from .retry import RetryPolicy
from .upstream import HttpxUpstream, PooledUpstream, Upstream

__all__ = ["OpenAIChat"]

_NOTHING_SET = ModelSettings()

_KINDS: dict[str, tuple[type, str]] = {
    "settings": (ModelSettings, "ModelSettings(temperature=0)"),
    "retries": (RetryPolicy, "RetryPolicy(retries_max=3)"),
    "model": (str, '"gpt-4o"'),
    "proxy": (str, '"http://proxy.example:3128"'),
    "ssl_context": (ssl.SSLContext, 'ssl.create_default_context(cafile="ca.pem")'),
    "transport": (httpx.AsyncBaseTransport, "httpx.AsyncHTTPTransport()"),
    "client": (httpx.AsyncClient, "httpx.AsyncClient()"),
}
"""Of what type an argument must be where it is given, and an example of it."""


class OpenAIChat:
    """A model behind the OpenAI chat completions API. One object serves many runs at once, on trio and on asyncio.

    Make one and give it to all agents: it holds the connections. One for each agent or request connects anew each time
    and leaves an idle socket behind, which a runtime closes 4 s after a run, and else that object's next request or
    `aclose`. Agents may differ in model and settings all the same: both go with each request.

    Args:
        base_url: where the API is, for instance "http://127.0.0.1:8080/v1"; else the provider's own address; else
            OPENAI_BASE_URL; else OpenAI's own if there is a key.
        provider: a name of `PROVIDERS` ("azure", "mistral", "ollama", ...) or a row of your own: how the server wants
            its requests and its key. None: known by its host, else the plain form of the API.
        api_key: else the provider's variable (MISTRAL_API_KEY, ...), which for one that is not known is OPENAI_API_KEY.
        model: asked for unless a request's settings name another; else OPENAI_MODEL.
        settings: defaults; what a request sets goes before them, `extra_body` is merged field by field.
        first_byte_timeout_s: seconds for the first piece of a streamed answer, until `Stalled`; None: as the next.
        progress_timeout_s: seconds without a piece of a streamed answer, until `Stalled`.
        timeout_s: seconds for the whole answer, until `ModelUnavailable`, or `Stalled` where it is streamed.
        connections_max: requests at once; further ones wait in order, and their clocks do not run yet.
        retries: which requests are repeated here, and how long calls wait for a server that limits their rate; None:
            as OpenAI's own clients. Nothing is repeated once a piece of an answer was handed out.
        max_tokens_field: the request's field for `max_tokens`; None: as the provider has it.
        stream_usage: whether to ask for usage in streams; None: unless the provider refuses that.
        send_extra: whether of a message's `extra` that goes back which the provider knows; off: nothing.
        headers: added to every request.
        proxy: the address of an http proxy, as in "http://user:password@proxy.example:3128"; else the environment's.
        ssl_context: for https; None: the system's certificates.
        transport: an httpx transport in place of our pool; the caller closes it.
        client: a whole httpx client (its auth, proxies, hooks); the caller closes it.

    Raises:
        ValueError, TypeError: an argument is missing or malformed; the text names it and its environment variable.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        provider: str | Provider | None = None,
        api_key: str | None = None,
        model: str | None = None,
        settings: ModelSettings | None = None,
        first_byte_timeout_s: float | None = None,
        progress_timeout_s: float = 60.0,
        timeout_s: float = 600.0,
        connections_max: int = CONNECTIONS_MAX,
        retries: RetryPolicy | None = None,
        max_tokens_field: MaxTokensField | None = None,
        stream_usage: bool | None = None,
        send_extra: bool = True,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        given = {
            "settings": settings,
            "retries": retries,
            "model": model,
            "proxy": proxy,
            "ssl_context": ssl_context,
            "transport": transport,
            "client": client,
        }
        for name, (kind, example) in _KINDS.items():
            check_kind(name, given[name], kind, example=example)
        timeouts = _checked_timeouts(
            progress_timeout_s=progress_timeout_s,
            timeout_s=timeout_s,
            first_byte_timeout_s=progress_timeout_s if first_byte_timeout_s is None else first_byte_timeout_s,
        )
        endpoint = find_endpoint(base_url=base_url, provider=provider, api_key=api_key, headers=headers)
        settings = settings or _NOTHING_SET
        model = settings.model or model or os.environ.get("OPENAI_MODEL")
        if not model:
            raise ValueError("which model? give model=... or set OPENAI_MODEL")
        self._name = model
        self._provider = endpoint.provider.name
        self._defaults = replace(settings, model=model)
        self._pool = ConnectionPool(ssl_context=ssl_context)
        self._gate = ProviderGate(connections_max=connections_max, policy=retries)
        self._server = Server(
            where=endpoint.where,
            upstream=self._upstream(endpoint, proxy, transport=transport, client=client),
            dialect=_dialect(
                endpoint.provider.dialect,
                max_tokens_field=max_tokens_field,
                stream_usage=stream_usage,
                send_extra=send_extra,
            ),
            secrets=endpoint.secrets,
            **timeouts,
        )

    def _upstream(
        self,
        endpoint: Endpoint,
        proxy: str | None,
        *,
        transport: httpx.AsyncBaseTransport | None,
        client: httpx.AsyncClient | None,
    ) -> Upstream:
        way = client or transport
        if way is None:
            through = proxy_at(proxy) if proxy is not None else None
            return PooledUpstream(endpoint.url, endpoint.headers, pool=self._pool, proxy=through)
        if transport is not None and client is not None:
            raise ValueError("give either transport or client: a client has its own transport")
        if proxy is not None or self._pool.ssl_context is not None:
            raise ValueError("proxy and ssl_context are for our own connections: give them to your transport or client")
        return HttpxUpstream(endpoint.url, endpoint.headers, way=way)

    def __repr__(self) -> str:
        return f"OpenAIChat(base_url={self._server.where!r}, model={self._name!r})"

    @property
    def name(self) -> str:
        """The model that is asked for by default."""
        return self._name

    @property
    def provider(self) -> str:
        """The name of its kind of server in PROVIDERS, or "openai-compatible"."""
        return self._provider

    @property
    def server(self) -> str:
        """Scheme, host and port of its server."""
        return self._server.where

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """Answer the request, streamed if `on_delta` is given; see `Model.complete`.

        Raises:
            ModelError: see `callboard.actors.errors`. The text names the server and holds no key, nor a text of the
                messages where the server repeats it whole.
            Exception: what `on_delta` raised; the connection is closed.

        Cancellation: the connection is closed at once and the slot in the pool is free.
        """
        settings = self._effective(request.settings)
        exchange: Exchange | None = None

        def attempt() -> Awaitable[ModelAnswer]:
            nonlocal exchange
            exchange = Exchange(self._server, request, settings, on_delta)
            return exchange.run()

        return await self._gate.call(attempt, shown=lambda: exchange is not None and exchange.shown)

    async def aclose(self) -> None:
        """Close idle connections, unless they are the caller's. The model can be used again afterwards."""
        self._pool.close_idle()

    def statistics(self) -> GateStatistics:
        """Requests under way, calls that wait, retries, in the running event loop."""
        return self._gate.statistics()

    def close_expired(self) -> bool:
        """Close connections that were idle for 4 s, before the server does; whether there are others.

        A Runtime calls it for the models of its agents; without one the next request does it, or `aclose`.
        """
        self._pool.close_expired()
        return self._pool.counts()[1] > 0

    def _effective(self, settings: ModelSettings) -> ModelSettings:
        """A request's settings over this client's."""
        return self._defaults if settings == _NOTHING_SET else settings.over(self._defaults)


def _dialect(
    dialect: Dialect, *, max_tokens_field: MaxTokensField | None, stream_usage: bool | None, send_extra: bool
) -> Dialect:
    """The provider's dialect, with what the caller says otherwise."""
    return replace(
        dialect,
        max_tokens_field=max_tokens_field or dialect.max_tokens_field,
        stream_usage=dialect.stream_usage if stream_usage is None else stream_usage,
        sends_back=dialect.sends_back if send_extra else frozenset(),
    )


def _checked_timeouts(**timeouts: float) -> dict[str, float]:
    for name, seconds in timeouts.items():
        check_number(name, seconds)
        if not seconds > 0:
            raise ValueError(f"{name} must be positive, not {seconds}")
    return timeouts

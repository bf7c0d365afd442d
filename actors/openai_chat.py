"""OpenAIChat: a `Model` that is any server of the OpenAI chat completions API.

    complete ── ProviderGate: slots, retries ──► Exchange: one request ──► Upstream: our pool, or the user's httpx

Source: OpenAI API reference, chat completions; FACTS.md, "The client that follows from it".
"""

import os
from collections.abc import Awaitable, Mapping

import httpx
import msgspec
from msgspec.structs import replace

from .exchange import Exchange, Server
from .model import ModelAnswer, ModelRequest, ModelSettings, OnDelta
from .pool import ConnectionPool
from .pooled_transport import CONNECTIONS_MAX
from .provider_gate import GateStatistics, ProviderGate
from .retry import RetryPolicy
from .upstream import HttpxUpstream, PooledUpstream
from .wire_request import Dialect, MaxTokensField

__all__ = ["OpenAIChat"]

OPENAI_URL = "https://api.openai.com/v1"

_NOTHING_SET = ModelSettings()


class OpenAIChat:
    """A model behind the OpenAI chat completions API. One object serves many runs at once, on trio and on asyncio.

    Make one and give it to all agents: it holds the connections. One for each agent or request connects anew each time
    and leaves an idle socket behind, which stays open until `aclose`, until that object's next request, or until the
    runtime that it served closes. Agents may differ in model and settings all the same: both go with each request.

    Args:
        base_url: where the API is, for instance "http://127.0.0.1:8080/v1"; else OPENAI_BASE_URL; else OpenAI's own
            if there is a key.
        api_key: sent as bearer token; else OPENAI_API_KEY. Only OpenAI's own server insists on one.
        model: asked for unless a request's settings name another; else OPENAI_MODEL.
        settings: defaults; what a request sets goes before them, `extra_body` is merged field by field.
        first_byte_timeout_s: seconds for the first piece of a streamed answer, until `Stalled`; None: as the next.
        progress_timeout_s: seconds without a piece of a streamed answer, until `Stalled`.
        timeout_s: seconds for the whole answer, until `ModelUnavailable`, or `Stalled` where it is streamed.
        connections_max: requests at once; further ones wait in order, and their clocks do not run yet.
        retries: which requests are repeated here, and how long calls wait for a server that limits their rate; None:
            as OpenAI's own clients. Nothing is repeated once a piece of an answer was handed out.
        max_tokens_field: the request's field for `max_tokens`; None: "max_completion_tokens" for OpenAI, else
            "max_tokens".
        stream_usage: whether to ask for usage in streams.
        send_extra: whether a message's `extra` is sent back; off where sessions move between providers.
        headers: added to every request.
        transport: an httpx transport in place of our pool; the caller closes it.
        client: a whole httpx client (its auth, proxies, hooks); the caller closes it.

    Raises:
        ValueError: an argument is missing or malformed; the text names it and its environment variable.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        settings: ModelSettings | None = None,
        first_byte_timeout_s: float | None = None,
        progress_timeout_s: float = 60.0,
        timeout_s: float = 600.0,
        connections_max: int = CONNECTIONS_MAX,
        retries: RetryPolicy | None = None,
        max_tokens_field: MaxTokensField | None = None,
        stream_usage: bool = True,
        send_extra: bool = True,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        if transport is not None and client is not None:
            raise ValueError("give either transport or client: a client has its own transport")
        timeouts = {
            "progress_timeout_s": progress_timeout_s,
            "timeout_s": timeout_s,
            "first_byte_timeout_s": progress_timeout_s if first_byte_timeout_s is None else first_byte_timeout_s,
        }
        for name, seconds in timeouts.items():
            if not seconds > 0:
                raise ValueError(f"{name} must be positive, not {seconds}")
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or None, has_key=api_key is not None)
        at_openai = url.host == "api.openai.com"
        if at_openai and api_key is None:
            raise ValueError(f"OpenAI wants a key: give api_key=... or set OPENAI_API_KEY ({_OTHER_SERVER})")
        self._settings = settings or ModelSettings()
        model = self._settings.model or model or os.environ.get("OPENAI_MODEL")
        if not model:
            raise ValueError("which model? give model=... or set OPENAI_MODEL")
        self._name = model
        self._defaults = replace(self._settings, model=model)
        sent = _checked_headers(api_key, headers or {})
        way = client or transport
        self._pool = ConnectionPool()
        self._gate = ProviderGate(connections_max=connections_max, policy=retries)
        self._server = Server(
            where=f"{url.scheme}://{url.netloc.decode('ascii')}",
            upstream=HttpxUpstream(url, sent, way=way) if way else PooledUpstream(url, sent, pool=self._pool),
            dialect=Dialect(
                max_tokens_field=max_tokens_field or ("max_completion_tokens" if at_openai else "max_tokens"),
                stream_usage=stream_usage,
                send_extra=send_extra,
            ),
            api_key=api_key,
            **timeouts,
        )

    def __repr__(self) -> str:
        return f"OpenAIChat(base_url={self._server.where!r}, model={self._name!r})"

    @property
    def name(self) -> str:
        """The model that is asked for by default."""
        return self._name

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """Answer the request, streamed if `on_delta` is given; see `Model.complete`.

        Raises:
            ModelError: see `callboard.actors.errors`. The text names the server and holds neither the key nor the
                messages.
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
        if settings == _NOTHING_SET:
            return self._defaults
        theirs = msgspec.structs.asdict(settings)
        mine = msgspec.structs.asdict(self._settings)
        chosen = {name: mine[name] if value in (None, ()) else value for name, value in theirs.items()}
        chosen["model"] = chosen["model"] or self._name
        chosen["extra_body"] = mine["extra_body"] | theirs["extra_body"]
        return ModelSettings(**chosen)


_OTHER_SERVER = "for another server give base_url=... or set OPENAI_BASE_URL"


def _checked_url(base_url: str | None, *, has_key: bool) -> httpx.URL:
    """The address of chat completions below `base_url`; a query (Azure's api-version) is kept."""
    if base_url is None:
        if not has_key:
            raise ValueError(
                "which server? give base_url=... or set OPENAI_BASE_URL; "
                "for OpenAI's own give api_key=... or set OPENAI_API_KEY"
            )
        base_url = OPENAI_URL
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
    path = url.path.rstrip("/")
    if path.endswith("/chat/completions"):
        raise ValueError("base_url (or OPENAI_BASE_URL) must end before /chat/completions")
    return url.copy_with(path=f"{path}/chat/completions")


def _checked_headers(api_key: str | None, headers: Mapping[str, str]) -> httpx.Headers:
    ours = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()) or api_key != api_key.strip():
            raise ValueError("api_key (or OPENAI_API_KEY) has spaces around it or characters that no header may have")
        ours["authorization"] = f"Bearer {api_key}"
    return httpx.Headers({**ours, **{name.lower(): value for name, value in headers.items()}})

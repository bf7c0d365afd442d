"""Embedders: what gives texts vectors that lie near each other where the texts mean alike.

    embed ── ProviderGate: slots, retries ──► one request for up to `batch` texts ──► Upstream: our pool, or your httpx

Source: OpenAI API reference, embeddings.
"""

import math
import ssl
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import anyio
import httpx
import msgspec
from msgspec import Struct

from ..runtime.options import check_count, check_kind, check_number
from .endpoint import find_endpoint
from .errors import BadResponse, ModelError, ModelUnavailable
from .exchange import BODY_BYTES_MAX, ERROR_BYTES_MAX, read_all
from .pool import ConnectionPool
from .pooled_transport import CONNECTIONS_MAX
from .provider_gate import GateStatistics, ProviderGate
from .providers import Provider
from .retry import RetryPolicy
from .upstream import HttpxUpstream, PooledUpstream, Upstream, UpstreamResponse
from .wire_errors import ServerError, error_of_status, error_of_transport, parse_error, request_id_of

__all__ = ["Embedder", "OpenAIEmbedder"]

BATCH = 128
"""OpenAI takes 2 048 texts and 300 000 tokens in a request; others far less."""

_CHAT, _EMBEDDINGS = "/chat/completions", "/embeddings"


class Embedder(Protocol):
    """Gives texts vectors. Make your own for a model within the process, say."""

    @property
    def name(self) -> str:
        """Of the model, 1 to 200 bytes: vectors are comparable where it is the same."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, in their order, all of one number of dimensions."""
        ...


class _Embedding(Struct):
    embedding: list[float]
    index: int | None = None


class _Answer(Struct):
    data: list[_Embedding]


_answers = msgspec.json.Decoder(_Answer)


class OpenAIEmbedder:
    """An embedder that is any server of the OpenAI embeddings API. One object serves many calls at once, in any loop.

    Args:
        model: asked for; it is the name, with "@" and the dimensions where these are given.
        base_url, provider, api_key, headers: as of OpenAIChat, from the same environment variables.
        dimensions: how many numbers a vector shall have, for models that leave the choice; None: the model's own.
        batch: texts in one request.
        timeout_s: seconds for one request, until `ModelUnavailable`.
        connections_max: requests at once; further ones wait in order.
        retries: which requests are repeated here; None: as for chats.
        ssl_context: for https; None: the system's certificates.
        client: a whole httpx client in place of our connections; the caller closes it.

    Raises:
        ValueError, TypeError: an argument is missing or malformed; the text names it.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None = None,
        provider: str | Provider | None = None,
        api_key: str | None = None,
        dimensions: int | None = None,
        batch: int = BATCH,
        timeout_s: float = 60.0,
        connections_max: int = CONNECTIONS_MAX,
        retries: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        check_kind("model", model, str, example='"text-embedding-3-small"')
        check_kind("retries", retries, RetryPolicy, example="RetryPolicy(retries_max=3)")
        check_kind("ssl_context", ssl_context, ssl.SSLContext, example='ssl.create_default_context(cafile="ca.pem")')
        check_kind("client", client, httpx.AsyncClient, example="httpx.AsyncClient()")
        if not model:
            raise ValueError('which model? give model=..., as in OpenAIEmbedder(model="text-embedding-3-small")')
        if dimensions is not None:
            check_count("dimensions", dimensions, least=1)
        check_number("timeout_s", timeout_s)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        check_count("batch", batch, least=1)
        if client is not None and ssl_context is not None:
            raise ValueError("ssl_context is for our own connections: give it to your client")
        endpoint = find_endpoint(base_url=base_url, provider=provider, api_key=api_key, headers=headers)
        url = endpoint.url.copy_with(path=endpoint.url.path.removesuffix(_CHAT) + _EMBEDDINGS)
        self._model = model
        self._dimensions = dimensions
        self._batch = batch
        self._timeout_s = timeout_s
        self._where = endpoint.where
        self._secrets = endpoint.secrets
        self._pool = ConnectionPool(ssl_context=ssl_context)
        self._upstream: Upstream = (
            HttpxUpstream(url, endpoint.headers, way=client)
            if client is not None
            else PooledUpstream(url, endpoint.headers, pool=self._pool)
        )
        self._gate = ProviderGate(connections_max=connections_max, policy=retries)

    def __repr__(self) -> str:
        return f"OpenAIEmbedder(base_url={self._where!r}, model={self._model!r})"

    @property
    def name(self) -> str:
        return self._model if self._dimensions is None else f"{self._model}@{self._dimensions}"

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, in their order, all of one number of dimensions.

        Raises:
            ModelError: see `callboard.actors.errors`. It names the server and holds neither key nor text.

        Cancellation: the connection is closed at once.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self._batch):
            vectors += await self._gate.call(partial(self._request, texts[start : start + self._batch]))
        if len({len(vector) for vector in vectors}) > 1:
            raise self._bad_response("vectors of different lengths")
        return vectors

    async def aclose(self) -> None:
        """Close idle connections. It can be used again afterwards."""
        self._pool.close_idle()

    def close_expired(self) -> bool:
        """Close connections that were idle for 4 s; whether there are others. A Runtime calls it."""
        self._pool.close_expired()
        return self._pool.counts()[1] > 0

    def statistics(self) -> GateStatistics:
        """Requests under way, calls that wait, retries, in the running event loop."""
        return self._gate.statistics()

    async def _request(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] | None = None
        with anyio.move_on_after(self._timeout_s):
            try:
                vectors = await self._converse(texts)
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise error_of_transport(error, where=self._where) from error
        if vectors is None:
            raise ModelUnavailable(f"{self._where}: no answer within {self._timeout_s:g} s")
        return vectors

    async def _converse(self, texts: Sequence[str]) -> list[list[float]]:
        wish = {} if self._dimensions is None else {"dimensions": self._dimensions}
        response = await self._upstream.post(msgspec.json.encode({"model": self._model, "input": list(texts), **wish}))
        try:
            if not 200 <= response.status < 300:
                raise await self._refusal(response, texts)
            body = await read_all(response, BODY_BYTES_MAX)
            return self._vectors(body, texts, request_id_of(response))
        finally:
            await response.aclose()

    async def _refusal(self, response: UpstreamResponse, texts: Sequence[str]) -> ModelError:
        try:
            body = await read_all(response, ERROR_BYTES_MAX)
        except (httpx.HTTPError, httpx.StreamError):
            body = None  # the status says enough
        error = parse_error(body) if body else ServerError()
        return error_of_status(
            error, status=response.status, headers=response.headers, where=self._where, hidden=self._hidden(texts)
        )

    def _vectors(self, body: bytes | None, texts: Sequence[str], request_id: str | None) -> list[list[float]]:
        if body is None:
            raise self._bad_response(f"a body of more than {BODY_BYTES_MAX} bytes", request_id)
        try:
            data = _answers.decode(body).data
        except msgspec.MsgspecError as problem:
            error = parse_error(body)
            if error != ServerError():
                raise error_of_status(
                    error, status=200, headers=httpx.Headers(), where=self._where, hidden=self._hidden(texts)
                ) from None
            raise self._bad_response(f"a body that is no list of embeddings ({problem})", request_id) from None
        places = [place if each.index is None else each.index for place, each in enumerate(data)]
        if sorted(places) != list(range(len(texts))):
            raise self._bad_response(f"{len(data)} vectors, or not one for each of {len(texts)} texts", request_id)
        vectors = [each.embedding for _, each in sorted(zip(places, data, strict=True), key=lambda pair: pair[0])]
        if not all(vector and all(map(math.isfinite, vector)) for vector in vectors):
            raise self._bad_response("a vector that is empty or not finite", request_id)
        return vectors

    def _bad_response(self, what: str, request_id: str | None = None) -> BadResponse:
        return BadResponse(f"{self._where} sent {what}", status=200, request_id=request_id)

    def _hidden(self, texts: Sequence[str]) -> Iterator[str]:
        """What no error may show: keys, and the texts, as they are and as JSON has them."""
        yield from self._secrets
        said = {*texts, *(msgspec.json.encode(text).decode()[1:-1] for text in texts)}
        yield from sorted(said, key=len, reverse=True)

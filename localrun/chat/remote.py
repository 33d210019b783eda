"""Knows no engine: a model behind any OpenAI-compatible server, as something to talk to.

Speaks ``GET /v1/models`` and streaming ``POST /v1/chat/completions``
(https://platform.openai.com/docs/api-reference/chat). Beyond those fields it reads
``reasoning_content`` or ``reasoning`` in a delta, ``timings`` as llama.cpp's server sends them, and
a context length in the model list; each may be missing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions
from localrun.chat.openai_wire import Answer, context_length, error_object, models, request_body
from localrun.chat.templates import printable
from localrun.errors import (
    BusyError,
    ContextLengthError,
    EngineError,
    LocalrunError,
    ModelNotFoundError,
    RequestError,
    ServerError,
    UsageError,
)

if TYPE_CHECKING:
    import httpx2
    from httpx2 import ServerSentEvent

CONNECT_S = 10.0
_ADDRESS = "such as http://127.0.0.1:8080"


class RemoteChatModel:
    """A ``ChatModel`` over HTTP. One event loop uses it.

    ``connect`` asks the server for its models; ``reply`` does so when nobody has. Until then
    ``name`` is the model asked for, or empty; ``n_ctx`` is 0 while it is not known.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        model: str | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """``url`` is the server's, with or without ``/v1``. Raises UsageError."""
        import httpx2

        self._url = base_url(url)
        self._model = model
        self._n_ctx = 0
        self._connected = False
        self._http = httpx2.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            # A long prompt is prefilled in silence: only the connection has a deadline.
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            transport=transport,
        )

    @property
    def name(self) -> str:
        return self._model or ""

    @property
    def backend(self) -> str:
        return self._url

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    async def connect(self) -> None:
        """Learn the model's name and context.

        Raises:
            ServerError: no server answers, it wants a key, or it does not speak this protocol.
            ModelNotFoundError: it does not serve the model, or none at all.
        """
        import httpx2

        try:
            response = await self._http.get("models")
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.content)
        served = models(response.content)
        entry = served.get(self._model) if self._model else next(iter(served.values()), None)
        if entry is None:
            names = tuple(served)
            wanted = repr(self._model) if self._model else "any model"
            raise ModelNotFoundError(
                f"{self._url} does not serve {wanted}",
                nearest=names[:3],
                hint=f"it serves {', '.join(names)}" if names else "load a model there first",
            )
        self._model = str(entry["id"])
        self._n_ctx = context_length(entry)
        self._connected = True

    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream one answer; see ``ChatModel.reply``.

        Raises:
            ServerError, ModelNotFoundError: as ``connect``.
            ContextLengthError, RequestError, BusyError, EngineError: as the server says.
        """
        import httpx2

        if not self._connected:
            await self.connect()
        body = request_body(self.name, messages, options)
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                answer = Answer()
                # Declared an iterator, it is a generator, and leaving early must end it now.
                source = cast(
                    "AsyncGenerator[ServerSentEvent]", aiter(httpx2.EventSource(response))
                )
                async with aclosing(source) as events:
                    async for event in events:
                        for reply in answer.read(event.data):
                            yield reply
                yield answer.last()
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        await self._http.aclose()

    def _unreachable(self, error: Exception) -> ServerError:
        reason = printable(str(error)) or type(error).__name__
        return ServerError(
            f"{self._url}: {reason}", hint="is the server running, and the URL its address?"
        )

    def _refusal(self, status: int, content: bytes) -> LocalrunError:
        error = error_object(content)
        message = f"{self._url}: {printable(str(error.get('message') or f'HTTP status {status}'))}"
        if status in (401, 403):
            return ServerError(message, hint="give its key with --api-key")
        if status == 404:
            return ModelNotFoundError(message, hint="check the URL and the model's name")
        if status == 429:
            return BusyError(message)
        if status == 400:
            prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
            if isinstance(prompt, int) and isinstance(context, int):
                return ContextLengthError(prompt, context)
        if 400 <= status < 500:
            return RequestError(message)
        return EngineError(message, hint="look at that server's log")


def base_url(url: str) -> str:
    """``host:port``, ``http://host:port`` and ``http://host:port/v1`` all mean the last."""
    import httpx2

    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        whole = bool(parts.hostname) and parts.port != 0
        httpx2.URL(text)
    except (ValueError, httpx2.InvalidURL) as error:
        raise UsageError(f"--server {url!r}: {error}", hint=_ADDRESS) from error
    if parts.scheme not in ("http", "https") or not whole:
        raise UsageError(f"--server {url!r} is not an http(s) address", hint=_ADDRESS)
    text = text.rstrip("/")
    return text if text.endswith("/v1") else f"{text}/v1"

"""Knows no network: ``POST /api/pull``, with its progress as lines of JSON.

https://docs.ollama.com/api/pull
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from localrun.errors import LocalrunError
from localrun.server.answering import Answering
from localrun.server.answers import ClientGone, EventStream, while_connected
from localrun.server.errors import ollama_shape, refusal_of
from localrun.server.models import PullProgress
from localrun.server.ollama.answer import goodbye
from localrun.server.ollama.generating import LINES
from localrun.server.ollama.models import ShowRequest
from localrun.server.record import CLIENT_CLOSED_REQUEST
from localrun.server.sent import json_line


class PullRequest(ShowRequest):
    """``stream`` is true unless told. ``insecure`` is not for a client to decide."""

    stream: bool | None = None


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/api/pull")
    async def pull(body: PullRequest, request: Request) -> Response:
        """A model that cannot be meant has its own status; what fails later is a line."""
        progress = answering.models.pull(body.model_id)
        stopping = answering.stopping
        if body.stream is False:
            whole = _whole(progress)
            try:
                return JSONResponse(await while_connected(request.receive, stopping, whole))
            except ClientGone:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        try:
            begun = await while_connected(request.receive, stopping, _begun(progress))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        lines = _lines(begun, progress)
        return EventStream(progress, lines, stopping=stopping, goodbye=goodbye(), media_type=LINES)


async def _whole(progress: AsyncGenerator[PullProgress]) -> dict[str, str]:
    async with aclosing(progress):
        async for _ in progress:
            pass
    return {"status": "success"}


async def _begun(progress: AsyncGenerator[PullProgress]) -> PullProgress | None:
    """The first that is known; None where there is nothing to do."""
    try:
        return await anext(progress, None)
    except BaseException:
        await progress.aclose()
        raise


async def _lines(
    begun: PullProgress | None, progress: AsyncGenerator[PullProgress]
) -> AsyncGenerator[bytes]:
    yield json_line({"status": "pulling manifest"})
    try:
        if begun is not None:
            yield json_line(_line(begun))
            async for each in progress:
                yield json_line(_line(each))
            yield json_line({"status": "verifying sha256 digest"})
            yield json_line({"status": "writing manifest"})
    except LocalrunError as error:
        yield json_line(ollama_shape(refusal_of(error)))
        return
    yield json_line({"status": "success"})


def _line(progress: PullProgress) -> dict[str, Any]:
    # Clients draw one bar for each digest and cut pieces from it. Of what is being fetched it is
    # not known yet: this one stands for its name.
    key = hashlib.sha256(progress.label.encode()).hexdigest()
    return {
        "status": f"pulling {progress.label}",
        "digest": f"sha256:{key}",
        "total": progress.total,
        "completed": progress.completed,
    }

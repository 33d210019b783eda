"""Knows no dialect: who asks."""

from __future__ import annotations

import hashlib

from starlette.requests import Request

from localrun.chat.messages import RequestContext
from localrun.server.guards import Headers, presented_keys


def context_of(headers: Headers, peer: str, user: str | None) -> RequestContext:
    """Who asks, by the API key that was sent, else by the ``peer``'s address.

    The key itself goes no further than this digest. Clients take turns by key and, among those of
    one, by the ``user`` that the body names, which shares what its key is given; without a key the
    name is all that tells programs of one machine apart.
    """
    key = next(iter(presented_keys(headers)), b"")
    owner = hashlib.sha256(b"localrun owner\0" + key).hexdigest()[:32] if key else ""
    client = f"{owner}/{user or ''}" if owner else f"{peer} {user or ''}"
    return RequestContext(owner=owner, client=client)


def asker(request: Request, user: str | None = None) -> RequestContext:
    """Who sent ``request``; ``user`` is whom its body names."""
    peer = request.client.host if request.client else ""
    return context_of(request.scope["headers"], peer, user)

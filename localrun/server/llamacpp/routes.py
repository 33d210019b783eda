"""Knows no route itself: all those of llama.cpp's server."""

from __future__ import annotations

from fastapi import FastAPI

from localrun.server.answering import Answering
from localrun.server.llamacpp import completion, props, tokens


def add_routes(app: FastAPI, answering: Answering) -> None:
    for part in (completion, props, tokens):
        part.add_routes(app, answering)

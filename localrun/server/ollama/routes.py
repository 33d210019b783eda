"""Knows no model: Ollama's API, all of it. https://docs.ollama.com/api"""

from __future__ import annotations

from fastapi import FastAPI

from localrun.server.answering import Answering
from localrun.server.ollama import chat, embed, generate, models, pull


def add_routes(app: FastAPI, answering: Answering) -> None:
    for part in (models, chat, generate, embed, pull):
        part.add_routes(app, answering)

"""An engine over a runner that makes embeddings only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.engine.engine import Engine
from localrun.engine.request import EmbeddingRequest, GenerationRequest
from localrun.engine.runner import Capabilities
from localrun.errors import RequestError
from tests.mock_runner import MockRunner


class Encoder(MockRunner):
    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, generates=False, embeddings=True)


def test_a_generation_is_refused_before_it_waits_and_texts_are_embedded() -> None:
    engine = Engine(Encoder())
    try:
        with pytest.raises(RequestError, match="embeddings only") as raised:
            engine.submit(GenerationRequest("g", (1, 2)))
        vectors = engine.embed(EmbeddingRequest("e", ((97, 98),))).result(timeout=30)
    finally:
        engine.close()

    assert raised.value.field == "model"
    assert vectors.shape[0] == 1

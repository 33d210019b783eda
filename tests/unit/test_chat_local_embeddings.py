"""Texts to embed as the tokens of a model: how many there may be, and what ends them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import Prompt
from localrun.chat.templates import Renderer
from localrun.engine.client import EngineInfo
from localrun.engine.request import EmbeddingRequest
from localrun.errors import ContextLengthError, RequestError
from tests.scripted_client import ScriptedClient

CLS, SEP, UNKNOWN = 101, 102, 100
LONGEST = 16
MEGABYTES = 10 * 1024 * 1024


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


@dataclass
class Generator(ScriptedClient):
    """A model that generates; a forward of it takes less than its context. Its tokens are
    characters, ``embedded`` the texts it was asked for."""

    embedded: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return replace(
            super().info, longest_token=4, add_bos=False, embeds=True, longest_text=LONGEST
        )

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        self.embedded += request.texts
        return [[1.0] for _ in request.texts]


class Encoder(Generator):
    """Its tokens are words, one of more than 100 characters is unknown; special tokens begin and
    end a text."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, generates=False)

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        self.tokenized.append((text, add_special, parse_special))
        ids = [UNKNOWN if len(word) > 100 else len(word) for word in text.split()]
        return [CLS, *ids, SEP] if add_special else ids


def longest_read(client: ScriptedClient) -> int:
    return max(len(text) for text, _, _ in client.tokenized)


async def test_a_text_that_is_too_long_for_a_forward_is_cut_where_that_is_asked_for(
    renderer: Renderer,
) -> None:
    client = Generator([])
    model = LocalChatModel(client, renderer)

    embedded = await model.embed(
        [Prompt.of("short"), Prompt.of("x" * (LONGEST + 1)), Prompt.of("x" * MEGABYTES)],
        truncate=True,
    )

    whole = tuple(range(LONGEST))
    assert client.embedded == [whole[:5], whole, whole]
    assert embedded.tokens == 5 + 2 * LONGEST
    assert longest_read(client) <= 4 * LONGEST + 1


async def test_an_encoders_text_that_is_cut_ends_as_every_text_does(renderer: Renderer) -> None:
    client = Encoder([])

    await LocalChatModel(client, renderer).embed([Prompt.of("a bc " * LONGEST)], truncate=True)

    (text,) = client.embedded
    assert len(text) == LONGEST
    assert (text[0], text[1:4], text[-1]) == (CLS, (1, 2, 1), SEP)


@pytest.mark.parametrize("client", [Generator([]), Encoder([])], ids=["generates", "encodes"])
async def test_a_text_of_as_many_tokens_as_there_may_be_is_embedded_and_one_more_is_refused(
    renderer: Renderer, client: Generator
) -> None:
    model = LocalChatModel(client, renderer)

    await model.embed([Prompt((7,) * LONGEST)])
    with pytest.raises(ContextLengthError, match=r"17 tokens.* 16") as refused:
        await model.embed([Prompt((7,) * (LONGEST + 1))])

    assert (refused.value.prompt_tokens, refused.value.n_ctx) == (LONGEST + 1, LONGEST)
    assert len(client.embedded) == 1


@pytest.mark.parametrize("client", [Generator([]), Encoder([])], ids=["generates", "encodes"])
async def test_of_ten_megabytes_only_a_part_is_read_before_they_are_refused(
    renderer: Renderer, client: Generator
) -> None:
    with pytest.raises(ContextLengthError, match="at least"):
        await LocalChatModel(client, renderer).embed([Prompt.of("ab cd\n" * (MEGABYTES // 6))])

    assert client.embedded == []
    assert longest_read(client) <= 1 << 17


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("a" + " " * 10_000 + "b", (CLS, 1, 1, SEP)), ("x" * 10_000, (CLS, UNKNOWN, SEP))],
    ids=["white space", "a word without an end"],
)
async def test_an_encoders_long_text_of_few_tokens_is_embedded(
    renderer: Renderer, text: str, tokens: tuple[int, ...]
) -> None:
    client = Encoder([])

    await LocalChatModel(client, renderer).embed([Prompt.of(text)])

    assert client.embedded == [tokens]


async def test_a_text_that_nobody_reads_to_its_end_is_refused_though_few_tokens_were_found(
    renderer: Renderer,
) -> None:
    client = Encoder([])
    model = LocalChatModel(client, renderer)

    with pytest.raises(RequestError, match="131072 characters") as refused:
        await model.embed([Prompt.of("x" * MEGABYTES)])
    await model.embed([Prompt.of("x" * MEGABYTES)], truncate=True)

    assert not isinstance(refused.value, ContextLengthError)
    assert client.embedded == [(CLS, UNKNOWN, SEP)]
    assert longest_read(client) == 1 << 17

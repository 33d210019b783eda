"""What a model's header says of it, and the names that a served model answers to."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from localrun.cli.facts import KnownFacts
from localrun.cli.serve import _provider
from localrun.config import Settings
from localrun.errors import HeaderError, LocalrunError, ModelNotFoundError, RefError
from localrun.formats.read import read_header
from localrun.models.fill_in_middle import fills_gaps
from localrun.ref import LocalRef, PathRef
from localrun.server.provider import LoadingProvider
from localrun.store.importing import import_path
from localrun.store.library import Library
from localrun.store.on_disk import model_files
from tests.fake_chat import FakeChat
from tests.gguf_builder import gguf_bytes, llama_metadata
from tests.loads import unlimited

GAPS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
TENSORS = [("a", (4, 64), "Q4_0")]


def written(path: Path, **metadata: Any) -> Path:
    path.write_bytes(gguf_bytes(llama_metadata() | metadata, TENSORS))
    return path


def facts_of(path: Path) -> KnownFacts:
    return KnownFacts(lambda name: model_files(PathRef(str(path))))


def test_a_header_says_what_a_model_can(tmp_path: Path) -> None:
    thinks = {
        "tokenizer.chat_template": "{{ tools }}<think>{{ messages }}",
        "tokenizer.ggml.tokens": ["a", "b", *GAPS],
    }

    plain = facts_of(written(tmp_path / "plain.gguf"))("m")
    able = facts_of(written(tmp_path / "able.gguf", **thinks))("m")

    assert plain.capabilities == {"completion"}
    assert able.capabilities == {"completion", "tools", "insert", "thinking"}
    assert (plain.id, plain.architecture, plain.parameters) == ("m", "llama", 256)
    assert (plain.quantization, plain.licence) == ("Q4_0", "apache-2.0")
    assert plain.fields["llama.context_length"] == 128
    assert plain.fields["llama.embedding_length"] == 64
    assert plain.fields["general.name"] == "Tiny"


def test_a_header_is_read_again_only_where_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "m.gguf")
    read: list[object] = []
    monkeypatch.setattr(
        "localrun.formats.read.read_header", lambda paths: read.append(paths) or read_header(paths)
    )
    facts = facts_of(path)

    first, again = facts("m"), facts("m")
    written(path, **{"general.license": "mit"})
    os.utime(path, ns=(1, 1))
    changed = facts("m")

    assert len(read) == 2
    assert first == again
    assert changed.licence == "mit"


def test_a_file_that_is_damaged_says_so_each_time(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    facts = facts_of(path)

    for _ in range(2):
        with pytest.raises(HeaderError):
            facts("m")


VOCABULARIES: dict[str, tuple[list[str], list[str], bool]] = {
    "Qwen": (GAPS, [], True),
    "DeepSeek": (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], [], True),
    "ids in the header": (["a"], ["fim_pre", "fim_suf", "fim_mid"], True),
    "older ids": (["a"], ["prefix", "suffix", "middle"], True),
    "some of each": (GAPS[:2], ["fim_mid"], True),
    "one that lacks": (GAPS[:2], [], False),
    "none": (["a", "<|im_start|>", "<file_sep>"], [], False),
    "no vocabulary": ([], [], False),
}


@pytest.mark.parametrize(
    ("tokens", "ids", "filled"), VOCABULARIES.values(), ids=VOCABULARIES.keys()
)
def test_three_tokens_make_a_model_that_fills_gaps(
    tokens: list[str], ids: list[str], filled: bool
) -> None:
    metadata = {f"tokenizer.ggml.{name}_token_id": 1 for name in ids}

    assert fills_gaps(metadata, tokens) is filled


@pytest.fixture
def provider(here: Settings, tmp_path: Path) -> LoadingProvider:
    """What `serve FILE` provides beside a model that was imported."""
    import_path(written(tmp_path / "mine.gguf"), here, LocalRef("me", "mine"))

    def never(name: str) -> Any:
        raise AssertionError(f"{name} is not to be loaded")

    given = (str(written(tmp_path / "given.gguf")),)
    return _provider(given, never, here, None, lambda names: None)


@pytest.mark.parametrize("name", ["local:me/mine", "local:me/mine:latest"])
def test_a_model_answers_to_its_name_with_and_without_a_tag(
    provider: LoadingProvider, name: str
) -> None:
    assert provider.facts(name).id == "local:me/mine"


def test_a_given_file_is_served_by_its_path_and_no_other_is(
    provider: LoadingProvider, tmp_path: Path
) -> None:
    given = str(tmp_path / "given.gguf")

    assert provider.facts(f"{given}:latest").id == given
    for path in (str(tmp_path / "mine.gguf"), "/etc/passwd", "./x.gguf"):
        with pytest.raises(ModelNotFoundError):
            provider.facts(path)


def test_cards_say_when_a_model_came(provider: LoadingProvider, here: Settings) -> None:
    cards = {card.id: card for card in provider.names()}

    (stored,) = Library(here).list()
    assert stored.created is not None
    card = cards["local:me/mine"]
    assert card.created == datetime.fromisoformat(stored.created).timestamp()
    assert card.bytes == stored.bytes


@pytest.mark.parametrize("name", ["no-such-model", "local:me/mine", "/etc/passwd", "a b"])
async def test_what_no_source_has_is_not_pulled(provider: LoadingProvider, name: str) -> None:
    with pytest.raises((ModelNotFoundError, RefError)):
        await anext(provider.pull(name))
    await provider.close()


async def test_a_provider_without_a_network_pulls_nothing() -> None:
    with pytest.raises(LocalrunError, match="not pulled here"):
        LoadingProvider(lambda name: None, cards=list).pull("smollm2")  # type: ignore[arg-type, return-value]


KEPT: dict[str, tuple[float | None, float | None, float | None]] = {
    "as the server keeps": (600.0, None, 600.0),
    "as was asked": (600.0, 60.0, 60.0),
    "for ever": (600.0, -1.0, None),
    "a server that keeps for ever": (None, None, None),
}


@pytest.mark.parametrize(("server", "asked", "left"), KEPT.values(), ids=KEPT.keys())
async def test_a_loaded_model_says_how_long_it_stays(
    server: float | None, asked: float | None, left: float | None
) -> None:
    async def opened(name: str) -> FakeChat:
        return FakeChat()

    provider = LoadingProvider(unlimited(opened), cards=list, keep_alive_s=server)
    async with provider.lease("m", keep_s=asked):
        (used,) = provider.loaded()
    (idle,) = provider.loaded()
    await provider.close()

    assert used.left_s == idle.idle_s == left
    if left is not None:
        assert idle.left_s is not None
        assert left - 30 < idle.left_s <= left

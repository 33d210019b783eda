"""Wherever n-gram tables lie and however their rows are read, a V4.1 says the same, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from localrun.backends.torch.architectures import deepseek_v41
from localrun.backends.torch.model import Model, Setup, Span, Step
from localrun.backends.torch.numerics import FAST, FLOAT32, FLOAT32_QAT, REFERENCE, Numerics
from localrun.backends.torch.tensors import Tensors
from localrun.disk.opening import open_reader
from localrun.errors import DiskReadError, EngineError
from localrun.models.bare import flat
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.gguf_file import GgufFile
from localrun.releases.read import release_of
from localrun.releases.stored.release import weights_of
from tests import deepseek
from tests.row_reader import RowReader
from tests.torch_models import extend, logits, random_tokens, step

SETUP = Setup(FLOAT32, torch.device("cpu"), 128, threads=1)
# Setups by what they are called; "reader" stands for one that reads the files.
PLACES: dict[str, dict[str, Any]] = {
    "synchronous": {"engram": "disk"},
    "prefetched": {"engram": "disk", "reader": True},
    "hot rows": {"engram": "disk", "reader": True, "hot_rows": 30_000},
    "scales held": {"engram": "disk", "reader": True, "scales_in_memory": True},
    "both, checked": {
        "engram": "disk", "reader": True, "hot_rows": 9_000_000, "scales_in_memory": True,
        "check_rows": True,
    },
    "device": {"engram": "vram"},
    "device, checked": {"engram": "vram", "check_rows": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deepseek.write(tmp_path_factory.mktemp("v41") / "flash", deepseek.base("deepseek_v41"))


@pytest.fixture(scope="module")
def gguf(flash: Path) -> Path:
    """With joined rows."""
    out = flash.parent / "flash.gguf"
    with deepseek.opened(flash) as checkpoint:
        deepseek.written(deepseek.convert_opened(checkpoint), out, {})
    return out


@contextmanager
def built(path: Path, setup: Setup) -> Iterator[Model]:
    """``setup.reader`` True is a real one of its files."""
    with ExitStack() as stack:
        source: Checkpoint | GgufFile
        if path.suffix == ".gguf":
            source, weights = stack.enter_context(deepseek.gguf_file(path)), {}
        else:
            source = stack.enter_context(deepseek.opened(path))
            weights = weights_of(source)
        if setup.reader is True:  # type: ignore[comparison-overlap]
            reader = open_reader(source.paths)
            stack.callback(reader.close)
            setup = replace(setup, reader=reader)
        release = release_of(source, weights)
        tensors = Tensors(release, setup)
        stack.callback(tensors.close)
        yield deepseek_v41.build(flat(release.config), tensors)


def said(model: Model) -> list[Tensor]:
    """Of one prompt whole and in parts, and of two sequences in a step, one of them behind tokens
    that were taken back."""
    tokens, cache = random_tokens(11, 1000), model.new_cache()
    found = [logits(model, tokens), extend(model, cache, tokens, [1, 6])]
    extend(model, cache, random_tokens(4, 1000, seed=1))
    cache.revert(12)
    other = model.new_cache()
    parts = [(cache, random_tokens(3, 1000, seed=2)), (other, random_tokens(2, 1000, seed=3))]
    return [*found, step(model, parts)]


@pytest.mark.parametrize("numerics", [FLOAT32, FLOAT32_QAT, FAST, REFERENCE], ids=lambda n: n.name)
def test_a_release_says_the_same_wherever_its_tables_lie(flash: Path, numerics: Numerics) -> None:
    setup = replace(SETUP, numerics=numerics)
    with built(flash, setup) as model:
        expected = said(model)
    for place in ("synchronous", "prefetched", "both, checked", "device"):
        with built(flash, replace(setup, **PLACES[place])) as model:
            found = said(model)
        assert all(map(torch.equal, found, expected)), place


def test_joined_rows_of_a_gguf_file_say_the_same_in_one_read_a_row(flash: Path, gguf: Path) -> None:
    reads = {}
    for path in (flash, gguf):
        with built(path, SETUP) as model:
            expected = said(model)
        for place, told in PLACES.items():
            with built(path, replace(SETUP, **told)) as model:
                assert all(map(torch.equal, said(model), expected)), place
                reads[path, place] = model.table_use.reads
    most = reads[flash, "prefetched"]
    fewer = reads[gguf, "prefetched"], reads[flash, "scales held"], reads[flash, "hot rows"]
    assert all(0 < count < most for count in fewer)
    assert reads[flash, "device"] == 0


def test_all_tables_rows_are_under_way_before_the_first_layer_runs(flash: Path) -> None:
    with deepseek.opened(flash) as checkpoint:
        paths = checkpoint.paths
    reader = RowReader(paths)
    begun: list[int] = []
    with built(flash, replace(SETUP, engram="disk", reader=reader)) as model:
        cache = model.new_cache()
        extend(model, cache, random_tokens(5, 1000))
        before = len(reader.begun)
        told = Step(
            torch.tensor([7]),
            torch.tensor([5]),
            (Span(cache, 0, 1, 5),),
            torch.tensor([0]),
            watch=lambda layer, x: begun.append(len(reader.begun) - before),
        )
        model.forward(told)
        layers = len(model.layer_bytes)
    assert begun == [2] * (layers + 1)


def test_a_file_that_ends_too_soon_or_changed_is_an_error_and_another_step_works(
    flash: Path, tmp_path: Path
) -> None:
    wrong = {"now": ""}
    with deepseek.opened(flash) as checkpoint:
        reader = RowReader(checkpoint.paths, fail=lambda file, offset: wrong["now"])
    tokens = random_tokens(9, 1000)
    with built(flash, replace(SETUP, engram="disk", reader=reader)) as model:
        expected = logits(model, tokens)
        for problem in ("Input/output error", "the file was replaced", "ended early"):
            wrong["now"] = problem
            with pytest.raises(DiskReadError, match=rf"layers.1.engram.embed.*offset.*{problem}"):
                logits(model, tokens)
            wrong["now"] = ""
            assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_truncated_file_is_an_error_that_names_tensor_and_offset(
    gguf: Path, tmp_path: Path, ahead: bool
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(gguf.read_bytes())
    told: dict[str, Any] = {"engram": "disk", "reader": ahead or None}
    with built(copy, replace(SETUP, **told)) as model:
        logits(model, random_tokens(9, 1000))
        with copy.open("r+b") as file:
            file.truncate(copy.stat().st_size // 2)
        for _ in range(2):
            with pytest.raises(DiskReadError, match=r"engram_embd.*offset \d+"):
                logits(model, random_tokens(9, 1000, seed=3))


def test_rows_that_another_constant_finds_are_noticed(
    flash: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with built(flash, replace(SETUP, check_rows=True)) as model:
        logits(model, random_tokens(9, 1000))
        assert isinstance(model, deepseek_v41.DeepseekV41)
        hashes = model.hashes
        assert hashes is not None
        monkeypatch.setattr(hashes, "_primes", hashes._primes + 1)
        with pytest.raises(EngineError, match=r"layers\.1\.engram: token \d+ looks row"):
            logits(model, random_tokens(9, 1000))

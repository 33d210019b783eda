"""Models whose experts stream from disk give the logits of those that hold them, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from localrun.backends.torch.loading import Loaded, Singly, read_model
from localrun.backends.torch.model import Setup
from localrun.backends.torch.numerics import FAST, FLOAT32, FLOAT32_QAT, REFERENCE, Numerics
from tests import deepseek
from tests.torch_models import logits, random_tokens

ARCHITECTURES = ("deepseek_v32", "deepseek_v4", "deepseek_v41")
TEXT = 40
# A prompt in one step, then tokens one by one, then a few together.
CHUNKS = [25, *[1] * 12]
STAGING = 4 << 20


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("released")
    return {name: deepseek.write(folder / name, deepseek.base(name)) for name in ARCHITECTURES}


@contextmanager
def loaded(folder: Path, numerics: Numerics, singly: Singly | None = None) -> Iterator[Loaded]:
    files = tuple(sorted(str(path) for path in folder.glob("*.safetensors")))
    setup = Setup(numerics, torch.device("cpu"), TEXT, threads=1)
    with closing(read_model(files, setup, singly)) as made:
        yield made


def computed(made: Loaded) -> Tensor:
    return logits(made.model, random_tokens(TEXT, made.model.vocabulary), CHUNKS)


@cache
def resident(folder: Path, numerics: Numerics) -> Tensor:
    with loaded(folder, numerics) as made:
        return computed(made)


@pytest.mark.parametrize("numerics", [FAST, REFERENCE, FLOAT32, FLOAT32_QAT], ids=lambda n: n.name)
@pytest.mark.parametrize("slots", [1, 4, 6])
def test_no_logit_depends_on_how_many_experts_are_kept(
    released: Mapping[str, Path], numerics: Numerics, slots: int
) -> None:
    folder = released["deepseek_v41"]

    with loaded(folder, numerics, Singly(slots, slots // 2, STAGING)) as made:
        found = computed(made)
        store = made.setup.experts
        assert store is not None
        stats = store.stats()

    assert torch.equal(found, resident(folder, numerics))
    assert stats.experts["disk"].picks > 0
    assert sum(use.picks for use in stats.experts.values()) == sum(map(sum, stats.picks.values()))


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])
def test_every_mixture_streams(released: Mapping[str, Path], architecture: str) -> None:
    folder = released[architecture]

    with loaded(folder, FAST, Singly(3, 0, STAGING)) as made:
        found = computed(made)

    assert torch.equal(found, resident(folder, FAST))

"""Experts in places, against all of them resident: the same bits, whatever lies where."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.backends.torch.matrices.expert_slots import joined
from localrun.backends.torch.numerics import FAST, FLOAT32, REFERENCE, Numerics
from localrun.disk.staged import Stage
from localrun.errors import HeaderError, SourceError
from localrun.formats.extent import Extent
from localrun.formats.reader import FileSource
from localrun.releases.stored.release import weights_of
from localrun.releases.weights import row_count
from tests import deepseek
from tests.deepseek import opened as checkpoint
from tests.expert_layers import COUNT, GGUF, OPEN, STORED, WIDTH, opened, resident, taken, written
from tests.matrices import G, activations

MODES = (FAST, REFERENCE, FLOAT32)
EVERY = (*STORED, *GGUF)


@pytest.fixture(autouse=True, scope="module")
def _closed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    OPEN.close()
    _both.cache_clear()
    _file.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@cache
def _file(folder: Path, form: str) -> Path:
    return written(folder / form, form)


@cache
def _both(folder: Path, form: str, numerics: Numerics, threads: int, late: bool) -> Any:
    """All experts, and places for four of them."""
    found = opened(_file(folder, form))
    return (
        resident(found, numerics, threads, late),
        taken(found, numerics, threads, late, places=4),
    )


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(EVERY),
    numerics=st.sampled_from(MODES),
    threads=st.sampled_from([0, 1]),
    late=st.booleans(),
    tokens=st.sampled_from([1, 2, 5, 9, 20]),
    seed=st.integers(0, 1000),
)
def test_any_placement_in_any_groups_gives_the_bits_of_a_bank_of_all(
    folder: Path, form: str, numerics: Numerics, threads: int, late: bool, tokens: int, seed: int
) -> None:
    whole, slots = _both(folder, form, numerics, threads, late)
    source = G(seed)
    x = activations(tokens, WIDTH, seed=seed).to(numerics.dtype)
    chosen = torch.from_numpy(np.stack([source.permutation(COUNT)[:3] for _ in range(tokens)]))
    weights = torch.from_numpy(source.uniform(0.1, 1, (tokens, 3)).astype("<f4"))
    expected = whole.each(x, chosen, weights)

    made = torch.full_like(expected, torch.nan)
    experts = source.permutation(COUNT).tolist()
    groups = np.split(np.array(experts), sorted(source.integers(1, COUNT, 2)))
    for group in (part[at : at + 4] for part in groups for at in range(0, len(part), 4)):
        at = torch.full((COUNT,), -1)
        for place, expert in zip(source.permutation(4), group, strict=False):
            slots.fill(int(place), int(expert))
            at[expert] = int(place)
        token, choice = torch.nonzero(at[chosen] >= 0, as_tuple=True)
        own = (x[token], at[chosen][token, choice][:, None], weights[token, choice][:, None])
        made[token, choice] = slots(*own, tokens)[:, 0]

    assert torch.equal(made, expected)
    assert torch.equal(whole(x, chosen, weights), made.sum(1, dtype=torch.float32))


@pytest.mark.parametrize("form", EVERY)
def test_one_place_for_all_gives_the_same_bits(folder: Path, form: str) -> None:
    found = opened(_file(folder, form))
    whole = resident(found, FAST, 1, late=False)
    slots = taken(found, FAST, 1, late=False, places=1)
    x, one = activations(1, WIDTH).bfloat16(), torch.ones(1, 1)

    for expert in range(COUNT):
        slots.fill(0, expert)
        expected = whole.each(x, torch.tensor([[expert]]), one)
        assert torch.equal(slots(x, torch.zeros(1, 1, dtype=torch.int64), one, 1), expected)


@pytest.mark.parametrize("form", EVERY)
def test_what_is_staged_is_not_read_again(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, path = Stage(), _file(folder, form)
    slots = taken(opened(path, stage), FAST, 1, late=False, places=2)
    plain = taken(opened(path), FAST, 1, late=False, places=2)
    x, at = activations(1, WIDTH).bfloat16(), torch.tensor([[1]])
    whole = path.read_bytes() if path.is_file() else (path / "model.safetensors").read_bytes()
    extents = slots.extents(5)
    windows = [
        (each, np.frombuffer(whole[each.offset : each.offset + each.length], np.uint8))
        for each in extents
    ]
    plain.fill(1, 5)

    def refused(source: FileSource, offset: int, length: int) -> bytes:
        assert not length, f"{length} bytes at {offset} were read of the file"
        return b""

    monkeypatch.setattr(FileSource, "read", refused)
    with stage.holding(windows):
        slots.fill(1, 5)

    one = torch.ones(1, 1)
    assert torch.equal(slots(x, at, one, 1), plain(x, at, one, 1))
    assert slots.read_nbytes == sum(each.length for each in slots.extents(0))
    assert len(extents) == (3 if form in GGUF else 1)
    with pytest.raises(AssertionError, match="were read of the file"):
        slots.fill(0, 4)


@pytest.mark.parametrize("form", ["fp4", "fp8-128"])
def test_large_scales_of_one_expert_change_no_bit_of_another(folder: Path, form: str) -> None:
    """How numbers are decoded depends on the scales of a matrix, never on those beside it."""
    found = opened(_file(folder, form))
    own = taken(found, FAST, 0, late=False, places=2)
    beside = taken(found, FAST, 0, late=False, places=2)
    own.fill(0, 3)
    beside.fill(0, 3)
    bank = beside.many.w1.codes
    scales = bank.exponents[1] if form == "fp4" else bank.scales[1]
    scales.fill_(250)
    bank.scaled(1, 250 if form == "fp4" else np.full((1, 1), 250, np.float32))
    x, at = activations(5, WIDTH).bfloat16(), torch.zeros(5, 1, dtype=torch.int64)

    lifted = bank.lifted if form == "fp4" else [bank.lifted(0), bank.lifted(1)]
    assert lifted == [True, False]
    assert torch.equal(beside(x, at, torch.ones(5, 1), 5), own(x, at, torch.ones(5, 1), 5))


@pytest.mark.parametrize("lifted", [True, False])
@pytest.mark.parametrize("form", ["fp4", "fp8-128", "fp8-f32"])
@pytest.mark.parametrize("numerics", MODES, ids=lambda n: n.name)
def test_either_way_to_decode_gives_the_same_bits(
    folder: Path, form: str, numerics: Numerics, lifted: bool
) -> None:
    found = opened(_file(folder, form))
    bank = resident(found, numerics, 0, late=False).w1
    bank = getattr(bank, "bank", bank)  # type: ignore[assignment]
    expected = bank.weight(2).clone()

    if form == "fp4":
        bank.codes.lifted[2] = lifted  # type: ignore[attr-defined]
    elif not lifted:
        bank.codes.largest[2] = 2.0**7  # type: ignore[attr-defined]
    if form == "fp8-128":
        bank.codes.powers[2] = False  # type: ignore[attr-defined]

    assert torch.equal(bank.weight(2), expected)


@pytest.mark.parametrize("form", ["fp4", "Q4_K", "BF16", "w4a16-zeros"])
def test_memory_of_places_that_are_given_up_goes_back(folder: Path, form: str) -> None:
    slots = taken(opened(_file(folder, form)), FAST, 1, late=False, places=4)
    for place in range(4):
        slots.fill(place, place)
    x, at = activations(1, WIDTH).bfloat16(), torch.tensor([[0]])
    before = slots(x, at, torch.ones(1, 1), 1).clone()

    freed = slots.release(1)

    pages = 2 * 4096 * sum(len(stack.memory) for stack in slots.stacks)
    assert 3 * slots.slot_nbytes - pages <= freed <= 3 * slots.slot_nbytes
    assert torch.equal(slots(x, at, torch.ones(1, 1), 1), before)
    last = slots.stacks[0].memory[0][3].view(torch.uint8)
    assert not last.flatten()[8192:-8192].any()
    slots.fill(3, 0)
    assert torch.equal(slots(x, at + 3, torch.ones(1, 1), 1), before)


@pytest.mark.parametrize("arch", ["deepseek_v4", "deepseek_v41", "deepseek_v32", "qwen3_moe"])
def test_an_expert_of_a_release_lies_in_three_stretches_at_most(tmp_path: Path, arch: str) -> None:
    with checkpoint(deepseek.write(tmp_path / arch, deepseek.base(arch))) as source:
        experts: dict[str, list[Extent]] = {}
        for name, weight in weights_of(source).items():
            if ".experts." in name:
                each = experts.setdefault(name.rsplit(".", 2)[0], [])
                each += weight.ranges(0, row_count(weight))

    assert len(experts) >= 16
    assert all(1 <= len(joined(each)) <= 3 for each in experts.values())


def test_neighbours_are_joined_and_others_are_not() -> None:
    apart = [Extent(1, 0, 10), Extent(0, 9000, 10), Extent(0, 0, 100), Extent(0, 4196, 4)]

    assert joined([*apart, Extent(0, 50, 0), Extent(0, 60, 20)]) == (
        Extent(0, 0, 4200),
        Extent(0, 9000, 10),
        Extent(1, 0, 10),
    )


def test_experts_are_taken_once_and_in_their_shapes(folder: Path) -> None:
    found = opened(_file(folder, "fp4"))
    found["e.1.w3.weight"] = found["e.1.w2.weight"]

    with pytest.raises(HeaderError, match=r"e\.1\.w3\.weight.*has the shape"):
        taken(found, FAST, 1, late=False, places=2)


def test_a_number_that_is_none_is_named_when_it_is_put_into_a_place(tmp_path: Path) -> None:
    path = written(tmp_path / "fp4", "fp4")
    slots = taken(opened(path), FAST, 1, late=False, places=2)
    scale = slots.sources[2][3].scales.part
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(scale.info.offset + 7)
        file.write(b"\xff")

    slots.fill(0, 2)
    with pytest.raises(SourceError, match=r"e\.3\.w2\.scale: element 7 "):
        slots.fill(0, 3)

"""Matrices in ggml's blocks, against their decoded numbers, through libggml and through torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from localrun.backends.torch.matrices.dense import Dense
from localrun.backends.torch.matrices.kernels import Kernels, tile_rows
from localrun.backends.torch.matrices.packed import Brain, BrainBank, Packed, PackedBank
from localrun.backends.torch.matrices.tiles import Tiled
from localrun.backends.torch.numerics import FAST, FLOAT32, FLOAT32_QAT, REFERENCE, Numerics
from localrun.errors import UsageError
from localrun.ggml.quantize import dequantize, quantize
from localrun.ggml.types import WEIGHT_TYPES, row_size
from localrun.ggml.weights import Weights
from localrun.releases.views import Portion, Reshaped, Stacked
from localrun.releases.weights import Bytes, Floats
from tests.matrices import (
    CPU,
    G,
    activations,
    bank_case,
    near,
    off,
    tensors,
)
from tests.stored import close_all, weights


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


@dataclass(frozen=True)
class InBlocks:
    """A matrix as a GGUF file stores it, in memory."""

    stored: str
    raw: Bytes
    shape: tuple[int, ...]
    name: str = "w.weight"
    step: int = 1
    place: tuple[int, int] = (0, 0)
    read_bytes: int = 0

    def rows(self, start: int, stop: int) -> Floats:
        return dequantize(self.stored, self.raw[start:stop], self.shape[-1])

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return self.raw[start:stop] if type == self.stored else None


def in_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> InBlocks:
    if kind.startswith(("IQ", "TQ")):
        # To quantize takes seconds; scales of these bytes are ordinary numbers.
        ordinary = np.array([*range(0x20, 0x3C), *range(0xA0, 0xBC)], np.uint8)
        drawn = G(seed).choice(ordinary, (rows, row_size(kind, columns)))
        return InBlocks(kind, drawn, (rows, columns))
    numbers = G(seed).normal(0, 0.05, (rows, columns)).astype("<f4")
    return InBlocks(kind, quantize(kind, numbers).reshape(rows, -1), (rows, columns))


KINDS = [kind for kind in WEIGHT_TYPES if kind not in ("F32", "F16", "BF16")]


def rms(found: torch.Tensor, expected: NDArray[np.float64]) -> float:
    away = found.double().numpy() - expected
    return float(np.sqrt(np.square(away).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("threads", [0, 1], ids=["torch", "libggml"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_type_are_multiplied(kind: str, threads: int) -> None:
    rows, columns = 40, 512
    weight = in_blocks(kind, rows, columns)
    with closing(tensors({"w.weight": weight}, FAST, threads)) as found:
        made = found.linear("w", rows, columns)
        numbers = weight.rows(0, rows).astype(float)

        for tokens in (1, 3, 20):
            x = activations(tokens, columns).bfloat16()
            assert rms(made(x), x.double().numpy() @ numbers.T) < 0.012
        assert isinstance(made, Packed) == bool(threads)
        expected = torch.from_numpy(numbers.astype(np.float32)).bfloat16()
        assert torch.equal(made.weight(), expected)
        if threads:
            assert made.nbytes == weight.raw.nbytes


@pytest.mark.parametrize("numerics", [FLOAT32, REFERENCE, FLOAT32_QAT], ids=lambda n: n.name)
def test_exact_modes_never_use_kernels_that_round(numerics: Numerics) -> None:
    weights_of_two = {"w.weight": in_blocks("Q8_0", 8, 64), "v.weight": in_blocks("MXFP4", 8, 64)}
    found = tensors(weights_of_two, numerics, threads=1)

    assert isinstance(found.linear("w", 8, 64), Dense)
    made = found.linear("v", 8, 64)
    assert isinstance(made, Tiled)
    expected = torch.from_numpy(weights_of_two["v.weight"].rows(0, 8)).to(numerics.dtype)
    assert torch.equal(made.weight(), expected)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0", "MXFP4"])
def test_views_of_blocks_are_multiplied_as_blocks(kind: str) -> None:
    whole = in_blocks(kind, 3 * 40, 512)
    stack = [Portion(Reshaped(whole, (3, 40, 512)), (40, 512), 40 * e) for e in range(3)]
    found = {f"e.{e}.weight": each for e, each in enumerate(stack)}
    found["s.weight"] = Stacked(tuple(stack), (120, 512))
    with closing(tensors(found, FAST, threads=1)) as taken:
        bank, made = taken.bank("e.{e}", 3, 40, 512), taken.linear("s", 120, 512)
        x = activations(1, 512).bfloat16()
        numbers = whole.rows(0, 120).astype(float)

        assert isinstance(bank, PackedBank)
        assert isinstance(made, Packed)
        assert rms(made(x), x.double().numpy() @ numbers.T) < 0.012
        assert np.array_equal(bank.weight(2).float().numpy(), brain(numbers[80:]))


def brain(numbers: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(torch.from_numpy(numbers.astype(np.float32)).bfloat16().float().numpy())


@pytest.mark.parametrize("tokens", [0, 1, 6, 40])
@pytest.mark.parametrize("shape", [(64, 256), (41, 96)], ids=str)
def test_experts_of_four_bits_go_through_libggml(
    tmp_path: Path, shape: tuple[int, int], tokens: int
) -> None:
    case, numbers = bank_case("fp4", 5, shape)
    with closing(tensors(weights(tmp_path, case.stored), FAST, threads=1)) as found:
        made = found.bank("e.{e}", 5, *shape)
        chosen = torch.from_numpy(G(3).integers(0, 5, (tokens, 2)))

        assert isinstance(made, PackedBank)
        for x in (activations(tokens, shape[1]), activations(tokens, 2, shape[1])):
            outputs = made(x.bfloat16(), chosen)
            each = x[:, None].expand(-1, 2, -1) if x.ndim == 2 else x
            expected = np.einsum(
                "tkc,tkrc->tkr", each.bfloat16().double().numpy(), numbers[chosen.numpy()]
            )
            assert outputs.shape == expected.shape
            assert not tokens or rms(outputs, expected) < 0.012
        expected_weight = torch.from_numpy(numbers[4].astype(np.float32)).bfloat16()
        assert torch.equal(made.weight(4), expected_weight)


@pytest.mark.parametrize("tokens", [1, 8, 9])
def test_plain_numbers_are_read_by_both_libraries_where_they_lie(
    tmp_path: Path, tokens: int
) -> None:
    case, numbers = bank_case("plain", 3, (48, 64))
    with closing(tensors(weights(tmp_path, case.stored), FAST, threads=1)) as found:
        made = found.linear("e.0", 48, 64)
        x = activations(tokens, 64).bfloat16()

        assert isinstance(made, Brain)
        assert made.products.weights.memory(0, 48).ctypes.data == made.weight().data_ptr()
        near(made(x), x, numbers[0], off(FAST))


def test_experts_of_plain_numbers_too(tmp_path: Path) -> None:
    case, numbers = bank_case("plain", 3, (48, 64))
    with closing(tensors(weights(tmp_path, case.stored), FAST, threads=1)) as found:
        made = found.bank("e.{e}", 3, 48, 64)

        assert isinstance(made, BrainBank)
        for tokens in (1, 8, 9):
            x = activations(tokens, 64).bfloat16()
            chosen = torch.from_numpy(G(1).integers(0, 3, (tokens, 2)))
            outputs = made(x, chosen)
            for token in range(tokens):
                for choice in range(2):
                    expert = int(chosen[token, choice])
                    near(outputs[token, choice][None], x[token][None], numbers[expert], off(FAST))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0", "Q4_K", "Q4_1", "IQ4_XS"])
def test_libggml_hides_nothing_that_is_not_finite(kind: str, bad: float) -> None:
    stored = {name: in_blocks(kind, 16, 512) for name in ("w.weight", "e.0.weight", "e.1.weight")}
    with closing(tensors(stored, FAST, 1)) as found:
        made, bank = found.linear("w", 16, 512), found.bank("e.{e}", 2, 16, 512)
        for tokens in (1, 5):
            x = activations(tokens, 512).bfloat16()
            own = activations(tokens, 2, 512).bfloat16()
            x[0, 3] = own[0, 1, 3] = bad
            chosen = torch.tensor([[0, 1]]).expand(tokens, -1)

            assert not made(x)[0].isfinite().any()
            assert not bank(x, chosen)[0].isfinite().any()
            outputs = bank(own, chosen)
            assert not outputs[0, 1].isfinite().any()
            assert outputs[0, 0].isfinite().all()
            assert made(x)[1:].isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("shape", [(64, 256), (41, 96)], ids=str)
def test_codes_in_a_releases_order_give_the_bits_of_ggmls(
    tmp_path: Path, shape: tuple[int, int], tokens: int
) -> None:
    case, _ = bank_case("fp4", 5, shape)
    released = weights(tmp_path, case.stored)
    moved = {
        name: InBlocks("MXFP4", weight.blocks("MXFP4", 0, shape[0]), shape)  # type: ignore[arg-type]
        for name, weight in released.items()
    }
    x, own = activations(tokens, shape[1]), activations(tokens, 2, shape[1])
    x[0, 5], own[-1, 1, 2] = 1e4, -1e4
    chosen = torch.from_numpy(G(3).integers(0, 5, (tokens, 2)))
    made = []
    for found in (released, moved):
        with closing(tensors(found, FAST, threads=1)) as taken:
            bank = taken.bank("e.{e}", 5, *shape)
            assert isinstance(bank, PackedBank)
            laid_out = bank.products.weights.layout != "CPU"
            made.append([bank(x, chosen), bank(own, chosen)])
        alone = {"w.weight": found["e.2.weight"]}
        with closing(tensors(alone, FAST, threads=1)) as taken:
            single = taken.linear("w", *shape)
            made[-1] += [single(x), single(own), single.weight()]

    kept = made if laid_out else [each[2:] for each in made]
    assert all(torch.equal(*both) for both in zip(*kept, strict=True))
    for found, expected in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_products_are_kept_for_few_tokens_and_no_more_than_some() -> None:
    with closing(tensors({"w.weight": in_blocks("Q8_0", 8, 64)}, FAST, 1)) as found:
        made = found.linear("w", 8, 64)
        assert isinstance(made, Packed)
        for tokens in (1, 2, 3, 4, 5, 6, 7, 100, 1):
            made(torch.ones(tokens, 64, dtype=torch.bfloat16))

        kept = [tokens for tokens, _, _ in made.products._kept]
        assert kept == [3, 4, 5, 6, 7, 1]


def test_what_was_given_out_is_not_overwritten() -> None:
    with closing(tensors({"w.weight": in_blocks("Q8_0", 8, 64)}, FAST, 1)) as found:
        made = found.linear("w", 8, 64)
        first = made(torch.ones(1, 64))
        before = first.clone()
        made(torch.zeros(1, 64))

        assert torch.equal(first, before)


def test_decoded_rows_stand_in_memory_that_is_used_again() -> None:
    kernels = Kernels()
    first = kernels.room(0, CPU, torch.int16, 4, 8)

    assert kernels.room(0, CPU, torch.bfloat16, 2, 8).data_ptr() == first.data_ptr()
    assert kernels.room(1, CPU, torch.int16, 4, 8).data_ptr() != first.data_ptr()
    assert tile_rows(1 << 30, CPU) == 1
    with pytest.raises(UsageError, match="threads"):
        kernels.set_threads(-1)


@pytest.mark.parametrize("kind", ["MXFP4", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("repack", [False, True])
def test_a_stack_filled_one_by_one_is_the_stack(kind: str, repack: bool) -> None:
    from localrun.ggml.matmul import Threads, mul_mat_id

    rows, columns = 48, 512
    raw = in_blocks(kind, 4 * rows, columns).raw
    whole = Weights(kind, rows, columns, raw, experts=4, repack=repack)
    single = Weights(kind, rows, columns, None, experts=4, repack=repack)
    x = activations(7, columns).numpy()
    chosen = G(2).integers(0, 4, (7, 2))
    with closing(Threads(1)) as threads, closing(whole), closing(single):
        for expert in range(4):
            single.put(expert, raw[expert * rows : (expert + 1) * rows])

        assert single.layout == whole.layout
        found = mul_mat_id(single, threads, x, chosen)
        assert np.array_equal(found, mul_mat_id(whole, threads, x, chosen))
        with pytest.raises(UsageError, match="matrix 4 of 4"):
            single.put(4, raw[:rows])
        with pytest.raises(UsageError, match="bytes are not"):
            single.put(0, raw[: rows - 1])


def test_rows_of_weights_can_be_written_in_place() -> None:
    raw = in_blocks("Q8_0", 6, 64).raw
    with closing(Weights("Q8_0", 6, 64, None)) as found:
        found.memory(0, 6)[:] = raw.reshape(-1)

        assert np.array_equal(found.memory(2, 4), raw[2:4].reshape(-1))
        with pytest.raises(UsageError, match="rows 3 to 7"):
            found.memory(3, 7)
    assert row_size("Q8_0", 64) == raw.shape[1]

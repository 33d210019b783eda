"""Every stored form of a matrix, against products in float64 of numbers decoded by other means."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.backends.torch.matrices.dense import Dense, DenseBank
from localrun.backends.torch.matrices.fp8 import Bytes, bytes_of
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.backends.torch.matrices.tiles import Tiled, TiledBank
from localrun.backends.torch.numerics import FAST, FLOAT32, Numerics
from tests.matrices import (
    BANKS,
    E2M1,
    FORMS,
    MODES,
    SHAPES,
    activations,
    bank_case,
    by_torch,
    fp4,
    fp8,
    near,
    off,
    tensors,
)
from tests.stored import FP8, close_all, e4m3, weights


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("numerics", [FLOAT32, FAST], ids=lambda n: n.name)
@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_that_of_the_numbers(
    tmp_path: Path, form: str, numerics: Numerics, shape: tuple[int, int]
) -> None:
    case = FORMS[form]("w", *shape, 1)
    found = weights(tmp_path, case.stored, case.quantization)
    # Of others libggml rounds activations, see test_torch_packed.py.
    threads = 2 if form.startswith("fp8") else 0
    made = tensors(found, numerics, threads).linear("w", *shape)

    assert (made.rows, made.columns) == shape
    for tokens in (1, 2, 5, 40):
        x = activations(tokens, shape[1]).to(numerics.dtype)
        found = made(x)
        assert found.dtype == numerics.dtype
        near(found, x, case.numbers, off(numerics))
        assert torch.equal(made(x.reshape(1, tokens, -1)), found[None])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("numerics", MODES, ids=lambda n: n.name)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_decoded_to_the_last_bit(
    tmp_path: Path, form: str, numerics: Numerics, shape: tuple[int, int]
) -> None:
    case = FORMS[form]("w", *shape, 2)
    made = tensors(weights(tmp_path, case.stored, case.quantization), numerics).linear("w", *shape)

    expected = torch.from_numpy(case.numbers.astype(np.float32)).to(numerics.dtype)
    assert torch.equal(made.weight(), expected)


@pytest.mark.parametrize(
    ("form", "kind", "share"),
    [
        ("plain", Dense, 16),
        ("fp8-128", Tiled, 8),
        ("fp8-f32", Tiled, 8),
        ("fp8-row", Tiled, 8),
        ("fp4", Tiled, 4.25),
        ("w4a16", Tiled, 5),
        ("w4a16-zeros", Tiled, 6),
    ],
)
def test_weights_stay_as_they_are_stored(
    tmp_path: Path, form: str, kind: type, share: float
) -> None:
    rows, columns = 1024, 1024
    case = FORMS[form]("w", rows, columns, 1)
    found = tensors(weights(tmp_path, case.stored, case.quantization), FAST)

    made = found.linear("w", rows, columns)

    assert isinstance(made, kind)
    assert 1 <= 8 * made.nbytes / (share * rows * columns) < 1.01


def test_all_scales_of_eight_bits_keep_their_numbers(tmp_path: Path) -> None:
    """Those too large to take the difference of the biases in, and the smallest."""
    codes = e4m3((255, 64), 4)
    powers = np.arange(255, dtype=np.uint8)[:, None].repeat(2, 1)
    powers[-9:] = 200
    expected = by_torch(codes) * np.ldexp(1.0, powers.astype(int) - 127).repeat(32, 1)
    stored = {"w.weight": ("F8_E4M3", codes), "w.scale": ("F8_E8M0", powers)}

    found = weights(tmp_path, stored)

    for numerics in (FLOAT32, FAST):
        made = tensors(found, numerics).linear("w", 255, 64)
        wanted = torch.from_numpy(expected.astype(np.float32)).to(numerics.dtype)
        assert torch.equal(made.weight(), wanted)


@pytest.mark.parametrize("largest", [128, 129, 200])
def test_large_and_small_exponents_of_fours_are_exact(tmp_path: Path, largest: int) -> None:
    case = fp4("w", 64, 64, 3)
    powers = np.array([0, 1, 2, 100, 127, 128, largest, largest], np.uint8).repeat(8)[:, None]
    powers = powers.repeat(2, 1)
    packed = case.stored["w.weight"][1]
    codes = packed.view(np.uint8)
    numbers = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(64, 64)
    expected = numbers * np.ldexp(1.0, powers.astype(int) - 127).repeat(32, 1)

    made = weights(tmp_path, {"w.weight": ("I8", packed), "w.scale": ("F8_E8M0", powers)})

    for numerics in (FLOAT32, FAST):
        wanted = torch.from_numpy(expected.astype(np.float32)).to(numerics.dtype)
        assert torch.equal(tensors(made, numerics).linear("w", 64, 64).weight(), wanted)


@pytest.mark.parametrize("tokens", [1, 4, 6])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e20])
def test_activations_of_any_size_meet_eight_bits(tmp_path: Path, scale: float, tokens: int) -> None:
    case = fp8("w", 256, 384, "e8m0", 128, 5)
    found = weights(tmp_path, case.stored, case.quantization)
    made = tensors(found, FAST, threads=1).linear("w", 256, 384)
    x = (activations(tokens, 384) * scale).bfloat16()
    x[:, 7] *= 300

    near(made(x), x, case.numbers, off(FAST))
    assert torch.equal(made(torch.zeros_like(x)), torch.zeros(tokens, 256).bfloat16())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [1, 6])
def test_what_is_not_finite_is_not_hidden(tmp_path: Path, tokens: int, bad: float) -> None:
    case = fp8("w", 256, 384, "e8m0", 128, 5)
    found = weights(tmp_path, case.stored, case.quantization)
    made = tensors(found, FAST, threads=1).linear("w", 256, 384)
    x = activations(tokens, 384).bfloat16()
    x[0, 3] = bad

    assert not made(x)[0].isfinite().all()


def test_a_large_sum_of_few_tokens_does_not_overflow(tmp_path: Path) -> None:
    """All of 448 and all of one sign, in more columns than float16's largest number allows."""
    rows, columns = 32, 65536
    stored = {
        "w.weight": ("F8_E4M3", np.full((rows, columns), 0x7E, np.uint8)),
        "w.scale": ("F8_E8M0", np.full((1, columns // 128), 127, np.uint8)),
    }
    made = tensors(weights(tmp_path, stored, FP8), FAST, threads=1).linear("w", rows, columns)

    found = made(torch.ones(1, columns, dtype=torch.bfloat16)).double()

    torch.testing.assert_close(
        found, torch.full((1, rows), 448.0 * columns).double(), rtol=2**-8, atol=0
    )


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="see halves.py")
@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [
        (96, 64, 32, 32),
        (100, 72, 32, 32),
        (2100, 1000, 32, 32),
        (2100, 1000, 128, 128),
        (3000, 1000, 3000, 1000),
        (5000, 1000, 2400, 100),
    ],
)
def test_tiles_of_float16_hold_lines_of_any_height(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, height: int, width: int
) -> None:
    """More than one tile, lines higher than one, and ends that fill neither."""
    random = np.random.default_rng(1)
    codes = e4m3((rows, columns), 3)
    powers = random.integers(-9, -3, (-(-rows // height), -(-columns // width)))
    scales = np.ldexp(np.float32(1), powers)
    made = bytes_of(torch.from_numpy(codes), torch.from_numpy(scales), height, width)
    made.scaled(0, scales)
    wide = scales.repeat(height, 0)[:rows].repeat(width, 1)[:, :columns]
    kernels = Kernels(2)
    monkeypatch.setattr(Bytes, "decode", None)  # nothing else may do it

    for tokens in (1, 3, 1):
        x = activations(tokens, columns).bfloat16()
        found = made.few(x, kernels)
        assert found is not None
        near(found, x, by_torch(codes) * wide, off(FAST))
    kernels.close()
    kernels.close()


CHOSEN = torch.tensor([[0, 3], [3, 3], [1, 0], [3, 1], [0, 0], [4, 3]])


@pytest.mark.parametrize("shape", [(128, 256), (70, 96), (45, 164)], ids=str)
@pytest.mark.parametrize("numerics", [FLOAT32, FAST], ids=lambda n: n.name)
@pytest.mark.parametrize("form", BANKS)
def test_each_token_meets_the_experts_it_chose(
    tmp_path: Path, form: str, numerics: Numerics, shape: tuple[int, int]
) -> None:
    case, numbers = bank_case(form, 5, shape)
    found = tensors(weights(tmp_path, case.stored, case.quantization), numerics)
    made = found.bank("e.{e}", 5, *shape)

    each = ((tokens, middle) for tokens in (0, 1, 6) for middle in ((), (2,)))
    for tokens, middle in each:
        x, chosen = activations(tokens, *middle, shape[1]), CHOSEN[:tokens]
        outputs = made(x.to(numerics.dtype), chosen)
        assert outputs.shape == (tokens, 2, shape[0])
        assert outputs.dtype == numerics.dtype
        for token in range(tokens):
            for choice in range(2):
                own = x[token] if x.ndim == 2 else x[token, choice]
                own, expert = own.to(numerics.dtype)[None], int(chosen[token, choice])
                near(outputs[token, choice][None], own, numbers[expert], off(numerics))
    assert made.count == 5
    expected = torch.from_numpy(numbers[3].astype(np.float32)).to(numerics.dtype)
    assert torch.equal(made.weight(3), expected)
    assert made.nbytes == 5 * made.expert_nbytes


def test_experts_stored_in_different_ways_become_numbers(tmp_path: Path) -> None:
    cases = [fp4("e.0", 64, 64, 1), fp8("e.1", 64, 64, "e8m0", 128, 1)]
    stored = {name: each for case in cases for name, each in case.stored.items()}

    made = tensors(weights(tmp_path, stored, FP8), FLOAT32).bank("e.{e}", 2, 64, 64)

    assert isinstance(made, DenseBank)
    for number, case in enumerate(cases):
        assert np.array_equal(made.weight(number).numpy(), case.numbers)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    rows=st.integers(1, 300),
    columns=st.integers(1, 80).map(lambda n: 4 * n),
    tokens=st.integers(0, 9),
    seed=st.integers(0, 1000),
    numerics=st.sampled_from([FAST, FLOAT32]),
    tile=st.sampled_from([64, 1000, 1 << 20]),
)
def test_any_matrix_in_any_tiles(
    form: str,
    rows: int,
    columns: int,
    tokens: int,
    seed: int,
    numerics: Numerics,
    tile: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from localrun.backends.torch.matrices import kernels

    case = FORMS[form]("w", rows, columns, seed)
    stored = weights(tmp_path_factory.mktemp("any"), case.stored, case.quantization)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernels._TILE, "cpu", tile)
        made = tensors(stored, numerics).linear("w", rows, columns)
        x = activations(tokens, columns, seed=seed).to(numerics.dtype)
        expected = torch.from_numpy(case.numbers.astype(np.float32)).to(numerics.dtype)

        assert torch.equal(made.weight(), expected)
        near(made(x), x, case.numbers, off(numerics))


def test_a_bank_of_eight_bits_keeps_each_expert_apart(tmp_path: Path) -> None:
    case, _ = bank_case("fp8-128", 2, (45, 164))

    made = tensors(weights(tmp_path, case.stored, case.quantization), FAST).bank(
        "e.{e}", 2, 45, 164
    )

    assert isinstance(made, TiledBank)

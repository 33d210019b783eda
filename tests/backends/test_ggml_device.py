"""Products in a device's memory, held against numpy's; the CPU is the device every machine has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from localrun.errors import EngineError, UsageError
from localrun.ggml import device as room
from localrun.ggml.device import Device, Matrices, Products, Staging, Stream, devices
from localrun.ggml.quantize import dequantize
from localrun.ggml.types import row_size
from localrun.ggml.weights import base

COLUMNS, ROWS = 512, 24
# Half-precision scales of these bytes are ordinary numbers, wherever a type keeps its own.
ORDINARY = np.array([*range(0x20, 0x3C), *range(0xA0, 0xBC)], np.uint8)
# Relative to the spread of the products: quantized weights meet activations of 8 bits.
TYPES = {"F32": 1e-6, "F16": 2**-11, "Q8_0": 0.012, "Q4_K": 0.012, "Q6_K": 0.012, "MXFP4": 0.012}


def blocks(kind: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(ORDINARY, (ROWS, row_size(kind, COLUMNS)))


def normal(tokens: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((tokens, COLUMNS)).astype(np.float32)


@pytest.fixture(scope="module")
def cpu() -> Device:
    return next(device for device in devices() if device.name == "CPU")


@pytest.fixture(scope="module")
def stream(cpu: Device) -> Iterator[Stream]:
    with closing(Stream(cpu)) as opened:
        yield opened


@pytest.fixture
def matrices(stream: Stream) -> Iterator[Matrices]:
    with closing(Matrices(stream, "Q8_0", ROWS, COLUMNS, 2)) as made:
        for at in range(2):
            made.put(at, blocks("Q8_0", at))
        yield made


def test_a_device_says_its_name_and_memory(cpu: Device) -> None:
    assert cpu.description
    assert cpu.free > 1 << 20


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("kind", TYPES)
def test_each_matrix_multiplies_the_same_activations(
    kind: str, tokens: int, stream: Stream
) -> None:
    data = [blocks(kind, seed) for seed in range(3)]
    activations = normal(tokens)
    weights = np.stack([dequantize(kind, each, COLUMNS) for each in data]).astype(float)
    expected = np.einsum("tc,mrc->mtr", activations.astype(float), weights)

    with ExitStack() as stack:
        on_device = stack.enter_context(closing(Matrices(stream, kind, ROWS, COLUMNS, 3)))
        for at, each in enumerate(data):
            on_device.put(at, each)
        products = stack.enter_context(closing(Products(stream, on_device, activations)))
        products.run()
        found = products.outputs()

    assert found.shape == (3, tokens, ROWS)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error < 1.5 * TYPES[kind]


def test_a_run_sees_the_weights_that_were_put_last(stream: Stream, matrices: Matrices) -> None:
    with closing(Products(stream, matrices, normal(1))) as products:
        products.run()
        first, second = products.outputs()
        matrices.put(0, blocks("Q8_0", 1))
        products.run()

        np.testing.assert_array_equal(products.outputs(), [second, second])
    assert (first != second).any()


def test_fewer_matrices_than_there_are_may_be_multiplied_by(
    stream: Stream, matrices: Matrices
) -> None:
    with closing(Products(stream, matrices, normal(2), count=1)) as products:
        products.run()

        assert products.outputs().shape == (1, 2, ROWS)


def test_staged_bytes_arrive(cpu: Device, stream: Stream, matrices: Matrices) -> None:
    with closing(Staging(cpu, matrices.nbytes)) as staging:
        staging.data[:] = blocks("Q8_0", 1).reshape(-1)
        matrices.put(0, staging.data)
        assert staging.data.nbytes == matrices.nbytes
        assert not staging.pinned  # the CPU copies from any memory alike

    with closing(Products(stream, matrices, normal(1))) as products:
        products.run()
        np.testing.assert_array_equal(*products.outputs())


def test_bytes_staged_in_memory_of_the_devices_own_arrive(
    cpu: Device, stream: Stream, matrices: Matrices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU has no pinned memory: its plain buffers stand for it."""
    plain = base("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()

    def with_host_buffers(name: str, *prototype: Any) -> Any:
        if name == "ggml_backend_dev_host_buffer_type":
            return lambda device: plain
        return base(name, *prototype)

    monkeypatch.setattr(room, "base", with_host_buffers)
    staging = Staging(cpu, matrices.nbytes)
    assert staging.pinned
    staging.data[:] = blocks("Q8_0", 1).reshape(-1)
    matrices.put(0, staging.data)
    staging.close()
    staging.close()

    with closing(Products(stream, matrices, normal(1))) as products:
        products.run()
        np.testing.assert_array_equal(*products.outputs())


REFUSED: dict[str, Callable[[Stream, Matrices], object]] = {
    "no such type": lambda stream, matrices: Matrices(stream, "Q9_K", ROWS, COLUMNS),
    "part of a block": lambda stream, matrices: Matrices(stream, "Q4_K", ROWS, 100),
    "no rows": lambda stream, matrices: Matrices(stream, "Q8_0", 0, COLUMNS),
    "no matrices": lambda stream, matrices: Matrices(stream, "Q8_0", ROWS, COLUMNS, 0),
    "too few bytes": lambda stream, matrices: matrices.put(0, blocks("Q8_0", 0)[1:]),
    "bytes in pieces": lambda stream, matrices: matrices.put(
        0, np.repeat(blocks("Q8_0", 0), 2, axis=1)[:, ::2]
    ),
    "other columns": lambda stream, matrices: Products(stream, matrices, normal(1)[:, :256]),
    "no tokens": lambda stream, matrices: Products(stream, matrices, normal(0)),
    "one dimension": lambda stream, matrices: Products(stream, matrices, normal(1)[0]),
    "products by none": lambda stream, matrices: Products(stream, matrices, normal(1), count=0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_end_the_process_is_refused(
    case: str, stream: Stream, matrices: Matrices
) -> None:
    with pytest.raises(UsageError):
        REFUSED[case](stream, matrices)


def test_more_than_a_device_holds_is_an_error(stream: Stream) -> None:
    with pytest.raises(EngineError, match="no memory"):
        Matrices(stream, "F32", 1 << 40, COLUMNS)


def test_a_type_that_a_device_does_not_multiply_by_is_said(
    stream: Stream, matrices: Matrices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "multiplies", lambda node: False)

    with pytest.raises(EngineError, match="CPU does not multiply by Q8_0"):
        Products(stream, matrices, normal(1))


def test_what_was_closed_is_not_computed_with(cpu: Device) -> None:
    stream = Stream(replace(cpu))
    matrices = Matrices(stream, "Q8_0", ROWS, COLUMNS)
    products = Products(stream, matrices, normal(1))
    products.close()
    products.close()
    for use in (products.run, products.outputs):
        with pytest.raises(EngineError, match="have been closed"):
            use()
    other = Products(stream, matrices, normal(1))
    matrices.close()
    matrices.close()
    with pytest.raises(EngineError, match="have been closed"):
        other.run()
    with pytest.raises(EngineError, match="have been closed"):
        matrices.put(0, blocks("Q8_0", 0))
    other.close()
    stream.close()
    stream.close()
    with pytest.raises(EngineError, match="stream has been closed"):
        stream.compute(0)

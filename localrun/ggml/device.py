"""Knows no model: products of one matrix after another in the memory of any device ggml drives.

Every device answers to the same calls, the CPU among them (ggml-backend.h, ggml-alloc.h). Close
what lies on a stream before the stream. One thread at a time uses a stream.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from localrun.errors import EngineError, UsageError
from localrun.ggml.library import function
from localrun.ggml.types import row_size, type_number
from localrun.ggml.weights import F32, Tensors, aligned, base, send

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_POINTER: Final = ctypes.c_void_p
_SIZE: Final = ctypes.c_size_t
_WEIGHTS: Final = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS


@dataclass(frozen=True, slots=True)
class Device:
    """``handle`` is its ``ggml_backend_dev_t``; ``description`` the name that its driver gives it;
    ``free`` what the driver says is unused now, in bytes."""

    handle: int
    name: str
    description: str
    free: int


def devices() -> tuple[Device, ...]:
    """Every device that this build was made for and finds, in the order of ggml's registry.

    Raises:
        BackendMissingError: the library is absent or does not load.
    """
    count = function("ggml", "ggml_backend_dev_count", _SIZE)()
    get = function("ggml", "ggml_backend_dev_get", _POINTER, _SIZE)
    return tuple(_device(get(at)) for at in range(count))


def _device(handle: int) -> Device:
    name = base("ggml_backend_dev_name", ctypes.c_char_p, _POINTER)(handle)
    description = base("ggml_backend_dev_description", ctypes.c_char_p, _POINTER)(handle)
    sizes = ctypes.POINTER(_SIZE)
    free, total = _SIZE(), _SIZE()
    base("ggml_backend_dev_memory", None, _POINTER, sizes, sizes)(
        handle, ctypes.byref(free), ctypes.byref(total)
    )
    return Device(handle, name.decode(), description.decode("utf-8", "replace"), free.value)


class Stream:
    """What computes on one device, a graph at a time."""

    def __init__(self, device: Device) -> None:
        self.device = device
        start = base("ggml_backend_dev_init", _POINTER, _POINTER, ctypes.c_char_p)
        self._backend: int | None = start(device.handle, None)
        if self._backend is None:
            raise EngineError(f"{device.name}: the library cannot compute on this device")

    def allocate(self, tensors: Tensors) -> int:
        """The buffer that a context's tensors now lie in, on the device; freed with them.

        Raises:
            EngineError: the device has no such memory.
        """
        put = base("ggml_backend_alloc_ctx_tensors", _POINTER, *[_POINTER] * 2)
        buffer: int | None = put(tensors.context, self._open())
        if buffer is None:
            raise EngineError(f"{self.device.name}: no memory for the tensors of a product")
        tensors.hold(buffer)
        return buffer

    def compute(self, graph: int) -> None:
        """Compute a graph and wait for its end.

        Raises:
            EngineError: the library could not.
        """
        run = base("ggml_backend_graph_compute", ctypes.c_int, *[_POINTER] * 2)
        status = run(self._open(), graph)
        base("ggml_backend_synchronize", None, _POINTER)(self._open())
        if status != 0:
            raise EngineError(f"{self.device.name}: a product failed with status {status}")

    def multiplies(self, node: int) -> bool:
        """Whether the device computes this product."""
        supports = base("ggml_backend_dev_supports_op", ctypes.c_bool, *[_POINTER] * 2)
        return bool(supports(self.device.handle, node))

    def _open(self) -> int:
        if self._backend is None:
            raise EngineError(f"{self.device.name}: this stream has been closed")
        return self._backend

    def close(self) -> None:
        """Again does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None:
            base("ggml_backend_free", None, _POINTER)(backend)


class Staging:
    """Host memory that a device copies from at its best: pinned where the device has such memory,
    ordinary memory elsewhere. ``pinned`` says which; ``data`` are the bytes, valid until closed."""

    def __init__(self, device: Device, nbytes: int) -> None:
        import numpy as np

        self._buffer: int | None = None
        kind = base("ggml_backend_dev_host_buffer_type", _POINTER, _POINTER)(device.handle)
        if kind is not None:
            new = base("ggml_backend_buft_alloc_buffer", _POINTER, _POINTER, _SIZE)
            self._buffer = new(kind, nbytes)
        self.pinned = self._buffer is not None
        if self._buffer is None:
            self.data: NDArray[np.uint8] = aligned(nbytes)
            return
        start = base("ggml_backend_buffer_get_base", _POINTER, _POINTER)(self._buffer)
        self.data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))

    def close(self) -> None:
        """Again does nothing."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            base("ggml_backend_buffer_free", None, _POINTER)(buffer)


class Matrices:
    """``count`` matrices of ``rows`` × ``columns`` in a device's memory, ``nbytes`` each, empty.

    Raises:
        UsageError: no such type, or rows that are not whole blocks of it.
        EngineError: no memory on the device.
    """

    def __init__(self, stream: Stream, type: str, rows: int, columns: int, count: int = 1) -> None:
        if rows < 1 or count < 1:
            raise UsageError(f"{count} matrices of {rows} rows")
        self.type, self.rows, self.columns = type, rows, columns
        self.nbytes = rows * row_size(type, columns)
        self._tensors = Tensors(tensors=count)
        self.handles = [self._tensors.new(type_number(type), columns, rows) for _ in range(count)]
        try:
            buffer = stream.allocate(self._tensors)
        except EngineError:
            self._tensors.close()
            raise
        base("ggml_backend_buffer_set_usage", None, _POINTER, ctypes.c_int)(buffer, _WEIGHTS)

    def put(self, at: int, data: NDArray[np.uint8]) -> None:
        """Copy a matrix's blocks, row after row, to the device, and wait for it.

        Raises:
            UsageError: not that many bytes in one piece.
            EngineError: closed.
        """
        if self.closed:
            raise EngineError("these matrices have been closed")
        if data.nbytes != self.nbytes or not data.flags.c_contiguous:
            raise UsageError(f"{data.nbytes} bytes are not the {self.nbytes} of a matrix")
        send(self.handles[at], data)

    @property
    def closed(self) -> bool:
        return self._tensors.context is None

    def close(self) -> None:
        """Give the device's memory back. Again does nothing."""
        self._tensors.close()


class Products:
    """Products of the same ``activations``, ``[tokens, columns]``, by each of the first ``count``
    matrices, in one graph: made once and run as often as wanted. Close it before the matrices.

    Raises:
        UsageError: activations of another shape.
        EngineError: no memory on the device, or it does not multiply by this type.
    """

    def __init__(
        self,
        stream: Stream,
        matrices: Matrices,
        activations: NDArray[np.float32],
        count: int | None = None,
    ) -> None:
        import numpy as np

        self._stream, self._matrices = stream, matrices
        used = matrices.handles[:count]
        values = np.ascontiguousarray(activations, np.float32)
        if values.ndim != 2 or values.shape[1] != matrices.columns or not values.size or not used:
            raise UsageError(
                f"activations of shape {values.shape} by {len(used)} matrices of"
                f" {matrices.columns} columns"
            )
        self.tokens = len(values)
        self._tensors = Tensors(graph_nodes=2 * len(used) + 2, tensors=len(used) + 1)
        try:
            self._build(used, values)
        except EngineError:
            self._tensors.close()
            raise

    def _build(self, used: list[int], values: NDArray[np.float32]) -> None:
        context = self._tensors.context
        inputs = self._tensors.new(F32, self._matrices.columns, self.tokens)
        multiply = base("ggml_mul_mat", _POINTER, *[_POINTER] * 3)
        self._nodes = [int(multiply(context, weights, inputs)) for weights in used]
        self._stream.allocate(self._tensors)
        if not self._stream.multiplies(self._nodes[0]):
            raise EngineError(
                f"{self._stream.device.name} does not multiply by {self._matrices.type}"
            )
        send(inputs, values)
        new = base("ggml_new_graph_custom", _POINTER, _POINTER, _SIZE, ctypes.c_bool)
        self._graph = new(context, 2 * len(used) + 2, False)
        for node in self._nodes:
            base("ggml_build_forward_expand", None, *[_POINTER] * 2)(self._graph, node)

    def run(self) -> None:
        """Compute every product; returns when all are done.

        Raises:
            EngineError: closed, or the library could not.
        """
        self._require()
        self._stream.compute(self._graph)

    def outputs(self) -> NDArray[np.float32]:
        """What the last run computed: ``[count, tokens, rows]``, copied from the device.

        Raises:
            EngineError: closed.
        """
        import numpy as np

        self._require()
        found = np.empty((len(self._nodes), self.tokens, self._matrices.rows), np.float32)
        get = base("ggml_backend_tensor_get", None, *[_POINTER] * 2, *[_SIZE] * 2)
        for node, output in zip(self._nodes, found, strict=True):
            get(node, output.ctypes.data, 0, output.nbytes)
        return found

    def _require(self) -> None:
        if self._tensors.context is None or self._matrices.closed:
            raise EngineError("these products, or their matrices, have been closed")

    def close(self) -> None:
        """Again does nothing."""
        self._tensors.close()

"""Knows no file: one matrix, or a stack of experts' matrices, where ggml's CPU kernels read it."""

from __future__ import annotations

import ctypes
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from localrun.errors import EngineError, UsageError
from localrun.ggml.library import function
from localrun.ggml.types import row_size, type_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ALIGNMENT: Final = 64  # a cache line; ggml asks for 32
_POINTER: Final = ctypes.c_void_p
_PLAIN: Final = "CPU"
_CPU: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
F32: Final = 0
I32: Final = 26


class _InitParameters(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def base(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml's base library."""
    return function("ggml-base", name, result, *arguments)


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialised memory that begins on a cache line."""
    import numpy as np

    memory: NDArray[np.uint8] = np.empty(nbytes + _ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % _ALIGNMENT
    return memory[skip : skip + nbytes]


class Tensors:
    """A ggml context that describes tensors and a graph, and memory of numpy's that they lie in.

    A view of such memory outlives the context; ``close`` frees the descriptions alone.
    """

    def __init__(self, graph_nodes: int = 0, tensors: int = 8) -> None:
        size = tensors * base("ggml_tensor_overhead", ctypes.c_size_t)()
        if graph_nodes:
            overhead = base(
                "ggml_graph_overhead_custom", ctypes.c_size_t, ctypes.c_size_t, ctypes.c_bool
            )
            size += overhead(graph_nodes, False)
        init = base("ggml_init", _POINTER, _InitParameters)
        self.context: int | None = init(_InitParameters(size, None, True))
        if self.context is None:
            raise EngineError("libggml has no memory for a graph")
        self._buffers: list[int] = []
        self._memory: list[NDArray[np.uint8]] = []

    def new(self, number: int, *shape: int) -> int:
        """A tensor of ``enum ggml_type``, innermost dimension first."""
        make = base(
            f"ggml_new_tensor_{len(shape)}d", _POINTER, _POINTER, ctypes.c_int,
            *[ctypes.c_int64] * len(shape),
        )  # fmt: skip
        return int(make(self.context, number, *shape))

    def lay(self, tensor: int, memory: NDArray[np.uint8]) -> None:
        """Let a tensor lie in aligned memory of its size."""
        wrap = base("ggml_backend_cpu_buffer_from_ptr", _POINTER, _POINTER, ctypes.c_size_t)
        buffer = wrap(memory.ctypes.data, memory.nbytes)
        self.hold(buffer)
        self._memory.append(memory)
        allocate = base("ggml_backend_tensor_alloc", ctypes.c_int, *[_POINTER] * 3)
        if allocate(buffer, tensor, memory.ctypes.data) != 0:
            raise EngineError("libggml does not take the memory of a tensor")

    def hold(self, buffer: int) -> None:
        """Free a buffer with this context."""
        self._buffers.append(buffer)

    def close(self) -> None:
        """Again does nothing."""
        context, self.context = self.context, None
        if context is None:
            return
        for buffer in self._buffers:
            base("ggml_backend_buffer_free", None, _POINTER)(buffer)
        base("ggml_free", None, _POINTER)(context)
        self._buffers, self._memory = [], []


class Weights:
    """``rows`` × ``columns`` of one type; with ``experts``, as many such matrices in a stack.

    ``data`` holds their blocks, row after row, and is copied, or with ``shared`` read where it lies
    if it begins on a cache line; without it each matrix is ``put``, or written to ``memory``,
    before the first product. With ``repack``, the library stores them in the order that its kernels
    for this processor like best, as llama.cpp does when it loads a model; ``layout`` says whether
    it has one for this type. Close products first.

    Raises:
        UsageError: no such type, or ``data`` is not of that size.
        EngineError: no memory.
    """

    def __init__(
        self,
        type: str,
        rows: int,
        columns: int,
        data: NDArray[np.uint8] | None,
        *,
        experts: int = 0,
        repack: bool = False,
        shared: bool = False,
    ) -> None:
        self.type, self.rows, self.columns, self.experts = type, rows, columns, experts
        self.nbytes = max(1, experts) * rows * row_size(type, columns)
        if rows < 1 or experts < 0:
            raise UsageError(f"{experts} experts of {rows} rows are no weights")
        blocks = None if data is None else self._flat(data, max(1, experts))
        self._memory: NDArray[np.uint8] | None = None
        self.layout = (repack and self._repack(blocks)) or self._plain(blocks, shared)

    def put(self, number: int, data: NDArray[np.uint8]) -> None:
        """The blocks of one matrix of the stack, 0 where there is no stack.

        Raises:
            UsageError: there is no such matrix, or ``data`` is not of its size.
        """
        count = max(1, self.experts)
        if not 0 <= number < count:
            raise UsageError(f"matrix {number} of {count} does not exist")
        blocks = self._flat(data, 1)
        target = self._address + number * blocks.nbytes
        if self._memory is not None:
            ctypes.memmove(target, blocks.ctypes.data, blocks.nbytes)
            return
        # Rows are reordered a few at a time, so a matrix is laid out alone as in a stack.
        with closing(Tensors(tensors=1)) as alone:
            tensor = alone.new(type_number(self.type), self.columns, self.rows)
            lie = base("ggml_backend_tensor_alloc", ctypes.c_int, *[_POINTER] * 3)
            if lie(self._buffer, tensor, target) != 0:
                raise EngineError(f"libggml does not lay out {self.type} alone as in a stack")
            send(tensor, blocks)

    def memory(self, first: int, last: int) -> NDArray[np.uint8]:
        """Where the blocks of some rows lie, counted through all matrices.

        Raises:
            UsageError: they are laid out in an order of the library's own.
        """
        if self._memory is None or not 0 <= first <= last <= max(1, self.experts) * self.rows:
            raise UsageError(f"rows {first} to {last} of {self.layout} weights cannot be had")
        row = row_size(self.type, self.columns)
        return self._memory[first * row : last * row]

    @property
    def matrices(self) -> NDArray[np.uint8]:
        """The memory of all, ``[matrices, bytes of one]``, in whatever order rows lie in it. It is
        the weights' own: not to be looked at after ``close``."""
        import numpy as np

        count = max(1, self.experts)
        whole = (ctypes.c_uint8 * self.nbytes).from_address(self._address)
        found: NDArray[np.uint8] = np.ctypeslib.as_array(whole)
        return found.reshape(count, self.nbytes // count)

    @property
    def _address(self) -> int:
        return int(base("ggml_get_data", _POINTER, _POINTER)(self.tensor))

    def _flat(self, data: NDArray[np.uint8], matrices: int) -> NDArray[np.uint8]:
        import numpy as np

        expected = matrices * self.rows * row_size(self.type, self.columns)
        if data.nbytes != expected:
            raise UsageError(
                f"{data.nbytes} bytes are not {matrices} × {self.rows} rows of {self.columns}"
                f" {self.type} elements: those are {expected}"
            )
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def _new(self) -> None:
        shape = (self.columns, self.rows, *([self.experts] if self.experts else []))
        self._tensors = Tensors()
        self.tensor = self._tensors.new(type_number(self.type), *shape)

    def _plain(self, blocks: NDArray[np.uint8] | None, shared: bool) -> str:
        self._new()
        if blocks is None or not shared or blocks.ctypes.data % _ALIGNMENT:
            memory = aligned(self.nbytes)
            if blocks is not None:
                memory[:] = blocks
        else:
            memory = blocks
        self._tensors.lay(self.tensor, memory)
        self._memory = memory
        return _PLAIN

    def _repack(self, blocks: NDArray[np.uint8] | None) -> str:
        """The name of the first buffer type that stores and multiplies them, or nothing."""
        for kind in _repacking():
            self._new()
            allocate = base("ggml_backend_alloc_ctx_tensors_from_buft", _POINTER, *[_POINTER] * 2)
            buffer = allocate(self._tensors.context, kind)
            if buffer is not None:
                self._tensors.hold(buffer)
                if self._multiplied():
                    if blocks is not None:
                        send(self.tensor, blocks)
                    self._buffer = buffer
                    name = base("ggml_backend_buft_name", ctypes.c_char_p, _POINTER)(kind)
                    return str(name.decode())
            self._tensors.close()
        return ""

    def _multiplied(self) -> bool:
        """Whether the CPU multiplies the tensor from the buffer that it lies in."""
        with closing(Tensors()) as graph:
            activations = graph.new(F32, self.columns, *([1, 1] if self.experts else [1]))
            chosen = graph.new(I32, 1, 1) if self.experts else None
            node = product_node(graph, self, activations, chosen)
            supports = base("ggml_backend_dev_supports_op", ctypes.c_bool, *[_POINTER] * 2)
            return bool(supports(_cpu_device(), node))

    @property
    def closed(self) -> bool:
        return self._tensors.context is None

    def close(self) -> None:
        """Give the memory back. Again does nothing."""
        self._memory = None
        self._tensors.close()


def send(tensor: int, data: NDArray[Any]) -> None:
    """All of a tensor to where it lies, in the order that its buffer keeps it in."""
    put = base("ggml_backend_tensor_set", None, *[_POINTER] * 2, *[ctypes.c_size_t] * 2)
    put(tensor, data.ctypes.data, 0, data.nbytes)


def product_node(graph: Tensors, weights: Weights, activations: int, chosen: int | None) -> int:
    """The graph's node of a product; with ``chosen``, by the experts that it holds."""
    if chosen is None:
        multiply = base("ggml_mul_mat", _POINTER, *[_POINTER] * 3)
        return int(multiply(graph.context, weights.tensor, activations))
    multiply = base("ggml_mul_mat_id", _POINTER, *[_POINTER] * 4)
    return int(multiply(graph.context, weights.tensor, activations, chosen))


def _cpu_device() -> int:
    find = function("ggml", "ggml_backend_dev_by_type", _POINTER, ctypes.c_int)
    device = find(_CPU)
    if device is None:
        raise EngineError("this libggml has no CPU device")
    return int(device)


def _repacking() -> list[int]:
    """The CPU's buffer types beside the plain one, best first: a list that ends with NULL."""
    registry = base("ggml_backend_dev_backend_reg", _POINTER, _POINTER)(_cpu_device())
    look_up = base("ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p)
    address = look_up(registry, b"ggml_backend_dev_get_extra_bufts")
    if address is None:
        return []
    get = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)
    listed = get(_cpu_device())
    kinds: list[int] = []
    while listed and (kind := listed[len(kinds)]) is not None:
        kinds.append(kind)
    return kinds

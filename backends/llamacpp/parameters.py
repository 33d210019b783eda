"""Knows no model: the one place where a plan becomes llama.cpp's parameters.

``bench/decode.py`` passes the same structures to its bare loop, so that a ratio compares loops
and nothing else.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from llama_cpp import llama_cpp as llama

from localrun.backends.llamacpp.buffer_types import buffer_type, gpus
from localrun.backends.llamacpp.wordpiece import OVERRIDES
from localrun.errors import EngineError
from localrun.plan.plan import Execution, KvType

# One stream at a time still wants forks and parked prefixes: these many share its cells, and
# another costs a few bytes.
SEQUENCES: Final = 4
# enum ggml_type (ggml.h)
_KV_TYPES: Final[dict[KvType, int]] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
_QUANTIZED: Final[frozenset[KvType]] = frozenset({"q4_0", "q8_0"})
# An empty list of devices, where NULL would mean all of them. The library reads it while loading.
_NO_DEVICES: Final = (ctypes.c_void_p * 1)(None)
_MAKE_AGAIN: Final = "make the plan again with `localrun plan REF`"


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override (llama.h); an empty one ends the array."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def parameters(
    execution: Execution, *, encoder: bool = False
) -> tuple[llama.llama_model_params, llama.llama_context_params]:
    """What ``llama_model_load_from_file`` and ``llama_init_from_model`` are given.

    A batch is one micro-batch: a prompt comes in chunks of ``ubatch`` tokens, which also bounds
    how long a cancel waits on devices that cannot be interrupted. An ``encoder`` takes a text in
    one, and keeps nothing between them.

    Raises:
        EngineError: the plan asks for what llama.cpp cannot do, or not on this machine.
    """
    if encoder:
        return _encoder_model(execution), _encoder_context(execution)
    return _model(execution), _context(execution)


def _encoder_model(execution: Execution) -> Any:
    """Texts come normalized (``wordpiece.py``)."""
    model = _model(execution)
    overrides = (llama.llama_model_kv_override * (len(OVERRIDES) + 1))()
    for place, (key, value) in zip(overrides, OVERRIDES.items(), strict=False):
        place.tag, place.key = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL, key.encode()
        place.value.val_bool = value
    model.kv_overrides = overrides
    return model


def _encoder_context(execution: Execution) -> llama.llama_context_params:
    context: llama.llama_context_params = llama.llama_context_default_params()
    context.n_ctx = context.n_batch = context.n_ubatch = execution.ubatch
    context.n_seq_max = 1
    context.embeddings = True
    _compute(context, execution)
    return context


def _compute(context: llama.llama_context_params, execution: Execution) -> None:
    """How every context computes."""
    # Embeddings leave the runner one by one; whoever asked for them makes one of many.
    context.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
    context.n_threads = context.n_threads_batch = execution.threads
    # "auto" is on wherever the device has the kernel.
    context.flash_attn_type = (
        llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        if execution.flash_attention
        else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context.op_offload = execution.gpu_layers > 0
    context.no_perf = True


def _model(execution: Execution) -> Any:
    # The package types its fields of addresses as arrays.
    model: Any = llama.llama_model_default_params()
    model.n_gpu_layers = execution.gpu_layers
    on_devices = [tier for _, tier in execution.tensor_overrides if tier.startswith("vram")]
    if execution.gpu_layers and not gpus():
        raise EngineError(
            f"the plan puts {execution.gpu_layers} layers on GPUs; the installed llama.cpp finds "
            "none",
            hint="`localrun doctor` prints the command that builds it for a GPU",
        )
    if execution.gpu_layers == 0 and not on_devices:
        model.devices = ctypes.addressof(_NO_DEVICES)
    model.load_mode = llama.LLAMA_LOAD_MODE_MMAP if execution.mmap else llama.LLAMA_LOAD_MODE_NONE
    if execution.tensor_split:
        model.tensor_split = _split(execution.tensor_split)
    if execution.tensor_overrides:
        overrides = _overrides(execution.tensor_overrides)
        model.tensor_buft_overrides = ctypes.addressof(overrides)
        # The structure holds an address only; the array must live until the model is loaded.
        model.keeps = overrides
    return model


def _split(shares: tuple[float, ...]) -> ctypes.Array[ctypes.c_float]:
    """One share a device; the library reads as many as it was built for."""
    here = len(gpus())
    if len(shares) > here or min(shares) < 0 or sum(shares) <= 0:
        raise EngineError(
            f"tensor_split {', '.join(f'{share:g}' for share in shares)} shares layers among "
            f"{len(shares)} GPUs; the installed llama.cpp finds {here}",
            hint=_MAKE_AGAIN,
        )
    most: int = llama.llama_max_devices()
    return (ctypes.c_float * most)(*shares)


def _overrides(pairs: tuple[tuple[str, str], ...]) -> ctypes.Array[_Override]:
    placed = [_Override(pattern.encode(), buffer_type(tier)) for pattern, tier in pairs]
    return (_Override * (len(placed) + 1))(*placed)


def _context(execution: Execution) -> llama.llama_context_params:
    kv_type = execution.kv_type
    if kv_type not in _KV_TYPES:
        raise EngineError(
            f"kv_type {kv_type!r} is not one that llama.cpp stores: it has "
            f"{', '.join(sorted(_KV_TYPES))}",
            hint="choose one with --kv-type",
        )
    if kv_type in _QUANTIZED and not execution.flash_attention:
        raise EngineError(
            f"kv_type {kv_type} without flash attention: llama.cpp cannot read values stored so",
            hint="leave flash attention on, or choose --kv-type f16",
        )
    context: llama.llama_context_params = llama.llama_context_default_params()
    streams = execution.parallel
    sequences = streams if streams > 1 else SEQUENCES
    # One that cannot hold a token of each sequence ends the process.
    context.n_ctx = max(execution.n_ctx * streams, sequences)
    # Streams have cells of their own, so that a step looks at no other's: a quarter faster with 8.
    context.kv_unified = streams == 1
    context.n_batch = context.n_ubatch = max(execution.ubatch, sequences)
    context.n_seq_max = sequences
    # A window cache kept whole can be cut anywhere, which the prefix cache lives on.
    context.swa_full = True
    context.type_k = context.type_v = _KV_TYPES[kv_type]
    context.offload_kqv = execution.gpu_layers > 0 and execution.kv_on_device
    _compute(context, execution)
    return context


def printed(parameters: ctypes.Structure) -> dict[str, int | float | bool]:
    """The plain fields of a parameter structure by name; pointers are left out."""
    values = {
        name: getattr(parameters, name)
        for name, kind, *_ in parameters._fields_
        if kind is not ctypes.c_void_p
    }
    return {name: value for name, value in values.items() if isinstance(value, int | float)}

"""Knows no model: the one place where a plan becomes llama.cpp's parameters.

``bench/decode.py`` passes the same structures to its bare loop, so that a ratio compares loops
and nothing else.
"""

from __future__ import annotations

import ctypes
from typing import Final

from llama_cpp import llama_cpp as llama

from localrun.plan.plan import Execution, KvType

# A unified cache gives every sequence the whole context; another sequence costs a few bytes.
SEQUENCES: Final = 4
# enum ggml_type (ggml.h)
_KV_TYPES: Final[dict[KvType, int]] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
# An empty list of devices, where NULL would mean all of them. The library reads it while loading.
_NO_DEVICES: Final = (ctypes.c_void_p * 1)(None)


def parameters(
    execution: Execution,
) -> tuple[llama.llama_model_params, llama.llama_context_params]:
    """What ``llama_model_load_from_file`` and ``llama_init_from_model`` are given.

    A batch is one micro-batch: a prompt comes in chunks of ``ubatch`` tokens, which also bounds
    how long a cancel waits on devices that cannot be interrupted.
    """
    model = llama.llama_model_default_params()
    model.n_gpu_layers = execution.gpu_layers
    if execution.gpu_layers == 0:
        model.devices = ctypes.addressof(_NO_DEVICES)
    model.load_mode = llama.LLAMA_LOAD_MODE_MMAP if execution.mmap else llama.LLAMA_LOAD_MODE_NONE
    context = llama.llama_context_default_params()
    # One that cannot hold a token of each sequence ends the process; the runner counts to n_ctx.
    context.n_ctx = max(execution.n_ctx, SEQUENCES)
    context.n_batch = context.n_ubatch = max(execution.ubatch, SEQUENCES)
    context.n_seq_max = SEQUENCES
    context.kv_unified = True
    # A window cache kept whole can be cut anywhere, which the prefix cache lives on.
    context.swa_full = True
    context.n_threads = context.n_threads_batch = execution.threads
    context.type_k = context.type_v = _KV_TYPES[execution.kv_type]
    # "auto" is on wherever the device has the kernel.
    context.flash_attn_type = (
        llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        if execution.flash_attention
        else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context.offload_kqv = context.op_offload = execution.gpu_layers > 0
    context.no_perf = True
    return model, context


def printed(parameters: ctypes.Structure) -> dict[str, int | float | bool]:
    """The plain fields of a parameter structure by name; pointers are left out."""
    values = {
        name: getattr(parameters, name)
        for name, kind, *_ in parameters._fields_
        if kind is not ctypes.c_void_p
    }
    return {name: value for name, value in values.items() if isinstance(value, int | float)}

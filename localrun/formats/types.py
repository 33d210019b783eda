"""Knows no file: how the elements of every tensor type of both formats lie in bytes.

GGUF ids, names and sizes are those of ``enum ggml_type`` and ``ggml-common.h`` in llama.cpp
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h); names are upper case.
Safetensors names are the library's ``Dtype`` (safetensors/src/tensor.rs).
"""

from __future__ import annotations

from localrun.formats.header import TensorType

_F32 = TensorType("F32", 1, 4)
_F16 = TensorType("F16", 1, 2)
_BF16 = TensorType("BF16", 1, 2)
_F64 = TensorType("F64", 1, 8)
_I8 = TensorType("I8", 1, 1)
_I16 = TensorType("I16", 1, 2)
_I32 = TensorType("I32", 1, 4)
_I64 = TensorType("I64", 1, 8)

GGUF_TYPES: dict[int, TensorType] = {
    0: _F32,
    1: _F16,
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: _I8,
    25: _I16,
    26: _I32,
    27: _I64,
    28: _F64,
    29: TensorType("IQ1_M", 256, 56),
    30: _BF16,
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

# Ids that once had a type; their files need another conversion, and the error says so.
GGUF_REMOVED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

SAFETENSORS_TYPES: dict[str, TensorType] = {
    kind.name: kind
    for kind in (
        _F64,
        _F32,
        _F16,
        _BF16,
        _I64,
        _I32,
        _I16,
        _I8,
        TensorType("U64", 1, 8),
        TensorType("U32", 1, 4),
        TensorType("U16", 1, 2),
        TensorType("U8", 1, 1),
        TensorType("BOOL", 1, 1),
        TensorType("C64", 1, 8),
        TensorType("F8_E4M3", 1, 1),
        TensorType("F8_E4M3FNUZ", 1, 1),
        TensorType("F8_E5M2", 1, 1),
        TensorType("F8_E5M2FNUZ", 1, 1),
        TensorType("F8_E8M0", 1, 1),
        TensorType("F6_E2M3", 4, 3),
        TensorType("F6_E3M2", 4, 3),
        TensorType("F4", 2, 1),
    )
}

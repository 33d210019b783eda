"""The rules of mixtures against llama.cpp's own, which decide by the same names and shapes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localrun.formats.types import GGUF_TYPES
from localrun.models.describe import describe_config, layout_of
from localrun.models.geometries import geometry
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Model, retyped

# ``enum llama_ftype``.
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24,
    "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31,
    "MXFP4": 38, "F16": 1, "BF16": 32, "F32": 0,
}  # fmt: skip
# Geometry, llama.cpp's architecture, key-value heads as the converter writes them.
MODELS = [
    ("llama-3-8b", "llama", 8),
    ("llama-3-70b", "llama", 8),
    ("llama-3.2-3b", "llama", 8),
    ("smollm2-135m", "llama", 3),
    ("phi-4", "phi3", 10),
    ("qwen3-30b-a3b", "qwen3moe", 4),
    ("gemma-3-12b", "gemma3", 8),
    ("gpt-oss-20b", "gpt-oss", 8),
    ("olmoe-1b-7b", "olmoe", 16),
    ("qwen3-coder-next-80b-a3b", "qwen3next", 2),
    ("qwen3.8-flash-next", "qwen4exp", 2),
    ("deepseek-v2-lite", "deepseek2", 1),
    ("deepseek-v4-flash", "deepseek4", 1),
    ("glm-4.7", "glm4moe", 8),
    ("glm-5.3-flash", "glm5-next", 1),
]
FUNCTIONS = {
    "model": "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc",
    "init": "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params",
    "free": "_Z16llama_quant_freeP19quantize_state_impl",
    "allows": ("_Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor"),
    "types": (
        "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensor"
        "P9ggml_typem"
    ),
}
IDS = {number: kind.name for number, kind in GGUF_TYPES.items()}
NUMBERS = {name: number for number, name in IDS.items()}


class InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class Description(ctypes.Structure):
    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *(
            (name, ctypes.c_uint32)
            for name in ("width", "ff", "layers", "heads", "kv_heads", "experts", "key", "value")
        ),
    )


class Library:
    """The functions of ``llama-ext.h``: C++, so found by their mangled names."""

    def __init__(self) -> None:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        llama = ctypes.CDLL(str(next(folder.glob("libllama.so*"))))
        ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.so*"))))
        self.model = llama[FUNCTIONS["model"]]
        self.init = llama[FUNCTIONS["init"]]
        self.free = llama[FUNCTIONS["free"]]
        self.allows = llama[FUNCTIONS["allows"]]
        self.types = llama[FUNCTIONS["types"]]
        self.model.restype = self.init.restype = ctypes.c_void_p
        self.allows.restype = ctypes.c_bool
        self.free_model = llama.llama_model_free
        self.ggml_init, self.ggml_free = ggml.ggml_init, ggml.ggml_free
        self.ggml_init.restype = ctypes.c_void_p
        self.tensor, self.name = ggml.ggml_new_tensor, ggml.ggml_set_name
        self.tensor.restype = ctypes.c_void_p
        self.params = llama_cpp.llama_model_quantize_default_params()


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library()
    except (AttributeError, StopIteration):
        pytest.skip("this platform names the functions otherwise")


class Case:
    """One model as llama.cpp sees it: tensors without data, and the state of its quantizer."""

    def __init__(self, library: Library, key: str, architecture: str, kv_heads: int) -> None:
        self.library = library
        self.tensors: list[LayoutTensor] = list(layout_of(geometry(key), "BF16"))
        spec = describe_config(geometry(key))
        blocks = {item.name.split(".")[1] for item in self.tensors if item.name[:4] == "blk."}
        self.rules = Model(
            architecture.replace("-next", "_next"),
            len(blocks),
            spec.experts,
            spec.heads // kv_heads,
        )
        described = Description(
            architecture.encode(),
            spec.width, spec.ffn_width, len(blocks), spec.heads, kv_heads, spec.experts, 128, 128,
        )  # fmt: skip
        size = 4096 + 512 * len(self.tensors)
        self.context = library.ggml_init(InitParams(size, None, True))
        self.model = library.model(ctypes.byref(described))
        self.state = library.init(ctypes.c_void_p(self.model), ctypes.byref(library.params))
        self.pointers = [self._tensor(tensor) for tensor in self.tensors]

    def _tensor(self, tensor: LayoutTensor) -> Any:
        dims = (ctypes.c_int64 * len(tensor.shape))(*reversed(tensor.shape))
        number = NUMBERS[tensor.type.name]
        made = ctypes.c_void_p(
            self.library.tensor(ctypes.c_void_p(self.context), number, len(tensor.shape), dims)
        )
        self.library.name(made, tensor.name.encode())
        return made

    def expected(self, quant: str) -> dict[str, str]:
        """llama.cpp's answer: it is asked only of what may be quantized."""
        state = ctypes.c_void_p(self.state)
        asked = [
            (tensor, pointer)
            for tensor, pointer in zip(self.tensors, self.pointers, strict=True)
            if self.library.allows(state, pointer)
        ]
        found = {tensor.name: tensor.type.name for tensor in self.tensors}
        pointers = (ctypes.c_void_p * len(asked))(*(pointer for _, pointer in asked))
        results = (ctypes.c_int * len(asked))()
        count = ctypes.c_size_t(len(asked))
        self.library.types(state, FILE_TYPES[quant], pointers, results, count)
        for (tensor, _), number in zip(asked, results, strict=True):
            found[tensor.name] = IDS[number]
        return found

    def close(self) -> None:
        self.library.free(ctypes.c_void_p(self.state))
        self.library.free_model(ctypes.c_void_p(self.model))
        self.library.ggml_free(ctypes.c_void_p(self.context))


@pytest.fixture(scope="module", params=MODELS, ids=[model[0] for model in MODELS])
def case(request: pytest.FixtureRequest, library: Library) -> Iterator[Case]:
    made = Case(library, *request.param)
    yield made
    made.close()


@pytest.mark.parametrize("quant", FILE_TYPES)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(case: Case, quant: str) -> None:
    # The library's function has no importance matrix.
    made = retyped(case.tensors, quant, case.rules, weighted=False)
    found = {tensor.name: tensor.type.name for tensor in made}

    assert found == case.expected(quant)

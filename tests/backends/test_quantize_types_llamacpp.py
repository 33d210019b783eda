"""The types that are chosen against those that llama.cpp's own quantizer names in a dry run."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from localrun.formats.read import read_header
from localrun.ggml.types import WEIGHT_TYPES, needs_imatrix
from localrun.quantize.gguf_writer import Written
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.quantize.types.choice import choose
from localrun.quantize.types.needs import needs_importance
from localrun.quantize.types.overrides import parse_overrides
from tests.gguf_builder import gguf_bytes, llama_metadata
from tests.gguf_models import TYPES, llama, model, weight
from tests.quantized import NUMBERS, parameters

pytest.importorskip("llama_cpp")
# NVFP4 has a number and no rules in this version of llama.cpp.
MIXTURES = sorted(set(NUMBERS) - {"NVFP4"})
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] +(\S+) .*?type = +(\w+),")
_RESULT = re.compile(r"size = .*MiB(?: \((\w+)\))?$")
_FALLBACKS = re.compile(r"WARNING: (\d+) of (\d+) tensor\(s\) required fallback")


class ImportanceData(ctypes.Structure):
    """struct llama_model_imatrix_data"""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def dry_run(
    file: Path, mixture: str, overrides: list[str], *, weighted: bool
) -> tuple[dict[str, str], int]:
    """llama.cpp's type of every tensor, and how many fell back."""
    from llama_cpp import llama_cpp as library

    from localrun.backends.llamacpp.library import logged

    params = parameters(mixture, overrides, threads=1)
    params.dry_run = True
    one = ctypes.c_float(1)
    matrix = (ImportanceData * 2)(ImportanceData(b"none", ctypes.addressof(one), 1))
    if weighted:
        fields = dict(library.llama_model_quantize_params._fields_)
        params.imatrix = ctypes.cast(matrix, fields["imatrix"])
    with logged() as lines:
        failed = library.llama_model_quantize(str(file).encode(), b"", ctypes.byref(params))
    assert not failed, "\n".join(lines[-3:])
    return _parsed(lines)


def _parsed(lines: list[str]) -> tuple[dict[str, str], int]:
    types, name, count = {}, "", 0
    for line in lines:
        if found := _TENSOR.search(line):
            name, kind = found.groups()
            types[name] = kind.upper()
        if (found := _RESULT.search(line)) and found[1]:
            types[name] = found[1].upper()
        if found := _FALLBACKS.search(line):
            count = int(found[1])
    return types, count


def in_words(file: Path) -> GgufModel:
    """A file of the Llama family as the quantizer sees it."""
    header = read_header([file])
    said = {key.partition(".")[2]: value for key, value in header.metadata.items()}
    numbers = {key: value for key, value in said.items() if isinstance(value, int)}
    heads, shared = numbers["attention.head_count"], numbers["attention.head_count_kv"]
    return model(
        [tensor_of(each.name, each.shape, each.type.name) for each in header.tensors],
        blocks=numbers["block_count"],
        experts=numbers.get("expert_count", 0),
        grouped=heads // shared,
    )


def tensor_of(name: str, shape: tuple[int, ...], stored: str) -> GgufTensor:
    return GgufTensor(Written(name, TYPES[stored], shape), weight(name, shape, stored))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("dense") / "dense.gguf", experts=0, grouped=4)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("experts") / "experts.gguf", experts=8, grouped=2)


def synthetic(file: Path, *, experts: int, grouped: int) -> Path:
    made = llama(blocks=11, experts=experts, grouped=grouped)
    tensors = [
        (each.target.name, each.target.shape, "BF16" if len(each.target.shape) > 1 else "F32")
        for each in made.tensors
    ]
    more = {"expert_count": experts, "expert_used_count": 2} if experts else {}
    heads = {
        "attention.head_count": 8,
        "attention.head_count_kv": 8 // grouped,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = llama_metadata(block_count=11, **heads, **more)
    file.write_bytes(gguf_bytes(metadata, tensors))
    return file


def held(file: Path, mixture: str, overrides: list[str] | None = None, *, weighted: bool) -> None:
    texts = overrides or []
    chosen = choose(in_words(file), mixture, overrides=parse_overrides(texts), weighted=weighted)
    types, fallbacks = dry_run(file, mixture, texts, weighted=weighted)

    assert dict(chosen.types) == types
    assert len(chosen.fallbacks) == fallbacks


def possible(mixture: str, *, weighted: bool) -> bool:
    return weighted or not mixture.startswith(("IQ1", "IQ2", "IQ3_X", "Q2_K_S"))


CASES = [(m, w) for m in MIXTURES for w in (False, True) if possible(m, weighted=w)]


@pytest.mark.parametrize(("mixture", "weighted"), CASES)
def test_a_dense_model_is_typed_as_llama_cpp_types_it(
    dense: Path, mixture: str, weighted: bool
) -> None:
    held(dense, mixture, weighted=weighted)


@pytest.mark.parametrize(("mixture", "weighted"), CASES)
def test_experts_are_typed_as_llama_cpp_types_them(
    experts: Path, mixture: str, weighted: bool
) -> None:
    held(experts, mixture, weighted=weighted)


# llama.cpp refuses Q1_0 of rows that it does not divide.
@pytest.mark.parametrize(("mixture", "weighted"), [each for each in CASES if each[0] != "Q1_0"])
def test_smollm2_is_typed_as_llama_cpp_types_it(
    smollm2_path: Path, mixture: str, weighted: bool
) -> None:
    held(smollm2_path, mixture, weighted=weighted)


@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q3_K_L", "Q2_K"])
def test_overrides_shift_the_counting_as_in_llama_cpp(dense: Path, mixture: str) -> None:
    overrides = [r"blk\.[0-3]\.attn_v=Q8_0", "attn_v=Q4_K", "ffn_down=MXFP4", "blk.5=IQ4_NL"]

    held(dense, mixture, overrides, weighted=False)


def test_180_of_smollm2s_272_tensors_fall_back_in_q4_k_m(smollm2_path: Path) -> None:
    chosen = choose(in_words(smollm2_path), "Q4_K_M")

    assert chosen.notes[0].startswith("180 of 272 tensors fall back, since their rows of 576 are")


def test_the_ends_need_a_matrix_where_the_library_does() -> None:
    ends = {name for name in WEIGHT_TYPES if needs_importance("output.weight", name, "Q8_0")}

    assert ends == {name for name in WEIGHT_TYPES if needs_imatrix(name)}

"""Makes a release's checkpoint of a GGUF Llama: safetensors in BF16, its tokenizer, its template.

The GGUF's numbers are kept, rounded to BF16 once. llama.cpp's converter turns the rows of q and k
within each head (``LlamaModel.permute`` in its conversion package); here they are turned back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localrun.formats.read import read_header
from localrun.ggml.quantize import dequantize

_CONTROL = 3  # LLAMA_TOKEN_TYPE_CONTROL (llama.h)
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BF16 = NDArray[np.uint16]


def write_checkpoint(gguf: Path, directory: Path, *, layers: int | None = None) -> Path:
    """The model of ``gguf``, a Llama with tied embeddings and a byte-level BPE; ``directory``.

    ``layers`` leaves out those behind the first so many: other answers, of the same vocabulary.
    """
    header = read_header([gguf])
    directory.mkdir(parents=True, exist_ok=True)
    metadata = dict(header.metadata)
    if layers is not None:
        metadata["llama.block_count"] = layers
    _json(directory / "config.json", config_of(metadata))
    _json(directory / "tokenizer.json", tokenizer_of(metadata))
    template = metadata["tokenizer.chat_template"]
    assert isinstance(template, str)
    (directory / "chat_template.jinja").write_text(template)
    held = {
        name: bits for name, bits in _tensors(gguf) if _number(name) < metadata["llama.block_count"]
    }
    save_bf16(directory / "model.safetensors", held)
    return directory


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as transformers' LlamaConfig has it."""
    told = {key.removeprefix("llama."): value for key, value in metadata.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": told["tokenizer.ggml.bos_token_id"],
        "eos_token_id": told["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": told["embedding_length"],
        "intermediate_size": told["feed_forward_length"],
        "max_position_embeddings": told["context_length"],
        "num_attention_heads": told["attention.head_count"],
        "num_hidden_layers": told["block_count"],
        "num_key_value_heads": told["attention.head_count_kv"],
        "rms_norm_eps": told["attention.layer_norm_rms_epsilon"],
        "rope_theta": told["rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": told["vocab_size"],
    }


def tokenizer_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json of the ``smollm`` pre-tokenizer: each digit alone, then byte-level pieces."""
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    control = [at for at, kind in enumerate(types) if kind == _CONTROL]
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    byte_level = {"type": "ByteLevel", **flags}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": at, "content": tokens[at], "special": True, **plain} for at in control
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def save_bf16(path: Path, tensors: Mapping[str, BF16]) -> None:
    """A safetensors file; numpy has no BF16, so its bits come as 16-bit integers."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, bits in tensors.items():
        entries[name] = {
            "dtype": "BF16",
            "shape": bits.shape,
            "data_offsets": [end, end + bits.nbytes],
        }
        end += bits.nbytes
    header = json.dumps(entries).encode()
    with path.open("wb") as target:
        target.write(len(header).to_bytes(8, "little") + header)
        for bits in tensors.values():
            target.write(bits.tobytes())


def _tensors(gguf: Path) -> Iterator[tuple[str, BF16]]:
    header = read_header([gguf])
    heads = {
        "attn_q": header.metadata["llama.attention.head_count"],
        "attn_k": header.metadata["llama.attention.head_count_kv"],
    }
    with gguf.open("rb") as source:
        for tensor in header.tensors:
            source.seek(tensor.offset)
            blocks = np.frombuffer(source.read(tensor.bytes), np.uint8)
            rows = dequantize(tensor.type.name, blocks, tensor.shape[-1])
            name = _OUTSIDE.get(tensor.name)
            if name is None:
                _, layer, part, _ = tensor.name.split(".")
                name = f"model.layers.{layer}.{_INSIDE[part]}.weight"
                if part in heads:
                    rows = _turned_back(rows, int(str(heads[part])))
            yield name, _rounded(rows.reshape(tensor.shape))


def _number(name: str) -> int:
    """Of the layer; -1 outside of all."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _turned_back(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    count, columns = rows.shape
    pairs = rows.reshape(heads, count // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(count, columns)


def _rounded(numbers: NDArray[np.float32]) -> BF16:
    """To the nearest BF16, ties to even; no number here is infinite."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))

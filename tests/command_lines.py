"""Command lines run in this process, what they print, and small models to name on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from localrun.cli.app import execute
from localrun.plan.plan import Plan
from tests.gguf_builder import gguf_bytes, llama_metadata, safetensors_bytes

BOX = "rtx-4090+ddr5-6000x2:128+nvme4"
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def number(least: float = 0.0) -> Any:
    def check(value: Any) -> None:
        assert isinstance(value, int | float)
        assert not isinstance(value, bool)
        assert math.isfinite(value)
        assert value >= least

    return check


def text(value: Any) -> None:
    assert isinstance(value, str)


def mapping(value: Any) -> None:
    assert isinstance(value, dict)


def speeds(value: Any) -> None:
    follow(value, {"low": number(), "mid": number(), "high": number()})
    assert value["low"] <= value["mid"] <= value["high"]


def truth(value: Any) -> None:
    assert isinstance(value, bool)


# DESIGN section 3: a list of one stands for any number of such elements.
SCHEMA: dict[str, Any] = {
    "version": number(1),
    "model": {
        "ref": text,
        "architecture": text,
        "format": text,
        "total_bytes": number(1),
        "tensors": number(1),
        "parameters": {"total": number(1), "active": number(1), "engram": number()},
        "shares": {"memory": number(), "experts": number(), "dense": number()},
    },
    "machine": {
        "name": text,
        "tiers": [
            {
                "tier": text,
                "capacity_bytes": number(1),
                "usable_bytes": number(),
                "read_gbps": number(),
                "basis": lambda basis: (
                    text(basis) or ["measured", "specified", "assumed"].index(basis)
                ),
            }
        ],
        "compute": mapping,
    },
    "request": mapping,
    "backend": text,
    "backend_reason": text,
    "fits": truth,
    "verdict": text,
    "placements": [{"group": text, "tier": text, "bytes": number(1), "count": number(1)}],
    "budgets": [
        {
            "tier": text,
            "weights": number(),
            "expert_cache": number(),
            "kv": number(),
            "compute": number(),
            "overhead": number(),
            "total": number(),
            "limit": number(),
        }
    ],
    "execution": {
        "n_ctx": number(1),
        "ubatch": number(1),
        "kv_type": text,
        "threads": number(1),
        "mmap": truth,
        "slots_per_layer": number(),
        "tensor_overrides": [mapping],
    },
    "bytes_per_token": mapping,
    "engram": {
        "rows_per_token": number(),
        "bytes_per_token": number(),
        "reads_per_token": number(),
    },
    "prediction": {
        "decode_tps": speeds,
        "prefill_tps": speeds,
        "ttft_s": speeds,
        "cold": speeds,
        "steady": speeds,
        "bound_by": text,
        "terms_ms": mapping,
    },
    "warnings": [text],
    "what_if": [{"change": text, "decode_tps": number()}],
}


def follow(value: Any, schema: Any) -> None:
    """Hold a document against a schema: what it has more is free."""
    if isinstance(schema, dict):
        assert isinstance(value, dict)
        assert schema.keys() <= value.keys(), schema.keys() - value.keys()
        for key, inner in schema.items():
            follow(value[key], inner)
    elif isinstance(schema, list):
        assert isinstance(value, list)
        for each in value:
            follow(each, schema[0])
    else:
        schema(value)


class Ran:
    """One command line in this process, its two streams and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def plan(self) -> Plan:
        """The plan on stdout: one document, whole."""
        assert self.code == 0, self.err
        document = json.loads(self.out)
        follow(document, SCHEMA)
        read = Plan.from_json(self.out)
        assert json.loads(read.to_json()) == document
        return read


class Runner:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        self._capsys.readouterr()
        code = execute(arguments)
        return Ran(code, *self._capsys.readouterr())

    def plan(self, ref: str | Path, *flags: str, machine: str | Path = BOX) -> Ran:
        return self("plan", str(ref), "--machine", str(machine), *flags)


def written(tmp_path: Path, name: str, document: Any) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def layer(index: int) -> list[tuple[str, tuple[int, ...], str]]:
    shapes = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (128, 64),
        "mlp.up_proj": (128, 64),
        "mlp.down_proj": (64, 128),
        "input_layernorm": (64,),
        "post_attention_layernorm": (64,),
    }
    return [
        (f"model.layers.{index}.{name}.weight", shape, "BF16") for name, shape in shapes.items()
    ]


def checkpoint() -> dict[str, bytes]:
    """The two shards that ``CONFIG`` speaks of, and what lies beside them."""
    ends = [("model.embed_tokens.weight", (100, 64), "BF16")]
    last = [("model.norm.weight", (64,), "BF16"), ("lm_head.weight", (100, 64), "BF16")]
    shards = {
        "model-00001-of-00002.safetensors": [*ends, *layer(0)],
        "model-00002-of-00002.safetensors": [*layer(1), *last],
    }
    where = {name: shard for shard, tensors in shards.items() for name, _, _ in tensors}
    return {
        **{shard: safetensors_bytes(tensors) for shard, tensors in shards.items()},
        "model.safetensors.index.json": json.dumps({"weight_map": where}).encode(),
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"# A model",
        "modeling_custom.py": b"import os",
    }


def small_gguf(extra: int = 0) -> bytes:
    tensors = [("token_embd.weight", (128, 64), "Q8_0"), ("output.weight", (128, 64), "Q8_0")]
    return gguf_bytes(llama_metadata(), tensors) + bytes(extra)

"""Measures `localrun quantize` against llama.cpp's converter and quantizer, one after the other.

    python bench/quantize.py --convert PYTHON [--weights 3e9] [--type Q4_K_M] [--work DIR] [--json]
        [--kills 20]

A checkpoint of a mixture of experts is made in DIR (16 shards, FP8 in blocks of 128 × 128, as
releases are). Ours is one command. Theirs is convert_hf_to_gguf.py of the same llama.cpp source to
BF16 and then `llama_model_quantize` of the same libllama on as many threads; PYTHON is one that
has what the converter needs (`make test-oracle` makes it: .venv-clients/oracle/bin/python). With
--exact theirs goes by way of F32, as ours does not round to 16 bits in between: then every
tensor must have the same bytes.

Prints wall times and their ratio, and what ours took of memory, of disk and of the processors.
Then ours is killed at half of its slabs and resumed, and killed --kills times at random: the share
of the work that was kept, and whether the bytes are those of the run that nobody disturbed.
Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp_source
import psutil
import synthetic_checkpoint
from synthetic_tokenizer import real_tokenizer

from localrun.formats.read import read_header

_FILE_TYPES = {"Q4_K_M": 15, "Q6_K": 18, "Q8_0": 7, "IQ4_XS": 30}
_POLL_S = 0.02
_EXPERTS, _WIDTH, _INNER, _VOCABULARY = 64, 2048, 768, 49152
_QUANTIZE = """
import ctypes, sys
import llama_cpp.llama_cpp as llama
source, target, kind, threads = sys.argv[1:]
params = llama.llama_model_quantize_default_params()
params.ftype, params.nthread = int(kind), int(threads)
sys.exit(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


@dataclass
class Watched:
    """One program from its start to its end."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_rss: int = 0
    peak_disk: int = 0
    kept: int = 0
    code: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def configuration(weights: float) -> dict[str, Any]:
    """A mixture of experts with so many weights, most of them in its experts."""
    attention = 2 * _WIDTH * (2048 + 512)
    layer = 3 * _EXPERTS * _WIDTH * _INNER + attention
    layers = max(1, round((weights - 2 * _VOCABULARY * _WIDTH) / layer))
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": _WIDTH,
        "intermediate_size": 6144,
        "max_position_embeddings": 32768,
        "mlp_only_layers": [],
        "moe_intermediate_size": _INNER,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": _VOCABULARY,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.embed_tokens", "mlp.gate"],
        },
    }


def disk_bytes(paths: Sequence[Path]) -> int:
    """Blocks that are really taken, of files and of everything below directories."""
    found = 0
    for path in paths:
        for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
            try:
                found += each.stat().st_blocks * 512
            except OSError:
                continue
    return found


def watch(command: list[str], outputs: Sequence[Path], kill_at: int | None = None) -> Watched:
    """Run ``command`` and look at it while it runs. With ``kill_at`` it is killed as soon as the
    journal beside the output has so many lines."""
    found = Watched()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                found.peak_rss = max(found.peak_rss, seen.memory_info().rss)
            except psutil.Error:
                break
            found.peak_disk = max(found.peak_disk, disk_bytes(outputs))
            if kill_at is not None and lines(outputs) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(_POLL_S)
        found.code = process.wait()
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    found.seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if found.code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{text[-2000:]}")
    if found.code == 0 and "--json" in command:
        found.facts = json.loads(text[text.index("{\n") :])
    return found


def lines(outputs: Sequence[Path]) -> int:
    for path in outputs:
        if path.suffix == ".journal" and path.exists():
            return path.read_bytes().count(b"\n") - 1
    return 0


def ours(source: Path, out: Path, type: str, *more: str) -> list[str]:
    program = Path(sys.executable).parent / "localrun"
    command = [str(program), "quantize", str(source), str(out), "--json"]
    return [*command, "--type", type, *more]


def beside(out: Path) -> list[Path]:
    part = out.with_name(out.name + ".part")
    return [out, part, part.with_name(part.name + ".journal")]


def theirs(
    source: Path, work: Path, type: str, python: str, threads: int, between: str
) -> tuple[Path, float]:
    """(the file, seconds): a file of floats first, then the type."""
    tree = llama_cpp_source.fetch()
    plain, out = work / "theirs-floats.gguf", work / "theirs.gguf"
    convert = [python, str(tree / "convert_hf_to_gguf.py"), str(source), "--outtype", between]
    first = watch([*convert, "--outfile", str(plain)], [plain])
    quantize = [sys.executable, "-c", _QUANTIZE, str(plain), str(out), str(_FILE_TYPES[type])]
    second = watch([*quantize, str(threads)], [out])
    plain.unlink()
    return out, first.seconds + second.seconds


def digests(path: Path) -> dict[str, str]:
    """sha256 of each tensor's bytes, by name and type."""
    found = {}
    with path.open("rb") as stream:
        for tensor in read_header([path]).tensors:
            stream.seek(tensor.offset)
            found[f"{tensor.name} {tensor.type.name} {tensor.shape}"] = hashlib.sha256(
                stream.read(tensor.bytes)
            ).hexdigest()
    return found


def killed(source: Path, work: Path, type: str, at: Iterator[float], whole: Path) -> dict[str, Any]:
    """Kill a run when each share of ``at`` of its slabs is done, resume it, and compare."""
    out = work / "killed.gguf"
    slabs = int(watch(ours(source, out, type, "--dry-run"), []).facts["slabs"])
    kept: list[tuple[int, int]] = []
    for share in at:
        run = watch(
            ours(source, out, type, "--resume"), beside(out), kill_at=max(1, round(share * slabs))
        )
        if run.code == 0:
            break
        kept.append((round(share * slabs), lines(beside(out))))
    last = watch(ours(source, out, type, "--resume"), beside(out))
    same = out.read_bytes() == whole.read_bytes()
    out.unlink()
    return {
        "kills": len(kept),
        "slabs": slabs,
        "kept_by_the_last": last.facts["slabs_kept"],
        "share_kept": last.facts["slabs_kept"] / slabs,
        "same_bytes": same,
    }


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="quantize-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--convert", metavar="PYTHON")
    parser.add_argument("--weights", type=float, default=3e9)
    parser.add_argument("--type", default="Q4_K_M", choices=sorted(_FILE_TYPES))
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with workplace(options.work) as work:
        source = work / "checkpoint"
        total, shards = synthetic_checkpoint.write(
            source, configuration(options.weights), 0, False, shards=16, fused=options.fused
        )
        for name, data in real_tokenizer().items():
            (source / name).write_bytes(data)
        out = work / "ours.gguf"
        run = watch(ours(source, out, options.type), beside(out))
        size = out.stat().st_size
        facts: dict[str, Any] = {
            "source_bytes": total,
            "shards": shards,
            "type": options.type,
            "output_bytes": size,
            "cores": cores,
            "ours": {key: value for key, value in asdict(run).items() if key != "facts"},
            "predicted_seconds": run.facts["predicted_seconds"],
            "disk_beyond_output": run.peak_disk - size,
            "processors_busy": run.processor_seconds / run.seconds / cores,
        }
        if options.convert:
            between = "f32" if options.exact else "bf16"
            peer, seconds = theirs(source, work, options.type, options.convert, cores, between)
            facts |= {"theirs_seconds": seconds, "ratio": run.seconds / seconds}
            if options.exact:
                facts["same_tensors"] = digests(peer) == digests(out)
            peer.unlink()
        facts["killed_at_half"] = killed(source, work, options.type, iter([0.5]), out)
        if options.kills:
            chance = random.Random(0)
            shares = sorted(chance.random() * 0.95 for _ in range(options.kills))
            facts["killed_often"] = killed(source, work, options.type, iter(shares), out)
    print(json.dumps(facts, indent=2) if options.json else told(facts))


def told(facts: dict[str, Any]) -> str:
    run, half = facts["ours"], facts["killed_at_half"]
    said = [
        f"{facts['source_bytes'] / 1e9:.2f} GB in {facts['shards']} shards to {facts['type']}, "
        f"{facts['output_bytes'] / 1e9:.2f} GB, on {facts['cores']} cores",
        f"ours {run['seconds']:.1f} s ({facts['predicted_seconds']:.0f} predicted); peak RSS "
        f"{run['peak_rss'] / 2**20:.0f} MiB; disk beyond the output "
        f"{facts['disk_beyond_output'] / 2**20:.1f} MiB; "
        f"processors {100 * facts['processors_busy']:.0f} % busy",
    ]
    if "ratio" in facts:
        said.append(
            f"convert and quantize {facts['theirs_seconds']:.1f} s: ours takes "
            f"{facts['ratio']:.2f} of it"
        )
    if "same_tensors" in facts:
        said.append(f"every tensor has the same bytes: {facts['same_tensors']}")
    for name in ("killed_at_half", "killed_often"):
        if name in facts:
            each = facts[name]
            said.append(
                f"killed {each['kills']} times: {100 * each['share_kept']:.0f} % kept by the last "
                f"resume; the same bytes: {each['same_bytes']}"
            )
    assert half["kills"] == 1
    return "\n".join(said)


if __name__ == "__main__":
    main()

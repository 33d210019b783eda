"""Writes a checkpoint in the format its architecture is released in, of any size, from nothing.

    python bench/synthetic_checkpoint.py OUT --arch deepseek_v41|deepseek_v4|deepseek_v32|llama|
        qwen3_moe [--config FILE] [--seed N] [--scale 3GB] [--width N] [--shards N] [--fused]
        [--headers-only] [--heavy-tailed] [--router-skew S]

OUT gets safetensors shards, config.json, a small real tokenizer with a chat template and, last,
model.safetensors.index.json. Without --config the smallest model with every feature is written;
--scale grows its layers, experts, Engram rows and, where those are used up, widths to within 10 %
of a size; --width begins with matrices so many times as wide, for fewer and larger experts. With
--config only experts and rows follow --scale. The same arguments give the same bytes. --fused
stores a layer's experts as one tensor, as transformers 5 does, with the numbers they have apart.
--headers-only leaves the data out of the shards: they have their size but take no disk.
--heavy-tailed draws what is stored as floats from Student's t with 4 degrees of freedom, and the
head twice as large: a model to measure what quantizing loses with. --router-skew makes routers of
V4 and V4.1 pick the i-th expert of a layer's own order about as often as i^-S, as those of trained
models do; without it all are picked alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from synthetic_architectures import RECIPES
from synthetic_configs import base, grown, resized
from synthetic_tokenizer import compressed_vocabulary, tokenizer_files
from synthetic_values import Given, values

from localrun.cli.options import parse_size
from localrun.errors import LocalrunError, UsageError
from localrun.models.describe import layout_of
from localrun.models.layout import LayoutTensor

INDEX = "model.safetensors.index.json"
# Shards besides those of Engram tables, which have one each as in the release of 48.
_SHARDS_MAX = 46
_SHARD_BYTES = 2_000_000_000
_ALIGNMENT = 8
_TABLE = ".engram.embed."


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a shard; ``parts`` are those that it holds one behind the other."""

    name: str
    tensor: LayoutTensor
    parts: tuple[Stored, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--arch", required=True, choices=sorted(RECIPES))
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--scale", metavar="SIZE", help="bytes, or 30MB, 3GB, 3GiB")
    parser.add_argument("--width", type=int, default=1, metavar="N")
    parser.add_argument("--shards", type=int, metavar="N")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--headers-only", action="store_true")
    parser.add_argument("--heavy-tailed", action="store_true")
    parser.add_argument("--router-skew", type=float, default=0.0, metavar="S")
    options = parser.parse_args(arguments)
    try:
        size = parse_size(options.scale) if options.scale else 0
        config = configuration(options.arch, options.config, size, options.width)
        total, shards = write(
            options.out,
            config,
            options.seed,
            options.headers_only,
            shards=options.shards,
            fused=options.fused,
            heavy_tailed=options.heavy_tailed,
            router_skew=options.router_skew,
        )
    except LocalrunError as error:
        parser.error(f"{error.message}; {error.hint}")
    print(f"{options.out}: {total} bytes of tensors in {shards} shards")


def configuration(arch: str, file: Path | None, size: int, width: int = 1) -> dict[str, Any]:
    """The config.json to write.

    Raises:
        UsageError: the file is no configuration of ``arch``, or cannot have ``size``.
        HeaderError: it holds what no model has.
    """
    if file is None:
        return grown(arch, size, width) if size else base(arch)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {file}: {error}", hint="give a config.json") from error
    if not isinstance(document, dict) or document.get("model_type") != arch:
        raise UsageError(f"--config {file}: is no configuration of {arch}", hint="see --arch")
    config = {key: value for key, value in document.items() if key[:1] != "_"}
    return resized(config, size) if size else config


def write(
    out: Path,
    config: dict[str, Any],
    seed: int,
    headers_only: bool,
    *,
    shards: int | None = None,
    fused: bool = False,
    heavy_tailed: bool = False,
    router_skew: float = 0.0,
) -> tuple[int, int]:
    """Write the checkpoint; gives (bytes of tensors, shards).

    Raises:
        UsageError: ``out`` holds something, or its disk has no room.
    """
    layout = {tensor.name: tensor for tensor in layout_of(config)}
    total = sum(tensor.bytes * tensor.copies for tensor in layout.values())
    _make_room(out, 0 if headers_only else total)
    tokenizer = tokenizer_files(config)
    text = config.get("text_config", config)
    if "engram_compressed_vocab_size" in text or text.get("engram_layer_ids"):
        text["engram_compressed_vocab_size"] = compressed_vocabulary(tokenizer["tokenizer.json"])
    for name, content in {**tokenizer, "config.json": json.dumps(config, indent=2) + "\n"}.items():
        (out / name).write_text(content, encoding="utf-8")
    parts = list(split(layout.values(), shards, fused=fused))

    used = int(text.get("num_experts_per_tok", 0))
    given = Given(layout, heavy_tailed, router_skew, used)

    def drawn(part: Stored) -> Iterator[bytes]:
        return values(part.tensor, part.name, seed, given)

    placed: dict[str, str] = {}
    for number, shard in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        placed |= {stored.name: name for stored in shard}
        with (out / name).open("xb") as file:
            _write_shard(file, shard, None if headers_only else drawn)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    unfinished = out / f"{INDEX}.part"
    unfinished.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(out / INDEX)
    return total, len(parts)


def _make_room(out: Path, size: int) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty", hint="name a new directory")
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}", hint="name a new directory") from error
    free = shutil.disk_usage(out).free
    if size > free:
        raise UsageError(f"{out}: {size} bytes are needed, {free} are free", hint="see --scale")


def split(
    layout: Iterable[LayoutTensor], count: int | None = None, *, fused: bool = False
) -> Iterator[list[Stored]]:
    """Shards of about equal size in the order of the layout, then one for each Engram table.

    Within a shard the widest types come first, then names, as the safetensors library sorts them.
    """
    tables: dict[str, list[Stored]] = {}
    rest: list[Stored] = []
    for owner, tensors in groupby(layout, key=_owner):
        copies = list(_copies(tensors))
        if fused and owner.endswith(".experts.{e}"):
            copies = list(_fused(owner.removesuffix("{e}"), copies))
        (tables.setdefault(owner, []) if _TABLE in owner else rest).extend(copies)
    size = sum(stored.tensor.bytes for stored in rest)
    count = count or min(_SHARDS_MAX, max(2, -(-size // _SHARD_BYTES)))
    shards: dict[int, list[Stored]] = {}
    position = 0
    for stored in rest:
        shards.setdefault(position * count // size, []).append(stored)
        position += stored.tensor.bytes
    for shard in (*shards.values(), *tables.values()):
        yield sorted(shard, key=_place)


def _owner(tensor: LayoutTensor) -> str:
    """What keeps together: the experts of a layer, and an Engram table with its scales."""
    for mark in ("{e}", _TABLE):
        before, found, _ = tensor.name.partition(mark)
        if found:
            return before + found
    return ""


def _copies(tensors: Iterable[LayoutTensor]) -> Iterator[Stored]:
    """Every tensor under its own name; all matrices of an expert before the next one's."""
    alike = list(tensors)
    for number in range(alike[0].copies):
        for tensor in alike:
            yield Stored(tensor.name.replace("{e}", str(number)), tensor)


def _fused(owner: str, copies: Sequence[Stored]) -> Iterator[Stored]:
    """The experts of a layer as transformers 5 keeps them: ``gate_up_proj`` [experts, 2 * inner,
    width] and ``down_proj`` [experts, width, inner], with scales by the same names.
    """
    for name, marks in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        for suffix, own in ((".weight", ""), (".weight_scale_inv", "_scale_inv")):
            ends = tuple(mark + suffix for mark in marks)
            parts = tuple(stored for stored in copies if stored.name.endswith(ends))
            if not parts:
                continue
            first = parts[0].tensor
            count = first.copies
            shape = (count, len(marks) * first.shape[0], *first.shape[1:])
            yield Stored(owner + name + own, LayoutTensor(owner + name, shape, first.type), parts)


def _place(stored: Stored) -> tuple[int, str]:
    return (-stored.tensor.type.block_bytes, stored.name)


def _write_shard(
    file: BinaryIO, shard: Sequence[Stored], drawn: Callable[[Stored], Iterator[bytes]] | None
) -> None:
    """Layout: https://github.com/huggingface/safetensors#format."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for stored in shard:
        end = position + stored.tensor.bytes
        entries[stored.name] = {
            "dtype": stored.tensor.type.name,
            "shape": stored.tensor.shape,
            "data_offsets": (position, end),
        }
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    file.write(len(header).to_bytes(8, "little") + header)
    if drawn is None:
        file.truncate(8 + len(header) + position)
        return
    for stored in shard:
        for part in stored.parts or (stored,):
            file.writelines(drawn(part))
    file.flush()
    os.fsync(file.fileno())


if __name__ == "__main__":
    main()

"""Whether more bits are nearer: one model of heavy-tailed weights in six types, by divergence.

    python bench/quality_order.py [--layers 8] [--width 512] [--vocabulary 2048] [--text FILE]
        [--ctx 256] [--chunks 16] [--seed 0] [--work DIR] [--json] [--plot FILE.svg]

A random Llama in BF16 (synthetic_checkpoint.py --heavy-tailed) whose rows are whole blocks of 256
is quantized to all types and to BF16 by one `localrun quantize`; each file is then compared with
the BF16 one, as quality.py does. Without --text it reads Python's language reference. Exit code 1
when the divergences do not rise from Q8_0 to Q2_K with error bars that keep apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from math import hypot
from pathlib import Path
from pydoc_data import topics
from typing import Any

import synthetic_checkpoint
from ending import ended
from quality import Row, localrun, measure, print_table, save_reference
from quality_plot import Point, plot
from synthetic_configs import base

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
ORIGINAL = "BF16"
_NAME = "heavy"
_HEAD_DIM = 64


def configuration(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """A dense model; every row of its matrices has a multiple of 256 numbers."""
    return base("llama") | {
        "head_dim": _HEAD_DIM,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_attention_heads": width // _HEAD_DIM,
        "num_hidden_layers": layers,
        "num_key_value_heads": width // _HEAD_DIM // 2,
        "vocab_size": vocabulary,
    }


def quantized(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The files by type, all of one command."""
    config = configuration(options.layers, options.width, options.vocabulary)
    checkpoint, out = folder / _NAME, folder / "types"
    synthetic_checkpoint.write(checkpoint, config, options.seed, False, heavy_tailed=True)
    flags = [flag for kind in (*TYPES, ORIGINAL) for flag in ("--type", kind)]
    done = localrun("quantize", str(checkpoint), str(out), *flags)
    return {each["type"]: Path(each["files"][0]["path"]) for each in done["outputs"]}


def separations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of neighbours in ``rows``, from the nearest to the farthest: how many standard errors of
    their difference lie between them, and whether their bars keep apart."""
    return [
        {
            "nearer": near.name,
            "farther": far.name,
            "sigmas": (far.kld - near.kld) / hypot(near.kld_stderr, far.kld_stderr),
            "apart": near.kld + near.kld_stderr < far.kld - far.kld_stderr,
        }
        for near, far in pairwise(rows)
    ]


def compared(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The report: the original, a row for each type, and how far neighbours are apart."""
    if options.text is None:
        options.text = folder / "reference.txt"
        words = (str(topics.topics[name]) for name in sorted(topics.topics))
        options.text.write_text("\n".join(words), encoding="utf-8")
    files = quantized(folder, options)
    logits = folder / "original.kld"
    original = save_reference(str(files[ORIGINAL]), logits, options)
    rows = [
        replace(measure(str(files[kind]), logits, None), name=kind) for kind in (*TYPES, ORIGINAL)
    ]
    return {
        "original": original,
        "rows": [asdict(row) for row in rows],
        "separations": separations(rows[:-1]),
    }


def show(report: dict[str, Any]) -> None:
    original = report["original"]
    floor = original["floor"]
    print_table([Row(**row) for row in report["rows"]])
    print(
        f"{original['windows']} windows of {original['n_ctx']} tokens, {original['tokens']} "
        f"predictions; perplexity of the original {original['value']:.1f}, its floor "
        f"{floor['value']:.1g}"
    )
    for each in report["separations"]:
        print(f"{each['nearer']} < {each['farther']}: by {each['sigmas']:.1f} standard errors")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where to put 10 bytes a weight meanwhile")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args(arguments)
    if options.width < 256 or options.width % 256:
        parser.error(f"--width {options.width}: a multiple of 256 is needed")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        report = compared(Path(folder), options)
    if options.plot is not None:
        points = [
            Point(row["name"], row["bits_per_weight"], row["kld"], row["kld_stderr"])
            for row in report["rows"]
        ]
        floor = report["original"]["floor"]["value"]
        title = "Divergence from a random model of heavy-tailed weights"
        options.plot.write_text(plot(points, title, floor), encoding="utf-8")
    missed = [
        f"{each['farther']} is not farther than {each['nearer']} beyond their errors"
        for each in report["separations"]
        if not each["apart"]
    ]
    return ended(report, missed, show, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())

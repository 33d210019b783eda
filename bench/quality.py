"""Quality against size: the divergence of several files of one model from their original.

    python bench/quality.py REFERENCE MODEL ... [--text FILE] [--ctx N] [--chunks N]
                            [--logits FILE] [--json] [--plot FILE.svg]

REFERENCE is the original model, or log-probabilities that were saved of it; each MODEL is a path or
a reference as `localrun evaluate` takes it, and runs in a process of its own. How the figures are
taken is in METHODOLOGY.md. Exit code 1 when a larger file is farther from the original than a
smaller one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from quality_plot import Point, plot

LOCALRUN = (sys.executable, "-P", "-m", "localrun.cli")


@dataclass(frozen=True)
class Row:
    """One file. ``kld`` in nats, shares from 0 to 1, each with its standard error."""

    name: str
    bits_per_weight: float
    bytes: int
    kld: float
    kld_stderr: float
    kld_999: float
    same_top: float
    same_top_stderr: float
    ln_ppl_ratio: float
    ln_ppl_ratio_stderr: float


def localrun(*arguments: str) -> dict[str, Any]:
    """The document of one command; ends this program where the command fails."""
    done = subprocess.run([*LOCALRUN, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def save_reference(reference: str, logits: Path, options: argparse.Namespace) -> dict[str, Any]:
    flags = ["--text", str(options.text), "--ctx", str(options.ctx)]
    if options.chunks is not None:
        flags += ["--chunks", str(options.chunks)]
    return localrun("evaluate", "perplexity", reference, *flags, "--save-logits", str(logits))


def measure(model: str, logits: Path, chunks: int | None) -> Row:
    shown = localrun("show", model)
    limit = () if chunks is None else ("--chunks", str(chunks))
    found = localrun("evaluate", "kld", model, "--reference", str(logits), *limit)
    return row(model, shown, found)


def row(model: str, shown: dict[str, Any], found: dict[str, Any]) -> Row:
    """From what `show` and `evaluate kld` say of a model."""
    return Row(
        name=Path(model).stem if "/" in model else model,
        bits_per_weight=8 * shown["tensor_bytes"] / shown["parameters"],
        bytes=shown["bytes"],
        kld=found["value"],
        kld_stderr=found["stderr"],
        kld_999=found["kld"]["quantiles"]["0.999"],
        same_top=found["same_top"]["value"],
        same_top_stderr=found["same_top"]["stderr"],
        ln_ppl_ratio=found["ln_ppl_ratio"]["value"],
        ln_ppl_ratio_stderr=found["ln_ppl_ratio"]["stderr"],
    )


def disordered(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Neighbours in size of which the larger is not nearer to the original: (smaller, larger)."""
    by_size = sorted(rows, key=lambda each: (each.bits_per_weight, -each.kld))
    return [
        (small.name, large.name) for small, large in pairwise(by_size) if large.kld >= small.kld
    ]


def print_table(rows: Sequence[Row]) -> None:
    width = max(len("model"), *(len(each.name) for each in rows))
    print(
        f"{'model':<{width}}  {'bits':>6}  {'mean KLD':>20}  {'99.9 %':>9}  {'same top, %':>15}  "
        f"{'ln(PPL ratio)':>19}"
    )
    for each in sorted(rows, key=lambda each: each.bits_per_weight):
        same, error = 100 * each.same_top, 100 * each.same_top_stderr
        ratio = f"{each.ln_ppl_ratio:8.5f} ± {each.ln_ppl_ratio_stderr:8.5f}"
        print(
            f"{each.name:<{width}}  {each.bits_per_weight:6.3f}  "
            f"{each.kld:9.6f} ± {each.kld_stderr:8.6f}  {each.kld_999:9.6f}  "
            f"{same:7.3f} ± {error:5.3f}  {ratio}"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("models", metavar="MODEL", nargs="+")
    parser.add_argument("--text", type=Path, help="needed where REFERENCE is a model")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--logits", type=Path, help="keep the reference's log-probabilities")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        original: dict[str, Any] | None = None
        if options.text is None:
            logits = Path(options.reference)
        else:
            logits = options.logits or Path(folder) / "reference.kld"
            original = save_reference(options.reference, logits, options)
        rows = [measure(model, logits, options.chunks) for model in options.models]
    floor = None if original is None else original["floor"]
    wrong = disordered(rows)
    if options.json:
        document = {"reference": original, "rows": [asdict(each) for each in rows]}
        print(json.dumps({**document, "disordered": wrong}, indent=2))
    else:
        print_table(rows)
        if floor is not None:
            print(f"floor of the reference: {floor['value']:.2g} ± {floor['stderr']:.1g}")
        for small, large in wrong:
            print(f"{large} is larger than {small} and not nearer to the original")
    if options.plot is not None:
        points = [
            Point(each.name, each.bits_per_weight, each.kld, each.kld_stderr) for each in rows
        ]
        title = f"Divergence from {Path(options.reference).name}"
        options.plot.write_text(
            plot(points, title, None if floor is None else floor["value"]), encoding="utf-8"
        )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

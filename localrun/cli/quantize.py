"""Knows no tensor: ``localrun quantize``, a model in the types and formats that runners read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrun.cli.options import Json, parse_size
from localrun.cli.output import emit_json, note
from localrun.cli.progress import progress
from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.quantize.conversion import Conversion, Source
    from localrun.quantize.recipe import Recipe

Model = Annotated[
    str, typer.Argument(metavar="SRC", help="A model on this disk: a REF, a directory or a file.")
]
Target = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="FILE.gguf for one GGUF type, a directory otherwise."),
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type",
        metavar="T",
        help="Q4_K_M, IQ4_XS, MXFP4, BF16 … (GGUF); fp8-block, w4a16, mxfp4-ct, safetensors-bf16 "
        "(safetensors); mlx-4bit, mlx-8bit, mlx-mxfp4, mlx-mxfp8. Repeat for several outputs.",
    ),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=T",
        help="The type of GGUF tensors whose name fits; repeat, the first that fits counts.",
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="Importance matrix: .gguf or .dat."),
]
CollectImatrix = Annotated[
    Path | None,
    typer.Option(
        "--collect-imatrix",
        metavar="TEXT",
        help="Make the importance matrix, by having the model read this file; kept beside OUT.",
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        "--bits-per-weight",
        metavar="B",
        help="Choose each tensor's type by its measured error, for so many bits in all.",
    ),
]
TargetSize = Annotated[
    str | None, typer.Option("--size", metavar="SIZE", help="The same, for a file of this size.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Cores; else all.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what a run has left.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace the file OUT; start again what a run has left.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")]
Evaluate = Annotated[
    bool, typer.Option("--evaluate", help="Then run it and the original, and tell the divergence.")
]
Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="What --evaluate reads; else Python's reference."),
]
NoPreflight = Annotated[
    bool,
    typer.Option("--no-preflight", help="Do not hold tokens and prompts to the source's first."),
]


def quantize(
    src: Model,
    out: Target,
    type: Types = None,
    tensor_type: TensorTypes = None,
    imatrix: Imatrix = None,
    collect_imatrix: CollectImatrix = None,
    bits_per_weight: BitsPerWeight = None,
    size: TargetSize = None,
    threads: Threads = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    no_preflight: NoPreflight = False,
    evaluate: Evaluate = False,
    text: Text = None,
    json: Json = False,
) -> None:
    """Quantize or convert a model: safetensors or GGUF to GGUF, safetensors or MLX weights."""
    from dataclasses import replace

    from localrun.cli.loading import find
    from localrun.cli.originals import collect_imatrix as collect
    from localrun.cli.originals import evaluate as measured
    from localrun.cli.originals import original
    from localrun.cli.quantized import announce, document, report
    from localrun.config import settings
    from localrun.quantize.carry_out import processors
    from localrun.quantize.conversion import open_source, plan_conversion
    from localrun.quantize.execution import Options, execute
    from localrun.quantize.recipe import check_target

    if collect_imatrix is not None and imatrix is not None:
        raise UsageError("--imatrix and --collect-imatrix: give one of the two")
    recipe = _recipe(type, tensor_type, imatrix, bits_per_weight, size)
    files = find(src, settings(), offer=False)
    check_target(out, recipe, files)
    workers = threads or processors()
    out = out.absolute()
    with open_source(files) as source, original(source, out, workers) as whole:
        if collect_imatrix is not None and not dry_run:
            recipe = replace(recipe, imatrix=collect(whole, collect_imatrix))
        conversion = plan_conversion(source, recipe)
        announce(conversion, workers)
        result, quality = None, {}
        if not dry_run:
            if not no_preflight:
                _prove(source, conversion)
            result = execute(
                conversion.work,
                conversion.folders,
                out,
                source,
                Options(workers, resume=resume, force=force),
                single=conversion.single,
                share=conversion.share,
                progress=progress(),
            )
            for line in result.notes:
                note(f"note: {line}")
            if evaluate:
                quality = measured(whole, conversion, out, text)
    if json:
        emit_json(document(conversion, str(files.ref), out, workers, result, quality))
    else:
        report(conversion, out, result)


def _recipe(
    types: list[str] | None,
    tensor_types: list[str] | None,
    imatrix: Path | None,
    bits_per_weight: float | None,
    size: str | None,
) -> Recipe:
    """
    Raises:
        UsageError: a type, a pattern, a file or settings that cannot be meant.
    """
    from localrun.quantize.recipe import Recipe, known_type
    from localrun.quantize.types.imatrix_files import read_imatrix
    from localrun.quantize.types.overrides import parse_overrides

    return Recipe(
        tuple(known_type(each) for each in types or ()),
        parse_overrides(tensor_types or ()),
        None if imatrix is None else read_imatrix(imatrix),
        bits_per_weight,
        None if size is None else parse_size(size),
    )


def _prove(source: Source, conversion: Conversion) -> None:
    """Hold tokens and prompts of the file to be to those of the release, before any long work.

    Raises:
        SourceError: they differ; with the first text that does.
    """
    from localrun.quantize.checkpoint import Checkpoint
    from localrun.quantize.preflight import prove

    if conversion.gguf is None or not isinstance(source, Checkpoint):
        return
    proof = prove(source, conversion.gguf.metadata)
    for line in proof.notes:
        note(f"note: {line}")
    note(
        f"{proof.texts} texts make the same tokens as the release's, "
        f"{proof.chats} chats the same prompts"
    )

"""Knows no tensor: ``localrun quantize``, a checkpoint as a file that a runner reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localrun.cli.options import Json
from localrun.cli.output import emit_json, note, say, size
from localrun.cli.progress import progress

if TYPE_CHECKING:
    from localrun.quantize.conversion import Conversion

Checkpoint = Annotated[
    str, typer.Argument(metavar="SRC", help="A checkpoint on this disk: a directory or a REF.")
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, FILE.gguf.")]
Type = Annotated[
    Literal["F32", "F16", "BF16", "Q8_0"],
    typer.Option("--type", case_sensitive=False, help="What the matrices are stored as."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT where it is there already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")]


def quantize(
    src: Checkpoint,
    out: Target,
    type: Type,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Convert a safetensors checkpoint of an encoder (BERT: MiniLM, BGE, E5, GTE) to GGUF."""
    from localrun.cli.loading import find
    from localrun.config import settings
    from localrun.quantize.checkpoint import Checkpoint
    from localrun.quantize.conversion import check_target, plan_conversion, write

    files = find(src, settings(), offer=False)
    check_target(out, files, force=force)
    with Checkpoint(files) as checkpoint:
        conversion = plan_conversion(checkpoint, type)
        for line in conversion.notes:
            note(f"note: {line}")
        sha256 = None
        if not dry_run:
            sha256 = write(conversion, checkpoint, out, progress=progress())
    if json:
        emit_json(document(conversion, str(files.ref), out, type, sha256))
        return
    for kind, (count, total) in types(conversion).items():
        note(f"{kind}: {count} tensors, {size(total)}")
    say(f"{out}: {size(conversion.plan.bytes)}" + (" would be written" if dry_run else ""))


def types(conversion: Conversion) -> dict[str, tuple[int, int]]:
    """(tensors, bytes) of the file to be by type."""
    found: dict[str, tuple[int, int]] = {}
    for tensor in conversion.plan.tensors:
        count, total = found.get(tensor.type.name, (0, 0))
        found[tensor.type.name] = (count + 1, total + tensor.bytes)
    return found


def document(
    conversion: Conversion, ref: str, out: Path, type: str, sha256: str | None
) -> dict[str, object]:
    """What ``--json`` prints; ``sha256`` is None where nothing was written."""
    return {
        "source": ref,
        "output": out,
        "architecture": conversion.architecture,
        "type": type,
        "bytes": conversion.plan.bytes,
        "read_bytes": conversion.source_bytes,
        "tensors": {
            name: {"tensors": count, "bytes": total}
            for name, (count, total) in types(conversion).items()
        },
        "notes": list(conversion.notes),
        "written": sha256 is not None,
        "sha256": sha256,
    }

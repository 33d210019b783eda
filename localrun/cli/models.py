"""Knows no download: ``localrun list``, ``rm`` and ``import``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrun.cli.options import Json, Ref
from localrun.cli.output import emit_json, note, say, size, table

if TYPE_CHECKING:
    from localrun.ref import LocalRef
    from localrun.store.importing import Imported

Force = Annotated[
    bool, typer.Option("--force", help="Also what another program fetched or another name uses.")
]
Name = Annotated[
    str | None, typer.Option("--name", help="PUBLISHER/NAME to keep it under; else from the path.")
]


Catalogue = Annotated[
    bool, typer.Option("--catalogue", help="Names that can be pulled, with what they are.")
]


def list_models(catalogue: Catalogue = False, json: Json = False) -> None:
    """List the models on this disk."""
    if catalogue:
        _list_catalogue(json)
        return
    from localrun.config import settings
    from localrun.store.library import Library

    stored = Library(settings()).list()
    if json:
        emit_json(
            {
                "models": [
                    {
                        "ref": model.ref,
                        "bytes": model.bytes,
                        "state": model.state,
                        "detail": model.detail,
                        "origin": model.files.origin if model.files else None,
                        "format": model.files.format if model.files else None,
                        "licence": model.files.licence if model.files else None,
                        "verification": model.verification,
                        "fetched_by_us": model.fetched_by_us,
                        "created": model.created,
                        "files": [
                            {"name": file.name, "path": file.path, "bytes": file.bytes}
                            for file in (model.files.files if model.files else ())
                        ],
                    }
                    for model in stored
                ]
            }
        )
        return
    table(
        ("model", "size", "format", "origin", "state"),
        [
            (
                model.ref,
                size(model.bytes),
                model.files.format if model.files else "?",
                model.files.origin if model.files else "?",
                f"{model.state}: {model.detail}" if model.detail else model.state,
            )
            for model in stored
        ],
    )
    if not stored:
        note("no models here yet: `localrun pull smollm2` fetches one of 98 MB")


def _list_catalogue(json: bool) -> None:
    from localrun.store.catalogue import entries

    known = entries().values()
    if json:
        emit_json(
            {
                "models": [
                    {
                        "ref": entry.name,
                        "source": str(entry.source),
                        "quant": entry.quant,
                        "licence": entry.licence,
                        "about": entry.about,
                    }
                    for entry in known
                ]
            }
        )
        return
    table(("name", "licence", "about"), [(each.name, each.licence, each.about) for each in known])


def remove(ref: Ref, force: Force = False) -> None:
    """Remove a model that localrun fetched and that no other name uses."""
    from localrun.config import settings
    from localrun.ref import parse
    from localrun.store.library import Library

    removed = Library(settings()).remove(parse(ref), force=force)
    note(f"removed {removed.ref}: {size(removed.freed_bytes)} freed")
    if removed.kept_for:
        note(f"its files stay for {', '.join(removed.kept_for)}")


def import_model(
    source: Annotated[str, typer.Argument(metavar="PATH|ollama|lmstudio", help="Where they are.")],
    name: Name = None,
    json: Json = False,
) -> None:
    """Use models that are on this disk already; links them, never moves or copies."""
    imported = _import(source, name)
    if json:
        emit_json(
            {
                "models": [
                    {"ref": str(files.ref), "bytes": files.bytes} for files in imported.models
                ],
                "skipped": [asdict(skipped) for skipped in imported.skipped],
            }
        )
        return
    for files in imported.models:
        say(f"{files.ref}  {size(files.bytes)}")
    for skipped in imported.skipped:
        note(f"skipped {skipped.name}: {skipped.reason}")
    if not imported.models and not imported.skipped:
        note(f"nothing to import from {source}")


def _import(source: str, name: str | None) -> Imported:
    from localrun.config import settings
    from localrun.errors import UsageError
    from localrun.store.importing import Imported, import_path

    if source in ("ollama", "lmstudio"):
        if name is not None:
            raise UsageError(f"--name {name}: the models of {source} keep their own names")
        if source == "ollama":
            from localrun.store.ollama import import_ollama

            return import_ollama(settings())
        from localrun.store.lmstudio import import_lmstudio

        return import_lmstudio(settings())
    ref = None if name is None else _local(name)
    return Imported((import_path(Path(source), settings(), ref),), ())


def _local(name: str) -> LocalRef:
    from localrun.errors import RefError, UsageError
    from localrun.ref import LocalRef, parse

    try:
        ref = parse(f"local:{name}")
    except RefError as error:
        raise UsageError(
            f"--name {name}: {error.message}", hint="write it as PUBLISHER/NAME"
        ) from error
    assert isinstance(ref, LocalRef)
    return ref

"""Knows no disk but its own data file: the models people run today, by short names."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from localrun.errors import ModelNotFoundError, UsageError
from localrun.ref import CatalogueRef, HubRef, ModelRef, PipRef, parse
from localrun.store.pip_source import Pin

DATA = "catalogue.toml"


@dataclass(frozen=True, slots=True)
class Entry:
    """``quant`` is taken when none is asked for; None where the source holds one form."""

    name: str
    source: HubRef | PipRef
    quant: str | None
    licence: str
    about: str
    pin: Pin | None = None


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    text = importlib.resources.files("localrun.store").joinpath(DATA).read_text(encoding="utf-8")
    return {name: _entry(name, fields) for name, fields in tomllib.loads(text).items()}


def entry(name: str) -> Entry | None:
    """The entry called ``name``, in any case."""
    return entries().get(name.lower())


def nearest(name: str, n: int = 3, installed: Iterable[str] = ()) -> tuple[str, ...]:
    """The ``n`` names most like ``name``, of the catalogue and of what is installed."""
    return closest(name, (*entries(), *installed), n)


def closest(name: str, names: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """The ``n`` of ``names`` most like ``name``."""
    known = {known.lower(): known for known in names}
    return tuple(
        known[match] for match in difflib.get_close_matches(name.lower(), known, n=n, cutoff=0.0)
    )


def _entry(name: str, fields: Mapping[str, str | int]) -> Entry:
    source = parse(str(fields["source"]))
    assert isinstance(source, HubRef | PipRef), name
    pin = None
    if "wheel_sha256" in fields:
        pin = Pin(
            wheel_sha256=str(fields["wheel_sha256"]),
            sha256=str(fields["sha256"]),
            wheel_bytes=int(fields["wheel_bytes"]),
        )
    quant = fields.get("quant")
    return Entry(
        name=name,
        source=source,
        quant=str(quant) if quant else None,
        licence=str(fields["licence"]),
        about=str(fields["about"]),
        pin=pin,
    )


def canonical(ref: CatalogueRef) -> CatalogueRef:
    """Without the quantization where it is the entry's own: ``smollm2`` for ``smollm2:Q4_1``."""
    found = entry(ref.name)
    return CatalogueRef(ref.name) if found is not None and ref.tag == found.quant else ref


def resolve(ref: CatalogueRef, quant: str | None = None) -> tuple[Entry, HubRef | PipRef]:
    """The entry a reference names, and its source with the quantization that was asked for.

    Raises:
        ModelNotFoundError: no entry by that name. UsageError: it does not come in that form.
    """
    found = entry(ref.name)
    if found is None:
        raise unknown(ref)
    wanted = wanted_quant(ref, ref.tag, quant)
    if isinstance(found.source, PipRef) or found.quant is None:
        if wanted not in (None, found.quant):
            raise UsageError(
                f"{found.name} comes in {found.quant or 'one form'} only, not in {wanted}",
                hint=f"`localrun pull {found.name}`",
            )
        return found, found.source
    return found, replace(found.source, tag=wanted or found.quant)


def wanted_quant(ref: ModelRef, tag: str | None, quant: str | None) -> str | None:
    """The one quantization asked for, by the reference's tag or by ``--quant``.

    Raises:
        UsageError: both, and they differ.
    """
    wanted = quant.upper() if quant else None
    if tag and wanted and tag != wanted:
        raise UsageError(f"{ref} and --quant {quant} ask for different quantizations")
    return tag or wanted


def unknown(ref: ModelRef, installed: Iterable[str] = ()) -> ModelNotFoundError:
    """The error for a name that nothing has, with the three nearest names in its message."""
    near = nearest(str(ref), installed=installed)
    said = f"; nearest: {', '.join(near)}" if near else ""
    return ModelNotFoundError(f"no model is called {str(ref)!r}{said}", nearest=near)

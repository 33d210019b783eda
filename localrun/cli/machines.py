"""Knows no plan: which machine ``--machine`` means, with the speeds that are known of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from localrun.config import Settings
    from localrun.hardware.machine import Machine
    from localrun.hardware.measurements import Key, Measurements

AUTO = "auto"
MachineName = Annotated[
    str,
    typer.Option(
        "--machine",
        metavar="auto|NAME|FILE.toml",
        help="This machine, one by name such as rtx-4090+ddr5-6000x2:128+nvme4, or a file.",
    ),
]


def machine_for(text: str, here: Settings, model_place: Path | None = None) -> Machine:
    """``auto``, a name of ``hardware.profiles`` or a TOML file; tiers are filled in.

    ``model_place`` is where models lie, for the disk of ``auto``: the hub cache unless given.

    Raises:
        UsageError: names ``--machine`` and the part, or the file and the key.
    """
    if text.strip().lower() == AUTO:
        return this_machine(here, model_place)[0]
    if text.lower().endswith(".toml"):
        from localrun.hardware.machine_file import read_machine

        return read_machine(Path(text).expanduser())
    from localrun.hardware.profiles import named

    return named(text)


def this_machine(
    here: Settings, model_place: Path | None = None
) -> tuple[Machine, Measurements | None]:
    """This machine as probed just now, and what was measured on it, if anything."""
    from dataclasses import replace

    from localrun.hardware.measurements import load
    from localrun.hardware.tiers import with_tiers

    place = model_place or here.hub_cache
    machine = probed(here, place)
    stored = load(store_of(here), key_here(machine))
    if stored.note:
        machine = replace(machine, notes=(*machine.notes, stored.note))
    return with_tiers(machine, stored.found, model_place=place), stored.found


def probed(here: Settings, model_place: Path) -> Machine:
    """This machine without tiers; its first disk is that of ``model_place``."""
    from localrun.hardware.probe import probe

    return probe(list(dict.fromkeys((model_place, here.data, here.hub_cache))))


def store_of(here: Settings) -> Path:
    """Where measurements are remembered."""
    from localrun.hardware.measurements import FILE_NAME

    return here.state / FILE_NAME


def key_here(machine: Machine) -> Key:
    """What the measurements of this machine hold for."""
    from localrun.hardware.kernel_build import kernel_build
    from localrun.hardware.measurements import key_of

    return key_of(machine, kernel_build())

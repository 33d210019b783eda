"""Knows no planning: a plan's picture for a terminal or a file, and its one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from localrun.errors import UsageError
from localrun.plan.plan import Plan, Range

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Wider bars say no more, and a screenshot of them is unreadable.
WIDEST = 120
EXPORTED_WIDTH = 104
GIB = 2**30
_MINUTES = 120.0
_ORDER = ("vram", "unified", "ram", "disk")


def render(plan: Plan) -> RenderableType:
    """The whole picture, for any width from 60 columns on; what is wider stays empty."""
    from localrun.cli.plan_picture import Picture

    return Picture(plan)


def show(plan: Plan) -> None:
    """Print the picture on stdout; with NO_COLOR, or into a pipe, plain text."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if console.no_color:  # rich would keep bold and dim
        console = Console(
            highlight=False, markup=False, emoji=False, color_system=None, width=console.width
        )
    console.print(render(plan))


def one_line(plan: Plan) -> str:
    """Model, memory by tier and speed, as chat and serve open with it."""
    from localrun.cli.output import clean_line

    quantization = plan.model.quantization
    named = quantization and quantization not in plan.ref
    parts = [f"{plan.ref} {quantization}" if named else plan.ref, plan.backend]
    parts += [
        f"{budget.tier} {gib(budget.total)} of {gib(budget.limit)}"
        for budget in sorted(plan.budgets, key=lambda budget: place(budget.tier))
        if budget.total
    ]
    parts.append(f"context {plan.execution.n_ctx}")
    if not plan.fits:
        parts.append("does not fit")
    elif plan.model.encoder:
        speed = plan.prediction.prefill_tps
        parts.append(f"embeddings only, {number(speed.mid)} tokens/s predicted ({band(speed)})")
    elif plan.prediction.decode_tps.mid > 0:
        decode, bound = plan.prediction.decode_tps, plan.prediction.bound_by
        by = f", bound by {bound}" if bound else ""
        parts.append(f"{number(decode.mid)} tokens/s predicted ({band(decode)}){by}")
    return clean_line(" · ".join(parts))


def tell_plan(plan: Plan) -> None:
    """The plan's one line and its warnings, on stderr."""
    from localrun.cli.output import note

    note(one_line(plan))
    for warning in plan.warnings:
        note(f"note: {warning}")


def export(plan: Plan, path: Path) -> None:
    """Write the picture to ``path``, whole or not at all; nothing in it is fetched from elsewhere.

    Raises:
        UsageError: neither ``.svg`` nor ``.html``, or no directory there.
        DiskFullError, LocalrunError: as ``store.atomic``.
    """
    from localrun.store.atomic import AtomicFile

    check_output(path)
    text = _document(plan, path.suffix.lower())
    with AtomicFile(path) as file:
        file.write(text.encode())
        file.commit()


def check_output(path: Path) -> None:
    """Hold the name of a picture's file before anything is read for it.

    Raises:
        UsageError: neither ``.svg`` nor ``.html``, or no directory there.
    """
    if path.suffix.lower() not in (".svg", ".html"):
        raise UsageError(
            f"--output {path}: a picture is written as .svg or .html",
            hint="end the name in .svg or .html; --json prints the plan for programs",
        )
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: {path.parent} is no directory", hint="create it first")
    if path.is_dir():
        raise UsageError(f"--output {path}: is a directory", hint="name a file in it")


def _document(plan: Plan, suffix: str) -> str:
    from rich.padding import Padding

    from localrun.cli.plan_export import html, svg

    console = _recorder()
    console.print(Padding(render(plan), (1, 2)))
    return svg(console) if suffix == ".svg" else html(console)


def _recorder() -> Console:
    """A console that draws for a file: colours and marks whatever this terminal can do."""
    from io import StringIO

    from rich.console import Console

    return Console(
        file=StringIO(),
        record=True,
        width=EXPORTED_WIDTH,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )


def gib(count: int) -> str:
    """Memory for a person, powers of two: ``21.3 GiB``."""
    if 0 < count < GIB / 10:
        return f"{count / 2**20:.1f} MiB"
    digits = 2 if 0 < count < GIB else 1 if count < 1000 * GIB else 0
    return f"{count / GIB:.{digits}f} GiB"


def number(value: float) -> str:
    """No more digits than an estimate has: ``0.42``, ``9.3``, ``1240``."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f}"


def band(estimate: Range) -> str:
    """``low–high``."""
    return f"{number(estimate.low)}–{number(estimate.high)}"


def milliseconds(value: float) -> str:
    """A length of time given in milliseconds, in the unit a person would say it in."""
    if abs(value) < 1000:
        return f"{number(value)} ms"
    seconds = value / 1000
    return f"{number(seconds)} s" if seconds < _MINUTES else f"{number(seconds / 60)} min"


def place(tier: str) -> tuple[int, str]:
    """The order tiers are shown in: the fastest first."""
    kind = tier.partition(":")[0]
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), tier)

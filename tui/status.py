"""Knows no engine: the line that says what the model is doing and how fast."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from localrun.tui.plain import one_line

BAR_CELLS = 8
MUTED = "$foreground 55%"


@dataclass(frozen=True, slots=True)
class Status:
    """What the line shows. Tokens are None while unknown; ``rough`` marks figures still counted.

    ``n_ctx`` is None while no model is loaded, 0 where a server does not tell its own.
    ``state`` is a word such as ``ready`` or ``answering``; it always stands beside its mark.
    """

    state: str = "loading"
    model: str = ""
    backend: str = ""
    n_ctx: int | None = None
    used: int | None = None
    prefilled: int | None = None
    prompt_tokens: int | None = None
    now_tps: float | None = None
    mean_tps: float | None = None
    rough: bool = False


MARKS = {
    "loading": ("◌", "$warning"),
    "ready": ("●", "$success"),
    "waiting": ("◌", "$warning"),
    "reading": ("◐", "$primary"),
    "thinking": ("◑", "$secondary"),
    "answering": ("◑", "$primary"),
    "stopping": ("◌", "$warning"),
    "failed": ("✗", "$error"),
}
_NONE = ("·", MUTED)


def thousands(number: int) -> str:
    """``12,345``."""
    return f"{number:,}"


def bar(done: int, total: int) -> str:
    """A bar of eight cells for ``done`` of ``total``."""
    filled = round(BAR_CELLS * min(1.0, done / total)) if total > 0 else 0
    return "▰" * filled + "▱" * (BAR_CELLS - filled)


def _state(status: Status) -> Content:
    mark, colour = MARKS.get(status.state, _NONE)
    return Content.assemble((f"{mark} ", colour), (status.state, "bold"))


def _prefill(status: Status) -> Content | None:
    done, total = status.prefilled, status.prompt_tokens
    if status.state != "reading" or done is None or not total:
        return None
    percent = 100 * done // total
    return Content.assemble(
        (bar(done, total), "$primary"), f" {thousands(done)}/{thousands(total)} {percent}%"
    )


def _context(status: Status) -> Content | None:
    if status.n_ctx is None:
        return None
    if status.used is None:
        return Content.assemble(("ctx ", MUTED), thousands(status.n_ctx)) if status.n_ctx else None
    rough = "≈" if status.rough else ""
    if not status.n_ctx:
        return Content.assemble(("ctx ", MUTED), f"{rough}{thousands(status.used)}")
    percent = 100 * status.used // status.n_ctx
    figure = f"{rough}{thousands(status.used)}/{thousands(status.n_ctx)}"
    return Content.assemble(("ctx ", MUTED), figure, (f" {percent}%", MUTED))


def _speed(status: Status) -> Content | None:
    if status.mean_tps is None:
        return None
    rough = "≈" if status.rough else ""
    if status.now_tps is None:
        return Content.assemble(f"{rough}{status.mean_tps:.1f}", (" tok/s", MUTED))
    return Content.assemble(
        f"{rough}{status.now_tps:.0f}",
        (" tok/s now ", MUTED),
        f"{rough}{status.mean_tps:.0f}",
        (" mean", MUTED),
    )


def status_line(status: Status, width: int) -> Content:
    """The line in at most ``width`` cells: parts that do not fit are left out, least first."""
    name = Content(one_line(status.model, max(12, width // 3)))
    backend = Content.styled(one_line(status.backend, 20), MUTED)
    ranked = [  # (place on the line, how soon it goes, part)
        (0, 0, _state(status)),
        (1, 3, name if status.model else None),
        (2, 5, backend if status.backend else None),
        (3, 1, _prefill(status)),
        (4, 2, _context(status)),
        (5, 4, _speed(status)),
    ]
    kept: list[tuple[int, Content]] = []
    room = width
    for place, _, part in sorted((r for r in ranked if r[2]), key=lambda r: r[1]):
        assert part is not None
        if part.cell_length + 3 <= room or not kept:
            kept.append((place, part))
            room -= part.cell_length + 3
    separator = Content.styled(" │ ", "$foreground 25%")
    return separator.join(part for _, part in sorted(kept, key=lambda k: k[0]))


class StatusLine(Widget):
    """One line under the box."""

    status: reactive[Status] = reactive(Status())

    def render(self) -> Content:
        width = self.size.width
        hint = Content.styled("F1 help", MUTED)
        line = status_line(self.status, width - hint.cell_length - 2)
        gap = max(1, width - line.cell_length - hint.cell_length)
        return Content.assemble(line, " " * gap, hint)

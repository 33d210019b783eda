"""Knows no widget, disk or model: an answer in the making, from its events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.errors import LocalrunError
from localrun.tui.pace import Pace
from localrun.tui.plain import plain
from localrun.tui.status import Status, thousands


@dataclass(slots=True)
class Draft:
    """What has arrived so far. ``text`` and ``reasoning`` are safe to draw, keep and export."""

    state: str = "waiting"
    prefilled: int | None = None
    prompt_tokens: int | None = None
    finish: FinishReason | None = None
    timings: Timings | None = None
    error: LocalrunError | None = None
    pace: Pace = field(default_factory=Pace)
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str | None:
        return "".join(self._reasoning) or None

    @property
    def empty(self) -> bool:
        return not self._text and not self._reasoning

    def take(self, event: ReplyEvent, now: float) -> tuple[str, str]:
        """Add one event that came at ``now``; returns its (reasoning, text) made plain."""
        if event.prompt_tokens is not None:
            self.prompt_tokens = event.prompt_tokens
        if event.prefilled is not None:
            self.prefilled, self.state = event.prefilled, "reading"
        reasoning, text = plain(event.reasoning), plain(event.text)
        if reasoning:
            self._reasoning.append(reasoning)
            self.state = "thinking"
        if text:
            self._text.append(text)
            self.state = "answering"
        if reasoning or text:
            self.pace.piece(now)
        if event.finish is not None:
            self.finish, self.timings, self.error = event.finish, event.timings, event.error
        return reasoning, text

    def status(self, base: Status, now: float) -> Status:
        """``base`` with this answer's figures, exact once its timings are here."""
        if self.timings is not None:
            return replace(
                base,
                used=self.timings.prompt_tokens + self.timings.generated_tokens,
                mean_tps=self.timings.decode_tps or None,
                now_tps=None,
                rough=False,
            )
        used = None
        if self.prompt_tokens is not None:
            used = self.prompt_tokens + self.pace.pieces
        return replace(
            base,
            state=self.state,
            used=used if used is not None else base.used,
            prefilled=self.prefilled,
            prompt_tokens=self.prompt_tokens,
            now_tps=self.pace.now_tps(now) if self.finish is None else None,
            mean_tps=self.pace.mean_tps,
            rough=True,
        )

    def note(self) -> str:
        """The line under the finished answer."""
        ending = {
            FinishReason.CANCELLED: "■ cancelled",
            FinishReason.LENGTH: "■ cut: the token limit or the context is reached",
            FinishReason.ERROR: "■ broken off",
        }
        parts = [ending[self.finish]] if self.finish in ending else []
        if self.timings is not None:
            parts.append(f"{thousands(self.timings.generated_tokens)} tokens")
            if self.timings.decode_tps:
                parts.append(f"{self.timings.decode_tps:.1f} tok/s")
        elif self.pace.mean_tps:
            parts.append(f"≈{self.pace.mean_tps:.1f} tok/s")
        return " · ".join(parts)

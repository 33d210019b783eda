"""Draws predicted against measured speeds as SVG: a panel for decoding and one for prompts.

Both axes are logarithms of tokens a second, the band is 20 % to each side, and every class has a
mark of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_SIDE, _LEFT, _TOP, _GAP, _FOOT = 420, 64, 40, 80, 110
_BAND = 0.20
_TITLES = {"decode": "decoding, tokens a second", "prefill": "prompt, tokens a second"}


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of a row: ``speed`` is decode or prefill, in tokens a second."""

    id: str
    kind: str
    speed: str
    measured: float
    predicted: float


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    def drawn(x: float, y: float) -> str:
        path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        return f'<polygon points="{path}"/>'

    return drawn


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _strokes(*lines: tuple[float, float, float, float]) -> Callable[[float, float], str]:
    def drawn(x: float, y: float) -> str:
        path = " ".join(f"M{x + a:.1f} {y + b:.1f}L{x + c:.1f} {y + d:.1f}" for a, b, c, d in lines)
        return f'<path d="{path}" fill="none" stroke-width="2.5"/>'

    return drawn


# Mark and colour of each class; the shape alone tells them apart.
_MARKS: dict[str, tuple[Callable[[float, float], str], str]] = {
    "all-gpu": (_circle, "#0072b2"),
    "unified": (_polygon((-4, -4), (4, -4), (4, 4), (-4, 4)), "#e69f00"),
    "hybrid": (_polygon((0, -5), (5, 4), (-5, 4)), "#009e73"),
    "cpu": (_polygon((0, -6), (6, 0), (0, 6), (-6, 0)), "#cc79a7"),
    "streaming": (_strokes((-5, 0, 5, 0), (0, -5, 0, 5)), "#d55e00"),
    "engram": (_strokes((-4, -4, 4, 4), (-4, 4, 4, -4)), "#555555"),
}


def plot(points: Sequence[Point]) -> str:
    """The document."""
    width = _LEFT + 2 * _SIDE + _GAP + 20
    height = _TOP + _SIDE + _FOOT
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        "<title>Predicted against measured speeds</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<clipPath id="inside"><rect width="{_SIDE}" height="{_SIDE}"/></clipPath>',
    ]
    for number, speed in enumerate(_TITLES):
        mine = [point for point in points if point.speed == speed]
        body += _panel(mine, speed, _LEFT + number * (_SIDE + _GAP))
    body += _legend({point.kind for point in points})
    return "\n".join([*body, "</svg>", ""])


def _panel(points: Sequence[Point], speed: str, left: float) -> Iterator[str]:
    values = [value for point in points for value in (point.measured, point.predicted)]
    low = math.floor(math.log10(min(values, default=1.0)) - 0.1)
    high = max(low + 1, math.ceil(math.log10(max(values, default=10.0)) + 0.1))

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * _SIDE

    yield f'<g transform="translate({left} {_TOP})">'
    yield f'<text x="{_SIDE / 2}" y="-14" text-anchor="middle">{_TITLES[speed]}</text>'
    yield from _frame(low, high, at)
    for point in points:
        draw, colour = _MARKS[point.kind]
        error = point.predicted / point.measured - 1
        told = f"{point.id} {point.kind}: {point.measured:g}, predicted {point.predicted:.4g}"
        mark = draw(at(point.measured), _SIDE - at(point.predicted))
        yield f'<g fill="{colour}" stroke="{colour}" fill-opacity="0.6">'
        yield f"<title>{escape(told)} ({error:+.0%})</title>{mark}</g>"
    yield "</g>"


def _frame(low: int, high: int, at: Callable[[float], float]) -> Iterator[str]:
    """Axes, the diagonal and the band around it."""
    above, below = (-at(10**low * (1 + error)) for error in (_BAND, -_BAND))
    yield (
        f'<polygon clip-path="url(#inside)" fill="#dddddd" points="0,{_SIDE + above:.1f} '
        f'{_SIDE},{above:.1f} {_SIDE},{below:.1f} 0,{_SIDE + below:.1f}"/>'
    )
    yield f'<line x1="0" y1="{_SIDE}" x2="{_SIDE}" y2="0" stroke="#888888"/>'
    yield f'<rect width="{_SIDE}" height="{_SIDE}" fill="none" stroke="black"/>'
    for power in range(low, high + 1):
        place = at(10.0**power)
        yield f'<text x="{place:.1f}" y="{_SIDE + 18}" text-anchor="middle">{10.0**power:g}</text>'
        yield f'<text x="-8" y="{_SIDE - place + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    yield f'<text x="{_SIDE / 2}" y="{_SIDE + 38}" text-anchor="middle">measured</text>'
    middle = _SIDE / 2
    yield (
        f'<text transform="translate(-46 {middle}) rotate(-90)" text-anchor="middle">'
        "predicted</text>"
    )


def _legend(kinds: set[str]) -> Iterator[str]:
    x, y = _LEFT, _TOP + _SIDE + 72
    for kind, (draw, colour) in _MARKS.items():
        if kind in kinds:
            yield f'<g fill="{colour}" stroke="{colour}" fill-opacity="0.6">{draw(x, y)}</g>'
            yield f'<text x="{x + 12}" y="{y + 4}">{kind}</text>'
            x += 110
    yield f'<text x="{x + 12}" y="{y + 4}">grey: within {_BAND:.0%}</text>'

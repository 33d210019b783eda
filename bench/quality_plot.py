"""Draws divergence against size as SVG: how far types of one model are from their original.

The sizes are bits a weight on a linear axis, the divergences nats on a logarithmic one; a bar is
one standard error to each side, the grey line the reference's own floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _FOOT = 640, 420, 76, 48, 110, 64
_COLOUR = "#0072b2"
# Where nothing is above zero there is nothing to choose decades by.
_USUAL = (-4, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """One file: bits a weight, mean divergence in nats and its standard error."""

    name: str
    bits: float
    kld: float
    stderr: float


@dataclass(frozen=True, slots=True)
class _Axes:
    """From figures to places in the panel, whose origin is its upper left corner."""

    low: int
    high: int
    least: float
    most: float

    def x(self, bits: float) -> float:
        return (bits - self.least) / (self.most - self.least) * _WIDTH

    def y(self, kld: float) -> float:
        """What is at or below the lowest decade, or not above zero, lies on the edge."""
        power = math.log10(kld) if kld > 0 else self.low
        return (self.high - max(power, self.low)) / (self.high - self.low) * _HEIGHT


def plot(points: Sequence[Point], title: str, floor: float | None = None) -> str:
    """The document."""
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _FOOT
    axes = _axes(points)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<g transform="translate({_LEFT} {_TOP})">',
        f'<text x="{_WIDTH / 2}" y="-18" text-anchor="middle">{escape(title)}</text>',
        *_frame(axes),
        *_floor(axes, floor),
    ]
    for point in sorted(points, key=lambda each: each.bits):
        body += _mark(point, axes)
    return "\n".join([*body, "</g>", "</svg>", ""])


def _axes(points: Sequence[Point]) -> _Axes:
    logarithms = [math.log10(point.kld) for point in points if point.kld > 0]
    low = math.floor(min(logarithms, default=_USUAL[0]) - 0.1)
    high = max(low + 1, math.ceil(max(logarithms, default=_USUAL[1]) + 0.1))
    bits = [point.bits for point in points]
    return _Axes(low, high, math.floor(min(bits) - 0.25), math.ceil(max(bits) + 0.25))


def _frame(axes: _Axes) -> Iterator[str]:
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="black"/>'
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        yield f'<line x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    step = max(1, math.ceil((axes.most - axes.least) / 16))
    for bits in range(int(axes.least), int(axes.most) + 1, step):
        x = axes.x(bits)
        yield f'<text x="{x:.1f}" y="{_HEIGHT + 18}" text-anchor="middle">{bits}</text>'
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 40}" text-anchor="middle">bits a weight</text>'
    yield from _upright("mean KL divergence, nats", -56, _HEIGHT / 2)


def _upright(text: str, x: float, y: float) -> Iterator[str]:
    yield f'<text transform="translate({x} {y}) rotate(-90)" text-anchor="middle">{text}</text>'


def _floor(axes: _Axes, floor: float | None) -> Iterator[str]:
    if floor is not None and floor > 10.0**axes.low:
        y = axes.y(floor)
        yield (
            f'<line x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888888" '
            f'stroke-dasharray="4 3"><title>floor {floor:.2g}</title></line>'
        )


def _mark(point: Point, axes: _Axes) -> Iterator[str]:
    x, y = axes.x(point.bits), axes.y(point.kld)
    above, below = (axes.y(point.kld + sign * point.stderr) for sign in (1, -1))
    told = f"{point.name}: {point.bits:.2f} bits, {point.kld:.3g} ± {point.stderr:.1g} nats"
    yield f'<g fill="{_COLOUR}" stroke="{_COLOUR}"><title>{escape(told)}</title>'
    yield _line(x, above, x, below)
    yield _line(x - 4, above, x + 4, above) + _line(x - 4, below, x + 4, below)
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></g>'
    yield f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(point.name)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

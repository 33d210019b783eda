"""Quality against size: what becomes of evaluations, and the drawing of them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = str(Path(__file__).parents[2] / "bench")
SHOWN = {"tensor_bytes": 9_000_000, "parameters": 16_000_000, "bytes": 9_100_000}
SVG = "{http://www.w3.org/2000/svg}"


def bench(name: str) -> Any:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


def evaluated(kld: float = 0.01) -> dict[str, Any]:
    return {
        "value": kld,
        "stderr": kld / 30,
        "kld": {"quantiles": {"0.999": 20 * kld}},
        "same_top": {"value": 0.9, "stderr": 0.01},
        "ln_ppl_ratio": {"value": 0.02, "stderr": 0.005},
    }


def row(name: str, bits: float, kld: float) -> Any:
    shown = {**SHOWN, "tensor_bytes": bits * SHOWN["parameters"] / 8}
    return bench("quality").row(name, shown, evaluated(kld))


def test_a_row_counts_the_bits_of_tensors_alone() -> None:
    found = row("./models/small-Q4_K_M.gguf", 4.5, 0.01)

    assert found.name == "small-Q4_K_M"
    assert found.bits_per_weight == pytest.approx(4.5)
    assert found.bytes == 9_100_000
    assert (found.kld, found.kld_999, found.same_top) == (0.01, 0.2, 0.9)


def test_a_larger_file_that_is_farther_away_is_named() -> None:
    rows = [row("Q8_0", 8.5, 0.001), row("Q4_K_M", 4.8, 0.03), row("Q5_K_M", 5.7, 0.04)]

    assert bench("quality").disordered(rows) == [("Q4_K_M", "Q5_K_M")]
    assert bench("quality").disordered(rows[:2]) == []


def drawn(points: list[Any], floor: float | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(bench("quality_plot").plot(points, "From A & <B>", floor))


def point(name: str, bits: float, kld: float, stderr: float) -> Any:
    return bench("quality_plot").Point(name, bits, kld, stderr)


def places(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [
        (float(each.attrib["cx"]), float(each.attrib["cy"])) for each in svg.iter(f"{SVG}circle")
    ]


def test_smaller_files_are_to_the_left_and_nearer_ones_below() -> None:
    points = [point("Q8_0", 8.5, 0.001, 1e-4), point("Q2_K", 2.6, 0.5, 0.01)]

    (left, upper), (right, lower) = places(drawn(points))

    assert left < right
    assert upper < lower


def test_bars_reach_one_error_to_each_side() -> None:
    svg = drawn([point("Q4", 4.5, 0.01, 0.005)])
    (mark,) = (each for each in svg.iter(f"{SVG}g") if each.find(f"{SVG}circle") is not None)
    bar = mark.find(f"{SVG}line")
    assert bar is not None
    (_, middle), top, bottom = *places(svg), float(bar.attrib["y1"]), float(bar.attrib["y2"])

    # log10 of 1.5 above and of 2 below: 0.176 and 0.301 of a decade.
    assert (bottom - middle) / (middle - top) == pytest.approx(0.301 / 0.176, rel=0.02)


def test_names_are_text_whatever_they_hold() -> None:
    svg = drawn([point("</text><script>", 4.5, 0.01, 0.001)])

    assert svg.find(f".//{SVG}script") is None
    assert "</text><script>" in [each.text for each in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "points",
    [
        [("same", 16.0, -1e-7, 1e-7)],
        [("nothing", 4.0, 0.0, 0.0)],
        [("one", 4.0, 0.01, 0.02)],
        [("a", 4.0, 1e-9, 0.0), ("b", 4.0, 9.0, 1.0)],
    ],
)
def test_what_a_logarithm_does_not_have_stays_inside_the_panel(points: list[Any]) -> None:
    svg = drawn([point(*each) for each in points])

    panel = next(each for each in svg.iter(f"{SVG}rect") if each.attrib.get("stroke") == "black")
    for x, y in places(svg):
        assert 0 <= x <= float(panel.attrib["width"])
        assert 0 <= y <= float(panel.attrib["height"])


def test_the_floor_is_drawn_where_the_panel_reaches_down_to_it() -> None:
    points = [point("Q8_0", 8.5, 0.001, 1e-4)]

    dashed = [
        sum("stroke-dasharray" in each.attrib for each in drawn(points, floor).iter())
        for floor in (None, 1e-9, 9e-4)
    ]

    assert dashed == [0, 0, 1]

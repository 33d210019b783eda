"""More bits are nearer to a model of heavy-tailed weights, by more than what errors explain."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from localrun.cli.app import execute

pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")

BENCH = str(Path(__file__).parents[2] / "bench")
TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
SMALL = ["--layers", "2", "--width", "256", "--vocabulary", "1024", "--ctx", "128", "--chunks", "6"]


def test_each_type_is_farther_from_the_original_than_the_next_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("quality", "quality_order"):
        monkeypatch.setattr(bench(module), "localrun", in_this_process)

    require_order(SMALL, tmp_path, capsys)


@pytest.mark.long
def test_so_it_is_with_eight_layers_of_512_and_two_thousand_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_order([], tmp_path, capsys)


def in_this_process(*arguments: str) -> Any:
    """Sixteen processes take longer to start than this model to run."""
    said = StringIO()
    with redirect_stdout(said):
        assert execute([*arguments, "--json"]) == 0
    return json.loads(said.getvalue())


def require_order(sizes: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = place / "order.svg"

    code = bench("quality_order").main(
        [*sizes, "--work", str(place), "--json", "--plot", str(drawn)]
    )

    report = json.loads(capsys.readouterr().out)
    *rows, original = report["rows"]
    assert code == 0
    assert [row["name"] for row in rows] == TYPES
    for near, far in pairwise(rows):
        assert near["bits_per_weight"] > far["bits_per_weight"]
        assert near["kld"] - near["kld_stderr"] > 0
        assert near["kld"] + near["kld_stderr"] < far["kld"] - far["kld_stderr"]
    assert [each["apart"] for each in report["separations"]] == [True] * 5
    assert min(each["sigmas"] for each in report["separations"]) > 10
    assert original["name"] == "BF16"
    assert abs(original["kld"]) < 1e-5
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
    assert [path.name for path in place.iterdir()] == ["order.svg"]


def test_neighbours_whose_bars_meet_are_told_from_those_that_keep_apart() -> None:
    def row(name: str, kld: float, error: float) -> Any:
        return bench("quality_order").Row(name, 4.5, 100, kld, error, 1.0, 0.9, 0.01, 0.0, 0.01)

    near, far = bench("quality_order").separations(
        [row("Q8_0", 0.01, 0.001), row("Q6_K", 0.02, 0.004), row("Q5_K_M", 0.021, 0.003)]
    )

    assert (near["nearer"], near["farther"], near["apart"]) == ("Q8_0", "Q6_K", True)
    assert near["sigmas"] == pytest.approx(0.01 / (0.001**2 + 0.004**2) ** 0.5)
    assert (far["apart"], far["sigmas"]) == (False, pytest.approx(0.2))


def bench(name: str) -> Any:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)

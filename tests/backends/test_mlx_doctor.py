"""A Linux machine does well without mlx, and a Mac does not: `localrun doctor` says so."""

from __future__ import annotations

import sys

import pytest

from localrun.backends.mlx import backend as mlx
from localrun.backends.registry import backend
from localrun.cli.doctor import backend_checks
from localrun.hardware.machine import Cpu, Gpu, Machine, Memory

CARD = Gpu("RTX 4090", "cuda", 24 << 30, 23 << 30, "570.1")
PC = Machine("Linux", "x86_64", Cpu("cpu", 2, 2, 2), Memory(1, 1, 1), (CARD,), ())


@pytest.mark.parametrize(("system", "state"), [("linux", "note"), ("darwin", "missing")])
def test_where_mlx_is_absent_the_command_stands_and_no_compiler_is_asked_for(
    system: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "platform", system)

    (check,) = backend_checks(backend("mlx"), PC)

    assert (check.name, check.state, check.fix) == ("mlx", state, mlx.install_command())


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac's mlx has Metal")
def test_a_card_that_mlx_does_not_use_is_nothing_to_mend() -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")

    (check,) = backend_checks(backend("mlx"), PC)

    assert check.state == "ok"
    assert "0.32.4" in check.detail

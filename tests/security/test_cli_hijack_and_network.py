"""P6: a hostile current directory imports nothing. E7: the command line opens no socket."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CANARY = "import pathlib; pathlib.Path({canary!r}).write_text('imported')\n"
HOSTILE = ["tui", "backends", "quantize", "cli", "store", "engine"]
WAYS = {
    "console script": [str(Path(sysconfig.get_path("scripts")) / "localrun"), "--version"],
    "python -m": [sys.executable, "-m", "localrun.cli", "--version"],
    "mapped names": [
        sys.executable,
        "-c",
        "import localrun.tui, localrun.backends.llamacpp, localrun.cli.app",
    ],
}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_hostile_current_directory_is_never_imported_from(way: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = tmp_path / "hostile"
    for name in HOSTILE:
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text(CANARY.format(canary=str(canary)))
        (hostile / f"{name}.py").write_text(CANARY.format(canary=str(canary)))

    outcome = subprocess.run(WAYS[way], cwd=hostile, capture_output=True, text=True, timeout=60)

    assert outcome.returncode == 0, outcome.stderr
    assert not canary.exists()


SPY = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
from localrun.cli.app import execute
code = execute(sys.argv[1:])
print("sockets:", sorted(set(opened)), "code:", code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["list", "--json"], ["run", "--help"], ["show", "smollm2"]]
)
def test_no_socket_is_opened_by_commands_that_need_none(arguments: list[str], home: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-P", "-c", SPY, *arguments], capture_output=True, text=True, timeout=60
    )

    assert "sockets: []" in outcome.stderr, outcome.stderr
    assert "code: 3" in outcome.stderr if arguments[0] == "show" else "code: 0" in outcome.stderr

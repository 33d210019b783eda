"""Knows no agent: a program that `localrun launch` sets up and starts, and what it asked for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from served import CHAT_MODEL, ENVIRONMENTS, LOCALRUN, Served

NODE = ENVIRONMENTS / "npm" / "node_modules" / ".bin"
AIDER = ENVIRONMENTS / "aider" / "bin"
DEADLINE_S = 240.0

Ran = subprocess.CompletedProcess[str]


class Agent:
    """One agent in an empty directory and home; ``programs`` is where it is installed."""

    def __init__(
        self, name: str, served: Served, programs: Path, place: Path, env: Mapping[str, str]
    ) -> None:
        assert programs.is_dir(), f"{programs} is missing: run `make test-clients`"
        self.name, self.served, self.place = name, served, place
        self.env = {**env, "PATH": f"{programs}:{env['PATH']}"}
        self._before = len(served.requests())

    def launch(self, *arguments: str) -> Ran:
        """As `localrun launch` starts it."""
        command = [str(LOCALRUN), "launch", self.name, CHAT_MODEL, "--server", self.served.url]
        return self.run([*command, "--", *arguments], {})

    def settings(self) -> dict[str, str]:
        """The environment that `localrun launch` would start it with."""
        command = [str(LOCALRUN), "launch", self.name, CHAT_MODEL, "--server", self.served.url]
        ran = self.run([*command, "--print", "--json"], {})
        assert ran.returncode == 0, ran.stderr
        env: dict[str, str] = json.loads(ran.stdout)["env"]
        return env

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> Ran:
        return subprocess.run(
            list(command),
            cwd=self.place,
            # opencode believes PWD before its directory.
            env={**self.env, "PWD": str(self.place), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The requests to one route since it was made, as the server logged them."""
        return [each for each in self.served.requests()[self._before :] if each["path"] == path]

"""Knows no client: one `localrun serve` for as long as the clients are tried, and its log."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-clients"
# Each made by `make test-clients`.
LOCALRUN = ROOT / ".venv" / "bin" / "localrun"
MINILM = ENVIRONMENTS / "minilm.gguf"

CHAT_MODEL = "smollm2"
N_CTX = 8192
DIMENSIONS = 384
START_S, END_S = 120.0, 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """``url`` ends without a slash and without ``/v1``; ``log`` grows by one line a request."""

    url: str
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def requests(self) -> list[dict[str, Any]]:
        """Every request that has ended, as the server logged it."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        documents = [json.loads(line) for line in lines if line.startswith("{")]
        return [document for document in documents if "path" in document]


@contextmanager
def serving(log: Path, env: dict[str, str]) -> Iterator[Served]:
    """A server that has loaded both models, until the block ends."""
    command = [str(LOCALRUN), "serve", CHAT_MODEL, str(MINILM), "--port", "auto"]
    command += ["--keep-alive", "-1", "--log", "json"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=env,
            text=True,
            # Ctrl-C in the terminal of the tests ends it here, in order, and not before them.
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        late = threading.Timer(START_S, process.kill)
        late.start()
        with process.stdout:
            # The one line of its answer comes when both models are loaded.
            url = process.stdout.readline().strip()
        late.cancel()
        assert url.endswith("/v1"), f"the server did not start:\n{log.read_text(errors='replace')}"
        yield Served(url.removesuffix("/v1"), log)
        assert process.poll() is None, f"the server ended:\n{log.read_text(errors='replace')}"
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

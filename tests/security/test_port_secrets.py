"""Row N12 of the threat table on a real server: its keys are in nothing that it says or keeps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2
import psutil
import pytest

from tests.security.port_routes import examples

KEY: Final = "sk-planted9876543210"
GUESS: Final = "sk-guessed1234567890"
TOKEN: Final = "hf_planted0123456789"
PATHS: Final = ("/v1/models", "/metrics", "/props", "/slots", "/api/tags", "/api/ps", "/no")
SERVE: Final = [sys.executable, "-P", "-m", "localrun.cli", "--verbose", "serve", "--port", "auto"]


@contextmanager
def serving(form: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [*SERVE, "--log", form], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip().removesuffix("/v1")
        finally:
            process.terminate()


@pytest.mark.parametrize("form", ["text", "json"])
def test_keys_are_in_no_answer_no_log_no_file_and_no_argument(
    home: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("LOCALRUN_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = []
    with serving(form) as (process, url), httpx2.Client(base_url=url, timeout=30) as client:
        assert client.get("/v1/models").status_code == 401
        for key in (KEY, GUESS):
            for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                said += [client.get(path, headers=headers) for path in PATHS]
                said += [client.get(f"{path}?key={key}") for path in PATHS]
                for path, body in examples("absent").items():
                    if path != "/api/pull":
                        said.append(client.post(path, json=body, headers=headers))
                    wrong = {field: [key] for field in (*body, "stream")}
                    said.append(client.post(path, json=wrong, headers=headers))
                plain = headers | {"content-type": "text/plain"}
                said.append(client.post("/v1/messages", content=key, headers=plain))
        assert {answer.status_code for answer in said} >= {200, 400, 401, 404, 415}
        running = psutil.Process(process.pid)
        arguments = [each.cmdline() for each in (running, *running.children(recursive=True))]
        process.terminate()
        printed = "".join(process.communicate(timeout=30))

    everything = [printed, str(arguments)]
    everything += [answer.text + str(answer.headers) for answer in said]
    everything += [
        path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file()
    ]
    assert printed.count("/v1/models") >= 4
    assert not [text for text in everything for secret in (KEY, GUESS, TOKEN) if secret in text]

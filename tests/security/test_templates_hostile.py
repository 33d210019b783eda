"""F6: a chat template is a stranger's program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localrun.chat.messages import Message
from localrun.chat.render_frames import ADDRESS_SPACE_BYTES, DEADLINE_S
from localrun.chat.templates import Renderer
from localrun.errors import TemplateError
from tests.security.template_payloads import ENVIRONMENT_CANARY, RESOURCES, escapes

SECRET = "canary-4f1d"
MESSAGES = [Message("user", "hello")]

# A process that still has everything to lose: our sandbox without the process's walls, or plain
# jinja2, which shows that the payloads are able to.
_BARE = """
import datetime, json, sys
import jinja2
from localrun.chat.environment import TemplateEnvironment

plain = jinja2.Environment()
plain.globals["raise_exception"] = lambda text: text
plain.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
outputs = {}
for name, source in json.load(sys.stdin).items():
    try:
        if sys.argv[1] == "sandboxed":
            outputs[name] = TemplateEnvironment().render(source, {"messages": []})
        else:
            outputs[name] = plain.from_string(source).render(messages=[])
    except Exception as error:
        outputs[name] = f"{type(error).__name__}: {error}"
json.dump(outputs, sys.stdout)
"""


def payloads(folder: Path) -> tuple[dict[str, str], Path]:
    (folder / "secret").write_text(SECRET)
    return escapes(str(folder / "secret"), str(folder / "target")), folder / "target"


def test_no_template_reads_or_writes_outside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_CANARY, SECRET)
    sources, target = payloads(tmp_path)

    escaped = []
    with Renderer() as renderer:
        for name, source in sources.items():
            try:
                seen = renderer.render(source, MESSAGES, bos="", eos="")
            except TemplateError as error:
                seen = error.message
            if SECRET in seen or target.exists():
                escaped.append(name)

    assert len(sources) >= 40
    assert escaped == []


def bare(kind: str, sources: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BARE, kind],
        input=json.dumps(sources),
        env={**os.environ, ENVIRONMENT_CANARY: SECRET},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    outputs: dict[str, str] = json.loads(done.stdout)
    return outputs


def test_the_sandbox_alone_holds_what_plain_jinja2_lets_out(tmp_path: Path) -> None:
    sources, target = payloads(tmp_path)

    held = {name for name, text in bare("sandboxed", sources).items() if SECRET not in text}
    untouched = not target.exists()
    let_out = {name for name, text in bare("plain", sources).items() if SECRET in text}

    assert held == set(sources)
    assert untouched
    assert len(let_out) >= 40
    assert target.exists()


_WALLS = """
import json, os, sys
from localrun.chat.render_child import set_limits
set_limits()
held = []
for name, act in {
    "open": lambda: open(sys.executable, "rb"),
    "write": lambda: os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY),
    "socket": lambda: __import__("_socket").socket(),
    "memory": lambda: bytearray(2**28),
}.items():
    try:
        act()
    except (OSError, MemoryError, ImportError):
        held.append(name)
print(json.dumps(held))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the walls that every Linux has")
def test_behind_the_sandbox_the_process_has_nothing_to_give(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _WALLS, str(tmp_path / "made")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert json.loads(done.stdout) == ["open", "write", "socket", "memory"]
    assert not (tmp_path / "made").exists()


def test_the_child_is_given_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_CANARY, SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with Renderer() as renderer:
        renderer.render(None, MESSAGES, bos="", eos="")
        process = renderer._child
        assert process is not None
        environment = Path(f"/proc/{process.pid}/environ")
        if not environment.exists():
            pytest.skip("no /proc here")
        seen = environment.read_bytes()

    assert SECRET.encode() not in seen


# A process of its own, so that the memory of its children is that of render children only.
_DRIVER = """
import json, queue, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from localrun.chat.messages import Message
from localrun.chat.templates import Renderer
from localrun.errors import TemplateError

renderers = queue.SimpleQueue()
for _ in range(3):
    renderers.put(Renderer())

def run(item):
    name, source = item
    renderer = renderers.get()
    try:
        renderer.render(None, [Message("user", "hello")], bos="", eos="")
        begun = time.perf_counter()
        try:
            answer = f"{len(renderer.render(source, [], bos='', eos=''))} characters"
        except TemplateError as error:
            answer = error.message
        return name, [time.perf_counter() - begun, answer]
    finally:
        renderers.put(renderer)

with ThreadPoolExecutor(3) as pool:
    results = dict(pool.map(run, json.load(sys.stdin).items()))
for _ in range(3):
    renderers.get().close()
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
json.dump({"results": results, "peak": peak * unit}, sys.stdout)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures with the resource module")
def test_no_template_takes_more_than_its_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DRIVER],
        input=json.dumps(RESOURCES),
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    document = json.loads(done.stdout)
    late = {n: r for n, r in document["results"].items() if r[0] > DEADLINE_S + 0.5}

    assert len(document["results"]) == len(RESOURCES) >= 16
    assert late == {}
    if sys.platform == "linux":
        assert document["peak"] <= ADDRESS_SPACE_BYTES


_UNWATCHED = """
import localrun.chat.render_child as child
child.CPU_SECONDS = 0  # the limit counts in whole seconds: this is the shortest
child.renew_cpu_limit(child.CPU_SECONDS)
while True:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_child_that_nobody_watches_ends_by_itself() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _UNWATCHED], check=False, timeout=60)

    assert done.returncode == -signal.SIGXCPU

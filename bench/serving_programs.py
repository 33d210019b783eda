"""Knows no benchmark: our server and llama-server as processes, started with the same parameters.

Both get what ``localrun.backends.llamacpp.parameters`` makes of one plan.
"""

from __future__ import annotations

import http.client
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil
from llama_cpp import llama_cpp as llama

from localrun.backends.llamacpp.parameters import parameters
from localrun.plan.plan import Plan

READY_S = 120.0
STOP_S = 30.0


@dataclass(frozen=True)
class Program:
    """A server that runs. ``pid`` is the process that has the port."""

    name: str
    port: int
    pid: int
    command: tuple[str, ...]

    def threads(self) -> dict[tuple[str, int], float]:
        """Seconds that each thread, named by its process and its id, has computed."""
        top = psutil.Process(self.pid)
        spent = {}
        for process in (top, *top.children(recursive=True)):
            try:
                role = "" if process.pid == self.pid else _role(process.cmdline())
                for thread in process.threads():
                    key = (role or "port", thread.id)
                    spent[key] = thread.user_time + thread.system_time
            except psutil.Error:  # ended in the meantime, or is not for us to look at
                continue
        return spent


def _role(command: Sequence[str]) -> str:
    """A child of ours by its module: ``localrun.cli.worker`` is ``worker``."""
    names = [part for part in command if part.startswith("localrun.")]
    return names[0].rpartition(".")[2] if names else "child"


def our_command(plan: Plan) -> tuple[str, ...]:
    """``localrun serve`` as a user types it who wants exactly this plan."""
    execution = plan.execution
    flags = {
        "--parallel": execution.parallel,
        "--ctx": execution.n_ctx,
        "--threads": execution.threads,
        "--kv-type": execution.kv_type,
        "--port": "auto",
        # Theirs guesses nothing ahead either; texts that ignore their end repeat themselves.
        "--speculation": "off",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    return (sys.executable, "-P", "-m", "localrun.cli", "serve", plan.ref, *words)


def their_command(program: Path, plan: Plan, port: int) -> tuple[str, ...]:
    """llama-server with the same weights, cache, batches and threads; nothing that it would do
    beside the answers: no pages, no copies of finished prompts, no log."""
    model, context = parameters(plan.execution)
    attention = {
        llama.LLAMA_FLASH_ATTN_TYPE_AUTO: "auto",
        llama.LLAMA_FLASH_ATTN_TYPE_DISABLED: "off",
        llama.LLAMA_FLASH_ATTN_TYPE_ENABLED: "on",
    }
    flags = {
        "--model": plan.files[0],
        "--alias": plan.ref,
        "--parallel": plan.execution.parallel,
        "--ctx-size": context.n_ctx,
        "--batch-size": context.n_batch,
        "--ubatch-size": context.n_ubatch,
        "--threads": context.n_threads,
        "--threads-batch": context.n_threads_batch,
        "--cache-type-k": plan.execution.kv_type,
        "--cache-type-v": plan.execution.kv_type,
        "--flash-attn": attention[context.flash_attn_type],
        "--gpu-layers": model.n_gpu_layers,
        "--fit": "off",
        "--cache-ram": 0,
        "--verbosity": 1,
        "--host": "127.0.0.1",
        "--port": port,
    }
    switches = [
        "--kv-unified" if context.kv_unified else "--no-kv-unified",
        "--op-offload" if context.op_offload else "--no-op-offload",
        "--no-ui",
        "--offline",
    ]
    if context.swa_full:
        switches.append("--swa-full")
    if not plan.execution.mmap:
        switches.append("--no-mmap")
    if model.n_gpu_layers == 0:
        switches += ["--device", "none"]
    words = [str(word) for pair in flags.items() for word in pair]
    return (str(program), *words, *switches)


@contextmanager
def our_server(plan: Plan) -> Iterator[Program]:
    command = our_command(plan)
    with _running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        port = urlsplit(address).port
        if port is None:
            raise SystemExit(f"{shlex.join(command)}: said {address!r}, not its address")
        yield Program("ours", port, process.pid, command)


@contextmanager
def their_server(program: Path, plan: Plan) -> Iterator[Program]:
    port = free_port()
    command = their_command(program, plan, port)
    with _running(command, stdout=subprocess.DEVNULL) as process:
        _wait_until_healthy(process, port)
        yield Program("theirs", port, process.pid, command)


def leave_no_server() -> None:
    """Asked to end, this process first ends the servers that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _running(command: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to stop at the end; where this fails, its last words are told."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, **settings)
        try:
            yield process
        except SystemExit:
            print(f"{shlex.join(command)}\n{_tail(log)}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-2000:].decode(errors="replace")


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"llama-server ended with {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:  # not listening yet
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise SystemExit(f"llama-server is not ready after {READY_S:g} s")

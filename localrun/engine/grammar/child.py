"""Knows no model: the process that compiles a stranger's grammar first, because it may be killed.

    python -P -m localrun.engine.grammar.child

Reads frames (``process/frames.py``) on stdin and answers on stdout: first the control tokens that a
grammar may name, then one grammar a frame, compiled for a vocabulary of single bytes.

llguidance bounds most of what a grammar may cost, but looks without a limit for a text that an
intersection allows. The walls, where the operating system has them: 192 MiB of address space beside
what this process has at its start, and two seconds of processor time a grammar for a child whose
parent is gone. The wall-clock deadline is the parent's. macOS does not hold RLIMIT_AS; Windows has
none of these limits.
"""

from __future__ import annotations

import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final, cast

from localrun.engine.grammar.text import GrammarTextError, guidance_of, limits
from localrun.engine.grammar.vocabulary import byte_tokenizer
from localrun.engine.process.frames import Frame, pack, read_frame
from localrun.engine.process.limited import renew_cpu_limit
from localrun.engine.request import GrammarKind

ADDRESS_SPACE_BYTES: Final = 192 * 1024 * 1024
CPU_SECONDS: Final = 2
# What threads of the parent have at least: a grammar that needs more must end this process.
_STACK_BYTES: Final = 512 * 1024


def main() -> None:
    """Serve frames until stdin ends."""
    # Ctrl-C in the terminal reaches the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader, writer = sys.stdin.buffer, sys.stdout.buffer
    hello = read_frame(reader)
    if hello is None:
        return
    names = {int(token): str(name) for token, name in hello["names"].items()}
    trials = _Trials(hello["size"], names, hello["end"])
    threading.stack_size(_STACK_BYTES)
    trials.answer({"kind": "json_schema", "source": "{}"})
    set_limits()
    writer.write(pack({"type": "ready"}))
    writer.flush()
    while (frame := read_frame(reader)) is not None:
        renew_cpu_limit(CPU_SECONDS)
        writer.write(pack(trials.answer(frame)))
        writer.flush()


class _Trials:
    def __init__(self, size: int, names: dict[int, str], end: list[int]) -> None:
        self._tokenizer = byte_tokenizer(size, names, frozenset(end))

    def answer(self, frame: Frame) -> Frame:
        """Try one grammar: what llguidance is to compile, or the problem."""
        outcome: Future[Frame] = Future()
        thread = threading.Thread(target=self._run, args=(frame, outcome))
        thread.start()
        thread.join()
        return outcome.result(timeout=0)

    def _run(self, frame: Frame, outcome: Future[Frame]) -> None:
        outcome.set_result(self._try(cast(GrammarKind, frame["kind"]), frame["source"]))

    def _try(self, kind: GrammarKind, source: str) -> Frame:
        from llguidance import LLMatcher

        try:
            text = guidance_of(kind, source)
        except GrammarTextError as error:
            return {"type": "problem", "text": str(error)}
        except MemoryError:
            return {"type": "problem", "text": f"takes more than {ADDRESS_SPACE_BYTES} bytes"}
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            return {"type": "problem", "text": matcher.get_error()}
        return {"type": "grammar", "text": text}


def set_limits() -> None:
    """Take memory and core files from this process, for good."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = Path("/proc/self/statm")
    if held.exists():
        pages = int(held.read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()

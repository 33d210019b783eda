"""Knows no notation: compiles grammars in a process that may be killed, before this one does."""

from __future__ import annotations

import subprocess
import threading
from typing import BinaryIO, Final, cast

from localrun.config import child_environment
from localrun.engine.process import limited
from localrun.engine.process.frames import Frame, pack, read_frame
from localrun.engine.request import Grammar
from localrun.engine.runner import Vocabulary
from localrun.errors import EngineError, GrammarError

START_S: Final = 30.0
_MESSAGE_MAX: Final = 300
# llguidance's names for a parser in front of nothing.
_NO_TEXT: Final = ("NoExtension", "NoExtensionBias")


class GrammarTrial:
    """Owns one child (``child.py``), started at the first grammar and again after a bad
    one. Safe from any thread: grammars are tried one after the other."""

    def __init__(self, vocabulary: Vocabulary, *, deadline_s: float) -> None:
        self._hello = pack(
            {
                "type": "vocabulary",
                "size": len(vocabulary.tokens),
                "names": {str(token): name for token, name in vocabulary.names.items()},
                "end": sorted(vocabulary.end),
            }
        )
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._closed = False

    def guidance_of(self, grammar: Grammar) -> str:
        """The grammar in llguidance's form, which has been compiled once.

        Raises:
            GrammarError: it cannot be compiled, or not within the deadline and the child's memory.
            EngineError: the child does not start.
        """
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", hint="load the model again")
            answer = self._ask(grammar)
        if answer["type"] == "grammar":
            return str(answer["text"])
        raise GrammarError(grammar.kind, shortened(str(answer["text"])))

    def close(self) -> None:
        """End the child. A trial that runs meanwhile ends first, within its deadline."""
        with self._lock:
            self._closed = True
            self._discard()

    def _ask(self, grammar: Grammar) -> Frame:
        child = self._warm_child()
        frame = {"type": "grammar", "kind": grammar.kind, "source": grammar.source}
        answer, expired = _exchange(child, pack(frame), self._deadline_s)
        if answer is not None and not expired:
            return answer
        self._discard()
        # The next grammar need not wait for the start.
        self._child = self._spawn()
        if expired:
            raise GrammarError(grammar.kind, f"not compiled within {self._deadline_s:g} s")
        raise GrammarError(grammar.kind, "too large or too deep: it ended the trial's process")

    def _warm_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._discard()
        if self._child is None:
            self._child = self._spawn()
        if not self._ready:
            hello, expired = _exchange(self._child, self._hello, START_S)
            if hello is None or expired:
                self._discard()
                raise EngineError(
                    "the process that tries grammars did not start",
                    hint="`localrun doctor` checks the installation",
                )
            self._ready = True
        return self._child

    def _spawn(self) -> subprocess.Popen[bytes]:
        return limited.spawn("localrun.engine.grammar.child", child_environment())

    def _discard(self) -> None:
        child, self._child, self._ready = self._child, None, False
        if child is not None:
            limited.end(child)


def _exchange(
    child: subprocess.Popen[bytes], frame: bytes, seconds: float
) -> tuple[Frame | None, bool]:
    """Send a frame: the answer, None where the child ended, and whether the time ran out."""
    assert child.stdin is not None
    assert child.stdout is not None
    deadline = limited.Deadline(child, seconds)
    try:
        child.stdin.write(frame)
        child.stdin.flush()
        answer = read_frame(cast(BinaryIO, child.stdout))
    except (OSError, EngineError):
        answer = None  # the child ended while it was spoken to
    finally:
        expired = deadline.end()
    return answer, expired


def shortened(text: str) -> str:
    """What llguidance says, on one line: of a page about a pattern the last, else the first."""
    lines = [line.strip() for line in text.replace("<non-verbose/>", "").splitlines()]
    lines = [line for line in lines if line] or ["no reason was given"]
    if lines[0] in _NO_TEXT:
        return "it allows no text, or none that goes on from here"
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    told = "".join(mark if mark.isprintable() else " " for mark in told.removeprefix("error: "))
    return told if len(told) <= _MESSAGE_MAX else told[: _MESSAGE_MAX - 1] + "…"

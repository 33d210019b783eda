"""Knows no weights: a runner with a byte tokenizer that says what a test wants said.

Ids 0 to 255 are bytes, then come the control tokens of ``CONTROL``. What the model says is one of
``Uniform``, ``Hashed``, ``Echo`` or ``Script``; every forward can be held, failed or poisoned.

In a child process: the import string ``tests.mock_runner:load`` makes a runner from a Plan whose
``ref`` is one of ``mock:uniform``, ``mock:hashed``, ``mock:echo``, ``mock:error`` (every forward
fails), ``mock:nan``, ``mock:hold`` (the first forward waits for ``abort``), ``mock:crash`` (the
process is killed in the first forward), ``mock:crash-at:N`` (in forward N, from 0) or
``mock:script:TEXT``; any other ref is itself the text that is said.
"""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import (
    BatchItem,
    Capabilities,
    ForwardAborted,
    RunnerStats,
    SequenceId,
    Vocabulary,
)
from localrun.errors import EngineError
from localrun.plan.plan import Plan

BOS: Final = 256
EOS: Final = 257
CONTROL: Final = {
    BOS: "<|bos|>",
    EOS: "<|end|>",
    258: "<|user|>",
    259: "<|assistant|>",
    260: "<|system|>",
    261: "<|tool|>",
}
VOCABULARY_SIZE: Final = 262
# A template in the mock's own control tokens; `reply` of a chat test is what follows assistant.
CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CERTAIN: Final = 60.0

Reply = str | Callable[[str], str]
"""What is said: a text, or a function from the prompt's text (control tokens left out)."""


def echo(prompt: str) -> str:
    return prompt


def encode(text: str) -> list[int]:
    """The ids of ``text`` without control tokens."""
    return list(text.encode("utf-8"))


@dataclass
class Timeline:
    """Tokens of one sequence; ``replies`` are what it went about to say, and from where on."""

    tokens: list[int] = field(default_factory=list)
    replies: list[tuple[int, list[int]]] = field(default_factory=list)


class MockRunner:
    """A ModelRunner. Without ``reply`` the logits are uniform, or hashed from the whole timeline.

    reply: text (or function of the prompt's text) said after each prompt, then the end token.
    hashed: logits are a pure function of the sequence's tokens, so a wrong cache changes the text.
    keep: from the length asked of ``truncate`` to the length kept (default: all of it).
    uncuttable: ``truncate`` to less than is held keeps nothing, and no token can be taken back.
    forgetful: a sequence whose forward failed or was aborted is emptied, as a recurrent state is.
    holds: indices of forwards that wait for ``release`` or ``abort``; ``entered`` is set then.
    fails, poisons: indices of forwards that raise EngineError, or return NaN.
    crashes: index of the forward that kills this process.
    cursed, poisoned: a token whose forward raises EngineError, or whose sequence gets NaN.
    vocabulary_size: more rows than the tokenizer's, to measure at the size of real models.
    tells: counters after so many tokens, where a test wants more than that number.

    ``forwards`` records each batch; ``violations`` each call from a thread that is not the owner.
    """

    def __init__(
        self,
        reply: Reply | None = None,
        *,
        hashed: bool = False,
        n_ctx: int = 4096,
        max_tokens: int = 512,
        max_batch: int | None = None,
        max_sequences: int = 1,
        n_cells: int | None = None,
        can_fork: bool = True,
        least_chunk: int = 1,
        idle_costs: bool = False,
        rollback_depth: int | None = None,
        keep: Callable[[int], int] | None = None,
        uncuttable: bool = False,
        forgetful: bool = False,
        holds: Sequence[int] = (),
        fails: Container[int] = (),
        poisons: Container[int] = (),
        crashes: int | None = None,
        cursed: int | None = None,
        poisoned: int | None = None,
        vocabulary_size: int = VOCABULARY_SIZE,
        tells: Callable[[int], RunnerStats] | None = None,
    ) -> None:
        self._reply = reply
        self._hashed = hashed
        self._keep = keep or (lambda length: length)
        self._uncuttable = uncuttable
        self._forgetful = forgetful
        self._holds = set(holds)
        self._fails = fails
        self._poisons = poisons
        self._crashes = crashes
        self._cursed = cursed
        self._poisoned = poisoned
        self._vocabulary_size = vocabulary_size
        self._tells = tells
        self._capabilities = Capabilities(
            n_ctx=n_ctx,
            max_sequences=max_sequences,
            max_batch=max_batch or max_sequences,
            max_tokens=max_tokens,
            n_cells=n_cells or n_ctx * max_sequences,
            can_fork=can_fork,
            least_chunk=least_chunk,
            idle_costs=idle_costs,
            rollback_depth=0 if uncuttable else rollback_depth,
            state_bytes_per_token=4,
            embeddings=True,
            pooling="mean",
        )
        self._sequences: dict[SequenceId, Timeline] = {}
        self._next_id = 0
        self.count = 0
        self.most_cells = 0
        self._tokens = 0
        self._owner: int | None = None
        self._gate = threading.Condition()
        self._running = False
        self._aborted = False
        self.entered = threading.Event()
        self.forwards: list[tuple[BatchItem, ...]] = []
        self.truncations: list[tuple[int, int]] = []
        self.threads: list[int] = []
        self.violations: list[str] = []
        self.aborts = 0
        self.closed = False

    # What a test does from its own thread.

    def hold(self, index: int) -> None:
        """Hold forward ``index`` (from 0) too; ``entered`` is set again when it is reached."""
        self.entered.clear()
        with self._gate:
            self._holds.add(index)

    def release(self) -> None:
        """Let the held forward, and all others, go on."""
        with self._gate:
            self._holds.clear()
            self._gate.notify_all()

    def let_go(self) -> None:
        """Let the held forward go on; those to be held later still are."""
        with self._gate:
            self._holds = {index for index in self._holds if index >= self.count}
            self._gate.notify_all()

    @property
    def held(self) -> dict[SequenceId, list[int]]:
        """The tokens of every sequence there is."""
        return {sequence: list(each.tokens) for sequence, each in self._sequences.items()}

    @property
    def fed(self) -> list[tuple[int, ...]]:
        """The tokens of each forward's first item."""
        return [tuple(batch[0].tokens) for batch in self.forwards]

    def holds_tokens(self, sequence: SequenceId) -> list[int]:
        """What ``sequence`` holds."""
        return list(self._sequences[sequence].tokens)

    @property
    def in_use(self) -> int:
        """How many sequences are not free."""
        return len(self._sequences)

    # ModelRunner.

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def vocabulary(self) -> Vocabulary:
        self._check_thread("vocabulary")
        return Vocabulary(
            tokens=tuple(bytes([i]) if i < 256 else b"" for i in range(self._vocabulary_size)),
            bos=BOS,
            eos=EOS,
            end=frozenset({EOS}),
            add_bos=True,
            names=dict(CONTROL),
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = [BOS] if add_special else []
        while text:
            found = min(
                (
                    (text.find(name), -len(name), token, name)
                    for token, name in CONTROL.items()
                    if parse_special and name in text
                ),
                default=None,
            )
            if found is None:
                return tokens + encode(text)
            at, _, token, name = found
            tokens += [*encode(text[:at]), token]
            text = text[at + len(name) :]
        return tokens

    def new_sequence(self) -> SequenceId:
        self._check_thread("new_sequence")
        return self._add(Timeline())

    def fork(self, sequence: SequenceId) -> SequenceId:
        self._check_thread("fork")
        tokens = list(self._sequences[sequence].tokens)
        self._check_cells(len(tokens))
        return self._add(Timeline(tokens))

    def free(self, sequence: SequenceId) -> None:
        self._check_thread("free")
        del self._sequences[sequence]

    def truncate(self, sequence: SequenceId, length: int) -> int:
        self._check_thread("truncate")
        timeline = self._sequences[sequence]
        kept = min(self._keep(length), len(timeline.tokens))
        if self._uncuttable and length < len(timeline.tokens):
            kept = 0
        if kept < len(timeline.tokens):
            del timeline.tokens[kept:]
            while timeline.replies and timeline.replies[-1][0] > kept:
                timeline.replies.pop()
        self.truncations.append((length, kept))
        return kept

    def checkpoint(self, sequence: SequenceId) -> None:
        self._check_thread("checkpoint")

    def rollback(self, sequence: SequenceId, count: int) -> None:
        self.truncate(sequence, len(self._sequences[sequence].tokens) - count)

    def save(self, sequence: SequenceId) -> bytes:
        return np.asarray(self._sequences[sequence].tokens, dtype="<i4").tobytes()

    def restore(self, state: bytes) -> SequenceId:
        tokens = np.frombuffer(state, dtype="<i4").tolist()
        self._check_cells(len(tokens))
        return self._add(Timeline(tokens))

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        self._check_thread("forward")
        if self.closed:
            self.violations.append("forward after close")
        index, self.count = self.count, self.count + 1
        self.forwards.append(tuple(batch))
        limits = self._capabilities
        if sum(len(item.tokens) for item in batch) > limits.max_tokens:
            raise EngineError("mock: the batch is larger than max_tokens")
        if len({item.sequence for item in batch}) > limits.max_batch:
            raise EngineError("mock: more sequences than max_batch")
        self._check_cells(sum(len(item.tokens) for item in batch))
        if index == self._crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            self._pass_gate(index)
            tokens = [token for item in batch for token in item.tokens]
            if self._cursed is not None and self._cursed in tokens:
                raise EngineError("mock: a token of the batch is cursed")
            if index in self._fails:
                raise EngineError("mock: forward was told to fail")
        except (EngineError, ForwardAborted):
            if self._forgetful:
                for item in batch:
                    self._sequences[item.sequence] = Timeline()
            raise
        rows = [row for item in batch for row in self._append(item)]
        self.most_cells = max(self.most_cells, sum(len(t.tokens) for t in self._sequences.values()))
        values = np.array(rows, dtype=np.float32).reshape(len(rows), self._vocabulary_size)
        if index in self._poisons:
            values[:] = np.nan
        return NumpyLogits(values)

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The token's id in the first of four places, its position in the second."""
        self._check_thread("embed")
        return [
            np.array([[token, at, 1, 0] for at, token in enumerate(text)], np.float32)
            for text in batch
        ]

    def identity(self) -> str:
        return "mock"

    def abort(self) -> None:
        with self._gate:
            self.aborts += 1
            if self._running:
                self._aborted = True
                self._gate.notify_all()

    def set_threads(self, threads: int) -> None:
        self._check_thread("set_threads")
        self.threads.append(threads)

    def stats(self) -> RunnerStats:
        if self._tells is not None:
            return self._tells(self._tokens)
        return RunnerStats(memory_bytes={"ram": 0}, bytes_read={"ram": 0}, tokens=self._tokens)

    def close(self) -> None:
        self._check_thread("close")
        self.closed = True

    # How it does it.

    def _check_thread(self, call: str) -> None:
        here = threading.get_ident()
        self._owner = self._owner or here
        if here != self._owner:
            self.violations.append(call)

    def _check_cells(self, more: int) -> None:
        held = sum(len(timeline.tokens) for timeline in self._sequences.values())
        if held + more > self._capabilities.n_cells:
            raise EngineError("mock: every cell is in use")

    def _add(self, timeline: Timeline) -> SequenceId:
        if len(self._sequences) >= self._capabilities.max_sequences:
            raise EngineError("mock: every sequence is in use")
        sequence = SequenceId(self._next_id)
        self._next_id += 1
        self._sequences[sequence] = timeline
        return sequence

    def _pass_gate(self, index: int) -> None:
        with self._gate:
            if index not in self._holds:
                return
            self._running, self._aborted = True, False
            self.entered.set()
            self._gate.wait_for(lambda: self._aborted or index not in self._holds)
            self._running = False
            if self._aborted:
                raise ForwardAborted

    def _append(self, item: BatchItem) -> list[NDArray[np.float32]]:
        timeline = self._sequences[item.sequence]
        rows = []
        for position, token in enumerate(item.tokens):
            timeline.tokens.append(token)
            self._tokens += 1
            last = position == len(item.tokens) - 1
            if item.logits == "all" or (item.logits == "last" and last):
                rows.append(self._row(timeline))
        if len(timeline.tokens) > self._capabilities.n_ctx:
            raise EngineError("mock: the sequence is longer than n_ctx")
        return rows

    def _row(self, timeline: Timeline) -> NDArray[np.float32]:
        row = np.zeros(self._vocabulary_size, dtype=np.float32)
        if self._poisoned is not None and self._poisoned in timeline.tokens:
            row[:] = np.nan
        elif self._hashed:
            seed = zlib.crc32(np.asarray(timeline.tokens, dtype="<i4").tobytes())
            # Printable ASCII only, so that texts of hashed models can be compared as text.
            row[32:127] = np.random.default_rng(seed).normal(size=95) * 3 + 20
        elif self._reply is not None:
            row[self._next(timeline)] = CERTAIN
        return row

    def _next(self, timeline: Timeline) -> int:
        """The reply starts anew wherever the timeline does not go on with what was said last. Wrong
        guesses that are taken back do not count."""
        if timeline.replies:
            start, reply = timeline.replies[-1]
            said = len(timeline.tokens) - start
            if said < len(reply) and timeline.tokens[start:] == reply[:said]:
                return reply[said]
        reply = [*self._say(timeline.tokens), EOS]
        timeline.replies.append((len(timeline.tokens), reply))
        return reply[0]

    def _say(self, tokens: Sequence[int]) -> list[int]:
        if isinstance(self._reply, str):
            return encode(self._reply)
        assert self._reply is not None
        prompt = bytes(token for token in tokens if token < 256).decode("utf-8", "replace")
        return encode(self._reply(prompt))


def load(plan: Plan) -> MockRunner:
    """A runner for a child process; see the module's docstring for what ``plan.ref`` may be."""
    n_ctx, max_tokens = plan.execution.n_ctx, plan.execution.ubatch
    kind, _, rest = plan.ref.removeprefix("mock:").partition(":")
    if not plan.ref.startswith("mock:"):
        kind, rest = "script", plan.ref
    every = range(1_000_000)
    match kind:
        case "uniform":
            return MockRunner(n_ctx=n_ctx, max_tokens=max_tokens)
        case "hashed":
            return MockRunner(hashed=True, n_ctx=n_ctx, max_tokens=max_tokens)
        case "echo":
            return MockRunner(echo, n_ctx=n_ctx, max_tokens=max_tokens)
        case "error":
            return MockRunner("", fails=every, n_ctx=n_ctx, max_tokens=max_tokens)
        case "nan":
            return MockRunner("", poisons=every, n_ctx=n_ctx, max_tokens=max_tokens)
        case "hold":
            return MockRunner("held", holds=(0,), n_ctx=n_ctx, max_tokens=max_tokens)
        case "crash":
            return MockRunner("crash", crashes=0, n_ctx=n_ctx, max_tokens=max_tokens)
        case "crash-at":
            return MockRunner("crash" * 99, crashes=int(rest), n_ctx=n_ctx, max_tokens=max_tokens)
        case "script":
            return MockRunner(rest, n_ctx=n_ctx, max_tokens=max_tokens)
    raise EngineError(f"mock: no runner is called {plan.ref!r}")

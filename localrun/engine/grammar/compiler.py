"""Knows no logits: which tokens may come next when a text must follow a grammar.

llguidance (https://github.com/guidance-ai/llguidance) keeps the parser; what each notation may hold
is told in ``grammar_text.py``. A stranger's grammar is compiled in a process that may be killed
first (``grammar_trial.py``), and in this one only when that went well.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

import numpy as np

from localrun.engine.grammar.text import limits
from localrun.engine.grammar.trial import GrammarTrial, shortened
from localrun.engine.grammar.vocabulary import tokenizer_of
from localrun.engine.request import Grammar
from localrun.engine.runner import Vocabulary
from localrun.engine.sampling.masks import Mask
from localrun.errors import EngineError, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SOURCE_BYTES_MAX: Final = 1024 * 1024
# A trial's; compiling the same here once more takes no longer.
DEADLINE_S: Final = 0.5
_CACHED: Final = 16
_THREADS: Final = 2
# What masks of one text may take of a processor: in all, and for each token more. Fuel bounds the
# lexer, but what an ambiguous grammar costs grows with its text, below every limit of llguidance's.
# An honest recursive one takes a fifth of this at the largest vocabularies.
_BURST_S: Final = 1.0
_STEP_S: Final = 0.05


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Every method is safe from any thread.

    The last ``_CACHED`` grammars stay compiled, with what following them has taught their lexers.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokenize: Callable[[str], list[int]],
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """``tokenize`` gives the ids of plain text, adding nothing; from any thread."""
        self._vocabulary = vocabulary
        self._tokenize = tokenize
        self._trial = GrammarTrial(vocabulary, deadline_s=deadline_s)
        self._threads = ThreadPoolExecutor(_THREADS, "grammar")
        self._making = threading.Lock()
        self._made: tuple[LLTokenizer, _Twins] | None = None
        self._caching = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the start of a text.

        Blocks for at most the deadline, beside the grammars that came before it and, the first
        time, the start of the trial's process and ``tokenizer_of``.

        Raises:
            GrammarError: it is too large, wrong, allows nothing, or is not compiled in time.
            EngineError: closed, or the trial's process does not start.
        """
        compiled = self._cached(grammar)
        if compiled is None:
            compiled = self._new(grammar)
        following = _Following(grammar, compiled, self._forget)
        _, twins = self._form()
        return Matcher(following, self._vocabulary, twins, self._threads)

    def close(self) -> None:
        """End the trial's process and the threads. A second call is nothing."""
        self._trial.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _cached(self, grammar: Grammar) -> LLMatcher | None:
        with self._caching:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
            return self._compiled.get(grammar)

    def _new(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        _check_size(grammar)
        guidance = self._trial.guidance_of(grammar)
        tokenizer, _ = self._form()
        compiled = LLMatcher(tokenizer, guidance, log_level=0, limits=limits())
        if compiled.is_error():
            raise GrammarError(grammar.kind, shortened(compiled.get_error()))
        with self._caching:
            self._compiled[grammar] = compiled
            while len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        return compiled

    def _form(self) -> tuple[LLTokenizer, _Twins]:
        with self._making:
            if self._made is None:
                tokenizer = tokenizer_of(self._vocabulary, self._tokenize)
                self._made = tokenizer, _Twins(self._vocabulary)
            return self._made

    def _forget(self, grammar: Grammar, compiled: LLMatcher) -> None:
        with self._caching:
            if self._compiled.get(grammar) is compiled:
                del self._compiled[grammar]


def _check_size(grammar: Grammar) -> None:
    try:
        size = len(grammar.source.encode())
    except UnicodeEncodeError as error:
        raise GrammarError(grammar.kind, f"character {error.start} is half of one") from error
    if size > SOURCE_BYTES_MAX:
        raise GrammarError(
            grammar.kind, f"{size} bytes are more than the {SOURCE_BYTES_MAX} that are compiled"
        )


class _Following:
    """A copy of a compiled grammar, and what to do when it cannot be followed further."""

    def __init__(
        self,
        grammar: Grammar,
        compiled: LLMatcher,
        forget: Callable[[Grammar, LLMatcher], None],
    ) -> None:
        self.matcher = compiled.deep_copy()
        self._grammar = grammar
        self._compiled = compiled
        self._forget = forget

    def check(self) -> None:
        """Raises GrammarError where the matcher has given up."""
        if self.matcher.is_error():
            # Copies share a lexer: one at its limits is of no use to the next request either.
            self._forget(self._grammar, self._compiled)
            raise self.error(shortened(self.matcher.get_error()))

    def error(self, problem: str) -> GrammarError:
        return GrammarError(self._grammar.kind, f"cannot be followed further: {problem}")


class Matcher:
    """Where one text is in its grammar. For one thread; nothing is ever taken back.

    ``finished``: nothing but an end token may follow.
    """

    def __init__(
        self,
        following: _Following,
        vocabulary: Vocabulary,
        twins: _Twins,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._following = following
        self._vocabulary = vocabulary
        self._twins = twins
        self._threads = threads
        self._pending: Future[Mask] | None = None
        self._mask: Mask | None = None
        self._spent_s = 0.0
        self._steps = 0
        self.finished = following.matcher.is_stopped()

    def prepare(self) -> None:
        """Start computing the next mask on another thread, where nobody has yet."""
        if self._mask is None and self._pending is None:
            try:
                self._pending = self._threads.submit(self._compute)
            except RuntimeError:
                return  # the compiler is closed: mask() computes it here

    def mask(self) -> Mask:
        """Which tokens may come next: see ``masks.py``. Not to be written to.

        Raises:
            GrammarError: no token may, or it costs too much to know.
        """
        if self._mask is None:
            pending, self._pending = self._pending, None
            # One that has not begun waits behind others' masks.
            begun = pending is not None and not pending.cancel()
            self._mask = pending.result() if pending and begun else self._compute()
        return self._mask

    def accept(self, token: int) -> None:
        """The text goes on with ``token``, or ends with it.

        Raises:
            GrammarError: the step took more than ``limits`` give it.
            EngineError: the last mask does not allow the token.
        """
        matcher = self._settled()
        self._mask = None
        if not matcher.consume_token(token):
            if "doesn't satisfy the grammar" in matcher.get_error():
                raise EngineError(f"token {token} was drawn, which the grammar does not allow")
            self._following.check()
        self.finished = matcher.is_stopped()

    def close(self) -> None:
        """Give up a mask that is being computed."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def _settled(self) -> LLMatcher:
        """The matcher, once no other thread uses it."""
        pending, self._pending = self._pending, None
        if pending is not None and not pending.cancel():
            wait((pending,))
        return self._following.matcher

    def _compute(self) -> Mask:
        began = time.thread_time()
        bits = self._following.matcher.compute_bitmask()
        self._spent_s += time.thread_time() - began
        self._steps += 1
        self._following.check()
        if self._spent_s > _BURST_S + _STEP_S * self._steps:
            raise self._following.error(
                f"{self._steps} steps took {self._spent_s:.1f} s; it is too ambiguous"
            )
        words = -(-len(self._vocabulary.tokens) // 32)
        mask = np.frombuffer(bytearray(bits), dtype="<u4")[:words]
        self._twins.allow(mask)
        if not mask.any():
            raise self._following.error("it allows no token of this model")
        return mask


class _Twins:
    """Tokens that stand for the same bytes as another, as a byte's and a character's do.

    llguidance's mask allows the first of them alone.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        same: defaultdict[bytes, list[int]] = defaultdict(list)
        for token, text in enumerate(vocabulary.tokens):
            if text and token not in vocabulary.names and token not in vocabulary.end:
                same[text].append(token)
        pairs = [(found[0], other) for found in same.values() for other in found[1:]]
        self._first, self._other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T

    def allow(self, mask: Mask) -> None:
        """Set in ``mask`` the bits of all whose first is set."""
        if not self._first.size:
            return
        allowed = mask[self._first >> 5] >> (self._first & 31).astype(np.uint32) & 1
        bits = allowed << (self._other & 31).astype(np.uint32)
        np.bitwise_or.at(mask, self._other >> 5, bits)

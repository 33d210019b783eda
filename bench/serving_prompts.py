"""Knows no server: prompts of an exact length in tokens, no two of which begin alike."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from localrun.backends.llamacpp.backend import load
from localrun.cli.loading import prepare
from localrun.plan.plan import PlanRequest

_WORD = re.compile(rb"[a-z]{3,9}")
_MOST_WORDS = 2000
NONCE = 8


def single_token_words(ref: str) -> tuple[str, ...]:
    """Words that are one token at the start of a text and after a space: their number is a text's
    length."""
    runner = load(prepare(ref, PlanRequest(n_ctx=256)).plan)
    try:
        found: list[str] = []
        for token in runner.vocabulary().tokens:
            if not _WORD.fullmatch(token):
                continue
            word = token.decode()
            twice = runner.tokenize(f"{word} {word}", add_special=False, parse_special=False)
            if len(twice) == 2 and len(found) < _MOST_WORDS:
                found.append(word)
        return tuple(found)
    finally:
        runner.close()


@dataclass(frozen=True)
class Prompts:
    """Conversations of ``words``, each word one token. ``template_tokens`` is what the chat
    template adds to a system message and a user's; no two ``seed`` make the same text."""

    words: Sequence[str]
    seed: str
    template_tokens: int = 0

    def fitted(self, asked: int, counted: int) -> Prompts:
        """With the template's tokens learned from a server's count of a prompt made so far."""
        return replace(self, template_tokens=self.template_tokens + counted - asked)

    def system(self, *key: object) -> str:
        """The beginning of a conversation: another key has another one."""
        return self.text(NONCE, "system", *key)

    def user(self, tokens: int, *key: object) -> str:
        """The message that makes a conversation's first prompt ``tokens`` long."""
        return self.text(tokens - self.template_tokens - NONCE, "user", *key)

    def text(self, count: int, *key: object) -> str:
        if count < 1:
            raise SystemExit(f"{count} words: the prompt is shorter than its template")
        return " ".join(random.Random(f"{self.seed} {key}").choices(self.words, k=count))

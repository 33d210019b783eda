"""What the soak's model says: each answer follows from its prompt, so that clients can check it."""

from __future__ import annotations

import json
import random
import zlib
from functools import lru_cache

MODEL = "soak"
N_CTX = 2048
STATE_BUDGET_BYTES = 1 << 20
# How the child's last words begin.
LEFT_BEHIND = "left behind:"
_WORDS = ("an", "old", "river", "bends", "né", "日本", "over", "stones", "and", "ice", "🎉", "so")


@lru_cache(maxsize=64)
def answer(prompt: str) -> str:
    """What is said to a prompt, which ends with a kind and a number: ``words 12``, ``json 0`` or
    ``perhaps 0``. Another prompt gets another answer, however much of it is the same."""
    *_, kind, count = prompt.rsplit(" ", 2)
    chosen = random.Random(zlib.crc32(prompt.encode()))
    if kind == "json":
        return json.dumps({"name": chosen.choice(_WORDS[:4]), "age": chosen.randrange(100)})
    if kind == "perhaps":
        return kind
    return " ".join(chosen.choice(_WORDS) for _ in range(int(count)))

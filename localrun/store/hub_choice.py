"""Knows neither network nor disk: which of a hub repository's files a reference means."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from localrun.errors import ModelNotFoundError, RefError
from localrun.ref import HubRef, check_part
from localrun.store.files import Role
from localrun.store.quants import (
    INDEX_SUFFIX,
    SAFETENSORS_TAG,
    Grouped,
    Variant,
    choose,
    choose_projector,
    containing,
)

_TOKENIZERS = frozenset(
    (
        *("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"),
        *("added_tokens.json", "tekken.json"),
    )
)
# How sentence-transformers makes one vector of a text's states.
_POOLING = frozenset(("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"))


def select(ref: HubRef, grouped: Grouped) -> Variant:
    """The variant a reference means.

    Raises:
        ModelNotFoundError: nothing fits, listing what exists.
    """
    if ref.file is None:
        if not grouped.variants and grouped.broken:
            raise ModelNotFoundError(f"{ref.repo_id} lacks shards: {', '.join(grouped.broken[:3])}")
        return choose(grouped.variants, ref.tag)
    variant = containing((*grouped.variants, *grouped.projectors), ref.file)
    if variant is None:
        names = ", ".join(variant.files[0] for variant in grouped.variants[:12])
        raise ModelNotFoundError(
            f"{ref.repo_id} holds no complete model file {ref.file!r}; it holds {names or 'none'}"
        )
    return variant


def canonical(ref: HubRef, grouped: Grouped, variant: Variant) -> HubRef:
    """The reference that names this variant and no other of its repository."""
    plain = HubRef(ref.org, ref.repo)
    if variant.format == "safetensors":
        alone = all(other.format == "safetensors" for other in grouped.variants)
        return plain if alone else HubRef(ref.org, ref.repo, tag=SAFETENSORS_TAG)
    same = [other for other in grouped.variants if other.tag == variant.tag]
    if variant.tag and len(same) == 1 and variant in same:
        return HubRef(ref.org, ref.repo, tag=variant.tag)
    if not variant.tag and len(grouped.variants) == 1 and variant in same:
        return plain
    with suppress(RefError):
        for part in variant.files[0].split("/"):
            check_part(part, "file name")
        return HubRef(ref.org, ref.repo, file=variant.files[0])
    return ref


def needed(grouped: Grouped, variant: Variant, names: Sequence[str]) -> dict[str, Role]:
    """The files to have of a repository's ``names``: weights in shard order, then the small ones.

    A GGUF brings its projector, if the repository has one, and carries its own tokenizer.
    """
    wanted: dict[str, Role] = dict.fromkeys(variant.files, "weights")
    projector = choose_projector(grouped.projectors)
    if projector is not None and variant.format == "gguf":
        for name in projector.files:
            wanted.setdefault(name, "projector")
    home = PurePosixPath(variant.files[0]).parent
    for name in sorted(names):
        role = role_of(name)
        if role is None or (role == "index" and PurePosixPath(name).parent != home):
            continue
        template = name.lower().startswith("chat_template")
        if variant.format == "safetensors" or role == "config" or template:
            wanted.setdefault(name, role)
    return wanted


def role_of(name: str) -> Role | None:
    """What a repository's file is for, beside its weights; None for what nobody needs.

    Only the repository's top directory counts: settings in deeper ones belong to something else.
    """
    if name in _POOLING:
        return "other"
    lower = name.lower()
    if "/" in lower:
        return "index" if lower.endswith(INDEX_SUFFIX) else None
    if lower.endswith(INDEX_SUFFIX):
        return "index"
    if lower in ("config.json", "generation_config.json", "preprocessor_config.json"):
        return "config"
    if lower.startswith("chat_template"):
        return "tokenizer"
    if lower.startswith("tokenizer") and lower.endswith((".json", ".model")):
        return "tokenizer"
    return "tokenizer" if lower in _TOKENIZERS else None

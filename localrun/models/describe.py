"""Knows no files: Header and config.json → ModelSpec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from localrun.formats.header import Header
from localrun.formats.text import shown
from localrun.models.architecture import Caches
from localrun.models.architectures import known
from localrun.models.bare import FILE, Bare, flat, speaker
from localrun.models.cache import growth
from localrun.models.facts import Facts, facts
from localrun.models.fields import VOCABULARY_MAX, AbsentError, Fields
from localrun.models.fill_in_middle import fills_gaps
from localrun.models.gguf_config import file_type, translated
from localrun.models.grouping import Entry, entries, groups, merged
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import mixture_name
from localrun.models.mlx_packing import Packing, packing_of
from localrun.models.spec import ModelSpec, Tokenizer

UNKNOWN = "unknown"


def describe(header: Header, config: Mapping[str, object] | None = None) -> ModelSpec:
    """Say of a model what a planner, a runner and ``show`` need.

    ``config`` is the parsed config.json of a safetensors model; GGUF files carry their own. What
    the file does not say is zero, None or ``"unknown"``; of an architecture that is not known here
    the tensors' names have to tell, and ``guessed`` says so.

    Raises:
        HeaderError: a field is of the wrong type or holds a number that no model has.
    """
    if header.format == "gguf":
        return _gguf(header)
    fields = flat(config or {})
    model_type = Fields(config or {}, FILE).text("model_type") or UNKNOWN
    packing = packing_of(fields)
    return _spec(
        merged(header.tensors),
        fields,
        model_type,
        name=fields.text("_name_or_path") or "",
        quantization=packing.called if packing else "",
        known_caches=_caches_if_told(fields, model_type),
        packing=packing,
    )


def describe_config(config: Mapping[str, object], *, quant: str | None = None) -> ModelSpec:
    """The same of a checkpoint that ``config`` speaks of and nobody need have.

    Its own quantization decides the types, or ``quant``, a GGUF mixture. Keys that begin with
    ``_`` are not read.

    Raises:
        HeaderError: a ``model_type`` that is not known here, a field that is absent or absurd.
        UsageError: no such ``quant``.
    """
    bare = Bare.of(config)
    left_out: tuple[str, ...] = ()
    if quant is None:
        tensors = list(bare.release())
    else:
        tensors, left_out = bare.gguf(quant)
    spec = _spec(
        entries(tensors),
        bare.fields,
        bare.model_type,
        quantization="" if quant is None else mixture_name(quant),
        known_caches=bare.architecture.caches(bare.fields),
    )
    if left_out:
        apart = f"GGUF keeps {' and '.join(left_out)} tensors in files of their own: not counted"
        spec = replace(spec, notes=(*spec.notes, apart))
    return spec


def layout_of(config: Mapping[str, object], quant: str | None = None) -> Iterator[LayoutTensor]:
    """The tensors of that checkpoint, one by one.

    Raises:
        HeaderError: a ``model_type`` that is not known here, a field that is absent or absurd.
        UsageError: no such ``quant``.
    """
    bare = Bare.of(config)
    yield from bare.release() if quant is None else bare.gguf(quant)[0]


def _caches_if_told(fields: Fields, model_type: str) -> Caches | None:
    """None where the architecture is not known, or the file leaves out what it needs."""
    architecture = speaker(fields, model_type)
    try:
        return architecture.caches(fields) if architecture else None
    except AbsentError:
        return None


def _gguf(header: Header) -> ModelSpec:
    fields = Fields(header.metadata, header.files[0])
    architecture = fields.text("general.architecture")
    if not architecture:
        raise fields.error("general.architecture", "is absent")
    config = translated(fields, architecture)
    return _spec(
        merged(header.tensors),
        config,
        architecture,
        name=fields.text("general.name") or fields.text("general.basename") or "",
        tokenizer=_tokenizer(fields),
        chat_template=fields.text("tokenizer.chat_template"),
        licence=fields.text("general.license"),
        quantization=file_type(fields),
        known_caches=_caches_if_told(config, architecture),
    )


def _tokenizer(fields: Fields) -> Tokenizer | None:
    model = fields.text("tokenizer.ggml.model")
    if model is None:
        return None
    tokens = fields.values.get("tokenizer.ggml.tokens", ())
    if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
        raise fields.error("tokenizer.ggml.tokens", "is not an array of strings")
    present = "tokenizer.ggml.tokens" in fields.values
    # Models without a vocabulary ("none", byte models) leave the array out.
    if present and not 0 < len(tokens) <= VOCABULARY_MAX:
        raise fields.error(
            "tokenizer.ggml.tokens", f"has {len(tokens)} entries, 1 to {VOCABULARY_MAX} fit"
        )
    pre = fields.text("tokenizer.ggml.pre") or ""
    return Tokenizer(model, pre, len(tokens), fills_gaps(fields.values, tokens))


def _spec(
    found: list[Entry],
    fields: Fields,
    architecture: str,
    *,
    name: str = "",
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    licence: str | None = None,
    quantization: str = "",
    known_caches: Caches | None = None,
    packing: Packing | None = None,
) -> ModelSpec:
    common = facts(fields)
    caches = known_caches or common.caches
    encoder = caches is not None and caches.encoder
    gathered = groups(
        found,
        layers=common.layers,
        experts_used=common.experts_used,
        table_rows=caches.table_rows if caches else 0,
        encoder=encoder,
        packing=packing,
    )
    types: dict[str, tuple[int, int]] = {}
    for entry in found:
        count, size = types.get(entry.type, (0, 0))
        types[entry.type] = (count + entry.copies, size + entry.bytes)
    spec = ModelSpec(
        architecture=architecture,
        name=name,
        parameters=sum(group.parameters for group in gathered),
        tensor_bytes=sum(entry.bytes for entry in found),
        tensors=sum(entry.copies for entry in found),
        layers=common.layers,
        n_ctx_train=common.n_ctx,
        kv_bytes_per_token=0,
        tensor_types=types,
        tokenizer=tokenizer,
        chat_template=chat_template,
        licence=licence,
        experts=common.experts,
        experts_used=common.experts_used,
        groups=gathered,
        caches=caches.rows if caches else (),
        state_bytes=caches.states if caches else (),
        width=common.width,
        vocabulary=common.vocabulary or (tokenizer.vocabulary if tokenizer else 0),
        heads=common.heads,
        ffn_width=common.ffn_width,
        quantization=quantization or _dominant(types),
        guessed=known_caches is None,
        prefill_layers=caches.prefill_layers if caches else 0,
        encoder=encoder,
        notes=_notes(architecture, known_caches, common),
    )
    return replace(spec, kv_bytes_per_token=int(growth(spec, "f16")))


# What releases pack into integers, by the type of the tensors with the scales beside them.
_PACKED = {("I8", "F8_E8M0"): "FP4", ("U8", "U8"): "MXFP4", ("I32", "BF16"): "INT4"}


def _dominant(types: Mapping[str, tuple[int, int]]) -> str:
    """The type that most bytes are of, by its common name; with FP8, where packed types have it
    beside them."""
    most = max(types, key=lambda name: types[name][1], default="")
    packed = next(
        (name for (kind, scales), name in _PACKED.items() if kind == most and scales in types), ""
    )
    if packed and "F8_E4M3" in types:
        return f"{packed}+FP8"
    return packed or ("FP8" if most.startswith("F8_") else most)


def _notes(architecture: str, known_caches: Caches | None, common: Facts) -> tuple[str, ...]:
    if known_caches is not None:
        return ()
    if architecture in known():
        told = "the file leaves out what its cache is computed from"
    else:
        told = f"the architecture {shown(architecture)} is not known: its tensors were told by name"
    counted = "counted from its heads" if common.caches else "not known"
    return (f"{told}; the cache is {counted}",)

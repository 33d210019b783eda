"""Knows no files: Header and config.json → ModelSpec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from localrun.formats.header import Header
from localrun.formats.text import shown
from localrun.models.architecture import Architecture, Caches
from localrun.models.architectures import family, known
from localrun.models.cache import growth
from localrun.models.facts import Facts, facts
from localrun.models.fields import HEADS_MAX, VOCABULARY_MAX, AbsentError, Fields
from localrun.models.gguf_config import file_type, translated
from localrun.models.gguf_layout import converted
from localrun.models.grouping import Entry, entries, groups, merged
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Model, mixture_name, retyped
from localrun.models.spec import ModelSpec, Tokenizer
from localrun.models.storage import Plain, storage_of

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
    fields = _flat(config or {}, "config.json")
    model_type = Fields(config or {}, "config.json").text("model_type") or UNKNOWN
    return _spec(
        merged(header.tensors),
        fields,
        model_type,
        name=fields.text("_name_or_path") or "",
        known_caches=_caches_if_told(fields, model_type),
    )


def describe_config(config: Mapping[str, object], *, quant: str | None = None) -> ModelSpec:
    """The same of a checkpoint that ``config`` speaks of and nobody need have.

    Its own quantization decides the types, or ``quant``, a GGUF mixture. Keys that begin with
    ``_`` are not read.

    Raises:
        HeaderError: a ``model_type`` that is not known here, a field that is absent or absurd.
        UsageError: no such ``quant``.
    """
    fields, model_type, speaker = _bare(config)
    found = entries(_layout(fields, speaker, quant))
    known_caches = speaker.caches(fields)
    return _spec(found, fields, model_type, quantization=quant or "", known_caches=known_caches)


def layout_of(config: Mapping[str, object], quant: str | None = None) -> Iterator[LayoutTensor]:
    """The tensors of that checkpoint, one by one.

    Raises:
        HeaderError: a ``model_type`` that is not known here, a field that is absent or absurd.
        UsageError: no such ``quant``.
    """
    fields, _, speaker = _bare(config)
    yield from _layout(fields, speaker, quant)


def _layout(fields: Fields, speaker: Architecture, quant: str | None) -> Iterator[LayoutTensor]:
    if quant is None:
        yield from speaker.layout(fields, storage_of(fields))
        return
    name = mixture_name(quant)
    text = fields.values.get("text_config")
    plain = {key: item for key, item in fields.values.items() if key != "quantization_config"}
    if isinstance(text, Mapping):
        plain["text_config"] = {
            key: item for key, item in text.items() if key != "quantization_config"
        }
    bare = Fields(plain, fields.file, fields.names)
    common = facts(bare)
    found = converted(speaker.layout(bare, Plain()), bare, common.layers)
    yield from retyped(found, name, _model(bare, common, found))


def _model(fields: Fields, common: Facts, found: list[LayoutTensor]) -> Model:
    numbers = {name.split(".")[1] for name in (tensor.name for tensor in found) if "blk." in name}
    # Latent keys and values are one head to every query head.
    latent = fields.values.get("kv_lora_rank") is not None
    kv_heads = 1 if latent else fields.integer("num_key_value_heads", most=HEADS_MAX)
    grouped = common.heads // (kv_heads or max(common.heads, 1))
    return Model(fields.text("model_type") or "", len(numbers), common.experts, grouped)


def _bare(config: Mapping[str, object]) -> tuple[Fields, str, Architecture]:
    fields = _flat({key: item for key, item in config.items() if key[:1] != "_"}, "config.json")
    model_type = Fields(config, "config.json").text("model_type")
    speaker = _speaker(fields, model_type)
    if speaker is None or model_type is None:
        raise fields.error("model_type", f"{model_type!r} is not known; {', '.join(known())} are")
    facts(fields)
    return fields, model_type, speaker


def _flat(config: Mapping[str, object], file: str) -> Fields:
    """The fields of ``text_config`` over those of the config itself."""
    text = config.get("text_config")
    if text is None:
        return Fields(config, file)
    if not isinstance(text, Mapping):
        raise Fields(config, file).error(
            "text_config", f"is a {type(text).__name__}, not an object"
        )
    inner = {key: item for key, item in text.items() if item is not None}
    return Fields({**config, **inner}, file)


def _speaker(fields: Fields, model_type: str | None) -> Architecture | None:
    """By the name of the whole, or of its text part."""
    return family(model_type or "") or family(fields.text("model_type") or "")


def _caches_if_told(fields: Fields, model_type: str) -> Caches | None:
    """None where the architecture is not known, or the file leaves out what it needs."""
    speaker = _speaker(fields, model_type)
    try:
        return speaker.caches(fields) if speaker else None
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
    return Tokenizer(model, fields.text("tokenizer.ggml.pre") or "", len(tokens))


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
) -> ModelSpec:
    common = facts(fields)
    caches = known_caches or common.caches
    gathered = groups(
        found,
        layers=common.layers,
        experts_used=common.experts_used,
        table_rows=caches.table_rows if caches else 0,
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
        notes=_notes(architecture, known_caches, common),
    )
    return replace(spec, kv_bytes_per_token=int(growth(spec, "f16")))


def _dominant(types: Mapping[str, tuple[int, int]]) -> str:
    return max(types, key=lambda name: types[name][1], default="")


def _notes(architecture: str, known_caches: Caches | None, common: Facts) -> tuple[str, ...]:
    if known_caches is not None:
        return ()
    if architecture in known():
        told = "the file leaves out what its cache is computed from"
    else:
        told = f"the architecture {shown(architecture)} is not known: its tensors were told by name"
    counted = "counted from its heads" if common.caches else "not known"
    return (f"{told}; the cache is {counted}",)

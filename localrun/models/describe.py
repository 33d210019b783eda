"""Knows no files: Header and config.json → ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping

from localrun.formats.header import Header
from localrun.models.fields import Fields
from localrun.models.geometry import VOCABULARY_MAX, Geometry, from_config, from_gguf
from localrun.models.spec import ModelSpec, Tokenizer

UNKNOWN = "unknown"


def describe(header: Header, config: Mapping[str, object] | None = None) -> ModelSpec:
    """Say of a model what a planner, a runner and ``show`` need.

    ``config`` is the parsed config.json of a safetensors model; GGUF files carry their own. What
    the file does not say is zero, None or ``"unknown"``.

    Raises:
        HeaderError: a field is of the wrong type or holds a number that no model has.
    """
    if header.format == "gguf":
        return _gguf(header)
    return _safetensors(header, config or {})


def _gguf(header: Header) -> ModelSpec:
    fields = Fields(header.metadata, header.files[0])
    architecture = fields.text("general.architecture")
    if not architecture:
        raise fields.error("general.architecture", "is absent")
    return _spec(
        header,
        architecture,
        fields.text("general.name") or fields.text("general.basename") or "",
        from_gguf(fields, architecture),
        tokenizer=_tokenizer(fields),
        chat_template=fields.text("tokenizer.chat_template"),
        licence=fields.text("general.license"),
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


def _safetensors(header: Header, config: Mapping[str, object]) -> ModelSpec:
    fields = Fields(config, "config.json")
    text = config.get("text_config")
    text = config if text is None else text
    if not isinstance(text, Mapping):
        raise fields.error("text_config", f"is a {type(text).__name__}, not an object")
    return _spec(
        header,
        fields.text("model_type") or UNKNOWN,
        fields.text("_name_or_path") or "",
        from_config(Fields(text, "config.json")),
        tokenizer=None,
        chat_template=None,
        licence=None,
    )


def _spec(
    header: Header,
    architecture: str,
    name: str,
    geometry: Geometry,
    *,
    tokenizer: Tokenizer | None,
    chat_template: str | None,
    licence: str | None,
) -> ModelSpec:
    types: dict[str, tuple[int, int]] = {}
    for tensor in header.tensors:
        count, size = types.get(tensor.type.name, (0, 0))
        types[tensor.type.name] = (count + 1, size + tensor.bytes)
    return ModelSpec(
        architecture=architecture,
        name=name,
        parameters=sum(tensor.elements for tensor in header.tensors),
        tensor_bytes=header.tensor_bytes,
        tensors=len(header.tensors),
        layers=geometry.layers,
        n_ctx_train=geometry.n_ctx_train,
        kv_bytes_per_token=geometry.kv_bytes_per_token,
        tensor_types=types,
        tokenizer=tokenizer,
        chat_template=chat_template,
        licence=licence,
        experts=geometry.experts,
        experts_used=geometry.experts_used,
    )

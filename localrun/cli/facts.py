"""Knows no route: what a model's header says, as clients of the port ask for it."""

from __future__ import annotations

from localrun.chat.reasoning import PAIRS
from localrun.chat.tools.reading import takes_tools
from localrun.cli.lookup import Found
from localrun.models.spec import ModelSpec
from localrun.server.models import Capability, ModelFacts


def facts_of(name: str, found: Found) -> ModelFacts:
    """``name`` is what it is served as."""
    spec = found.spec
    weights = found.files.weights if found.files else ()
    digests = [file.sha256 for file in weights if file.sha256]
    types = spec.tensor_types
    return ModelFacts(
        id=name,
        architecture=spec.architecture,
        format=found.format,
        quantization=max(types, key=lambda kind: types[kind][1], default=""),
        parameters=spec.parameters,
        bytes=sum(file.bytes for file in weights),
        sha256=digests[0] if digests else "",
        n_ctx_train=spec.n_ctx_train,
        width=spec.width,
        chat_template=spec.chat_template,
        capabilities=frozenset(_capabilities(spec)),
        fields=_fields(spec),
    )


def _capabilities(spec: ModelSpec) -> list[Capability]:
    if spec.encoder:
        return ["embedding"]
    found: list[Capability] = ["completion"]
    template = spec.chat_template or ""
    if takes_tools(template):
        found.append("tools")
    if any(pair.opening in template for pair in PAIRS) or "<|channel|>" in template:
        found.append("thinking")
    return found


def _fields(spec: ModelSpec) -> dict[str, str | int | float | bool]:
    """By the names that GGUF files have for them, whatever the format is."""
    name = spec.architecture
    fields: dict[str, str | int | float | bool] = {
        "general.architecture": name,
        "general.parameter_count": spec.parameters,
        f"{name}.context_length": spec.n_ctx_train,
        f"{name}.embedding_length": spec.width,
        f"{name}.block_count": spec.layers,
        f"{name}.attention.head_count": spec.heads,
        f"{name}.feed_forward_length": spec.ffn_width,
        f"{name}.vocab_size": spec.vocabulary,
    }
    if spec.experts:
        fields[f"{name}.expert_count"] = spec.experts
        fields[f"{name}.expert_used_count"] = spec.experts_used
    if spec.tokenizer is not None:
        fields["tokenizer.ggml.model"] = spec.tokenizer.model
        fields["tokenizer.ggml.pre"] = spec.tokenizer.pre
    return {key: value for key, value in fields.items() if value not in (0, "")}

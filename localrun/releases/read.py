"""Knows no target format: models in the words of a release, from a checkpoint or a GGUF file.

A GGUF file of a family that ``config_of`` knows has its names turned back by the planner's own
table, and what llama.cpp wanted otherwise than the release has it is undone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from localrun.disk.staged import Stage
from localrun.errors import HeaderError
from localrun.formats.text import shown
from localrun.models.architecture import Architecture
from localrun.models.architectures import family
from localrun.models.bare import FILE, flat
from localrun.models.facts import facts
from localrun.models.fields import LAYERS_MAX, Fields
from localrun.models.gguf_layout import Part, parts
from localrun.models.layout import LayoutTensor
from localrun.models.storage import Plain
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.engram import of_release
from localrun.releases.gguf_file import GgufFile
from localrun.releases.release import Release
from localrun.releases.released import released
from localrun.releases.tokenizers.reverse import tokenizer_files
from localrun.releases.views import Portion, Reshaped
from localrun.releases.weights import Weight
from localrun.releases.words import Released
from localrun.store.files import ModelFiles

Source = Checkpoint | GgufFile
# What of a release is no weight and still a part of it.
_BESIDE: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_QUANTIZATION: Final = ("quantization_config", "quantization", "compression_config")
# Parts of tables, which are put together before tensors are named.
_TABLE: Final = re.compile(r"blk\.[0-9]{1,4}\.engram_embe?d(?:_scale)?\.weight$", re.ASCII)
# Computed again by whoever runs the release.
_COMPUTED: Final = frozenset({"rope_freqs.weight"})


def open_source(files: ModelFiles, stage: Stage | None = None) -> Source:
    """
    Raises:
        UsageError, ModelNotFoundError, HeaderError: as ``Checkpoint`` and ``GgufFile``.
    """
    return GgufFile(files, stage) if files.format == "gguf" else Checkpoint(files, stage)


def release_of(source: Source, weights: Mapping[str, Weight]) -> Release:
    """A model in its release's words; ``weights`` are a checkpoint's.

    Raises:
        UsageError: a GGUF file of a family that is not turned back.
        HeaderError: a file beside the weights is too large, or a GGUF file's tensors are not those
            that its keys say.
    """
    if isinstance(source, GgufFile):
        return release_of_gguf(source)
    return release_of_checkpoint(source, weights)


def release_of_checkpoint(checkpoint: Checkpoint, weights: Mapping[str, Weight]) -> Release:
    """A checkpoint as it is, its quantization apart: ``weights`` are those of an unquantized one.

    Raises:
        UsageError: n-gram tables without the tokenizer that their rows are found by.
        HeaderError: a file beside the weights is too large, or tokenizer and configuration do not
            agree on n-gram tables.
    """
    config = _unquantized(checkpoint.config)
    found = ((name, checkpoint.raw(name)) for name in _BESIDE)
    beside = {name: data for name, data in found if data is not None}
    fields = flat(checkpoint.config)
    tables = fields.integers("engram_layer_ids", most=LAYERS_MAX)
    engram = of_release(checkpoint, fields) if tables else None
    name = _named(str(checkpoint.ref))
    return Release(name, config, dict(weights), beside, engram=engram)


def _unquantized(config: Mapping[str, object]) -> dict[str, object]:
    """Of the configuration and of its parts."""
    return {
        key: _unquantized(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _QUANTIZATION
    }


def _named(ref: str) -> str:
    """What a reference ends in, without version or directory."""
    text = ref.rpartition(":")[2].partition("==")[0].rstrip("/")
    return text.rpartition("/")[2].removesuffix(".safetensors").removesuffix(".gguf") or "model"


def release_of_gguf(gguf: GgufFile) -> Release:
    """A GGUF file's model as its makers would release it in BF16.

    Raises:
        UsageError: an architecture that is not turned back, or a variant of one.
        HeaderError: a key or a tensor that is absent, unknown, or does not fit the others.
    """
    told = released(gguf)
    weights = {
        name: weight for name, weight in gguf.weights().items() if not _TABLE.match(name)
    } | dict(told.tables)
    fields = Fields(told.config, FILE)
    speaker = family(fields.text("model_type") or "")
    assert speaker is not None  # Of what ``released`` gives.
    made = dict(_weights(weights, told, fields, speaker))
    left = weights.keys() - _COMPUTED
    if left:
        name = sorted(left)[0]
        raise HeaderError(shown(name), weights[name].place[1], "is no tensor of this model")
    name = told.name or _named(str(gguf.ref))
    beside = {**told.beside, **tokenizer_files(gguf)}
    return Release(name, told.config, made, beside, told.notes, told.engram)


def _weights(
    weights: dict[str, Weight], told: Released, fields: Fields, speaker: Architecture
) -> Iterator[tuple[str, Weight]]:
    """Every tensor that the configuration asks for; those that are used leave ``weights``."""
    layers = facts(fields).layers
    for tensor in (*speaker.layout(fields, Plain()), *told.extra):
        held = tuple(_taken(part, told, weights) for part in parts(tensor, fields, layers))
        if held:
            yield from _named_weights(tensor, held, told)


def _taken(part: Part, told: Released, weights: dict[str, Weight]) -> Weight:
    name, wanted = part.tensor.name, part.tensor.shape
    weight = weights.pop(name, None)
    if weight is None:
        raise HeaderError(shown(name), 0, "is not in the file")
    if tuple(dim for dim in weight.shape if dim != 1) != tuple(dim for dim in wanted if dim != 1):
        problem = f"has the shape {weight.shape}, the file's keys say {wanted}"
        raise HeaderError(shown(name), weight.place[1], problem)
    return told.undo(name, weight)


def _named_weights(
    tensor: LayoutTensor, held: tuple[Weight, ...], told: Released
) -> Iterator[tuple[str, Weight]]:
    weight = held[0] if len(held) == 1 else told.join(tensor, held)
    if "{e}" in tensor.name:
        each = tensor.shape[0]
        for number, name in enumerate(tensor.names()):
            yield name, Portion(weight, tensor.shape, number * each)
    else:
        same = weight.shape == tensor.shape
        yield tensor.name, weight if same else Reshaped(weight, tensor.shape)

"""Knows no language model: the vision towers of Gemma and of Qwen, in the release's float type.

https://github.com/huggingface/transformers, ``models/siglip`` with the projector of
``models/gemma3``, and ``models/qwen3_5``.
"""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models.architecture import Storage
from localrun.models.fields import LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_CHANNELS = 3
_SIDE_MAX = 65_536


def _biased(name: str, storage: Storage, *shape: int) -> Iterator[LayoutTensor]:
    """A weight of ``shape`` and a bias for its rows."""
    yield from storage.plain(f"{name}.weight", *shape)
    yield from storage.plain(f"{name}.bias", shape[0])


def siglip(vision: Fields, width: int, storage: Storage) -> Iterator[LayoutTensor]:
    """SigLIP without its head, and Gemma's projector to ``width``.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    own = vision.needed("hidden_size", most=WIDTH_MAX)
    inner = vision.needed("intermediate_size", most=WIDTH_MAX)
    patch = vision.needed("patch_size", most=_SIDE_MAX)
    patches = (vision.needed("image_size", most=_SIDE_MAX) // patch) ** 2
    tower = "vision_tower.vision_model."
    yield from _biased(f"{tower}embeddings.patch_embedding", storage, own, _CHANNELS, patch, patch)
    yield from storage.plain(f"{tower}embeddings.position_embedding.weight", patches, own)
    for layer in range(vision.needed("num_hidden_layers", most=LAYERS_MAX)):
        at = f"{tower}encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _biased(f"{at}self_attn.{part}", storage, own, own)
        yield from _biased(f"{at}layer_norm1", storage, own)
        yield from _biased(f"{at}layer_norm2", storage, own)
        yield from _biased(f"{at}mlp.fc1", storage, inner, own)
        yield from _biased(f"{at}mlp.fc2", storage, own, inner)
    yield from _biased(f"{tower}post_layernorm", storage, own)
    yield from storage.plain("multi_modal_projector.mm_input_projection_weight", own, width)
    yield from storage.plain("multi_modal_projector.mm_soft_emb_norm.weight", own)


def qwen(vision: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Qwen3.5's tower with its merger.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    own = vision.needed("hidden_size", most=WIDTH_MAX)
    inner = vision.needed("intermediate_size", most=WIDTH_MAX)
    out = vision.needed("out_hidden_size", most=WIDTH_MAX)
    patch = vision.needed("patch_size", most=_SIDE_MAX)
    frames = vision.needed("temporal_patch_size", most=_SIDE_MAX)
    channels = vision.integer("in_channels", most=_SIDE_MAX) or _CHANNELS
    positions = vision.needed("num_position_embeddings", most=WIDTH_MAX)
    merged = own * vision.needed("spatial_merge_size", most=_SIDE_MAX) ** 2
    at = "model.visual."
    yield from _biased(f"{at}patch_embed.proj", storage, own, channels, frames, patch, patch)
    yield from storage.plain(f"{at}pos_embed.weight", positions, own)
    for layer in range(vision.needed("depth", most=LAYERS_MAX)):
        block = f"{at}blocks.{layer}."
        yield from _biased(f"{block}norm1", storage, own)
        yield from _biased(f"{block}norm2", storage, own)
        yield from _biased(f"{block}attn.qkv", storage, 3 * own, own)
        yield from _biased(f"{block}attn.proj", storage, own, own)
        yield from _biased(f"{block}mlp.linear_fc1", storage, inner, own)
        yield from _biased(f"{block}mlp.linear_fc2", storage, own, inner)
    yield from _biased(f"{at}merger.norm", storage, own)
    yield from _biased(f"{at}merger.linear_fc1", storage, merged, merged)
    yield from _biased(f"{at}merger.linear_fc2", storage, out, merged)

"""Knows no language model: the vision towers that some of them are released with.

All of it stays in the release's float type. GLM: https://github.com/huggingface/transformers,
``models/glm4v_moe`` and ``models/glm5_next``; MoonViT: ``models/kimi_k25``, with the release's
names from ``conversion_mapping.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models.architecture import Storage
from localrun.models.fields import LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_CHANNELS = 3
_SIDE_MAX = 65_536


def _pair(name: str, rows: int, shape: tuple[int, ...], storage: Storage) -> Iterator[LayoutTensor]:
    """A weight ``[rows, *shape]`` and its bias."""
    yield from storage.plain(f"{name}.weight", rows, *shape)
    yield from storage.plain(f"{name}.bias", rows)


def _gated(
    name: str, width: int, inner: int, bias: bool, storage: Storage
) -> Iterator[LayoutTensor]:
    for part, rows, columns in (
        ("gate_proj", inner, width),
        ("up_proj", inner, width),
        ("down_proj", width, inner),
    ):
        yield from storage.plain(f"{name}.{part}.weight", rows, columns)
        if bias:
            yield from storage.plain(f"{name}.{part}.bias", rows)


def glm(vision: Fields, name: str, storage: Storage, *, newer: bool) -> Iterator[LayoutTensor]:
    """GLM's tower with its merger. The ``newer`` one has biases and head norms, and no table of
    positions.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    width = vision.needed("hidden_size", most=WIDTH_MAX)
    inner = vision.needed("intermediate_size", most=WIDTH_MAX)
    out = vision.needed("out_hidden_size", most=WIDTH_MAX)
    heads = vision.needed("num_heads", most=width)
    patch = vision.needed("patch_size", most=_SIDE_MAX)
    side = vision.needed("spatial_merge_size", most=_SIDE_MAX)
    frames = vision.integer("temporal_patch_size", most=_SIDE_MAX) or 2
    yield from _pair(f"{name}.patch_embed.proj", width, (_CHANNELS, frames, patch, patch), storage)
    if not newer:
        image = vision.integer("image_size", most=_SIDE_MAX) or 336
        positions = f"{name}.embeddings.position_embedding.weight"
        yield from storage.plain(positions, (image // patch) ** 2, width)
        yield from storage.plain(f"{name}.post_conv_layernorm.weight", width)
    for layer in range(vision.needed("depth", most=LAYERS_MAX)):
        block = f"{name}.blocks.{layer}"
        yield from storage.plain(f"{block}.norm1.weight", width)
        yield from storage.plain(f"{block}.norm2.weight", width)
        for part, rows in (("qkv", 3 * width), ("proj", width)):
            yield from storage.plain(f"{block}.attn.{part}.weight", rows, width)
            if newer:
                yield from storage.plain(f"{block}.attn.{part}.bias", rows)
        if newer:
            yield from storage.plain(f"{block}.attn.q_norm.weight", width // heads)
            yield from storage.plain(f"{block}.attn.k_norm.weight", width // heads)
        yield from _gated(f"{block}.mlp", width, inner if newer else out, newer, storage)
    yield from storage.plain(f"{name}.post_layernorm.weight", width)
    yield from _pair(f"{name}.downsample", out, (width, side, side), storage)
    wide = vision.integer("projection_intermediate_size", most=WIDTH_MAX) or 10_240
    yield from storage.plain(f"{name}.merger.proj.weight", out, out)
    yield from _pair(f"{name}.merger.post_projection_norm", out, (), storage)
    yield from _gated(f"{name}.merger", out, wide if newer else inner, False, storage)


def moonvit(vision: Fields, out: int, storage: Storage) -> Iterator[LayoutTensor]:
    """Kimi-K2.5's tower and its projector to ``out``.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    width = vision.needed("vt_hidden_size", most=WIDTH_MAX)
    inner = vision.needed("vt_intermediate_size", most=WIDTH_MAX)
    patch = vision.needed("patch_size", most=_SIDE_MAX)
    rows = vision.needed("init_pos_emb_height", most=_SIDE_MAX)
    columns = vision.needed("init_pos_emb_width", most=_SIDE_MAX)
    kernel = vision.integers("merge_kernel_size", least=1, most=_SIDE_MAX)
    if kernel is None or len(kernel) != 2:
        raise vision.error("merge_kernel_size", "is not two numbers")
    merged = width * kernel[0] * kernel[1]
    yield from _pair("vision_tower.patch_embed.proj", width, (_CHANNELS, patch, patch), storage)
    yield from storage.plain("vision_tower.patch_embed.pos_emb.weight", rows, columns, width)
    for layer in range(vision.needed("vt_num_hidden_layers", most=LAYERS_MAX)):
        block = f"vision_tower.encoder.blocks.{layer}"
        yield from _pair(f"{block}.norm0", width, (), storage)
        yield from _pair(f"{block}.norm1", width, (), storage)
        yield from _pair(f"{block}.wqkv", 3 * width, (width,), storage)
        yield from _pair(f"{block}.wo", width, (width,), storage)
        yield from _pair(f"{block}.mlp.fc0", inner, (width,), storage)
        yield from _pair(f"{block}.mlp.fc1", width, (inner,), storage)
    yield from _pair("vision_tower.encoder.final_layernorm", width, (), storage)
    yield from _pair("mm_projector.pre_norm", width, (), storage)
    yield from _pair("mm_projector.proj.0", merged, (merged,), storage)
    yield from _pair("mm_projector.proj.2", out, (merged,), storage)

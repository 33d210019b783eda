"""Configurations of synthetic checkpoints, grown to a size; bytes are those of localrun.models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from synthetic_architectures import RECIPES, ROWS, Config, Growth, Recipe, engram_primes

from localrun.errors import UsageError
from localrun.models.describe import layout_of

# Of the bytes of DeepSeek-V4.1-Flash, 203 of 510 GB are Engram tables.
_TABLE_SHARE = 0.4
_TOLERANCE = 0.05


def base(name: str) -> Config:
    """The smallest configuration of an architecture, every feature in it."""
    recipe = RECIPES[name]
    return recipe.build(Growth(recipe.layers[0], recipe.units[0], 1, recipe.rows))


def grown(name: str, size: int, width: int = 1) -> Config:
    """A configuration whose tensors take about ``size`` bytes. With ``width`` matrices are at
    least so many times as wide as the smallest ones: fewer experts, each of them larger.

    Raises:
        UsageError: the architecture's features alone take more, or no growth comes near.
    """
    recipe = RECIPES[name]
    least = bytes_of(base(name))
    if least > size * (1 + _TOLERANCE):
        raise UsageError(f"--scale {size}: {name} with all its features takes {least} bytes")
    for growth in _ladder(recipe, width):
        fixed = bytes_of(recipe.build(growth))
        if fixed > size * (1 + _TOLERANCE):
            continue
        found = _filled(recipe, growth, fixed, size)
        if found is not None:
            return found
    raise UsageError(f"--scale {size}: no {name} of about that size is made here")


def resized(config: Config, size: int) -> Config:
    """``config`` with its widths and layers, and as many experts and Engram rows as ``size`` wants.

    Raises:
        UsageError: it has neither, or the rest alone takes more.
    """
    text = config.get("text_config", config)
    key = next((key for key in ("n_routed_experts", "num_experts") if text.get(key)), None)
    if key is None:
        raise UsageError(f"--scale {size}: a configuration without experts has one size")
    group = text.get("n_group") or 1
    least = -(-text["num_experts_per_tok"] // group) * group

    def build(growth: Growth) -> Config:
        changed = {**text, key: growth.units}
        if growth.rows:
            changed["engram_vocab_size"] = growth.rows
            changed["engram_num_embeddings"] = [sum(parts) for parts in engram_primes(changed)]
        return {**config, "text_config": changed} if "text_config" in config else changed

    rows = ROWS if text.get("engram_layer_ids") else 0
    recipe = Recipe(build, (1,), range(least, 65_536, group), rows)
    growth = Growth(1, least, 1, rows)
    fixed = bytes_of(build(growth))
    found = _filled(recipe, growth, fixed, size) if fixed <= size * (1 + _TOLERANCE) else None
    if found is None:
        raise UsageError(f"--scale {size}: without experts and rows it takes {fixed} bytes")
    return found


def _ladder(recipe: Recipe, width: int) -> Iterator[Growth]:
    """Ever larger models with the fewest experts, wider only where layers are used up."""
    for power in range(8):
        for layers in recipe.layers:
            yield Growth(layers, recipe.units[0], width * 2**power, recipe.rows)


def _filled(recipe: Recipe, growth: Growth, fixed: int, size: int) -> Config | None:
    """With as many experts and rows as the size wants; None where that is out of proportion."""
    tables = int(size * _TABLE_SHARE) if recipe.rows else 0
    step = recipe.units.step
    each = bytes_of(recipe.build(replace(growth, units=growth.units + step))) - fixed
    units = growth.units + max(0, round((size - fixed - tables) / each)) * step
    # Experts grow with layers, but from the fewest there is always some way to go.
    most = max(3 * growth.units, recipe.units[-1] * growth.layers // recipe.layers[-1])
    if units > most:
        return None
    growth = replace(growth, units=units)
    if recipe.rows:
        growth = replace(growth, rows=_rows(recipe, growth, size))
    config = recipe.build(growth)
    return config if abs(bytes_of(config) - size) <= size * _TOLERANCE else None


def _rows(recipe: Recipe, growth: Growth, size: int) -> int:
    """Where primes begin for tables to fill the rest: each adds about its own number of rows."""
    least, more = (
        bytes_of(recipe.build(replace(growth, rows=rows)))
        for rows in (recipe.rows, 2 * recipe.rows)
    )
    return recipe.rows + max(0, size - least) * recipe.rows // (more - least)


def bytes_of(config: Mapping[str, object]) -> int:
    """What the tensors of a checkpoint take."""
    return sum(tensor.bytes * tensor.copies for tensor in layout_of(config))

"""Engram's rows are those of the release, looked up by the last tokens alone, and join the streams
as its formula says (https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.architectures import deepseek_v41
from localrun.backends.torch.layers.engram import DEAD, Hashes, Memory
from localrun.backends.torch.model import Model, Setup
from localrun.backends.torch.numerics import FAST, FLOAT32, Numerics
from localrun.backends.torch.tensors import Linear, Tensors
from localrun.errors import HeaderError, UsageError
from localrun.models.bare import flat
from localrun.releases import engram
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.engram import Engram, multipliers
from localrun.releases.read import release_of
from localrun.releases.release import Release
from localrun.releases.stored.release import weights_of
from tests import deepseek, torch_models
from tests.torch_models import Config, Weights, extend, logits, random_tokens, step

CPU = torch.device("cpu")
SETUP = Setup(FLOAT32, CPU, 128)
CLOSE = 1e-4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model waits for its threads only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def released() -> Engram:
    """The released model's but for the tokenizer: ids are classes."""
    stream = engram.primes_from(16_000_000)
    primes = tuple(tuple(islice(stream, 24)) for _ in range(2))
    factors = tuple(multipliers(layer, 99092, 4) for layer in (1, 14))
    return Engram((1, 14), 4, 8, 256, 2, tuple(range(99092)), primes, factors)


def rows_of(constants: Engram, layer: int, tokens: list[int], dead: Any = None) -> list[list[int]]:
    """Of tokens that begin a text."""
    hashes = Hashes(constants, CPU)
    mask = None if dead is None else torch.tensor(dead)
    before = torch.full((constants.ngram - 1,), DEAD)
    classes = torch.cat((before, hashes.classes(torch.tensor(tokens), mask)))
    found: list[list[int]] = hashes.rows(layer, hashes.lookback(classes)).tolist()
    return found


def test_constants_are_the_releases(released: Engram) -> None:
    assert [sum(each) for each in released.primes] == [384006168, 384016682]
    assert released.offsets[0][:3] == (0, 16000057, 16000057 + released.primes[0][1])
    assert released.offsets[0][-1] == 384006168 - 16000463
    assert released.multipliers == (
        (76632096046245, 4839876093313, 35959672319349, 73987337458391),
        (67716810739261, 51510806800915, 30921347202721, 82619226485591),
    )


def test_rows_are_those_that_the_release_looks_up(released: Engram) -> None:
    first, second = (rows_of(released, layer, [10, 20, 30, 40]) for layer in (1, 14))

    assert first[0][:3] == [9400104, 24924096, 42335591]
    assert first[3] == [
        1326936, 22120929, 40011923, 55142539, 77849479, 85421395, 105208034, 120570043,
        142088989, 151706440, 164511320, 186980067, 199834903, 222266846, 231919637, 244765195,
        270969918, 287524568, 292261800, 310632033, 322879311, 341250912, 361620893, 378628807,
    ]  # fmt: skip
    assert second[3] == [
        5403109, 26519290, 42262171, 52759697, 74009651, 83431750, 98759453, 114437397,
        136663117, 159466275, 161102974, 190712189, 206344738, 219595678, 225703309, 243746465,
        258079010, 283475728, 290789713, 309926711, 321434350, 340293184, 357342800, 378588994,
    ]  # fmt: skip


def test_every_row_lies_in_its_own_bucket(released: Engram) -> None:
    tokens = random_tokens(200, 99092)
    found = np.array(rows_of(released, 14, tokens))
    offsets, primes = np.array(released.offsets[1]), np.array(released.primes[1])
    assert ((offsets <= found) & (found < offsets + primes)).all()
    # The largest classes multiply to just below 2^63, which is where a sign would show.
    assert tuple(rows_of(released, 1, [99091] * 5)[4]) == released.hashed(1, [99091] * 5)[4]


def by_formula(
    constants: Engram, layer: int, classes: list[int | None], position: int
) -> list[int]:
    """The rows of one position in Python's whole numbers; None is a dead position."""
    number = constants.layers.index(layer)
    near, blocked = [], False
    for back in range(constants.ngram):
        own = classes[position - back] if position - back >= 0 else None
        blocked = blocked or own is None
        near.append(constants.pad_class if blocked or own is None else own)
    found, mixed = [], near[0] * constants.multipliers[number][0]
    for length in range(1, constants.ngram):
        mixed ^= near[length] * constants.multipliers[number][length]
        for head in range(constants.heads):
            at = (length - 1) * constants.heads + head
            found.append(mixed % constants.primes[number][at] + sum(constants.primes[number][:at]))
    return found


def test_a_dead_position_hides_all_before_it(released: Engram) -> None:
    source = np.random.default_rng(0)
    for _ in range(20):
        tokens = [int(each) for each in source.integers(0, 99092, 12)]
        dead = [bool(each) for each in source.random(12) < 0.3]
        classes = [None if gone else token for token, gone in zip(tokens, dead, strict=True)]
        expected = [by_formula(released, 1, classes, at) for at in range(12)]
        assert rows_of(released, 1, tokens, dead) == expected


def test_only_the_last_four_tokens_say_which_rows(released: Engram) -> None:
    tokens = random_tokens(12, 99092)
    before = rows_of(released, 1, tokens)
    for changed in range(12):
        other = [*tokens]
        other[changed] = (other[changed] + 1) % 99092
        after = rows_of(released, 1, other)
        differ = [at for at in range(12) if before[at] != after[at]]
        assert differ == list(range(changed, min(changed + 4, 12)))


def test_products_that_leave_63_bits_are_refused(released: Engram) -> None:
    factors = ((2**62 + 1, 3, 5, 7), released.multipliers[1])
    with pytest.raises(HeaderError, match="multipliers"):
        Hashes(replace(released, multipliers=factors), CPU)


def small(**changes: Any) -> tuple[Config, Weights, Engram]:
    """A tiny model with tables in two layers, tokens in classes of two."""
    stream = engram.primes_from(40)
    primes = tuple(tuple(islice(stream, 6)) for _ in range(2))
    factors = tuple(multipliers(layer, 32, 4) for layer in (1, 4))
    classes = tuple(token // 2 for token in range(64))
    constants = Engram((1, 4), 4, 2, 32, classes[2], classes, primes, factors)
    config, weights = torch_models.tiny(
        "deepseek_v41",
        engram_layer_ids=[1, 4],
        engram_num_embeddings=list(constants.rows),
        engram_max_ngram_size=4,
        engram_n_heads=2,
        engram_head_dim=32,
        **changes,
    )
    return config, weights, constants


def built(config: Config, weights: Weights, constants: Engram | None) -> Model:
    release = replace(torch_models.release(config, weights), engram=constants)
    return deepseek_v41.build(flat(config), Tensors(release, SETUP))


def test_any_parts_of_a_prompt_look_the_same_rows_up() -> None:
    model, tokens = built(*small()), random_tokens(23)
    whole = logits(model, tokens)
    for size in (1, 2, 3, 4, 5, 11):
        found = logits(model, tokens, [size] * (23 // size))
        assert float((found - whole).abs().max()) <= CLOSE, size


def test_tables_say_something_and_tokens_of_one_class_the_same() -> None:
    config, weights, constants = small()
    plain = {**config, "engram_layer_ids": [], "engram_num_embeddings": []}
    bare = {name: each for name, each in weights.items() if ".engram." not in name}
    tokens = random_tokens(12)
    found = logits(built(config, weights, constants), tokens)
    assert float((found - logits(built(plain, bare, None), tokens)).abs().max()) > 0.1

    merged = {name: each.copy() for name, each in weights.items()}
    merged["embed.weight"][1::2] = merged["embed.weight"][::2]
    model = built(config, merged, constants)
    twins = [token ^ 1 for token in tokens]
    assert float((logits(model, twins) - logits(model, tokens)).abs().max()) <= CLOSE
    apart = replace(constants, classes=tuple(range(64)), pad_class=2)
    apart = replace(apart, multipliers=tuple(multipliers(layer, 64, 4) for layer in (1, 4)))
    model = built(config, merged, apart)
    assert float((logits(model, twins) - logits(model, tokens)).abs().max()) > 0.1


def test_a_look_back_is_taken_back_with_its_step() -> None:
    model = built(*small())
    tokens, guessed, more = (random_tokens(9, seed=seed) for seed in range(3))
    cache = model.new_cache()
    extend(model, cache, tokens)
    extend(model, cache, guessed)
    copy = cache.copy()
    cache.revert(11)

    found = extend(model, cache, more)

    expected = logits(model, tokens + guessed[:2] + more)[11:]
    assert float((found - expected).abs().max()) <= CLOSE
    expected = logits(model, tokens + guessed + more)[18:]
    assert float((extend(model, copy, more) - expected).abs().max()) <= CLOSE


def test_sequences_of_one_step_look_back_at_their_own_tokens() -> None:
    model = built(*small())
    texts = [random_tokens(count, seed=count) for count in (7, 2, 9)]
    made = step(model, [(model.new_cache(), text) for text in texts])
    expected = torch.cat([logits(model, text) for text in texts])
    assert float((made - expected).abs().max()) <= CLOSE


def test_caches_hold_three_classes_more_than_is_planned() -> None:
    config, weights, constants = small()
    plain = {**config, "engram_layer_ids": [], "engram_num_embeddings": []}
    bare = {name: each for name, each in weights.items() if ".engram." not in name}
    with_tables, without = built(config, weights, constants), built(plain, bare, None)
    assert with_tables.new_cache().nbytes == without.new_cache().nbytes + 3 * 8


@pytest.mark.parametrize("layers", [(1,), (1, 5), (4, 1)])
def test_constants_of_other_layers_are_refused(layers: tuple[int, ...]) -> None:
    config, weights, constants = small()
    with pytest.raises(HeaderError, match="engram_layer_ids"):
        built(config, weights, replace(constants, layers=layers))


def test_constants_without_a_class_for_every_token_are_refused() -> None:
    config, weights, constants = small()
    with pytest.raises(HeaderError, match=r"vocab_size.*64.*63"):
        built(config, weights, replace(constants, classes=constants.classes[:-1]))


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in the release's formats, with drafts and vision."""
    return deepseek.write(tmp_path_factory.mktemp("v41") / "flash", deepseek.base("deepseek_v41"))


def opened_release(checkpoint: Checkpoint) -> Release:
    return release_of(checkpoint, weights_of(checkpoint))


@pytest.mark.parametrize("numerics", [FLOAT32, FAST])
def test_a_checkpoint_says_the_same_with_its_tables_in_memory_and_on_disk(
    flash: Path, numerics: Numerics
) -> None:
    tokens, found, sizes = random_tokens(20, 1000), [], []
    with deepseek.opened(flash) as checkpoint:
        release = opened_release(checkpoint)
        assert release.engram == engram.of_release(checkpoint, flat(checkpoint.config))
        for place in ("ram", "disk"):
            setup = replace(SETUP, numerics=numerics, engram=place, threads=1)
            tensors = Tensors(release, setup)
            model = deepseek_v41.build(flat(release.config), tensors)
            found.append(logits(model, tokens))
            sizes.append(model.nbytes)
            tensors.close()
    assert torch.equal(*found)
    assert torch.isfinite(found[0]).all()
    # A row of 64 numbers in a byte each, and two scales.
    assert sizes[0] - sizes[1] == (6568 + 7464) * 66


def test_a_tokenizer_of_other_classes_than_the_config_says_is_refused(flash: Path) -> None:
    with deepseek.opened(flash) as checkpoint:
        text = checkpoint.config["text_config"]
        assert isinstance(text, dict)
        changed = {**text, "engram_compressed_vocab_size": 871}
        checkpoint.config = {**checkpoint.config, "text_config": changed}
        with pytest.raises(HeaderError, match="engram_compressed_vocab_size"):
            opened_release(checkpoint)


def test_tables_without_the_tokenizer_that_finds_their_rows_are_refused(
    flash: Path, tmp_path: Path
) -> None:
    for file in flash.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with deepseek.opened(tmp_path) as checkpoint, pytest.raises(UsageError, match="tokenizer"):
        opened_release(checkpoint)


def memory(seed: int = 0) -> tuple[Memory, NDArray[np.float32], Tensor]:
    """Of 4 streams of 64, 6 rows of 32 a token; its table and the numbers of ``wkv``."""
    source = np.random.default_rng(seed)
    table = source.standard_normal((50, 32)).astype(np.float32)
    weights = {"t.weight": table, "wkv.weight": source.standard_normal((5 * 64, 192)) / 14}
    held = {name: each.astype(np.float32) for name, each in weights.items()}
    tensors = Tensors(torch_models.release({}, held), SETUP)
    scale = torch.from_numpy(source.standard_normal((4, 64)).astype(np.float32))
    made = Memory(tensors.table("t", 50, 32), tensors.linear("wkv", 320, 192), scale, 1e-20)
    return made, table, torch.from_numpy(held["wkv.weight"])


def fused(
    X: NDArray[np.float64],
    E: NDArray[np.float64],
    wkv: NDArray[np.float64],
    qk: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The formula for one token, number by number: streams ``[m, D]`` and rows ``[K * width]``."""
    m, D = X.shape
    keyed = wkv @ E
    value, made = keyed[m * D :], np.empty_like(X)
    for i in range(m):
        k = keyed[i * D : (i + 1) * D]
        a = sum(X[i, d] * qk[i, d] * k[d] for d in range(D))
        a *= (np.mean(X[i] ** 2) + 1e-20) ** -0.5 * (np.mean(k**2) + 1e-20) ** -0.5 * D**-0.5
        root = np.copysign(np.sqrt(max(abs(a), 1e-6)), a)
        made[i] = X[i] + value / (1 + np.exp(-root))
    return made


def test_rows_join_the_streams_as_the_formula_says() -> None:
    made, table, wkv = memory()
    source = np.random.default_rng(1)
    X = source.standard_normal((5, 4, 64)) * np.array([1e-6, 0.1, 1, 30, 2])[:, None, None]
    ids = source.integers(0, 50, (5, 6))
    rows = made.table.rows(torch.from_numpy(ids))

    found = made(torch.from_numpy(X.astype(np.float32)), rows).numpy()

    numbers, scale = wkv.double().numpy(), made.scale.double().numpy()
    for token in range(5):
        E = table[ids[token]].reshape(-1).astype(np.float64)
        expected = fused(X[token], E, numbers, scale)
        assert np.abs(found[token] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_agreement_of_nothing_opens_the_gate_by_half() -> None:
    made, _, _ = memory()
    closed = replace(made, scale=torch.zeros_like(made.scale))
    X, ids = torch.ones(1, 4, 64), torch.zeros(1, 6, dtype=torch.int64)
    found = made.table.rows(ids)
    value = made.wkv(found.flatten(1))[:, -64:]
    gate = torch.sigmoid(torch.tensor(1e-3))
    assert torch.allclose(closed(X, found) - X, gate * value[:, None].expand(1, 4, 64), atol=1e-6)


def test_dead_tokens_are_left_as_they_are() -> None:
    made, _, _ = memory()
    X = torch.randn(4, 4, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(24).view(4, 6)
    dead = torch.tensor([True, False, False, True])

    found = made(X, made.table.rows(ids), dead)

    assert torch.equal(found[dead], X[dead])
    assert torch.equal(found[~dead], made(X, made.table.rows(ids))[~dead])
    assert float((found - X)[~dead].abs().amax((1, 2)).min()) > 0.1


def test_streams_of_bf16_are_summed_in_float32_and_cut_once() -> None:
    made, _, _ = memory()
    X = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.arange(18).view(3, 6)

    rows = made.table.rows(ids)

    found = made(X, rows)

    # The rows go through the matrix in the streams' type; all behind it is as in float32.
    rounded = replace(made, wkv=Rounded(made.wkv))
    assert torch.equal(found, rounded(X.float(), rows).bfloat16())


@dataclass(frozen=True)
class Rounded:
    """A matrix whose input and output are cut to BF16."""

    wkv: Linear

    @property
    def nbytes(self) -> int:
        return self.wkv.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.wkv(x.bfloat16()).float()

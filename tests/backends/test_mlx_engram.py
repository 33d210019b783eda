"""DeepSeek-V4.1 as it is released, n-gram tables and all, says through mlx what torch says in
float32.

Rows of tables come from memory or from disk, experts from memory or through a bounded number of
places: nothing of it shows in the logits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from localrun.backends.mlx import backend as mlx
from localrun.disk.reader import Reader, Requests
from localrun.engine.runner import BatchItem, ModelRunner, SequenceId
from localrun.errors import DiskReadError, HeaderError, LocalrunError
from localrun.formats.read import read_header
from localrun.plan.plan import Execution
from localrun.releases.engram import Engram
from tests import deepseek
from tests.plans import bare_plan
from tests.torch_models import random_tokens

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
# What float32 sums of other orders differ by, at logits of about 4.
CLOSE = 1e-3
VOCABULARY = 1000
EXECUTION = Execution(256, 128, "f32", 1, 1, True, gpu_layers=0)
# More than a window of 32.
TEXT = random_tokens(36, VOCABULARY)
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Of each seed one, in the release's formats: FP8, FP4, tables of FP8, drafts and vision."""
    folder = tmp_path_factory.mktemp("v41")

    @cache
    def written(seed: int) -> Path:
        return deepseek.write(folder / str(seed), deepseek.base("deepseek_v41"), seed)

    return written


@pytest.fixture(scope="module")
def expected(checkpoint: Callable[[int], Path]) -> Callable[[int], Logits]:
    """torch's logits of ``TEXT``, all at once, tables in memory."""

    @cache
    def computed(seed: int) -> Logits:
        from localrun.backends.torch.architectures import deepseek_v41
        from localrun.backends.torch.model import Setup
        from localrun.backends.torch.numerics import FLOAT32
        from localrun.backends.torch.tensors import Tensors
        from localrun.models.bare import flat
        from localrun.releases.read import release_of
        from localrun.releases.stored.release import weights_of
        from tests.torch_models import logits

        with deepseek.opened(checkpoint(seed)) as source:
            release = release_of(source, weights_of(source))
            setup = Setup(FLOAT32, torch.device("cpu"), len(TEXT), threads=1)
            tensors = Tensors(release, setup)
            model = deepseek_v41.build(flat(release.config), tensors)
            found: Logits = logits(model, TEXT).numpy().copy()
            model.close()
            tensors.close()
        return found

    return computed


def load(folder: Path, **changes: Any) -> ModelRunner:
    files = [str(file) for file in sorted(folder.glob("*.safetensors"))]
    return mlx.load(bare_plan(replace(EXECUTION, **changes), files, backend="mlx"))


def said(runner: ModelRunner, sequence: SequenceId, tokens: Sequence[int]) -> Logits:
    return runner.forward([BatchItem(sequence, list(tokens), "all")]).numpy().copy()


def in_parts(runner: ModelRunner, tokens: Sequence[int], sizes: Sequence[int]) -> Logits:
    sequence, rows, at = runner.new_sequence(), [], 0
    for size in (*sizes, *[1] * (len(tokens) - sum(sizes))):
        rows.append(said(runner, sequence, tokens[at : at + size]))
        at += size
    runner.free(sequence)
    return np.concatenate(rows)


def furthest(one: Logits, other: Logits) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


MEMORY, DISK = {"engram": "ram"}, {"engram": "disk"}
STREAMED = {"engram": "disk", "streams": True, "slots_per_layer": 4}


@pytest.mark.parametrize(
    ("plan", "seed"),
    [(MEMORY, 0), *((plan, seed) for seed in range(3) for plan in (DISK, STREAMED))],
)
def test_prompts_and_decoding_say_what_torch_says(
    plan: dict[str, Any],
    seed: int,
    checkpoint: Callable[[int], Path],
    expected: Callable[[int], Logits],
) -> None:
    runner = load(checkpoint(seed), **plan)
    assert 2 < np.abs(expected(seed)).max() < 40
    # Whole, then chunks that end anywhere and the rest one by one.
    for sizes in ([len(TEXT)], [17, 1, 2, 13])[seed > 0 :]:
        assert furthest(in_parts(runner, TEXT, sizes), expected(seed)) <= CLOSE, sizes
    runner.close()


def test_tables_matter(checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests here would notice rows of other tokens."""
    from localrun.backends.mlx.engram import Hashes

    runner = load(checkpoint(0), engram="disk")
    right = in_parts(runner, TEXT[:9], [9])
    real = Hashes.rows
    monkeypatch.setattr(Hashes, "rows", lambda self, layer, near: real(self, layer, near[:, ::-1]))

    assert furthest(in_parts(runner, TEXT[:9], [9]), right) > 0.1
    runner.close()


def test_where_experts_lie_changes_no_bit(checkpoint: Callable[[int], Path]) -> None:
    """With places for more than a token's, for fewer, and for one; chunks and single tokens."""
    found = []
    for changes in ({}, *({"streams": True, "slots_per_layer": slots} for slots in (5, 3, 1))):
        runner = load(checkpoint(0), **changes)
        found.append(in_parts(runner, TEXT[:12], [9]))
        runner.close()

    for other in found[1:]:
        assert np.array_equal(found[0], other)


def test_slices_of_queries_change_no_bit(
    checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from localrun.backends.mlx import deepseek_v41

    runner = load(checkpoint(0), **STREAMED)
    whole = in_parts(runner, TEXT, [len(TEXT)])
    monkeypatch.setattr(deepseek_v41, "QUERIES", 16)

    assert np.array_equal(in_parts(runner, TEXT, [len(TEXT)]), whole)
    runner.close()


@pytest.fixture(scope="module")
def streaming(checkpoint: Callable[[int], Path]) -> Iterator[ModelRunner]:
    runner = load(checkpoint(0), engram="disk", streams=True, slots_per_layer=5)
    yield runner
    runner.close()


@pytest.fixture
def text(streaming: ModelRunner) -> Iterator[SequenceId]:
    sequence = streaming.new_sequence()
    yield sequence
    streaming.free(sequence)


def test_forks_and_states_look_back_at_their_own_tokens(
    streaming: ModelRunner, text: SequenceId
) -> None:
    begun, one, other = TEXT[:10], TEXT[10:14], TEXT[30:34]
    said(streaming, text, begun)
    fork = streaming.fork(text)
    state = streaming.save(text)

    first = said(streaming, text, one)
    second = said(streaming, fork, other)
    restored = streaming.restore(state)
    third = said(streaming, restored, one)
    streaming.free(fork)
    streaming.free(restored)

    whole = in_parts(streaming, [*begun, *one], [14])[10:]
    assert furthest(first, whole) <= CLOSE
    assert np.array_equal(first, third)
    assert furthest(second, in_parts(streaming, [*begun, *other], [14])[10:]) <= CLOSE


def test_a_truncated_sequence_begins_as_a_new_one(streaming: ModelRunner, text: SequenceId) -> None:
    said(streaming, text, TEXT[:9])

    kept = streaming.truncate(text, 4)
    found = said(streaming, text, TEXT[kept:9])

    assert furthest(found, in_parts(streaming, TEXT[:9], [9])[kept:]) <= CLOSE


def test_a_step_that_is_cancelled_while_it_reads_leaves_its_sequence_as_it_was(
    checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from localrun.backends.mlx.experts import Cache
    from localrun.engine.runner import ForwardAborted

    runner = load(checkpoint(0), engram="disk", streams=True, slots_per_layer=4)
    sequence = runner.new_sequence()
    said(runner, sequence, TEXT[:7])
    real, seen = Cache._read, []

    def cancelled(cache: Cache, bank: Any, misses: dict[int, int]) -> None:
        seen.append(bank.layer)
        if len(seen) == 6:
            runner.abort()
        real(cache, bank, misses)

    for count in (1, 5):
        seen.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Cache, "_read", cancelled)
            with pytest.raises(ForwardAborted):
                said(runner, sequence, TEXT[7 : 7 + count])
        assert len(seen) == 6

    found = said(runner, sequence, TEXT[7:12])
    assert furthest(found, in_parts(runner, TEXT[:12], [12])[7:]) <= CLOSE
    runner.close()


def test_the_picks_and_what_was_read_are_told(streaming: ModelRunner, text: SequenceId) -> None:
    before = streaming.stats()
    said(streaming, text, TEXT[:12])
    after = streaming.stats()

    used = {tier: use.picks - before.experts[tier].picks for tier, use in after.experts.items()}
    # Ten layers, four experts a token.
    assert sum(used.values()) == 12 * 10 * 4
    assert sorted(after.picks) == list(range(10))
    counted = [sum(after.picks[n]) - sum(before.picks[n]) for n in range(10)]
    assert counted == [12 * 4] * 10
    assert after.terms_s["disk"] > before.terms_s["disk"]
    assert after.terms_bytes["n-gram rows"] > before.terms_bytes["n-gram rows"]
    assert after.bytes_read["disk"] > before.bytes_read["disk"]


def test_rows_are_those_of_the_formula() -> None:
    from localrun.backends.mlx.engram import Hashes

    classes = tuple(np.random.default_rng(0).permutation(40).tolist())
    constants = Engram(
        (1, 4), 4, 2, 32, 3, classes,
        ((11, 13, 17, 19, 23, 29), (31, 37, 41, 43, 47, 53)),
        ((2**50 + 1, 2**51 + 3, 2**49 + 5, 77), (9, 2**52 + 1, 5, 2**50 + 7)),
    )  # fmt: skip
    tokens = random_tokens(25, 40)
    hashes = Hashes(constants)
    for layer in constants.layers:
        found: list[tuple[int, ...]] = []
        before = hashes.begin().classes
        for part in (tokens[:1], tokens[1:4], tokens[4:]):
            near, before = hashes.near(part, before)
            found += map(tuple, hashes.rows(layer, near).tolist())
        assert found == constants.hashed(layer, tokens)


def test_rows_that_were_asked_ahead_are_taken_by_their_own_text_only() -> None:
    """Behind a prompt that was cancelled another may go on with the same tokens."""
    from localrun.backends.mlx.engram import Hashes, Lookback, Rows

    primes = ((11, 13, 17, 19, 23, 29),)
    constants = Engram((1,), 4, 2, 32, 3, tuple(range(40)), primes, ((9, 2**40 + 1, 5, 77),))
    asked: list[list[int]] = []

    class Told:
        nbytes = 0

        def ask(self, ids: NDArray[np.int64]) -> Any:
            asked.append(ids.tolist())
            return self

    rows = Rows(Hashes(constants), {1: Told()})
    lookback = rows.begin()
    rows.ask([5, 6, 7], lookback, [8, 9])
    assert len(asked) == 2
    rows.ask([8, 9], Lookback([30, 31, 32]), [])
    expected = constants.hashed(1, [30, 31, 32, 8, 9])[3:]
    assert asked[2:] == [[row for token in expected for row in token]]
    rows.ask([8, 9], lookback, [])
    rows.ask([7], lookback, [8])
    rows.ask([8], lookback, [])
    # What was asked ahead is not asked again where it is the text's own.
    assert len(asked) == 6


@pytest.fixture
def damaged(checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(checkpoint(0), tmp_path / "model"))


def place_of(folder: Path, name: str) -> tuple[Path, int, int]:
    header = read_header(sorted(folder.glob("*.safetensors")))
    tensor = next(each for each in header.tensors if each.name == name)
    return folder / header.files[tensor.file], tensor.offset, tensor.bytes


@pytest.mark.parametrize("engram", ["ram", "disk"])
def test_a_code_that_is_no_number_is_named_with_its_row(damaged: Path, engram: str) -> None:
    path, offset, size = place_of(damaged, "layers.1.engram.embed.weight")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x7f" * size)

    with pytest.raises(LocalrunError, match=r"layers\.1\.engram\.embed\.weight.*row") as caught:
        load(damaged, engram=engram)
    assert "nan" in str(caught.value)


def test_tables_that_are_not_there_are_named(damaged: Path) -> None:
    path, *_ = place_of(damaged, "layers.4.engram.embed.weight")
    path.unlink()
    (damaged / "model.safetensors.index.json").unlink()

    with pytest.raises(HeaderError, match=r"layers\.4\.engram\.embed\.weight"):
        load(damaged, engram="disk")


def test_a_file_that_shrinks_while_running_is_named(damaged: Path) -> None:
    runner = load(damaged, engram="disk", streams=True, slots_per_layer=2)
    sequence = runner.new_sequence()
    said(runner, sequence, TEXT[:3])
    path, *_ = place_of(damaged, "layers.5.ffn.experts.3.w2.weight")
    with path.open("r+b") as file:
        file.truncate(8)

    with pytest.raises(DiskReadError, match=rf"layers\.[0-9].*{path.name}"):
        said(runner, sequence, TEXT[3:9])
    runner.close()


class Failing:
    """A reader whose reads fail once it is told so."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.after: int | None = None

    def begin(self, requests: Requests, into: Any, *, ahead: bool = False) -> Any:
        if self.after is not None:
            self.after -= 1
            if self.after < 0:
                return Failed(int(requests.offsets[0]))
        return self._reader.begin(requests, into, ahead=ahead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class Failed:
    done, seconds = True, 0.0

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def wait(self, check: Callable[[], None] | None = None) -> None:
        raise DiskReadError("model.safetensors", self._offset, "Input/output error")

    def leave(self) -> None:
        """It has ended."""


@pytest.mark.parametrize("after", [0, 1, 2, 9, 23])
def test_a_read_that_fails_ends_the_step_and_the_next_one_is_right(
    after: int, checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are of tables, the others of experts."""
    from localrun.backends.mlx import on_disk

    real, made = on_disk.open_reader, []

    def opened(paths: Sequence[Path], **told: Any) -> Any:
        made.append(Failing(real(paths, **told)))
        return made[0]

    monkeypatch.setattr(on_disk, "open_reader", opened)
    runner = load(checkpoint(0), **STREAMED)
    sequence = runner.new_sequence()
    said(runner, sequence, TEXT[:7])
    made[0].after = after
    with pytest.raises(DiskReadError, match=r"layers\.[0-9].*offset [0-9]+: Input/output"):
        said(runner, sequence, TEXT[7:12])
    made[0].after = None

    found = said(runner, sequence, TEXT[7:12])

    assert furthest(found, in_parts(runner, TEXT[:12], [12])[7:]) <= CLOSE
    runner.close()

"""Types for a size: never over it, never worse for being larger."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import UsageError
from localrun.quantize.types.budget import bytes_for, choose_within, reach, solve
from localrun.quantize.types.overrides import parse_override
from localrun.quantize.types.sensitivity import Option, Sensitivity
from tests.gguf_models import llama, model, tensor


@st.composite
def options(draw: st.DrawFn) -> tuple[Option, ...]:
    """Any sizes and errors: larger types that are worse too."""
    count = draw(st.integers(1, 6))
    sizes = st.integers(1, 10**6).map(lambda n: 32 * n)
    errors = st.floats(0, 1, allow_subnormal=False)
    worth = draw(st.sampled_from([1.0, 1.0, 32.0]))
    found = [Option(f"T{at}", draw(sizes), draw(errors), worth) for at in range(count)]
    return tuple(sorted(found, key=lambda each: (each.bytes, each.error)))


@st.composite
def several(draw: st.DrawFn) -> list[Sensitivity]:
    made = draw(st.lists(options(), min_size=1, max_size=12))
    return [Sensitivity(f"t{at}", each) for at, each in enumerate(made)]


def total(chosen: tuple[Option, ...]) -> tuple[int, float]:
    return sum(each.bytes for each in chosen), math.fsum(each.loss for each in chosen)


@given(several(), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_a_size_is_never_exceeded_and_a_larger_one_is_never_worse(
    found: list[Sensitivity], shares: list[float]
) -> None:
    low, high = reach(found)
    errors = []
    for size in sorted(low + round((high - low) * share) for share in shares):
        chosen = solve(found, size)
        assert chosen is not None
        assert all(option in each.options for each, option in zip(found, chosen, strict=True))
        bytes_, error = total(chosen)
        assert bytes_ <= size
        errors.append(error)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    assert solve(found, low - 1) is None


@given(several())
def test_with_room_for_everything_every_tensor_has_its_best_option(
    found: list[Sensitivity],
) -> None:
    chosen = solve(found, reach(found)[1])
    assert chosen is not None

    best = math.fsum(min(option.loss for option in each.options) for each in found)
    largest = math.fsum(each.options[-1].loss for each in found)
    assert total(chosen)[1] <= min(largest, best + 1e-9) or total(chosen)[1] == pytest.approx(best)


@given(st.lists(options(), min_size=1, max_size=4), st.floats(0, 1))
def test_few_tensors_are_solved_almost_as_well_as_by_trying_everything(
    made: list[tuple[Option, ...]], share: float
) -> None:
    found = [Sensitivity(str(at), each) for at, each in enumerate(made)]
    low, high = reach(found)
    size = low + round((high - low) * share)
    chosen = solve(found, size)
    assert chosen is not None

    # What is lost by rounding sizes up is less than one granule a tensor.
    less = size - len(found) * (1 + (high - low) // 32768)
    tried = [each for each in itertools.product(*made) if total(each)[0] <= max(less, low)]
    assert total(chosen)[1] <= min(total(each)[1] for each in tried) + 1e-9


def measured(gain: dict[str, float], *, blocks: int = 2) -> list[Sensitivity]:
    """Options of a small Llama: each type a fourth of the error of the one before."""
    sizes = {"Q2_K": 84, "Q4_K": 144, "Q8_0": 272}
    found = []
    for each in llama(blocks=blocks).tensors:
        name, shape = each.target.name, each.target.shape
        if len(shape) < 2:
            continue
        worth = next((value for mark, value in gain.items() if mark in name), 1.0)
        units = math.prod(shape) // 256
        found.append(
            Sensitivity(
                name,
                tuple(
                    Option(type, units * size, worth * 0.1 / 4**at)
                    for at, (type, size) in enumerate(sizes.items())
                ),
            )
        )
    return found


def test_bits_go_where_they_save_most() -> None:
    small = llama()
    low, high = reach(found := measured({"ffn_down": 50.0}))
    norms = sum(4 * each.target.columns for each in small.tensors if len(each.target.shape) < 2)
    chosen = choose_within(small, found, (low + high) // 2 + norms, covered=small_names())

    assert chosen.types["blk.0.ffn_down.weight"] == "Q8_0"
    assert chosen.types["blk.0.attn_norm.weight"] == "F32"
    assert chosen.types["blk.0.ffn_up.weight"] != "Q8_0"
    assert list(chosen.types) == [each.target.name for each in small.tensors]
    assert "bits a weight" in chosen.notes[0]


def small_names() -> set[str]:
    return {each.target.name for each in llama().tensors}


def test_the_head_of_the_file_counts() -> None:
    small, found = llama(), measured({})
    size = reach(found)[0] + 100_000
    free = choose_within(small, found, size, covered=small_names())
    tight = choose_within(small, found, size, covered=small_names(), head_bytes=90_000)

    assert free.types != tight.types
    assert free.notes != tight.notes


@pytest.mark.parametrize(("share", "word"), [(-0.5, "smaller"), (3.0, "larger")])
def test_a_size_that_cannot_be_made_is_refused_with_those_that_can(share: float, word: str) -> None:
    low, high = reach(found := measured({}))
    with pytest.raises(UsageError, match=f"is {word} than these types can make it") as caught:
        choose_within(llama(), found, int(low + (high - low) * share))

    norms = sum(4 * each.target.columns for each in llama().tensors if len(each.target.shape) < 2)
    assert f"{low + norms:,} to {high + norms:,} bytes" in caught.value.message
    assert "bits a weight" in caught.value.message


def test_an_override_is_held_and_its_bytes_are_counted() -> None:
    small = llama()
    override = parse_override(r"blk\.1\.ffn_up=Q6_K")
    found = [each for each in measured({}) if each.name != "blk.1.ffn_up.weight"]
    low, high = reach(found)
    with pytest.raises(UsageError, match="is smaller"):
        choose_within(small, found, low + 1000, overrides=[override])
    chosen = choose_within(small, found, high, overrides=[override], covered=small_names())

    assert chosen.types["blk.1.ffn_up.weight"] == "Q6_K"


def test_a_file_is_named_after_the_type_of_most_of_its_weights() -> None:
    small = model([tensor("blk.0.ffn_up.weight", (512, 256)), tensor("output.weight", (8, 256))])
    found = [
        Sensitivity("blk.0.ffn_up.weight", (Option("Q4_K", 73728, 0.1),)),
        Sensitivity("output.weight", (Option("Q8_0", 2176, 0.1),)),
    ]
    chosen = choose_within(small, found, 73728 + 2176)

    assert (chosen.mixture, chosen.file_type) == ("Q4_K_M", 15)


def test_bits_a_weight_are_of_all_weights() -> None:
    assert bytes_for(4.5, model([tensor("a.weight", (3, 256)), tensor("b", (32,))])) == 450
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--bits-per-weight"):
            bytes_for(bad, llama())

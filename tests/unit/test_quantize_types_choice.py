"""The type of every tensor: mixtures, what a user names, weights that are in 4 bits already."""

from __future__ import annotations

import pytest

from localrun.errors import UsageError
from localrun.quantize.gguf_writer import Written
from localrun.quantize.models import GgufTensor
from localrun.quantize.types.choice import choose
from localrun.quantize.types.overrides import parse_override, parse_overrides
from tests.gguf_models import TYPES, llama, model, tensor, weight


def test_a_mixture_types_every_tensor_in_the_models_order() -> None:
    small = llama(blocks=8)
    chosen = choose(small, "q4_k_m")

    assert list(chosen.types) == [each.target.name for each in small.tensors]
    assert chosen.types["output.weight"] == "Q6_K"
    assert chosen.types["token_embd.weight"] == "Q4_K"
    assert chosen.types["blk.0.ffn_down.weight"] == "Q6_K"
    assert chosen.types["blk.1.ffn_down.weight"] == "Q4_K"
    assert chosen.types["blk.0.attn_norm.weight"] == "F32"
    assert (chosen.mixture, chosen.file_type) == ("Q4_K_M", 15)
    assert chosen.fallbacks == chosen.notes == chosen.warnings == ()


def test_layers_are_counted_by_number_however_the_model_lists_them() -> None:
    straight, turned = llama(blocks=16), llama(blocks=16)
    turned = model(reversed(turned.tensors), blocks=16, grouped=2)

    assert dict(choose(turned, "Q4_K_M").types) == dict(choose(straight, "Q4_K_M").types)


def test_fallbacks_are_counted_with_what_was_wanted() -> None:
    chosen = choose(llama(width=288, wide=512, tied=True), "Q4_K_M")

    # Of each block, all but the one whose rows are 512 wide; the tied head is Q8_0 by rule.
    assert len(chosen.fallbacks) == 12
    assert {(each.columns, each.wanted, each.got) for each in chosen.fallbacks} == {
        (288, "Q4_K", "Q5_0"),
        (288, "Q6_K", "Q8_0"),
    }
    assert chosen.notes[0].startswith("12 of 20 tensors fall back, since their rows of 288 are no")


def test_a_fixed_tensor_keeps_its_type_whatever_is_asked() -> None:
    small = model([tensor("blk.0.attn_q.weight", (64, 256)), tensor("t.weight", (8, 256), fixed=1)])
    chosen = choose(small, "Q8_0", overrides=[parse_override("weight=Q4_0")])

    assert dict(chosen.types) == {"blk.0.attn_q.weight": "Q4_0", "t.weight": "F32"}


def test_the_first_fitting_override_counts_and_later_layers_are_counted_without_it() -> None:
    overrides = parse_overrides([r"blk\.0\.attn_v=Q8_0", "ATTN_V=iq4_nl", "ffn_up=MXFP4"])
    types = choose(llama(blocks=4), "Q4_K_M", overrides=overrides).types

    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.3.attn_v.weight"] == "IQ4_NL"
    assert types["blk.2.ffn_up.weight"] == "MXFP4"
    assert types["blk.2.ffn_gate.weight"] == "Q4_K"


def test_an_override_holds_in_a_mixture_of_floats_too() -> None:
    types = choose(llama(), "BF16", overrides=[parse_override("ffn=Q8_0")]).types

    assert types["blk.1.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.attn_q.weight"] == "BF16"


def test_an_override_that_does_not_fit_the_rows_falls_back_and_is_counted() -> None:
    chosen = choose(llama(width=288), "Q8_0", overrides=[parse_override("attn_q=Q6_K")])

    assert chosen.types["blk.0.attn_q.weight"] == "Q8_0"
    assert {each.wanted for each in chosen.fallbacks} == {"Q6_K"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("attn_v", "not REGEX=TYPE"),
        ("=Q8_0", "not REGEX=TYPE"),
        ("attn_v=", "not REGEX=TYPE"),
        ("attn_(v=Q8_0", "no regular expression"),
        ("a{99999999999999999999}=Q8_0", "no regular expression"),
        ("attn_v=Q9_0", "Q9_0 is not a type"),
        ("attn_v=Q8_K", "Q8_K is not a type"),
        ("attn_v=Q4_K_M", "Q4_K_M is not a type"),
        ("\x1b[2J=Q4_1\n", "--tensor-type"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match="--tensor-type") as caught:
        choose(llama(), "Q8_0", overrides=[parse_override(text)])

    assert problem in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("text", ["attn_w=Q8_0", "norm=Q8_0", r"blk\.7\.=Q4_K"])
def test_an_override_that_fits_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="fits no tensor") as caught:
        choose(llama(), "Q4_K_M", overrides=[parse_override(text)])

    assert "token_embd.weight" in caught.value.hint


def test_a_mixture_that_does_not_exist_names_the_flag() -> None:
    with pytest.raises(UsageError, match="--type Q4_K_XL"):
        choose(llama(), "Q4_K_XL")


@pytest.mark.parametrize("mixture", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_M", "IQ3_XXS", "Q2_K_S"])
def test_what_needs_an_importance_matrix_is_refused_without_one(mixture: str) -> None:
    with pytest.raises(UsageError, match="needs an importance matrix") as caught:
        choose(llama(), mixture)

    assert "--imatrix" in caught.value.hint
    assert choose(llama(), mixture, weighted=True).types


def test_a_matrix_that_holds_nothing_for_a_tensor_in_need_is_refused() -> None:
    covered = {name for name in choose(llama(), "F16").types if name != "blk.1.attn_q.weight"}

    with pytest.raises(UsageError, match=r"blk\.1\.attn_q\.weight becomes IQ2_XXS.*nothing for it"):
        choose(llama(), "IQ2_XXS", weighted=True, covered=covered)
    assert choose(llama(), "IQ4_XS", weighted=True, covered=covered).warnings == ()


def test_the_ends_of_a_model_may_go_without_a_matrix_where_the_kernel_can() -> None:
    assert choose(llama(), "Q8_0", overrides=[parse_override("token_embd=IQ3_XXS")]).types
    with pytest.raises(UsageError, match=r"token_embd\.weight becomes IQ2_XS"):
        choose(llama(), "Q8_0", overrides=[parse_override("token_embd=IQ2_XS")])


def test_two_bits_without_a_matrix_are_warned_of() -> None:
    (warning,) = choose(llama(), "Q2_K").warnings

    # Of each block: q, k, gate and up. v, output and down are given more.
    assert warning.startswith("9 tensors become Q2_K without an importance matrix")
    assert choose(llama(), "Q2_K", weighted=True).warnings == ()


@pytest.mark.parametrize("mixture", ["MXFP4", "MXFP4_MOE", "Q4_K_M", "IQ4_XS", "Q8_0", "BF16"])
def test_experts_in_4_bits_stay_so_in_every_mixture_as_large(mixture: str) -> None:
    chosen = choose(llama(experts=4, stored="FP4"), mixture)

    assert {type for name, type in chosen.types.items() if "_exps" in name} == {"MXFP4"}
    assert len(chosen.native) == 6
    assert any(note.startswith("6 tensors keep the 4 bits") for note in chosen.notes)


def test_experts_in_4_bits_are_made_smaller_where_that_is_asked_for() -> None:
    chosen = choose(llama(experts=4, stored="FP4"), "Q2_K", weighted=True)

    assert chosen.types["blk.0.ffn_up_exps.weight"] == "Q2_K"
    assert chosen.native == ()
    assert any("quantized again (6 × FP4)" in warning for warning in chosen.warnings)


def test_experts_in_4_bits_grow_only_where_the_user_names_them() -> None:
    override = parse_override("ffn_down_exps=Q6_K")
    chosen = choose(llama(experts=4, stored="FP4"), "Q4_K_M", overrides=[override])

    assert chosen.types["blk.0.ffn_down_exps.weight"] == "Q6_K"
    assert len(chosen.native) == 4


def test_a_file_larger_than_its_source_in_4_bits_is_warned_of() -> None:
    source = llama(experts=4, stored="FP4")
    everything = parse_override("_exps=BF16")

    (warning,) = choose(source, "BF16", overrides=[everything]).warnings
    assert warning.startswith("the file will be larger than its source: ")
    # The rest is in 16 bits and becomes smaller.
    assert choose(source, "Q8_0").warnings == ()


def test_experts_too_narrow_for_the_blocks_are_not_kept() -> None:
    odd = model([tensor("blk.0.ffn_up_exps.weight", (4, 8, 48), "FP4")], experts=4)

    assert choose(odd, "Q8_0").types["blk.0.ffn_up_exps.weight"] == "F16"


def test_mxfp4_of_a_dense_model_is_llama_cpps_and_says_so() -> None:
    chosen = choose(llama(), "MXFP4")

    assert set(chosen.types.values()) == {"Q8_0", "F32"}
    assert "this model has none" in chosen.notes[0]
    meant = choose(llama(), "MXFP4", overrides=[parse_override("blk=MXFP4")])
    assert meant.types["blk.0.attn_q.weight"] == "MXFP4"
    assert meant.types["output.weight"] == "Q8_0"


def test_a_tensor_that_has_the_type_already_is_neither_requantized_nor_in_need() -> None:
    small = model([tensor("blk.0.attn_q.weight", (64, 256), "IQ2_XXS")])
    override = parse_override("attn_q=IQ2_XXS")

    assert choose(small, "Q8_0", overrides=[override]).warnings == ()
    assert "quantized again (1 × IQ2_XXS)" in choose(small, "Q8_0").warnings[0]
    assert choose(small, "BF16").warnings == ()


def test_tables_are_never_made_of_few_bits_unless_the_user_says_so() -> None:
    name = "blk.1.engram_embd.weight"
    found = model([tensor(name, (64, 256)), tensor("blk.1.attn_q.weight", (64, 256))])
    meant = choose(found, "Q2_K", overrides=[parse_override("engram=Q4_K")])

    assert choose(found, "Q2_K").types[name] == "Q8_0"
    assert choose(found, "BF16").types[name] == "BF16"
    assert meant.types[name] == "Q4_K"


def test_bytes_that_are_no_numbers_stay_what_they_are() -> None:
    scales = GgufTensor(
        Written("blk.1.engram_embd_scale.weight", TYPES["I8"], (64, 8)),
        weight("scales", (64, 8), "I8"),
    )
    chosen = choose(model([scales, tensor("blk.1.attn_q.weight", (64, 256))]), "Q4_K_M")

    assert chosen.types["blk.1.engram_embd_scale.weight"] == "I8"
    assert chosen.warnings == ()

"""A plan for an encoder: whole texts in one micro-batch, nothing kept, nothing decoded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.cli.plan_view import one_line
from localrun.errors import DoesNotFitError, PlanRequestError
from localrun.models.describe import describe_config
from localrun.models.spec import Tokenizer
from localrun.plan.plan import Plan, PlanRequest, Workload
from localrun.plan.planner import plan
from tests.encoders import Encoder
from tests.planned import machine_of, source

SPEC = replace(
    describe_config(Encoder(6, 384, 12, 1536, 512, 30_522).config, quant="F16"),
    tokenizer=Tokenizer("bert", "", 30_522),
)
HOST = "cpu:8+ddr5-5600x2:64+nvme4"
CARD = "rtx-4090+ddr5-6000x2:128+nvme4"


def made(machine: str = HOST, request: PlanRequest | None = None) -> Plan:
    return plan(SPEC, machine_of(machine), request or PlanRequest(), source(), explore=True)


@pytest.mark.parametrize("machine", [HOST, CARD, "m4-max-128"])
def test_a_text_is_computed_whole_and_nothing_is_kept(machine: str) -> None:
    found = made(machine)

    assert (found.execution.n_ctx, found.execution.ubatch) == (512, 512)
    assert found.execution.flash_attention
    assert sum(budget.kv for budget in found.budgets) == 0
    assert sum(item.bytes for item in found.placements) == SPEC.tensor_bytes
    for budget in found.budgets:
        assert 0 <= budget.total <= budget.limit
    assert found.model.encoder
    assert Plan.from_json(found.to_json()) == found


def test_what_it_says_is_of_texts_and_not_of_answers() -> None:
    found = made()

    assert found.verdict.startswith("Embeds texts of up to 512 tokens on the CPU, about ")
    assert "embeddings only" in one_line(found)
    assert not found.warnings
    assert not found.what_if
    assert found.prediction.prefill_tps.mid > 0
    assert found.prediction.ttft_s.mid == pytest.approx(
        512 / found.prediction.prefill_tps.mid, rel=0.01
    )
    assert (found.prediction.decode_tps.mid, found.prediction.terms_ms) == (0, {})
    assert found.request.workload == Workload(prompt=512, output=1)


def test_a_text_of_half_the_length_is_embedded_more_quickly_a_token() -> None:
    # Every token looks at all of its text.
    short = made(request=PlanRequest(n_ctx=128))
    assert short.prediction.prefill_tps.mid > made().prediction.prefill_tps.mid


def test_the_longest_texts_output_is_counted_though_nobody_reads_logits() -> None:
    (ram,) = [budget for budget in made().budgets if budget.tier == "ram"]
    assert ram.overhead > 511 * (30_522 + 384) * 4
    (short,) = [b for b in made(request=PlanRequest(n_ctx=64)).budgets if b.tier == "ram"]
    assert ram.overhead - short.overhead > 400 * 30_522 * 4


def test_a_table_that_is_no_output_is_not_counted_twice() -> None:
    found = made(CARD)
    assert sum(budget.weights for budget in found.budgets) == SPEC.tensor_bytes


def test_several_streams_change_nothing() -> None:
    one, several = made(), made(request=PlanRequest(parallel=8))
    assert replace(several.execution, parallel=1) == one.execution
    assert several.budgets == one.budgets


REFUSED = {
    "more than it has positions for": (PlanRequest(n_ctx=513), "--ctx 513: .* 512 tokens"),
    "texts in pieces": (PlanRequest(ubatch=256), "--ubatch 256: .* whole"),
}


@pytest.mark.parametrize(("request_", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_an_encoder_cannot_do_is_refused(request_: PlanRequest, said: str) -> None:
    with pytest.raises(PlanRequestError, match=said):
        made(request=request_)


def test_a_shorter_context_and_its_whole_micro_batch_are_obeyed() -> None:
    found = made(request=PlanRequest(n_ctx=128, ubatch=128))
    assert (found.execution.n_ctx, found.execution.ubatch) == (128, 128)


def test_one_that_does_not_fit_says_what_it_lacks() -> None:
    with pytest.raises(DoesNotFitError, match="ram"):
        made(request=PlanRequest(ram_bytes=1 << 20))

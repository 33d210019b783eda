"""What a tensor is for, by its name in a release or in a GGUF file."""

from __future__ import annotations

import pytest

from localrun.models.names import classify

NAMES = {
    # Releases.
    "model.embed_tokens.weight": ("embedding", -1, False),
    "model.language_model.embed_tokens.weight": ("embedding", -1, False),
    "embed.weight": ("embedding", -1, False),
    "lm_head.weight": ("head", -1, False),
    "head.weight": ("head", -1, False),
    "model.norm.weight": ("head", -1, False),
    "hc_head_fn": ("hyper_connections", -1, False),
    "model.layers.3.input_layernorm.weight": ("attention", 3, False),
    "model.layers.3.self_attn.q_proj.weight": ("attention", 3, False),
    "model.layers.3.self_attn.sinks": ("attention", 3, False),
    "model.layers.3.linear_attn.A_log": ("attention", 3, False),
    "model.layers.3.post_attention_layernorm.weight": ("attention", 3, False),
    "model.layers.3.mlp.gate_proj.weight": ("dense_ffn", 3, False),
    "model.layers.3.mlp.gate_up_proj.weight": ("dense_ffn", 3, False),
    "model.layers.3.mlp.gate.weight": ("router", 3, False),
    "model.layers.3.mlp.router.bias": ("router", 3, False),
    "model.layers.3.mlp.gate.e_score_correction_bias": ("router", 3, False),
    "layers.3.ffn.gate.tid2eid": ("router", 3, False),
    "layers.3.ffn.experts.11.w1.weight": ("experts", 3, True),
    "model.layers.3.mlp.experts.11.up_proj.weight_scale_inv": ("experts", 3, True),
    "model.layers.3.mlp.experts.gate_up_proj_blocks": ("experts", 3, True),
    "model.layers.3.mlp.shared_experts.up_proj.weight": ("shared_experts", 3, False),
    "model.layers.3.mlp.shared_expert_gate.weight": ("shared_experts", 3, False),
    "model.layers.3.block_sparse_moe.routed_expert_norm.weight": ("shared_experts", 3, False),
    "model.layers.3.self_attn.indexer.k_norm.weight": ("indexer", 3, False),
    "layers.3.attn.compressor.wkv.weight": ("attention", 3, False),
    "layers.3.hc_attn_scale": ("hyper_connections", 3, False),
    "model.layers.3.mlp_hyper_connection.hc_norm.weight": ("hyper_connections", 3, False),
    "layers.1.engram.embed.weight": ("engram", 1, False),
    "layers.1.engram.embed.scale": ("engram", 1, False),
    "layers.1.engram.wkv.weight": ("attention", 1, False),
    "model.layers.1.ple.ple_embedding.ngram_embedding.shard_7.weight": ("engram", 1, False),
    "model.layers.1.ple.key_proj.weight": ("attention", 1, False),
    "model.layers.61.self_attn.o_proj.weight": ("draft", 0, False),
    "model.layers.62.mlp.experts.0.up_proj.weight": ("draft", 1, True),
    "mtp.2.norm.weight": ("draft", 2, False),
    "mtp.fc.weight": ("draft", 0, False),
    "mtp.layers.0.mlp.experts.4.up_proj.weight": ("draft", 0, True),
    "model.visual.blocks.70.attn.qkv.weight": ("vision", -1, False),
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": ("vision", -1, False),
    "multi_modal_projector.mm_soft_emb_norm.weight": ("vision", -1, False),
    "aligner.w1.weight": ("vision", -1, False),
    "image_newline": ("vision", -1, False),
    # GGUF files.
    "token_embd.weight": ("embedding", -1, False),
    "output.weight": ("head", -1, False),
    "output_norm.weight": ("head", -1, False),
    "output_hc_fn.weight": ("hyper_connections", -1, False),
    "rope_freqs.weight": ("other", -1, False),
    "per_layer_token_embd.weight": ("engram", -1, False),
    "blk.7.attn_norm.weight": ("attention", 7, False),
    "blk.7.attn_kv_a_mqa.weight": ("attention", 7, False),
    "blk.7.ssm_conv1d.weight": ("attention", 7, False),
    "blk.7.ffn_norm.weight": ("attention", 7, False),
    "blk.7.ffn_gate.weight": ("dense_ffn", 7, False),
    "blk.7.ffn_gate_inp.weight": ("router", 7, False),
    "blk.7.exp_probs_b.bias": ("router", 7, False),
    "blk.7.ffn_gate_tid2eid.weight": ("router", 7, False),
    "blk.7.ffn_gate_exps.weight": ("experts", 7, True),
    "blk.7.ffn_down_exps.bias": ("experts", 7, True),
    "blk.7.ffn_gate.3.weight": ("experts", 7, True),
    "blk.7.ffn_gate_shexp.weight": ("shared_experts", 7, False),
    "blk.7.ffn_gate_inp_shexp.weight": ("shared_experts", 7, False),
    "blk.7.ffn_routed_up.weight": ("shared_experts", 7, False),
    "blk.7.indexer.attn_k.weight": ("indexer", 7, False),
    "blk.7.indexer_compressor_kv.weight": ("indexer", 7, False),
    "blk.7.hc_ffn_fn.weight": ("hyper_connections", 7, False),
    "blk.61.nextn.eh_proj.weight": ("draft", 0, False),
    "blk.61.attn_q.weight": ("draft", 0, False),
    "blk.7.nextn.eh_proj.weight": ("draft", 7, False),
    "v.blk.0.attn_q.weight": ("vision", -1, False),
    "mm.0.weight": ("vision", -1, False),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_tells_kind_layer_and_whether_it_holds_experts(name: str) -> None:
    assert classify(name, 61) == NAMES[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.61.self_attn.o_proj.weight", ("attention", 61, False)),
        ("model.layers.99999999999.mlp.up_proj.weight", ("dense_ffn", -1, False)),
        ("model.layers.٣.mlp.up_proj.weight", ("other", -1, False)),
        ("", ("other", -1, False)),
        ("w", ("other", -1, False)),
    ],
)
def test_a_name_that_nobody_knows_is_placed_all_the_same(
    name: str, expected: tuple[str, int, bool]
) -> None:
    assert classify(name, 0) == expected

"""Caches that forget: they are emptied where they cannot be cut, and kept where a step fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.backends.mlx.backend import load
from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner, SequenceId
from localrun.errors import EngineError
from localrun.plan.plan import Execution
from tests.plans import bare_plan

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")

WINDOW = 8
WIDTH, HEAD, FFN, VOCABULARY = 32, 16, 64, 49152
CONFIG = {
    "model_type": "gemma3_text",
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "intermediate_size": FFN,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def runner(
    smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelRunner]:
    """A small Gemma 3 of drawn weights: one layer has a window, the other all of the context."""
    directory = tmp_path_factory.mktemp("gemma")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_bytes((smollm2_checkpoint / "tokenizer.json").read_bytes())
    drawn = np.random.default_rng(5)

    def matrix(*shape: int) -> object:
        return mx.array(drawn.normal(0, shape[-1] ** -0.5, shape).astype(np.float32))

    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, WIDTH)}
    weights["model.norm.weight"] = matrix(WIDTH)
    for layer in range(2):
        stem = f"model.layers.{layer}"
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights[f"{stem}.{norm}_layernorm.weight"] = matrix(WIDTH)
        shapes = {
            "self_attn.q_proj": (2 * HEAD, WIDTH),
            "self_attn.k_proj": (HEAD, WIDTH),
            "self_attn.v_proj": (HEAD, WIDTH),
            "self_attn.o_proj": (WIDTH, 2 * HEAD),
            "mlp.gate_proj": (FFN, WIDTH),
            "mlp.up_proj": (FFN, WIDTH),
            "mlp.down_proj": (WIDTH, FFN),
        }
        for part, shape in shapes.items():
            weights[f"{stem}.{part}.weight"] = matrix(*shape)
        for part in ("q_norm", "k_norm"):
            weights[f"{stem}.self_attn.{part}.weight"] = matrix(HEAD)
    path = directory / "model.safetensors"
    mx.save_safetensors(str(path), weights, {"format": "mlx"})
    made = load(bare_plan(Execution(256, 128, "f32", 1, 1, True, 0), [str(path)], backend="mlx"))
    yield made
    made.close()


@pytest.fixture
def sequence(runner: ModelRunner) -> Iterator[SequenceId]:
    made = runner.new_sequence()
    yield made
    runner.free(made)


TOKENS = [(7 * at) % 1000 for at in range(40)]


def step(runner: ModelRunner, sequence: SequenceId, tokens: Sequence[int]) -> NDArray[np.float32]:
    last: NDArray[np.float32] = runner.forward([BatchItem(sequence, tokens)]).numpy()[-1].copy()
    return last


def fresh(runner: ModelRunner, tokens: Sequence[int]) -> NDArray[np.float32]:
    sequence = runner.new_sequence()
    row = step(runner, sequence, tokens)
    runner.free(sequence)
    return row


def test_a_window_declares_that_it_rolls_nothing_back(
    runner: ModelRunner, sequence: SequenceId
) -> None:
    assert runner.capabilities.rollback_depth == 0
    step(runner, sequence, TOKENS)
    with pytest.raises(EngineError, match="cannot be taken back"):
        runner.rollback(sequence, 1)


def test_a_window_that_has_not_turned_over_is_cut_and_else_emptied(
    runner: ModelRunner, sequence: SequenceId
) -> None:
    step(runner, sequence, TOKENS[:6])
    assert runner.truncate(sequence, 4) == 4
    np.testing.assert_allclose(
        step(runner, sequence, TOKENS[4:5]), fresh(runner, TOKENS[:5]), atol=1e-3
    )
    step(runner, sequence, TOKENS[5:])
    assert runner.truncate(sequence, 20) == 0
    np.testing.assert_allclose(step(runner, sequence, TOKENS), fresh(runner, TOKENS), atol=1e-3)


@pytest.mark.parametrize("length", [3, 8, 30])
def test_a_window_survives_forks_and_states(runner: ModelRunner, length: int) -> None:
    sequence = runner.new_sequence()
    step(runner, sequence, TOKENS[:length])
    copy = runner.fork(sequence)
    state = runner.save(sequence)
    step(runner, sequence, TOKENS[::-1])
    restored = runner.restore(state)
    runner.free(sequence)
    expected = fresh(runner, TOKENS[: length + 2])

    for each in (copy, restored):
        step(runner, each, TOKENS[length : length + 1])
        row = step(runner, each, TOKENS[length + 1 : length + 2])
        np.testing.assert_allclose(row, expected, atol=1e-3)
        runner.free(each)


def test_an_aborted_prompt_leaves_a_window_as_it_was(
    runner: ModelRunner, sequence: SequenceId
) -> None:
    step(runner, sequence, TOKENS)
    done = threading.Event()

    def abort_until_done() -> None:
        while not done.is_set():
            runner.abort()

    aborter = threading.Thread(target=abort_until_done)
    aborter.start()
    try:
        with pytest.raises(ForwardAborted):
            runner.forward([BatchItem(sequence, TOKENS * 3)])
    finally:
        done.set()
        aborter.join()
    assert runner.truncate(sequence, 1000) == len(TOKENS)
    np.testing.assert_allclose(step(runner, sequence, [5]), fresh(runner, [*TOKENS, 5]), atol=1e-3)


def altered(state: bytes, old: bytes, new: bytes) -> bytes:
    assert state.count(old) >= 1
    assert len(old) == len(new)
    return state.replace(old, new, 1)


def test_a_state_that_says_other_things_of_itself_is_refused(
    runner: ModelRunner, sequence: SequenceId
) -> None:
    step(runner, sequence, TOKENS[:6])
    state = runner.save(sequence)
    damaged = {
        "no mark": b"x" + state[1:],
        "not whole": state[:-1],
        "more than whole": state + b"x",
        "another attribute": altered(state, b'"offset"', b'"reject"'),
        "another type": altered(state, b'"float32"', b'"complex"'),
        "a negative size": altered(state, b'"tokens": 6', b'"tokens":-6'),
        "no JSON": altered(state, b'{"tokens"', b'["tokens"'),
    }
    for bytes_ in damaged.values():
        with pytest.raises(EngineError, match="could not be restored"):
            runner.restore(bytes_)
    again = runner.restore(state)
    np.testing.assert_array_equal(
        step(runner, again, TOKENS[6:7]), step(runner, sequence, TOKENS[6:7])
    )
    runner.free(again)

"""What a model multiplies its weights with, gathered while it reads a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.errors import EngineError, UsageError
from localrun.quantize.types.imatrix import collected
from localrun.quantize.types.imatrix_files import read_imatrix
from tests.gguf_builder import F32, I32, As, gguf_bytes, llama_metadata

pytest.importorskip("llama_cpp")
SUMS_TEXT = " ".join(f"{n} times {n} is {n * n}." for n in range(2, 40))
# llama-imatrix -c 64 --chunks 4 of llama.cpp 0c1e57098 over the same text: the sum of all columns.
RECORDED = {
    "blk.0.attn_q.weight": 282.1497,
    "blk.0.ffn_down.weight": 9547.963,
    "blk.14.attn_output.weight": 21643.27,
    "blk.29.ffn_up.weight": 26742.21,
    "blk.29.ffn_down.weight": 7075554.0,
}
WIDTH, EXPERTS, USED, ROWS = 32, 4, 2, 64
EPSILON = 1e-5


def numbers(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class TinyExperts:
    """A model of one layer whose attention adds nothing, so that its inputs can be told by hand:
    a vocabulary of bytes, and four experts of which two are chosen."""

    def __init__(self, file: Path) -> None:
        self.embedding = numbers(1, 259, WIDTH)
        self.norm = numbers(2, WIDTH) ** 2
        self.router = numbers(3, EXPERTS, WIDTH)
        arrays = {
            "token_embd.weight": self.embedding,
            "output_norm.weight": np.ones(WIDTH, np.float32),
            "output.weight": numbers(4, 259, WIDTH),
            "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
            "blk.0.ffn_norm.weight": self.norm,
            "blk.0.ffn_gate_inp.weight": self.router,
            "blk.0.ffn_gate_exps.weight": numbers(5, EXPERTS, ROWS, WIDTH),
            "blk.0.ffn_up_exps.weight": numbers(6, EXPERTS, ROWS, WIDTH),
            "blk.0.ffn_down_exps.weight": numbers(7, EXPERTS, WIDTH, ROWS),
        }
        for part in ("q", "k", "v", "output"):
            zero = part == "output"
            arrays[f"blk.0.attn_{part}.weight"] = numbers(8, WIDTH, WIDTH) * (not zero)
        tensors = [(name, each.shape, "F32") for name, each in arrays.items()]
        data = {name: each.tobytes() for name, each in arrays.items()}
        file.write_bytes(gguf_bytes(self._metadata(), tensors, data=data))
        self.file = file

    def _metadata(self) -> dict[str, object]:
        metadata = llama_metadata(
            block_count=1, embedding_length=WIDTH, feed_forward_length=ROWS, expert_count=EXPERTS,
            expert_used_count=USED, vocab_size=259,
            **{"attention.head_count": 2, "attention.head_count_kv": 2,
               "attention.layer_norm_rms_epsilon": EPSILON, "rope.dimension_count": 16},
        )  # fmt: skip
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        return metadata | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_],
            "tokenizer.ggml.scores": As(F32, [0.0] * 259),
            "tokenizer.ggml.token_type": As(I32, [2, 3, 3, *[6] * 256]),
            "tokenizer.ggml.add_space_prefix": False,
        }

    def normed(self, tokens: list[int]) -> NDArray[np.float64]:
        rows = self.embedding[tokens].astype(np.float64)
        return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + EPSILON)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyExperts:
    return TinyExperts(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_squares_of_dense_weights_and_of_each_expert_are_those_worked_out_by_hand(
    tiny: TinyExperts,
) -> None:
    from localrun.backends.llamacpp.collect import collect

    text = bytes(range(33, 97)).decode() * 2
    done: list[tuple[int, int]] = []
    found = collect(
        [tiny.file], text, threads=1, n_ctx=48, output=True, advance=lambda *at: done.append(at)
    )
    # A first token of the text's own, and of every chunk, is the model's BOS.
    ids = [1, *(3 + byte for byte in text.encode())]
    chunks = [[1, *ids[at + 1 : at + 48]] for at in (0, 48)]
    rows = np.concatenate([tiny.normed(chunk) for chunk in chunks])
    inside = rows * tiny.norm
    chosen = np.argsort(-(inside @ tiny.router.T), axis=1)[:, :USED]

    assert (found.chunks, found.chunk_tokens, done) == (2, 48, [(1, 2), (2, 2)])
    query = found.sums["blk.0.attn_q.weight"]
    np.testing.assert_allclose(query.squares, (rows**2).sum(axis=0)[None], rtol=1e-5)
    assert query.counts.tolist() == [96]
    up = found.sums["blk.0.ffn_up_exps.weight"]
    for expert in range(EXPERTS):
        own = inside[(chosen == expert).any(axis=1)]
        np.testing.assert_allclose(up.squares[expert], (own**2).sum(axis=0), rtol=1e-5)
        assert up.counts[expert] == len(own)
    assert found.sums["blk.0.ffn_down_exps.weight"].squares.shape == (EXPERTS, ROWS)
    assert found.sums["blk.0.ffn_down_exps.weight"].counts.sum() == 96 * USED
    assert "output.weight" in found.sums


def test_smollm2s_squares_are_those_that_llama_imatrix_gathers(
    smollm2_path: Path, tmp_path: Path
) -> None:
    from localrun.backends.llamacpp.collect import collect

    found = collect([smollm2_path], SUMS_TEXT, threads=1, n_ctx=64, chunks=4)
    text = tmp_path / "text.txt"
    made = collected(found.pairs, chunks=found.chunks, chunk_tokens=found.chunk_tokens, text=text)
    made.write(tmp_path / "out.gguf")
    read = read_imatrix(tmp_path / "out.gguf")

    assert len(read.entries) == 210
    assert {int(each.counts[0]) for each in read.entries.values()} == {256}
    totals = {name: read.entries[name].sums.sum(dtype=np.float64) for name in RECORDED}
    # Kernels of another processor round otherwise.
    assert totals == pytest.approx(RECORDED, rel=5e-3)


def test_a_text_of_less_than_two_chunks_is_refused_with_its_tokens(tiny: TinyExperts) -> None:
    from localrun.backends.llamacpp.collect import collect

    with pytest.raises(UsageError, match="the text has 31 tokens; two chunks of 16"):
        collect([tiny.file], "a" * 30, threads=1, n_ctx=16)
    with pytest.raises(UsageError, match="at least 16"):
        collect([tiny.file], "a" * 90, threads=1, n_ctx=8)


def test_a_model_that_computes_no_numbers_is_named(tmp_path: Path) -> None:
    from localrun.backends.llamacpp.collect import collect

    broken = TinyExperts(tmp_path / "broken.gguf")
    data = bytearray(broken.file.read_bytes())
    at = data.index(broken.norm.tobytes())
    data[at : at + 4] = np.float32(np.inf).tobytes()
    broken.file.write_bytes(data)

    with pytest.raises(EngineError, match=r"blk\.0\.ffn_\w+\.weight: the model multiplies"):
        collect([broken.file], "a" * 90, threads=1, n_ctx=16)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    from localrun.backends.llamacpp.collect import collect

    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=r"none\.gguf could not be loaded"):
        collect([tmp_path / "none.gguf"], "a" * 90, threads=1, n_ctx=16)

"""Knows llama.cpp's own samplers: every rule leaves what theirs leave, with the same probabilities.

The lines here are the order of llama.cpp's default chain, so the whole of ours is held to it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams
from localrun.engine.rows import NumpyLogits
from localrun.engine.sampling.chain import Chain
from localrun.engine.sampling.sampler import weights

OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
# float32 holds no share of a likelier token that is smaller.
LEAST = 1e-30
Row = NDArray[np.float32]
Shares = NDArray[np.float64]
_ENTRY = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


@dataclass(frozen=True)
class Vocab:
    """The default model's tokens, and llama.cpp's pointer to them."""

    pointer: int
    tokens: tuple[bytes, ...]

    def encode(self, text: str) -> list[int]:
        from localrun.backends.llamacpp.vocabulary import tokenize

        return tokenize(self.pointer, text, add_special=False, parse_special=False)


@pytest.fixture(scope="module")
def vocab(smollm2_path: Path) -> Iterator[Vocab]:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    from localrun.backends.llamacpp.library import llama
    from localrun.backends.llamacpp.vocabulary import read_vocabulary

    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(smollm2_path).encode(), params)
    assert model
    pointer = llama.llama_model_get_vocab(model)
    yield Vocab(pointer, read_vocabulary(pointer).tokens)
    llama.llama_model_free(model)


class Theirs:
    """llama.cpp's chain, told of every token of a timeline."""

    def __init__(self, params: SamplingParams, window: int, vocab: Vocab) -> None:
        """``window`` is what a window of -1 means: llama.cpp's samplers know no such."""
        from localrun.backends.llamacpp.library import llama

        self._llama = llama
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in _samplers(params, max(1, window), vocab):
            llama.llama_sampler_chain_add(self._chain, sampler)

    def record(self, token: int) -> None:
        self._llama.llama_sampler_accept(self._chain, token)

    def probabilities(self, values: Row) -> Shares:
        """Of every token of the vocabulary, 0 for those that do not stay."""
        rows = np.zeros(values.size, dtype=_ENTRY)
        rows["id"], rows["logit"] = np.arange(values.size), values
        entries = rows.ctypes.data_as(ctypes.POINTER(self._llama.llama_token_data))
        array = self._llama.llama_token_data_array(entries, values.size, -1, False)
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        # XTC moves the start instead of what follows it.
        start = ctypes.addressof(array.data.contents) - rows.ctypes.data
        left = rows[start // _ENTRY.itemsize :][: array.size]
        return _shares(left["id"], np.exp(left["logit"] - left["logit"].max()), values.size)

    def close(self) -> None:
        self._llama.llama_sampler_free(self._chain)


def theirs(params: SamplingParams, prompt: Sequence[int], values: Row, vocab: Vocab) -> Shares:
    chain = Theirs(params, len(prompt), vocab)
    for token in prompt:
        chain.record(token)
    shares = chain.probabilities(values)
    chain.close()
    return shares


def _samplers(params: SamplingParams, every: int, vocab: Vocab) -> Iterator[Any]:
    from localrun.backends.llamacpp.library import llama

    biases = [llama.llama_logit_bias(token, bias) for token, bias in params.logit_bias]
    breakers = [breaker.encode() for breaker in params.dry_breakers]
    size = len(vocab.tokens)
    penalty_window = every if params.penalty_window < 0 else params.penalty_window
    dry_window = every if params.dry_window < 0 else params.dry_window
    yield llama.llama_sampler_init_logit_bias(
        size, len(biases), (llama.llama_logit_bias * len(biases))(*biases)
    )
    yield llama.llama_sampler_init_penalties(
        size,
        penalty_window,
        params.repeat_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    )
    yield llama.llama_sampler_init_dry(
        vocab.pointer,
        params.dry_multiplier,
        params.dry_base,
        params.dry_allowed_length,
        dry_window,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )
    yield llama.llama_sampler_init_top_k(params.top_k)
    yield llama.llama_sampler_init_typical(params.typical_p, 0)
    yield llama.llama_sampler_init_top_p(params.top_p, 0)
    yield llama.llama_sampler_init_min_p(params.min_p, 0)
    # A probability of 1 leaves nothing to chance.
    yield llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, 1)
    yield llama.llama_sampler_init_temp_ext(params.temperature, 0.0, 1.0)


def ours(
    params: SamplingParams, prompt: Sequence[int], values: Row, vocab: Vocab, *, drawn: int = 0
) -> Shares:
    """The same by our chain, which is told the last ``drawn`` of ``prompt`` one by one."""
    cut = len(prompt) - drawn
    chain = Chain(params, prompt[:cut], vocab.tokens)
    for token in prompt[cut:]:
        chain.record(token)
    return _left_by(chain, params, values)


def _left_by(chain: Chain, params: SamplingParams, values: Row) -> Shares:
    logits = NumpyLogits(values[None])
    if params.temperature == 0:
        token = chain.likeliest(logits, 0, None)
        return _shares(np.array([token]), np.ones(1, np.float32), values.size)
    ids, left = chain.candidates(logits, 0, None, 1.0)
    names = np.arange(left.size) if ids is None else ids
    return _shares(names, weights(left, params.temperature), values.size)


def _shares(ids: NDArray[Any], parts: Row, size: int) -> Shares:
    shares = np.zeros(size)
    shares[ids] = parts
    return shares / shares.sum()


def assert_alike(one: Shares, other: Shares) -> None:
    """The same survivors and probabilities; where thousands survive, the rounding of float32 sums
    may move the last ones over the edge."""
    apart = (one > LEAST) != (other > LEAST)
    assert apart.sum() <= min((one > 0).sum(), (other > 0).sum()) // 500
    assert (one + other)[apart].sum() < 1e-3
    np.testing.assert_allclose(one[~apart], other[~apart], rtol=2e-3, atol=1e-6)


def a_row(random: np.random.Generator, prompt: Sequence[int], size: int) -> Row:
    """Logits like a model's: a broad floor, some likely tokens, the prompt's among them."""
    values = random.normal(0, 1.5, size)
    values[random.integers(0, size, 60)] += random.exponential(3, 60)
    if len(prompt):
        seen = np.unique(prompt)
        values[seen] += random.normal(4, 2, seen.size)
    return values.astype(np.float32)


def a_prompt(random: np.random.Generator, vocab: Vocab, length: int) -> list[int]:
    """Phrases that come again, whole and in part, with a breaker now and then."""
    phrases = [random.integers(0, len(vocab.tokens), 8).tolist() for _ in range(4)]
    breakers = vocab.encode('a\n: "b" *')
    tokens: list[int] = []
    while len(tokens) < length:
        phrase = phrases[random.integers(4)]
        tokens += phrase[random.integers(0, 3) : random.integers(4, 9)]
        if random.random() < 0.1:
            tokens.append(breakers[random.integers(len(breakers))])
    return tokens[:length]


RULES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.7},
    "a high temperature": {"temperature": 3.0},
    "temperature 0": {"temperature": 0.0},
    "temperature 0 after penalties": {"temperature": 0.0, "repeat_penalty": 1.8},
    "logit bias": {"logit_bias": ((5, 9.5), (49_000, -3.25), (7, 100.0), (7, -91.0))},
    "repetition penalty": {"repeat_penalty": 1.3},
    "repetition penalty below one": {"repeat_penalty": 0.8},
    "repetition penalty over everything": {"repeat_penalty": 1.3, "penalty_window": -1},
    "repetition penalty over three": {"repeat_penalty": 1.3, "penalty_window": 3},
    "a window of nothing": {"repeat_penalty": 1.3, "frequency_penalty": 1, "penalty_window": 0},
    "frequency penalty": {"frequency_penalty": 0.7},
    "presence penalty": {"presence_penalty": 1.1},
    "negative penalties": {"frequency_penalty": -0.2, "presence_penalty": -1.5},
    "DRY": {"dry_multiplier": 0.8},
    "DRY in a window": {"dry_multiplier": 0.8, "dry_window": 40},
    "DRY in a window of two": {"dry_multiplier": 0.8, "dry_window": 2},
    "DRY of single tokens": {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    "DRY of long runs only": {"dry_multiplier": 0.8, "dry_allowed_length": 5},
    "DRY with a large base": {"dry_multiplier": 5, "dry_base": 4},
    "DRY with base one": {"dry_multiplier": 5, "dry_base": 1},
    "DRY without breakers": {"dry_multiplier": 0.8, "dry_breakers": ()},
    "DRY with letters for breakers": {"dry_multiplier": 0.8, "dry_breakers": ("e", "s")},
    "top-k": {"top_k": 40},
    "top-k of many": {"top_k": 2000},
    "top-k of one": {"top_k": 1},
    "typical": {"typical_p": 0.9},
    "typical of half": {"typical_p": 0.5},
    "typical of nothing": {"typical_p": 0.0},
    "typical after top-k": {"typical_p": 0.7, "top_k": 50},
    "top-p": {"top_p": 0.9},
    "top-p of little": {"top_p": 0.1},
    "top-p of nothing": {"top_p": 0.0},
    "min-p": {"min_p": 0.05},
    "min-p of a trace": {"min_p": 1e-4},
    "min-p of all": {"min_p": 1.0},
    "XTC": {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    "XTC that finds nothing": {"xtc_probability": 1.0, "xtc_threshold": 0.5},
    "XTC over its limit": {"xtc_probability": 1.0, "xtc_threshold": 0.51},
    "llama.cpp's defaults": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
}


@pytest.mark.parametrize("length", [0, 300])
@pytest.mark.parametrize("changed", RULES.values(), ids=RULES.keys())
def test_a_rule_leaves_what_llama_cpp_leaves(
    vocab: Vocab, changed: dict[str, Any], length: int
) -> None:
    random = np.random.default_rng(length)
    prompt = a_prompt(random, vocab, length)
    values = a_row(random, prompt, len(vocab.tokens))
    params = replace(OFF, **changed)

    assert_alike(ours(params, prompt, values, vocab), theirs(params, prompt, values, vocab))


@pytest.mark.parametrize("seed", range(30))
def test_rules_together_leave_what_llama_cpp_leaves(vocab: Vocab, seed: int) -> None:
    random = np.random.default_rng(1000 + seed)
    prompt = a_prompt(random, vocab, int(random.integers(1, 500)))
    values = a_row(random, prompt, len(vocab.tokens))
    params = replace(OFF, **_some_rules(random, len(vocab.tokens)))

    drawn = int(random.integers(0, len(prompt)))
    expected = theirs(params, prompt, values, vocab)
    assert_alike(ours(params, prompt, values, vocab, drawn=drawn), expected)


def _some_rules(random: np.random.Generator, size: int) -> dict[str, Any]:
    every: dict[str, Any] = {
        "temperature": random.uniform(0.3, 2),
        "top_k": int(random.integers(1, 200)),
        "top_p": random.uniform(0.2, 1),
        "min_p": random.uniform(0, 0.3),
        "typical_p": random.uniform(0.2, 1),
        "repeat_penalty": random.uniform(0.8, 1.6),
        "frequency_penalty": random.uniform(-0.5, 1),
        "presence_penalty": random.uniform(-0.5, 1),
        "penalty_window": int(random.integers(-1, 100)),
        "dry_multiplier": random.uniform(0.1, 3),
        "dry_base": random.uniform(1, 3),
        "dry_allowed_length": int(random.integers(1, 5)),
        "dry_window": int(random.integers(-1, 200)),
        "xtc_threshold": random.uniform(0.01, 0.5),
        "logit_bias": tuple((int(random.integers(size)), random.uniform(-9, 9)) for _ in range(9)),
    }
    rules = {name: value for name, value in every.items() if random.random() < 0.6}
    return {**rules, "xtc_probability": float(random.integers(0, 2))}


TEXTS = {
    "a word of several tokens": ("ENDTURN", "one two three ENDTURN one two three ENDTURN one two"),
    "two line ends": ("\n\n", "say it again\n\nsay it again\n\nsay it"),
    "a tag": ("<user>", "<user> hello there <bot> hello there <user> hello there"),
}


@pytest.mark.parametrize(("breaker", "text"), TEXTS.values(), ids=TEXTS.keys())
def test_a_breaker_that_several_tokens_make_up_ends_a_repetition_as_in_llama_cpp(
    vocab: Vocab, breaker: str, text: str
) -> None:
    params = replace(OFF, dry_multiplier=2.0, dry_allowed_length=1, dry_breakers=(breaker,))
    prompt = vocab.encode(text)
    expected, drawn = Theirs(params, len(prompt), vocab), Chain(params, (), vocab.tokens)
    for end, token in enumerate(prompt, 1):
        expected.record(token)
        drawn.record(token)
        values = a_row(np.random.default_rng(end), prompt, len(vocab.tokens))
        shares = expected.probabilities(values)
        assert_alike(_left_by(drawn, params, values), shares)
        assert_alike(ours(params, prompt[:end], values, vocab), shares)
    expected.close()

"""Text into tokens and back, without a template in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from localrun.engine.runner import ModelRunner
from tests.backends.conftest import BACKENDS

TRICKY = {
    "nothing": "",
    "a NUL inside": "before\0after",
    "only spaces": "     ",
    "tabs and newlines": "\t\tif x:\r\n\n\n    y",
    "a flag and a family": "🇨🇭 👩‍👩‍👧‍👦 ok",
    "scripts": "Zürich 東京 Київ القاهرة ไทย",
    "combining marks": "Z\u0351\u036b\u0343a\u0334lgo",
    "bytes of a header": "\x01\x02\x7f",
    "special tokens as text": "<|im_start|>system<|im_end|>",
    "almost special": "<|im_start",
    "no spaces": "x" * 2000,
}


@pytest.fixture(scope="module", params=BACKENDS)
def shared_runner(
    request: pytest.FixtureRequest, load_model: Callable[..., ModelRunner]
) -> Iterator[ModelRunner]:
    runner = load_model(backend=request.param)
    yield runner
    runner.close()


@pytest.mark.parametrize("text", TRICKY.values(), ids=TRICKY.keys())
def test_text_survives_tokenizing(runner: ModelRunner, text: str) -> None:
    tokens = runner.tokenize(text, add_special=False, parse_special=False)
    pieces = runner.vocabulary().tokens
    assert b"".join(pieces[token] for token in tokens) == text.encode()


def test_special_tokens_count_as_such_only_where_asked(runner: ModelRunner) -> None:
    text = "<|im_start|>user"
    vocabulary = runner.vocabulary()
    parsed = runner.tokenize(text, add_special=False, parse_special=True)
    assert vocabulary.names[parsed[0]] == "<|im_start|>"
    plain = runner.tokenize(text, add_special=False, parse_special=False)
    assert not vocabulary.names.keys() & set(plain)


def test_half_a_surrogate_pair_reads_as_a_replacement_character(runner: ModelRunner) -> None:
    def tokens(text: str) -> list[int]:
        return runner.tokenize(text, add_special=False, parse_special=False)

    assert tokens("a\ud800b") == tokens("a\ufffdb")


def test_the_vocabulary_names_what_ends_a_turn(runner: ModelRunner) -> None:
    vocabulary = runner.vocabulary()
    assert len(vocabulary.tokens) == 49152
    assert {"<|im_end|>", "<|endoftext|>"} <= {vocabulary.names[token] for token in vocabulary.end}
    assert vocabulary.eos in vocabulary.end
    assert vocabulary.bos is not None
    assert not vocabulary.add_bos
    assert all(vocabulary.tokens[token] == b"" for token in vocabulary.names)


def test_texts_are_tokenized_from_many_threads_at_once(runner: ModelRunner) -> None:
    texts = [f"thread {number} says {'hello ' * number}" for number in range(40)]

    def tokens(text: str) -> list[int]:
        return runner.tokenize(text, add_special=False, parse_special=True)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokens, texts)) == [tokens(text) for text in texts]

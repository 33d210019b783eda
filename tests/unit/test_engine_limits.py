"""Knows no engine: what a request may ask for."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from localrun.engine.limits import check, check_embedding, check_sampling
from localrun.engine.request import EmbeddingRequest, GenerationRequest, Grammar, SamplingParams
from localrun.errors import ContextLengthError, GrammarError, RequestError

ASKED = GenerationRequest("a", (1,))
TEXTS = EmbeddingRequest("a", ((1, 2), (3,)))

# Field, a value at each end of its range.
ENDS: list[tuple[str, Any]] = [
    ("temperature", 0),
    ("temperature", 10),
    ("top_p", 0.0),
    ("top_p", 1.0),
    ("min_p", 1),
    ("typical_p", 0.0),
    ("top_k", 0),
    ("top_k", 10**400),
    ("repeat_penalty", 0.1),
    ("repeat_penalty", 10),
    ("frequency_penalty", -10),
    ("presence_penalty", 10),
    ("penalty_window", -1),
    ("penalty_window", 0),
    ("dry_multiplier", 0),
    ("dry_multiplier", 100),
    ("dry_base", 1),
    ("dry_base", 100),
    ("dry_allowed_length", 1),
    ("dry_window", -1),
    ("dry_breakers", ()),
    ("dry_breakers", ("a" * 40,) * 64),
    ("xtc_probability", 1),
    ("xtc_threshold", 0),
    ("logit_bias", ((0, -100), (99, 100.0))),
    ("logit_bias", tuple((token % 100, 1.0) for token in range(1024))),
    ("logprobs", 0),
    ("logprobs", 20),
    ("seed", 0),
    ("seed", 2**64 - 1),
    ("seed", None),
]


@pytest.mark.parametrize(("field", "value"), ENDS)
def test_the_ends_of_a_range_are_within_it(field: str, value: object) -> None:
    sampling = replace(SamplingParams(), **{field: value})  # type: ignore[arg-type]  # any field

    check(replace(ASKED, sampling=sampling), n_ctx=8, vocabulary_size=100)


BEYOND: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 10.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", 10**400),
    ("temperature", "9" * 1_000_000),
    ("top_p", 1.01),
    ("top_p", -0.01),
    ("min_p", math.nan),
    ("min_p", 2),
    ("typical_p", 1.1),
    ("typical_p", None),
    ("repeat_penalty", 0),
    ("repeat_penalty", -1),
    ("frequency_penalty", 10.1),
    ("frequency_penalty", -math.inf),
    ("presence_penalty", -10.1),
    ("penalty_window", -2),
    ("penalty_window", 64.0),
    ("top_k", -1),
    ("top_k", 1.5),
    ("dry_multiplier", -0.1),
    ("dry_multiplier", 101),
    ("dry_base", 0.99),
    ("dry_base", 101),
    ("dry_allowed_length", 0),
    ("dry_allowed_length", False),
    ("dry_window", -2),
    ("dry_breakers", ("a",) * 65),
    ("dry_breakers", ("a" * 41,)),
    ("dry_breakers", ("é" * 21,)),
    ("dry_breakers", ("",)),
    ("dry_breakers", (1,)),
    ("xtc_probability", 1.1),
    ("xtc_threshold", -0.1),
    ("xtc_threshold", math.nan),
    ("logit_bias", ((-1, 1.0),)),
    ("logit_bias", ((1.0, 1.0),)),
    ("logit_bias", ((1, math.nan),)),
    ("logit_bias", ((1, math.inf),)),
    ("logit_bias", ((1, -math.inf),)),
    ("logit_bias", ((1, 100.1),)),
    ("logit_bias", ((1, "1"),)),
    ("logit_bias", ((1, 1.0),) * 1025),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("logprobs", 1.0),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 10**5000),
    ("seed", 1.0),
]


@pytest.mark.parametrize(
    ("field", "value"), BEYOND, ids=[f"{field}-{at}" for at, (field, _) in enumerate(BEYOND)]
)
def test_a_sampling_field_out_of_its_range_is_named_in_a_line(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{field}\b") as caught:
        check_sampling(replace(SamplingParams(), **{field: value}))  # type: ignore[arg-type]  # bad on purpose

    assert caught.value.field == field
    assert len(str(caught.value)) < 160


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("stop", {"stop": ("",)}),
    ("stop", {"stop": ("a" * 1025,)}),
    ("stop", {"stop": ("a" * 1_000_000,)}),
    ("stop", {"stop": ("a",) * 65}),
    ("stop", {"stop": (b"a",)}),
    ("prompt", {"prompt": ()}),
    ("prompt", {"prompt": (1, -1)}),
    ("prompt", {"prompt": (1, 100)}),
    ("top_k", {"sampling": SamplingParams(top_k=-1)}),
    ("logit_bias", {"sampling": SamplingParams(logit_bias=((100, 1.0),))}),
    ("grammar", {"grammar": Grammar("yaml", "a: 1")}),  # type: ignore[arg-type]  # bad on purpose
    ("grammar", {"grammar": Grammar("regex", "a" * (2**20 + 1))}),
    ("grammar", {"grammar": Grammar("regex", "\ud800" * 2**19)}),
    ("owner", {"owner": "a" * 1025}),
    ("client", {"client": "a" * 1_000_000}),
    ("priority", {"priority": "urgent"}),
]


@pytest.mark.parametrize(
    ("name", "fields"), REQUESTS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(REQUESTS)]
)
def test_a_request_field_out_of_its_range_is_named_in_a_line(
    name: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=rf"^{name}\b") as caught:
        check(replace(ASKED, **fields), n_ctx=8, vocabulary_size=100)

    # Clients have several names for a grammar that is too long: who asked knows which it was.
    assert caught.value.field == (None if isinstance(caught.value, GrammarError) else name)
    assert len(str(caught.value)) < 160


def test_a_request_at_every_limit_is_taken() -> None:
    request = GenerationRequest(
        "a",
        (0, 99),
        SamplingParams(logit_bias=((99, -100.0),)),
        max_tokens=1,
        stop=("a" * 1024,) * 64,
        grammar=Grammar("regex", "a" * 2**20),
        owner="a" * 1024,
        client="a" * 1024,
        priority="background",
    )

    check(request, n_ctx=3, vocabulary_size=100)


def test_a_prompt_that_leaves_no_room_for_one_token_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match="8 tokens, the context holds 8"):
        check(replace(ASKED, prompt=(1,) * 8), n_ctx=8, vocabulary_size=100)

    check(replace(ASKED, prompt=(1,) * 7), n_ctx=8, vocabulary_size=100)


EMBEDDINGS: list[tuple[str, dict[str, Any]]] = [
    ("input", {"texts": ()}),
    ("input", {"texts": ((1,),) * 2049}),
    ("input: text 1 is empty", {"texts": ((1,), ())}),
    ("input: token ids of text 1 ", {"texts": ((1,), (1, 100))}),
    ("input: token ids of text 0 ", {"texts": ((-1,),)}),
    ("dimensions 0", {"dimensions": 0}),
    ("dimensions 1.5", {"dimensions": 1.5}),
    ("dimensions True", {"dimensions": True}),
    ("pooling 'sum' is none of 'mean'", {"pooling": "sum"}),
    ("client", {"client": "a" * 1025}),
    ("priority 'urgent' is none of 'interactive'", {"priority": "urgent"}),
]


@pytest.mark.parametrize(("message", "fields"), EMBEDDINGS)
def test_texts_that_no_embedding_can_be_made_of_are_refused(
    message: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=f"^{message}") as caught:
        check_embedding(replace(TEXTS, **fields), longest=8, vocabulary_size=100)

    assert caught.value.field == re.split(r"\W", message)[0]


def test_a_text_too_long_to_embed_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match="9 tokens, the context holds 8"):
        check_embedding(replace(TEXTS, texts=((1,), (1,) * 9)), longest=8, vocabulary_size=100)

    full = replace(TEXTS, texts=((99,) * 8,) * 2048, dimensions=1, pooling="cls")
    check_embedding(full, longest=8, vocabulary_size=100)

"""Knows no wire: what clients of llama.cpp's server asked of a completion, in our own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from localrun.chat.messages import (
    Gap,
    ReplyEvent,
    ReplyOptions,
    RequestContext,
    ServedModel,
    Snippet,
)
from localrun.engine.request import FinishReason, SamplingParams
from localrun.server.answering import Ask
from localrun.server.forms import grammar_of
from localrun.server.llamacpp.completion_request import (
    CompletionRequest,
    InfillRequest,
    LlamaFields,
)
from localrun.server.prompts import naming, text_of
from localrun.server.sampling import sampling_of

# llama.cpp's sampler drops what an infilled text would hardly go on with, by rules of its own; here
# it is what has less than this share of the likeliest token's probability.
INFILL_MIN_P: Final = 0.2
# What is left out where ``samplers`` does not name it: by the sampler's name, what that means.
_LEFT_OUT: Final[dict[str, dict[str, Any]]] = {
    "penalties": {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "top_k": {"top_k": 0},
    "typ_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
    "temperature": {"temperature": 1.0},
}
_OTHER_NAMES: Final = {
    "top-k": "top_k",
    "top-p": "top_p",
    "min-p": "min_p",
    "typical": "typ_p",
    "typ-p": "typ_p",
    "typical_p": "typ_p",
    "temp": "temperature",
}
# A string of samplers has one letter for each.
_LETTERS: Final = {
    "d": "dry",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "t": "temperature",
    "x": "xtc",
    "i": "infill",
    "e": "penalties",
}


@dataclass
class Told:
    """What of a request only the model can tell, once it is there. ``warming``: nothing is said,
    the prompt is only read."""

    options: ReplyOptions
    n: int
    warming: bool
    n_ctx: int = 0
    prompts: list[str] = field(default_factory=list)


def told_of(request: LlamaFields, context: RequestContext) -> Told:
    warming = request.n_predict == 0
    grammar = grammar_of(request)
    if warming:
        # Nobody waits for it, unlike for those beside it.
        context = replace(context, priority="background")
    options = ReplyOptions(
        sampling=_sampling(request),
        max_tokens=1 if warming else _positive(request.n_predict),
        stop=tuple(request.stop or ()),
        ignore_end=bool(request.ignore_eos),
        grammar=None if grammar is None else grammar[1],
        # llama.vim allows a millisecond where it only warms, and means: nobody waits for it.
        max_prefill_s=None if warming else _seconds(request.t_max_prompt_ms),
        max_decode_s=_seconds(request.t_max_predict_ms),
        min_indent=request.n_indent or 0,
        context=context,
    )
    return Told(options, request.n or 1, warming)


def completion_of(request: CompletionRequest, told: Told) -> Ask:
    """What follows each prompt."""

    async def events(model: ServedModel) -> AsyncGenerator[ReplyEvent]:
        told.n_ctx = model.n_ctx
        async with aclosing(model.completions(request.prompt, told.options, told.n)) as stream:
            async for event in stream:
                if not told.prompts:
                    # Not of prompts that are refused: they may be of any length.
                    told.prompts = [await text_of(prompt, model) for prompt in request.prompt]
                yield _silenced(event) if told.warming else event

    return lambda model: naming(events(model), "prompt")


def infill_of(request: InfillRequest, told: Told) -> Ask:
    """What stands between prefix and suffix. Of its prompt the text before the gap is told."""
    gap = Gap(
        request.input_prefix,
        request.input_suffix,
        request.prompt or "",
        tuple(Snippet(extra.text, extra.filename or "") for extra in request.input_extra or ()),
    )

    async def events(model: ServedModel) -> AsyncGenerator[ReplyEvent]:
        told.n_ctx = model.n_ctx
        told.prompts = [gap.prefix + gap.begun]
        async with aclosing(model.infill([gap], told.options, told.n)) as stream:
            async for event in stream:
                yield _silenced(event) if told.warming else event

    return lambda model: naming(events(model), "input_prefix")


def form_of(request: LlamaFields) -> str | None:
    """The field that says what form the answer has, if any does."""
    grammar = grammar_of(request)
    return None if grammar is None else grammar[0]


def _silenced(event: ReplyEvent) -> ReplyEvent:
    """An engine makes one token at least: it is not told."""
    timings = event.timings and replace(event.timings, generated_tokens=0, decode_s=0.0)
    finish = FinishReason.LENGTH if event.finish is FinishReason.STOP else event.finish
    return replace(
        event, text="", tokens=(), logprobs=(), stopped=None, timings=timings, finish=finish
    )


def _sampling(request: LlamaFields) -> SamplingParams:
    sampling = sampling_of(request, logprobs=request.n_probs or None)
    names = _samplers(request.samplers)
    if names is None:
        return sampling
    for name, off in _LEFT_OUT.items():
        if name not in names:
            sampling = replace(sampling, **off)
    if "infill" in names:
        sampling = replace(sampling, min_p=max(sampling.min_p, INFILL_MIN_P))
    return sampling


def _samplers(asked: list[str] | str | None) -> set[str] | None:
    if asked is None:
        return None
    if isinstance(asked, str):
        return {_LETTERS[letter] for letter in asked if letter in _LETTERS}
    return {_OTHER_NAMES.get(name, name) for name in asked}


def _positive(count: int | None) -> int | None:
    return count if count is not None and count > 0 else None


def _seconds(ms: int | None) -> float | None:
    return ms / 1000 if ms is not None and ms > 0 else None

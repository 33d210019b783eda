"""Knows no model: completions as llama.cpp's server tells them, whole and in chunks.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, SamplingParams, Timings, TokenLogprob
from localrun.errors import LocalrunError
from localrun.server.answering import Document
from localrun.server.answers import finish_of, unfinished
from localrun.server.errors import STOPPING, openai_shape, refusal_of
from localrun.server.gathered import Gathered, gathered
from localrun.server.llamacpp.completion_asked import Told
from localrun.server.llamacpp.completion_request import CompletionRequest, LlamaFields
from localrun.server.logprobs import UNLIKELY
from localrun.server.sent import server_sent
from localrun.server.timings import llama_timings

NO_TIMINGS = Timings(0, 0, 0, 0.0, 0.0)
# Nothing here has slots: what is computed is kept for whoever asks alike.
SLOT = 0


class Answer:
    """What was wanted, and what is known of it: the fields of every answer's last document."""

    def __init__(self, model: str, request: LlamaFields, told: Told) -> None:
        self.model = model
        self.request = request
        self.told = told

    @property
    def choices(self) -> int:
        """How many answers there are."""
        request = self.request
        prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
        return prompts * self.told.n

    def whole(self, answer: Gathered, index: int) -> dict[str, Any]:
        """All of an answer as one document."""
        document = self.last(answer.last, index, has_new_line="\n" in answer.text)
        document["content"] = answer.text
        if self.request.return_tokens:
            document["tokens"] = answer.tokens
        if answer.logprobs:
            document["completion_probabilities"] = probabilities(answer.logprobs)
        return self.picked(document)

    def last(self, event: ReplyEvent, index: int, *, has_new_line: bool) -> dict[str, Any]:
        """The document that ends an answer; of what came in chunks it holds nothing more."""
        finish, timings = finish_of(event), event.timings or NO_TIMINGS
        made, read = timings.generated_tokens, timings.prompt_tokens
        return {
            "index": index,
            "content": "",
            "tokens": [],
            "id_slot": SLOT,
            "stop": True,
            "model": self.model,
            "tokens_predicted": made,
            "tokens_evaluated": read,
            "generation_settings": self._settings(),
            "prompt": self.told.prompts[index // self.told.n],
            "has_new_line": has_new_line,
            "truncated": finish is FinishReason.LENGTH and made + read >= self.told.n_ctx,
            "stop_type": _stop_type(event),
            "stopping_word": event.stopped or "",
            # All that the context holds: the token that was drawn last is in none yet.
            "tokens_cached": read + max(made - 1, 0),
            "timings": llama_timings(timings),
        }

    def picked(self, document: dict[str, Any]) -> dict[str, Any]:
        """Those of its fields that were asked for."""
        fields = self.request.response_fields
        return picked(document, fields) if fields else document

    def _settings(self) -> dict[str, Any]:
        options, request = self.told.options, self.request
        sampling = options.sampling
        wanted = -1 if request.n_predict is None else request.n_predict
        return {
            **sampling_settings(sampling),
            "n_ctx": self.told.n_ctx,
            "seed": -1 if sampling.seed is None else sampling.seed,
            "logit_bias": [{"token": id_, "bias": bias} for id_, bias in sampling.logit_bias],
            "n_probs": request.n_probs or 0,
            "n_predict": wanted,
            "max_tokens": wanted,
            "n_indent": options.min_indent,
            "stop": list(options.stop),
            "ignore_eos": options.ignore_end,
            "stream": bool(request.stream),
            "grammar": request.grammar or "",
        }


def sampling_settings(sampling: SamplingParams) -> dict[str, Any]:
    """``SamplingParams`` by llama.cpp's names."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_last_n": sampling.penalty_window,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": sampling.dry_multiplier,
        "dry_base": sampling.dry_base,
        "dry_allowed_length": sampling.dry_allowed_length,
        "dry_penalty_last_n": sampling.dry_window,
        "dry_sequence_breakers": list(sampling.dry_breakers),
        "xtc_probability": sampling.xtc_probability,
        "xtc_threshold": sampling.xtc_threshold,
    }


def _stop_type(last: ReplyEvent) -> str:
    if last.stopped is not None:
        return "word"
    finish = finish_of(last)
    if finish is FinishReason.STOP:
        return "eos"
    return "limit" if finish is FinishReason.LENGTH else "none"


async def completion(answer: Answer, events: AsyncIterator[ReplyEvent]) -> Document:
    """The answer as one object, several as a list of them.

    Raises:
        LocalrunError: what a generation raised, or EngineError for what it ended with.
    """
    found = await gathered(events, answer.choices)
    documents = [answer.whole(each, index) for index, each in enumerate(found)]
    return documents if len(documents) > 1 else documents[0]


async def chunks(answer: Answer, events: AsyncIterator[ReplyEvent]) -> AsyncGenerator[bytes]:
    """The answers as server-sent events; the last of each has ``stop`` true and tells all but the
    text. There is no word behind them. An error ends the stream as an event of its own."""
    pieces = [_Pieces(at) for at in range(answer.choices)]
    ended = 0
    try:
        async for event in events:
            told = pieces[event.choice]
            if event.text or event.tokens:
                yield told.chunk(event)
            if event.finish is None:
                continue
            last = answer.last(event, event.choice, has_new_line=told.has_new_line)
            yield server_sent(answer.picked(last))
            ended += 1
            if ended == answer.choices:
                break
        else:
            raise unfinished()
    except LocalrunError as error:
        yield server_sent(openai_shape(refusal_of(error)))


class _Pieces:
    """The chunks of one answer. Written by hand: thousands leave in a second, and differ in their
    text and ids alone."""

    __slots__ = ("_after", "_before", "has_new_line")

    def __init__(self, index: int) -> None:
        self.has_new_line = False
        self._before = b'data: {"index":%d,"content":' % index
        self._after = b'],"stop":false,"id_slot":%d' % SLOT

    def chunk(self, event: ReplyEvent) -> bytes:
        if "\n" in event.text:
            self.has_new_line = True
        text = json.dumps(event.text).encode()
        ids = ",".join(map(str, event.tokens)).encode()
        tail = b"}\n\n"
        if event.logprobs:
            told = json.dumps(probabilities(event.logprobs)).encode()
            tail = b',"completion_probabilities":' + told + tail
        return self._before + text + b',"tokens":[' + ids + self._after + tail


def probabilities(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Those before any rule of the sampler's."""
    return [
        _probability(each.token, each.text, each.logprob)
        | {"top_logprobs": [_probability(*alternative) for alternative in each.top]}
        for each in tokens
    ]


def _probability(token: int, text: bytes, logprob: float) -> dict[str, Any]:
    shown = text.decode("utf-8", "ignore")
    return {
        "id": token,
        "token": shown,
        "bytes": list(text),
        "logprob": max(logprob, UNLIKELY),
    }


def picked(document: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Those ``fields`` alone; one of an object within is named, and told, as ``timings/prompt_n``.
    What is not there is left out."""
    found: dict[str, Any] = {}
    for name in fields:
        value: Any = document
        for key in name.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            found[name] = value
    return found


def goodbye() -> bytes:
    """The last words of a stream that a stopping server cuts."""
    return server_sent(openai_shape(STOPPING))

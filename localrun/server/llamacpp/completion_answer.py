"""Knows no model: completions as llama.cpp's server tells them, whole and in chunks.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, SamplingParams, Timings, TokenLogprob
from localrun.errors import EngineError, LocalrunError
from localrun.server.answering import Document
from localrun.server.answers import finish_of
from localrun.server.errors import STOPPING, openai_shape, refusal_of
from localrun.server.llamacpp.completion_asked import Told
from localrun.server.llamacpp.completion_request import LlamaFields
from localrun.server.openai.chat_answer import UNLIKELY
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
        """How many there are, once the model has been asked."""
        return len(self.told.prompts) * self.told.n

    def last(self, choice: _Choice, index: int, *, streamed: bool) -> dict[str, Any]:
        """The document that ends an answer; of what came in chunks it holds nothing more."""
        assert choice.finish is not None
        timings = choice.timings or NO_TIMINGS
        made, read = timings.generated_tokens, timings.prompt_tokens
        content = "".join(choice.content)
        whole = not streamed
        document: dict[str, Any] = {
            "index": index,
            "content": content if whole else "",
            "tokens": choice.tokens if whole and self.request.return_tokens else [],
            "id_slot": SLOT,
            "stop": True,
            "model": self.model,
            "tokens_predicted": made,
            "tokens_evaluated": read,
            "generation_settings": self._settings(),
            "prompt": self.told.prompts[index // self.told.n],
            "has_new_line": choice.has_new_line,
            "truncated": choice.finish is FinishReason.LENGTH and made + read >= self.told.n_ctx,
            "stop_type": choice.stop_type,
            "stopping_word": choice.stopped or "",
            # All that the context holds: the token that was drawn last is in none yet.
            "tokens_cached": read + max(made - 1, 0),
            "timings": llama_timings(timings),
        }
        if whole and choice.logprobs:
            document["completion_probabilities"] = probabilities(choice.logprobs)
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


class _Choice:
    """One of the answers, gathered to its end."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None
        self.stopped: str | None = None
        self.timings: Timings | None = None
        self.has_new_line = False

    def take(self, event: ReplyEvent) -> None:
        self.content.append(event.text)
        self.tokens += event.tokens
        self.logprobs += event.logprobs
        self.pass_on(event)

    def pass_on(self, event: ReplyEvent) -> None:
        """Remember all but what it says: that has been told."""
        if "\n" in event.text:
            self.has_new_line = True
        if event.finish is not None:
            self.finish, self.timings = finish_of(event), event.timings
            self.stopped = event.stopped

    @property
    def stop_type(self) -> str:
        if self.stopped is not None:
            return "word"
        if self.finish is FinishReason.STOP:
            return "eos"
        return "limit" if self.finish is FinishReason.LENGTH else "none"


async def completion(answer: Answer, events: AsyncIterator[ReplyEvent]) -> Document:
    """The answer as one object, several as a list of them.

    Raises:
        LocalrunError: what a generation raised, or EngineError for what it ended with.
    """
    choices: dict[int, _Choice] = {}
    async for event in events:
        choices.setdefault(event.choice, _Choice()).take(event)
        if event.finish is not None and _over(choices, answer):
            break
    else:
        raise EngineError("the generation ended without a last event")
    documents = [answer.last(choices[at], at, streamed=False) for at in range(answer.choices)]
    return documents if len(documents) > 1 else documents[0]


async def chunks(answer: Answer, events: AsyncIterator[ReplyEvent]) -> AsyncGenerator[bytes]:
    """The answers as server-sent events; the last of each has ``stop`` true and tells all but the
    text. There is no word behind them. An error ends the stream as an event of its own."""
    choices: dict[int, _Choice] = {}
    pieces: dict[int, _Pieces] = {}
    try:
        async for event in events:
            at = event.choice
            if at not in choices:
                choices[at], pieces[at] = _Choice(), _Pieces(at)
            if event.text or event.tokens:
                yield pieces[at].chunk(event)
            choices[at].pass_on(event)
            if event.finish is None:
                continue
            yield server_sent(answer.last(choices[at], at, streamed=True))
            if _over(choices, answer):
                break
    except LocalrunError as error:
        yield server_sent(openai_shape(refusal_of(error)))


def _over(choices: Mapping[int, _Choice], answer: Answer) -> bool:
    ended = sum(choice.finish is not None for choice in choices.values())
    return ended == answer.choices


class _Pieces:
    """The chunks of one answer. Written by hand: thousands leave in a second, and differ in their
    text and ids alone."""

    __slots__ = ("_after", "_before")

    def __init__(self, index: int) -> None:
        self._before = b'data: {"index":%d,"content":' % index
        self._after = b'],"stop":false,"id_slot":%d' % SLOT

    def chunk(self, event: ReplyEvent) -> bytes:
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

"""Knows neither sockets nor frames: the engine's values as JSON, on their way to its process.

An event is a short list, since thousands of them pass every second: its call, its text, its tokens
and, where it has any, the rest as an object. Its id stays behind: the call stands for it.
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localrun.engine.client import EngineInfo
from localrun.engine.options import DraftModel, EngineOptions
from localrun.engine.process.frames import error_fields, error_of
from localrun.engine.request import (
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from localrun.engine.runner import ExpertUse, FillInMiddle, RunnerStats
from localrun.errors import RequestError
from localrun.plan.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fields = dict[str, Any]
EventFields = list[Any]


def ids_field(ids: Sequence[int]) -> str:
    """Token ids as text: a million of them take 5 MB and no time to read.

    Raises:
        RequestError: one is no number of 32 bits.
    """
    try:
        return b64encode(array("i", ids)).decode("ascii")
    except (OverflowError, TypeError) as error:
        raise RequestError(f"a token id is no number of 32 bits: {error}") from error


def ids_of(field: str) -> list[int]:
    return _numbers("i", field).tolist()


def vectors_field(vectors: NDArray[np.float32]) -> list[str]:
    """``vectors`` ``[texts, dimensions]``, each as text, exactly."""
    return [b64encode(vector.tobytes()).decode("ascii") for vector in vectors]


def vectors_of(field: list[str]) -> list[list[float]]:
    return [_numbers("f", vector).tolist() for vector in field]


def _numbers(kind: str, field: str) -> array[Any]:
    # Both ends run on one machine: its own order of bytes is theirs.
    numbers = array(kind)
    numbers.frombytes(b64decode(field))
    return numbers


def request_fields(request: GenerationRequest) -> Fields:
    """
    Raises:
        RequestError: the prompt holds what no token id can be.
    """
    # Not asdict of the whole: it would copy a prompt of a million tokens one by one.
    return {
        "id": request.id,
        "prompt": ids_field(request.prompt),
        "sampling": asdict(request.sampling),
        "max_tokens": request.max_tokens,
        "stop": request.stop,
        "ignore_end": request.ignore_end,
        "marks": request.marks,
        "grammar": None if request.grammar is None else asdict(request.grammar),
        "owner": request.owner,
        "client": request.client,
        "priority": request.priority,
        "draft": request.draft,
        "max_prefill_s": request.max_prefill_s,
        "max_decode_s": request.max_decode_s,
        "min_indent": request.min_indent,
    }


def request_of(fields: Fields) -> GenerationRequest:
    grammar = fields["grammar"]
    lists = {name: tuple(fields[name]) for name in ("stop", "marks")}
    own = {
        "prompt": tuple(ids_of(fields["prompt"])),
        "sampling": _sampling_of(fields["sampling"]),
        "grammar": None if grammar is None else Grammar(**grammar),
    }
    return GenerationRequest(**(fields | lists | own))


def _sampling_of(fields: Fields) -> SamplingParams:
    biases = tuple((token, bias) for token, bias in fields["logit_bias"])
    breakers = tuple(fields["dry_breakers"])
    return SamplingParams(**(fields | {"logit_bias": biases, "dry_breakers": breakers}))


def embedding_fields(request: EmbeddingRequest) -> Fields:
    """
    Raises:
        RequestError: a text holds what no token id can be.
    """
    return {
        "id": request.id,
        "texts": [ids_field(text) for text in request.texts],
        "pooling": request.pooling,
        "normalize": request.normalize,
        "dimensions": request.dimensions,
        "client": request.client,
        "priority": request.priority,
    }


def embedding_of(fields: Fields) -> EmbeddingRequest:
    texts = tuple(tuple(ids_of(text)) for text in fields["texts"])
    return EmbeddingRequest(**(fields | {"texts": texts}))


def event_fields(call: int, event: TokenEvent) -> EventFields:
    """What differs from an empty event: most carry a text and a token."""
    rest: Fields = {}
    if event.prefilled is not None:
        rest["prefilled"] = event.prefilled
    if event.logprobs:
        rest["logprobs"] = [_logprob_fields(logprob) for logprob in event.logprobs]
    if event.finish is not None:
        rest["finish"] = event.finish.value
    if event.stopped is not None:
        rest["stopped"] = event.stopped
    if event.timings is not None:
        rest["timings"] = asdict(event.timings)
    if event.error is not None:
        rest["error"] = error_fields(event.error)
    fields = [call, event.text, event.tokens]
    return [*fields, rest] if rest else fields


def event_of(id_: str, fields: EventFields) -> TokenEvent:
    if len(fields) == 3:
        return TokenEvent(id_, fields[1], tuple(fields[2]))
    _, text, tokens, rest = fields
    finish, timings, error = rest.get("finish"), rest.get("timings"), rest.get("error")
    return TokenEvent(
        id=id_,
        text=text,
        tokens=tuple(tokens),
        logprobs=tuple(_logprob_of(logprob) for logprob in rest.get("logprobs", ())),
        prefilled=rest.get("prefilled"),
        finish=None if finish is None else FinishReason(finish),
        stopped=rest.get("stopped"),
        timings=None if timings is None else Timings(**timings),
        error=None if error is None else error_of(error),
    )


# Bytes travel as the text that has the same numbers.
_BYTES = "latin-1"


def _logprob_fields(logprob: TokenLogprob) -> list[Any]:
    top = [(token, text.decode(_BYTES), value) for token, text, value in logprob.top]
    return [logprob.token, logprob.text.decode(_BYTES), logprob.logprob, top]


def _logprob_of(fields: list[Any]) -> TokenLogprob:
    token, text, logprob, top = fields
    alternatives = tuple((other, name.encode(_BYTES), value) for other, name, value in top)
    return TokenLogprob(token, text.encode(_BYTES), logprob, alternatives)


def options_fields(options: EngineOptions) -> Fields:
    draft = options.draft
    return {
        "state_folder": None if options.state_folder is None else str(options.state_folder),
        "state_budget_bytes": options.state_budget_bytes,
        "speculation": options.speculation,
        "draft": draft and {"plan": draft.plan.to_json(), "loader": draft.loader},
    }


def options_of(fields: Fields) -> EngineOptions:
    folder, draft = fields["state_folder"], fields["draft"]
    own = {
        "state_folder": None if folder is None else Path(folder),
        "draft": draft and DraftModel(Plan.from_json(draft["plan"]), draft["loader"]),
    }
    return EngineOptions(**(fields | own))


def info_fields(info: EngineInfo) -> Fields:
    return asdict(info)


def info_of(fields: Fields) -> EngineInfo:
    fim = fields["fim"]
    return EngineInfo(**(fields | {"fim": fim and FillInMiddle(**fim)}))


def stats_fields(stats: RunnerStats) -> Fields:
    # asdict would copy the picks one by one: 61 layers of 384 experts have 23,424 of them.
    picks = {
        layer: b64encode(array("Q", counts)).decode("ascii")
        for layer, counts in stats.picks.items()
    }
    return asdict(replace(stats, picks={})) | {"picks": picks}


def stats_of(fields: Fields) -> RunnerStats:
    own = {
        "experts": {tier: ExpertUse(**use) for tier, use in fields["experts"].items()},
        # JSON makes texts of all keys.
        "picks": {int(at): tuple(_numbers("Q", counts)) for at, counts in fields["picks"].items()},
        "notes": tuple(fields["notes"]),
    }
    return RunnerStats(**(fields | own))


def pieces_field(pieces: Sequence[bytes]) -> list[str]:
    return [piece.decode(_BYTES) for piece in pieces]


def pieces_of(field: Sequence[str]) -> list[bytes]:
    return [piece.encode(_BYTES) for piece in field]

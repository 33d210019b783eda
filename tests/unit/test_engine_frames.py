"""What crosses the engine's process boundary, and what may not."""

from __future__ import annotations

import io
import json
from dataclasses import fields

import pytest

from localrun import errors
from localrun.engine import frames
from localrun.engine.client import EngineInfo
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Timings,
    TokenEvent,
)
from localrun.errors import EngineError, LocalrunError


def _through(frame: frames.Frame) -> frames.Frame:
    read = frames.read_frame(io.BytesIO(frames.pack(frame)))
    assert read is not None
    return read


def test_a_request_comes_out_as_it_went_in() -> None:
    request = GenerationRequest(
        "r1", (1, 2, 3), SamplingParams(0.5, 3, 0.9, 0.1, 1.1, 2**63), 7, ("a\nb", "\ud800")
    )

    frame = _through({"type": "submit", "request": frames.request_fields(request)})

    assert frames.request_of(frame["request"]) == request


def test_no_field_of_a_request_is_left_behind() -> None:
    sent = frames.request_fields(GenerationRequest("r", (1,)))

    assert set(sent) == {field.name for field in fields(GenerationRequest)}


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent("r"),
        TokenEvent("r", prefilled=0),
        TokenEvent("r", "héllo", (5, 6)),
        TokenEvent("r", finish=FinishReason.STOP, timings=Timings(3, 1, 2, 0.5, 0.25)),
        TokenEvent("r", finish=FinishReason.ERROR, error="why"),
    ],
    ids=["empty", "prefilled", "text", "last", "error"],
)
def test_an_event_comes_out_as_it_went_in(event: TokenEvent) -> None:
    frame = _through({"type": "event", "event": frames.event_fields(event)})

    assert frames.event_of(frame["event"]) == event


def test_what_an_engine_says_of_itself_comes_out_as_it_went_in() -> None:
    info = EngineInfo("ref", "mock", "llama", 4096, "<s>", "</s>", True, None)

    assert frames.info_of(_through({"type": "x", "info": frames.info_fields(info)})["info"]) == info


def _instances() -> list[LocalrunError]:
    special: dict[type[LocalrunError], LocalrunError] = {
        errors.ContextLengthError: errors.ContextLengthError(9, 8),
        errors.ModelNotFoundError: errors.ModelNotFoundError("none", nearest=("a", "b")),
        errors.HeaderError: errors.HeaderError("n_kv", 8, "too many", file="x.gguf"),
        errors.DiskFullError: errors.DiskFullError("/models", 5),
    }
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type)]
    tree = [cls for cls in classes if issubclass(cls, LocalrunError)]
    return [special.get(cls) or cls("what happened", hint="what to do") for cls in tree]


@pytest.mark.parametrize("error", _instances(), ids=lambda error: type(error).__name__)
def test_every_error_of_the_tree_crosses_with_its_class_its_hint_and_its_fields(
    error: LocalrunError,
) -> None:
    back = frames.error_of(_through({"type": "x", "error": frames.error_fields(error)})["error"])

    assert type(back) is type(error)
    assert (str(back), back.message, back.hint) == (str(error), error.message, error.hint)
    assert vars(back) == vars(error) | {"hint": error.hint}


def test_an_error_class_of_a_backend_crosses_as_its_nearest_parent_in_the_tree() -> None:
    class Special(EngineError):
        pass

    assert type(frames.error_of(frames.error_fields(Special("x")))) is EngineError


@pytest.mark.parametrize("name", ["SystemExit", "Exception", "os.system", "", None])
def test_no_class_outside_the_tree_can_be_named(name: str | None) -> None:
    assert type(frames.error_of({"class": name, "message": "m", "hint": "h"})) is EngineError


BAD_STREAMS = {
    "half a prefix": b"\0\0",
    "half a body": b"\0\0\0\x05{}",
    "larger than the limit": frames.PREFIX.pack(frames.MAX_FRAME_BYTES + 1),
    "the largest length": b"\xff\xff\xff\xff",
    "not json": frames.PREFIX.pack(3) + b"abc",
    "not utf-8": frames.PREFIX.pack(2) + b'"\xff',
    "not an object": frames.PREFIX.pack(2) + b"[]",
    "no type": frames.PREFIX.pack(2) + b"{}",
    "a bomb of brackets": frames.PREFIX.pack(100_000) + b"[" * 100_000,
}


@pytest.mark.parametrize("stream", BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
def test_a_bad_stream_is_refused_with_a_typed_error(stream: bytes) -> None:
    with pytest.raises(EngineError):
        frames.read_frame(io.BytesIO(stream))


def test_the_end_of_a_stream_between_frames_is_no_error() -> None:
    assert frames.read_frame(io.BytesIO()) is None


def test_a_frame_over_the_limit_is_not_sent() -> None:
    fits = {"type": "x", "text": "a" * (frames.MAX_FRAME_BYTES - len('{"type":"x","text":""}'))}
    assert len(frames.pack(fits)) == frames.MAX_FRAME_BYTES + frames.PREFIX.size

    with pytest.raises(EngineError, match="the limit is"):
        frames.pack(fits | {"text": fits["text"] + "a"})


def test_an_ordinary_event_costs_few_bytes() -> None:
    packed = frames.event_fields(TokenEvent("id", " word", (17,)))

    assert json.dumps(packed) == '{"id": "id", "text": " word", "tokens": [17]}'

"""What crosses the engine's process boundary, and what may not."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun import errors
from localrun.engine.client import EngineInfo
from localrun.engine.options import DraftModel, EngineOptions
from localrun.engine.process import fields, frames
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
from localrun.engine.runner import ExpertUse, RunnerStats
from localrun.errors import (
    ContextLengthError,
    EngineError,
    GrammarError,
    LocalrunError,
    RequestError,
)
from tests.engine_child import plan


def _through(frame: frames.Frame) -> frames.Frame:
    read = frames.read_frame(io.BytesIO(frames.pack(frame)))
    assert read is not None
    return read


BARE = GenerationRequest("r", (1,))
FULL = GenerationRequest(
    "r1",
    (1, 2**31 - 1, -1),
    SamplingParams(
        0.5,
        seed=2**63,
        dry_breakers=("a", "\ud800"),
        logit_bias=((3, -100.0), (4, 0.5)),
        logprobs=20,
    ),
    7,
    ("a\nb", "\ud800"),
    ignore_end=True,
    marks=("<think>",),
    grammar=Grammar("regex", "a+"),
    owner="someone",
    client="somewhere",
    priority="background",
    draft=False,
    max_prefill_s=0.5,
    max_decode_s=1.5,
    min_indent=3,
)


@pytest.mark.parametrize("request_", [BARE, FULL], ids=["bare", "full"])
def test_a_request_comes_out_as_it_went_in(request_: GenerationRequest) -> None:
    frame = _through({"type": "submit", "request": fields.request_fields(request_)})

    assert fields.request_of(frame["request"]) == request_


def test_the_request_that_is_tried_differs_from_a_bare_one_in_every_field() -> None:
    names = [field.name for field in dataclasses.fields(GenerationRequest)]

    assert [name for name in names if getattr(BARE, name) == getattr(FULL, name)] == []


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1, 1.5, "1", None])
def test_a_prompt_of_what_is_no_token_is_refused(token: object) -> None:
    request = GenerationRequest("r", (1, token))  # type: ignore[arg-type]  # what is refused

    with pytest.raises(RequestError, match="token id"):
        fields.request_fields(request)


def test_a_request_for_embeddings_comes_out_as_it_went_in() -> None:
    request = EmbeddingRequest("e", ((1, 2), (), (3,)), "last", False, 64, "c", "interactive")
    frame = _through({"type": "embed", "request": fields.embedding_fields(request)})

    assert fields.embedding_of(frame["request"]) == request


def test_vectors_come_out_exactly() -> None:
    vectors = np.array([[0.1, -3e38, 1e-45], [7, 0, -0.0]], np.float32)
    frame = _through({"type": "answer", "value": fields.vectors_field(vectors)})

    assert fields.vectors_of(frame["value"]) == vectors.tolist()


def test_options_come_out_as_they_went_in() -> None:
    draft = DraftModel(plan("mock:draft"), "somewhere:load")
    for options in (EngineOptions(), EngineOptions(Path("/states"), 5, False, draft)):
        frame = _through({"type": "load", "options": fields.options_fields(options)})
        assert fields.options_of(frame["options"]) == options


LOGPROB = TokenLogprob(5, b"\xff\x00", -0.5, ((5, b"\xff\x00", -0.5), (6, b"", -math.inf)))


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent("r"),
        TokenEvent("r", prefilled=0),
        TokenEvent("r", "héllo\ud800", (5, 6)),
        TokenEvent("r", "x", (5,), logprobs=(LOGPROB, LOGPROB)),
        TokenEvent("r", finish=FinishReason.STOP, timings=Timings(3, 1, 2, 0.5, 0.25, 0.1, 9, 8)),
        TokenEvent("r", finish=FinishReason.STOP, stopped="###"),
    ],
    ids=["empty", "prefilled", "text", "logprobs", "last", "stopped"],
)
def test_an_event_comes_out_as_it_went_in(event: TokenEvent) -> None:
    frame = _through({"type": "events", "events": [fields.event_fields(9, event)]})

    assert frame["events"][0][0] == 9
    assert fields.event_of("r", frame["events"][0]) == event


def test_an_event_of_an_error_carries_the_error_itself() -> None:
    for error in (EngineError("why"), GrammarError("regex", "too deep"), ContextLengthError(9, 5)):
        event = TokenEvent("r", finish=FinishReason.ERROR, error=error)
        frame = _through({"type": "events", "events": [fields.event_fields(9, event)]})
        back = fields.event_of("r", frame["events"][0]).error
        assert back is not None
        assert frames.error_fields(back) == frames.error_fields(error)


def test_what_an_engine_says_of_itself_comes_out_as_it_went_in() -> None:
    info = EngineInfo("ref", "mock", "llama", 4096, "<s>", "</s>", True, None)

    assert fields.info_of(_through({"type": "x", "info": fields.info_fields(info)})["info"]) == info


counts = st.integers(0, 2**64 - 1)
seconds = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8)


@given(
    st.builds(
        RunnerStats,
        memory_bytes=st.dictionaries(names, counts),
        bytes_read=st.dictionaries(names, counts),
        tokens=counts,
        memory_parts=st.dictionaries(names, st.dictionaries(names, counts)),
        forward_s=seconds,
        numerics=names,
        terms_s=st.dictionaries(names, seconds),
        terms_bytes=st.dictionaries(names, counts),
        experts=st.dictionaries(names, st.builds(ExpertUse, counts, counts, seconds)),
        picks=st.dictionaries(st.integers(0, 200), st.lists(counts, max_size=9).map(tuple)),
        read_ahead=counts,
        needed=counts,
        notes=st.lists(names).map(tuple),
    )
)
def test_counters_come_out_as_they_went_in(stats: RunnerStats) -> None:
    frame = _through({"type": "answer", "value": fields.stats_fields(stats)})

    assert fields.stats_of(frame["value"]) == stats


def test_counters_of_the_most_experts_there_are_take_a_small_part_of_a_frame() -> None:
    picks = dict.fromkeys(range(128), (2**63,) * 1024)
    stats = RunnerStats({}, {}, 0, picks=picks)

    packed = frames.pack({"type": "answer", "value": fields.stats_fields(stats)})

    assert len(packed) < frames.MAX_FRAME_BYTES / 32


def _instances() -> list[LocalrunError]:
    special: dict[type[LocalrunError], LocalrunError] = {
        errors.ContextLengthError: errors.ContextLengthError(9, 8),
        errors.GrammarError: errors.GrammarError("regex", "what happened", hint="what to do"),
        errors.ModelNotFoundError: errors.ModelNotFoundError("none", nearest=("a", "b")),
        errors.HeaderError: errors.HeaderError("n_kv", 8, "too many", file="x.gguf"),
        errors.DiskFullError: errors.DiskFullError("/models", 5),
        errors.DiskReadError: errors.DiskReadError("/m.gguf", 4096, "no data", tensor="experts"),
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
    "two objects": frames.PREFIX.pack(24) + 2 * b'{"type":"a"}',
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
    packed = fields.event_fields(3, TokenEvent("id", " word", (17,)))

    assert json.dumps(packed) == '[3, " word", [17]]'


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 1000])
def test_frames_come_out_of_pieces_of_any_size(size: int) -> None:
    sent = [{"type": "a"}, {"type": "b", "text": "x" * 50}, {"type": "c"}]
    stream = b"".join(frames.pack(frame) for frame in sent)
    buffer = frames.FrameBuffer()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert [frame for piece in pieces for frame in buffer.feed(piece)] == sent


WHOLE = frames.pack({"type": "a"})


@pytest.mark.parametrize(
    "stream",
    [stream for name, stream in BAD_STREAMS.items() if not name.startswith("half")],
    ids=[name for name in BAD_STREAMS if not name.startswith("half")],
)
def test_a_bad_frame_after_a_good_one_is_refused_with_a_typed_error(stream: bytes) -> None:
    with pytest.raises(EngineError):
        frames.FrameBuffer().feed(WHOLE + stream)

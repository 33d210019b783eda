"""llama.cpp's ``/completion``: what its clients send, what they read, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from localrun.chat.messages import Prompt, ReplyEvent
from localrun.engine.request import FinishReason, Grammar, TokenLogprob
from localrun.errors import ContextLengthError, EngineCrashedError
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.unit.test_server_llamacpp import complete, events_of, infill, post


async def test_a_completion_has_the_fields_of_llama_cpp_s() -> None:
    document = (await complete(FakeChat(), n_predict=5, temperature=0, stop=["x"])).json()

    settings = document.pop("generation_settings")
    timings = document.pop("timings")
    assert document == {
        "index": 0,
        "content": "Hello",
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": "fake",
        "tokens_predicted": 3,
        "tokens_evaluated": 10,
        "prompt": "Say",
        "has_new_line": False,
        "truncated": False,
        "stop_type": "eos",
        "stopping_word": "",
        "tokens_cached": 12,
    }
    assert (settings["n_predict"], settings["temperature"], settings["stop"]) == (5, 0, ["x"])
    assert settings["n_ctx"] == 100
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (4, 6, 3)


async def test_the_route_has_its_second_name() -> None:
    response = await post(FakeModels(fake=FakeChat()), "/completions", {"prompt": "Say"})

    assert response.json()["content"] == "Hello"


async def test_a_stream_tells_texts_and_ids_and_at_its_end_the_rest() -> None:
    chat = FakeChat(
        (ReplyEvent(text="Hel", tokens=(1,)), ReplyEvent(text="lo", tokens=(2, 3)), ending())
    )

    response = await complete(chat, stream=True)

    *chunks, last = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert chunks == [
        {"index": 0, "content": "Hel", "tokens": [1], "stop": False, "id_slot": 0},
        {"index": 0, "content": "lo", "tokens": [2, 3], "stop": False, "id_slot": 0},
    ]
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "eos")
    assert last["timings"]["predicted_n"] == 3
    assert last["tokens_evaluated"] == 10


PROMPTS: dict[str, tuple[object, list[Prompt], list[str]]] = {
    "a text": ("Say", [Prompt.of("Say")], ["Say"]),
    "ids": ([72, 105], [Prompt((72, 105))], ["Hi"]),
    "ids and texts in one": ([72, "i ", 33], [Prompt((72, "i ", 33))], ["Hi !"]),
    "several texts": (["a", "b"], [Prompt.of("a"), Prompt.of("b")], ["a", "b"]),
    "several of each kind": (["a", [72, "x"]], [Prompt.of("a"), Prompt((72, "x"))], ["a", "Hx"]),
    "an object": ({"prompt_string": "a"}, [Prompt.of("a")], ["a"]),
    "a list of one": (["a"], [Prompt.of("a")], ["a"]),
}


@pytest.mark.parametrize(("written", "meant", "told"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_a_prompt_may_be_mixed_of_texts_and_ids(
    written: object, meant: list[Prompt], told: list[str]
) -> None:
    chat = FakeChat()
    document = (await complete(chat, prompt=written)).json()

    assert list(chat.completed[0][0]) == meant
    documents = document if isinstance(document, list) else [document]
    assert [each["prompt"] for each in documents] == told
    assert [each["index"] for each in documents] == list(range(len(meant)))


async def test_a_line_break_is_told_of_a_stream_too() -> None:
    chat = FakeChat((ReplyEvent(text="a\n"), ReplyEvent(text="b"), ending()))
    *_, last = events_of(await complete(chat, stream=True))

    assert last["has_new_line"] is True
    assert (await complete(chat)).json()["has_new_line"] is True
    assert (await complete(FakeChat())).json()["has_new_line"] is False


ENDS: dict[str, tuple[ReplyEvent, str, str, bool]] = {
    "an end token": (ending(), "eos", "", False),
    "a stop string": (replace(ending(), stopped="\n"), "word", "\n", False),
    "a limit": (ending(FinishReason.LENGTH), "limit", "", False),
    "a cancellation": (ending(FinishReason.CANCELLED), "none", "", False),
}


@pytest.mark.parametrize(("end", "kind", "word", "truncated"), ENDS.values(), ids=ENDS.keys())
async def test_why_it_ended_is_told(end: ReplyEvent, kind: str, word: str, truncated: bool) -> None:
    chat = FakeChat((ReplyEvent(text="a"), end))
    whole = (await complete(chat)).json()
    *_, last = events_of(await complete(chat, stream=True))

    for document in (whole, last):
        assert (document["stop_type"], document["stopping_word"]) == (kind, word)
        assert document["truncated"] is truncated


async def test_a_text_that_filled_the_context_is_truncated() -> None:
    chat = FakeChat((ending(FinishReason.LENGTH),), n_ctx=13)

    assert (await complete(chat)).json()["truncated"] is True


async def test_options_reach_the_model_as_they_were_meant() -> None:
    chat = FakeChat()
    await complete(
        chat,
        n_predict=7,
        stop="\n",
        temperature=0.5,
        seed=3,
        ignore_eos=True,
        grammar="root ::= [a]",
        n_indent=4,
        t_max_prompt_ms=500,
        t_max_predict_ms=1500,
        repeat_last_n=-1,
        n_probs=2,
        logit_bias=[[5, -1.5], [6, False]],
    )

    options = chat.completed[0][1]
    assert (options.max_tokens, options.stop, options.ignore_end) == (7, ("\n",), True)
    assert (options.max_prefill_s, options.max_decode_s, options.min_indent) == (0.5, 1.5, 4)
    assert options.grammar == Grammar("gbnf", "root ::= [a]")
    sampling = options.sampling
    assert (sampling.temperature, sampling.seed, sampling.logprobs) == (0.5, 3, 2)
    assert sampling.penalty_window == -1
    assert sampling.logit_bias == ((5, -1.5), (6, -100.0))


NOTHING_ASKED: dict[str, Mapping[str, object]] = {
    "nothing": {},
    "nulls": dict.fromkeys(("n_predict", "stop", "seed", "grammar", "samplers", "t_max_prompt_ms")),
    "what means none": {"n_predict": -1, "seed": -1, "stop": [""], "t_max_predict_ms": -1},
    "the seed that is random by 32 bits": {"seed": 2**32 - 1},
    "an empty grammar": {"grammar": ""},
    "what has no effect": {"cache_prompt": True, "id_slot": -1, "n_keep": 5, "n_discard": 2},
    "what is off": {"mirostat": 0, "dynatemp_range": 0, "top_n_sigma": -1, "lora": []},
    "unknown fields": {"speculative.n_max": 4, "whatever": {"x": 1}},
}


@pytest.mark.parametrize("fields", NOTHING_ASKED.values(), ids=NOTHING_ASKED.keys())
async def test_what_asks_for_nothing_leaves_every_default(fields: Mapping[str, object]) -> None:
    plain, chat = FakeChat(), FakeChat()
    await complete(plain)
    response = await complete(chat, **fields)

    assert response.status_code == 200, response.text
    assert chat.completed == plain.completed


MOVED: dict[str, tuple[str, object, object]] = {
    "a temperature above": ("temperature", 50, 10.0),
    "a temperature below": ("temperature", -1, 0.0),
    "top_k below": ("top_k", -1, 0),
    "top_p above": ("top_p", 1.5, 1.0),
    "min_p below": ("min_p", -0.1, 0.0),
    "typical_p above": ("typical_p", 2, 1.0),
}


@pytest.mark.parametrize(("field", "value", "meant"), MOVED.values(), ids=MOVED.keys())
async def test_a_number_out_of_its_range_is_moved_into_it_as_by_llama_cpp(
    field: str, value: object, meant: object
) -> None:
    chat = FakeChat()
    response = await complete(chat, **{field: value})

    assert response.status_code == 200, response.text
    assert getattr(chat.completed[0][1].sampling, field) == meant


@pytest.mark.parametrize("name", ["n_predict", "max_tokens", "max_completion_tokens"])
async def test_a_limit_has_three_names(name: str) -> None:
    chat = FakeChat()
    await complete(chat, **{name: 9})

    assert chat.completed[0][1].max_tokens == 9


SAMPLERS: dict[str, object] = {
    "by name": ["top_k", "top-p", "infill", "no such sampler"],
    "by letter": "kpi",
}


@pytest.mark.parametrize("samplers", SAMPLERS.values(), ids=SAMPLERS.keys())
async def test_samplers_that_are_not_named_are_left_out(samplers: object) -> None:
    chat = FakeChat()
    response = await complete(
        chat, samplers=samplers, top_k=5, top_p=0.9, temperature=0.1, repeat_penalty=2.0
    )

    assert response.status_code == 200, response.text
    sampling = chat.completed[0][1].sampling
    assert (sampling.top_k, sampling.top_p) == (5, 0.9)
    assert (sampling.temperature, sampling.repeat_penalty, sampling.typical_p) == (1.0, 1.0, 1.0)
    # Of infill the part that drops what is unlikely.
    assert sampling.min_p == 0.2


async def test_tokens_are_told_when_they_are_asked_for() -> None:
    chat = FakeChat((ReplyEvent(text="a", tokens=(1, 2)), replace(ending(), tokens=(3,))))

    assert (await complete(chat, return_tokens=True)).json()["tokens"] == [1, 2, 3]
    assert (await complete(chat)).json()["tokens"] == []


async def test_probabilities_are_told_whole_and_streamed() -> None:
    told = TokenLogprob(1, b"a", -0.5, ((1, b"a", -0.5), (2, b"\xff", float("-inf"))))
    chat = FakeChat((ReplyEvent(text="a", tokens=(1,), logprobs=(told,)), ending()))
    body = {"id": 1, "token": "a", "bytes": [97], "logprob": -0.5}
    other = {"id": 2, "token": "", "bytes": [255], "logprob": -9999.0}

    whole = (await complete(chat, n_probs=2)).json()
    first, _ = events_of(await complete(chat, n_probs=2, stream=True))

    assert whole["completion_probabilities"] == [body | {"top_logprobs": [body, other]}]
    assert first["completion_probabilities"] == whole["completion_probabilities"]


async def test_only_those_fields_come_that_are_asked_for() -> None:
    fields = ["content", "timings/prompt_n", "generation_settings/n_predict", "nothing", "prompt/x"]
    whole = (await complete(FakeChat(), n_predict=5, response_fields=fields)).json()
    *chunks, last = events_of(await complete(FakeChat(), response_fields=fields, stream=True))

    assert whole == {
        "content": "Hello",
        "timings/prompt_n": 6,
        "generation_settings/n_predict": 5,
    }
    assert set(last) == set(whole)
    assert chunks[0]["content"] == "Hel"


async def test_several_answers_come_in_a_list_and_stream_with_an_index() -> None:
    documents = (await complete(FakeChat(), prompt=["a", "b"], n_cmpl=2)).json()
    chunks = events_of(await complete(FakeChat(), prompt=["a", "b"], stream=True))

    assert [(each["index"], each["prompt"]) for each in documents] == [
        (0, "a"),
        (1, "a"),
        (2, "b"),
        (3, "b"),
    ]
    assert sum(chunk["stop"] for chunk in chunks) == 2
    for index in (0, 1):
        texts = [chunk["content"] for chunk in chunks if chunk["index"] == index]
        assert "".join(texts) == "Hello"


async def test_to_predict_nothing_reads_the_prompt_and_says_nothing() -> None:
    chat = FakeChat((ReplyEvent(text="x", tokens=(5,)), ending(FinishReason.STOP)))
    whole = (await complete(chat, n_predict=0, return_tokens=True, t_max_prompt_ms=1)).json()
    only = events_of(await complete(chat, n_predict=0, stream=True))

    options = chat.completed[0][1]
    assert (options.max_tokens, options.context.priority) == (1, "background")
    # Nobody waits for it: what a client allows for a prompt is no limit of this one.
    assert options.max_prefill_s is None
    assert (whole["content"], whole["tokens"], whole["tokens_predicted"]) == ("", [], 0)
    assert (whole["stop_type"], whole["tokens_cached"]) == ("limit", 10)
    assert [chunk["stop"] for chunk in only] == [True]


async def test_a_stream_that_fails_ends_with_an_error() -> None:
    failed = replace(ending(FinishReason.ERROR), error=EngineCrashedError("gone"))
    chat = FakeChat((ReplyEvent(text="a"), failed))

    *_, error = events_of(await complete(chat, stream=True))

    assert error["error"]["message"].startswith("gone")
    assert (await complete(chat)).status_code == 503


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_prompt_over_the_context_is_told_with_both_numbers(stream: bool) -> None:
    for asking, field in ((complete, "prompt"), (infill, "input_prefix")):
        response = await asking(FakeChat(error=ContextLengthError(200, 100)), stream=stream)

        error = response.json()["error"]
        assert response.status_code == 400
        assert (error["n_prompt_tokens"], error["n_ctx"]) == (200, 100)
        assert error["param"] == field


REFUSED: dict[str, tuple[Mapping[str, object], str]] = {
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "no prompt": ({"prompt": None}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty text among others": ({"prompt": ["a", ""]}, "prompt"),
    "an empty list among others": ({"prompt": [[]]}, "prompt"),
    "a truth": ({"prompt": True}, "prompt"),
    "an id below": ({"prompt": [-1]}, "prompt"),
    "half an id": ({"prompt": [1, 0.5]}, "prompt"),
    "65 prompts": ({"prompt": ["a"] * 65}, "prompt"),
    "an image": ({"prompt": {"prompt_string": "a", "multimodal_data": ["eA=="]}}, "prompt"),
    "tokens below": ({"n_predict": -2}, "n_predict"),
    "tokens in words": ({"n_predict": "all"}, "n_predict"),
    "9 answers": ({"n_cmpl": 9}, "n_cmpl"),
    "21 probabilities": ({"n_probs": 21}, "n_probs"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "stop a number": ({"stop": 5}, "stop"),
    "an indentation below": ({"n_indent": -1}, "n_indent"),
    "a time of a year": ({"t_max_predict_ms": 10**11}, "t_max_predict_ms"),
    "half a millisecond": ({"t_max_prompt_ms": 0.5}, "t_max_prompt_ms"),
    "fields of no list": ({"response_fields": "content"}, "response_fields"),
    "a bias of a word": ({"logit_bias": [["Hi", 1.0]]}, "logit_bias"),
    "biases of three": ({"logit_bias": [[1, 2, 3]]}, "logit_bias"),
    "mirostat": ({"mirostat": 2}, "mirostat"),
    "a temperature that moves": ({"dynatemp_range": 0.5}, "dynatemp_range"),
    "top_n_sigma": ({"top_n_sigma": 1.0}, "top_n_sigma"),
    "an adapter": ({"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
    "probabilities behind the samplers": ({"post_sampling_probs": True}, "post_sampling_probs"),
    "stream a number": ({"stream": 1}, "stream"),
    "two forms": ({"grammar": "root ::= [a]", "json_schema": {}}, "json_schema"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_cannot_be_done_is_refused_by_name(
    fields: Mapping[str, object], param: str
) -> None:
    chat = FakeChat()
    response = await complete(chat, **fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].partition("[")[0] == param
    assert chat.completed == []

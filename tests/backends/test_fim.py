"""Text filled in by models with real vocabularies: every way to ask gives the same tokens.

The weights are random: what is asked of the model, and that its answer is told as it is, is checked
here, not whether the answer is good code.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import ServedModel
from localrun.chat.templates import Renderer
from localrun.cli.worker import describe
from localrun.engine.engine import Engine
from localrun.engine.local import LocalEngineClient
from localrun.engine.request import GenerationRequest, SamplingParams, TokenEvent
from localrun.engine.runner import FillInMiddle, ModelRunner
from localrun.formats.read import read_header
from localrun.plan.plan import Execution
from localrun.server.app import create_app
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from tests.gguf_builder import I32, As, gguf_bytes
from tests.loads import unlimited
from tests.plans import bare_plan
from tests.unit.test_server_chat import client_of, events_of

LoadModel = Callable[..., ModelRunner]
BEFORE, AFTER = "def total(items):\n    result = 0\n    for item in ", "\n    return result\n"
# What Qwen2.5 has where the vocabulary of Qwen2, the same else, has nothing yet.
# https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B/blob/main/tokenizer_config.json
QWEN_CODER = {
    151659: "<|fim_prefix|>",
    151660: "<|fim_middle|>",
    151661: "<|fim_suffix|>",
    151662: "<|fim_pad|>",
    151663: "<|repo_name|>",
    151664: "<|file_sep|>",
}
CONTROL = 3


@dataclass(frozen=True)
class Family:
    """A vocabulary of ``models/ggml-vocab-*.gguf``: the names of the tokens around a gap, and all
    that a prompt begins with. ``named`` are tokens that the file lacks."""

    file: str
    fim: FillInMiddle
    prefix: str
    suffix: str
    middle: str
    begins: tuple[int, ...] = ()
    named: Mapping[int, str] = field(default_factory=dict)

    @property
    def raw(self) -> str:
        return f"{self.prefix}{BEFORE}{self.suffix}{AFTER}{self.middle}"


QWEN = Family(
    "qwen2",
    FillInMiddle(151659, 151661, 151660, repository=151663, file=151664),
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    named=QWEN_CODER,
)
STARCODER = Family(
    "starcoder",
    # It has tokens for files too, which llama.cpp does not know by their names.
    FillInMiddle(1, 3, 2),
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
)
DEEPSEEK = Family(
    "deepseek-coder",
    FillInMiddle(32016, 32015, 32017),
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
    begins=(32013,),
)
FAMILIES = {each.file: each for each in (QWEN, STARCODER, DEEPSEEK)}
LAYERS, WIDTH, HEADS, KV_HEADS, FFN = 2, 64, 4, 2, 128
MADE = 12


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    keys = WIDTH // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name, rows in (("q", WIDTH), ("k", keys), ("v", keys)):
            found[f"{at}attn_{name}.weight"] = (rows, WIDTH)
            found[f"{at}attn_{name}.bias"] = (rows,)
        found[f"{at}attn_output.weight"] = (WIDTH, WIDTH)
        found |= {f"{at}{name}.weight": (FFN, WIDTH) for name in ("ffn_gate", "ffn_up")}
        found[f"{at}ffn_down.weight"] = (WIDTH, FFN)
        found |= {f"{at}{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    return found | {"output_norm.weight": (WIDTH,)}


def tiny(vocabulary: Path, named: Mapping[int, str]) -> bytes:
    """A Qwen2 of random weights with the vocabulary of a file that has nothing else."""
    known = read_header([vocabulary]).metadata
    metadata: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in known.items()
        if key.startswith("tokenizer.")
    }
    for token, name in named.items():
        assert metadata["tokenizer.ggml.tokens"][token] == f"[PAD{token}]"
        metadata["tokenizer.ggml.tokens"][token] = name
        metadata["tokenizer.ggml.token_type"][token] = CONTROL
    metadata["tokenizer.ggml.token_type"] = As(I32, metadata["tokenizer.ggml.token_type"])
    metadata |= {
        "general.architecture": "qwen2",
        "qwen2.block_count": LAYERS,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": WIDTH,
        "qwen2.feed_forward_length": FFN,
        "qwen2.attention.head_count": HEADS,
        "qwen2.attention.head_count_kv": KV_HEADS,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen2.rope.freq_base": 1e6,
    }
    drawn = np.random.default_rng(7)
    tensors, data = [], {}
    for name, shape in shapes(len(metadata["tokenizer.ggml.tokens"])).items():
        flat = len(shape) == 1
        scale = 0.5 if flat else 1 / math.sqrt(shape[-1])
        values = drawn.normal(1.0 if name.endswith("norm.weight") else 0.0, scale, shape)
        tensors.append((name, shape, "F32" if flat else "F16"))
        data[name] = values.astype(np.float32 if flat else np.float16).tobytes()
    return gguf_bytes(metadata, tensors, data=data)


@dataclass
class Recording:
    """An engine's client that remembers what was asked of it."""

    client: LocalEngineClient
    requests: list[GenerationRequest] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        async for event in self.client.generate(request):
            self.told += event.tokens
            yield event

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture(scope="module")
def tiny_path(
    llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family], Path]:
    folder = tmp_path_factory.mktemp("tiny")

    def path_of(family: Family) -> Path:
        path = folder / f"{family.file}.gguf"
        if not path.exists():
            vocabulary = llama_cpp_source / "models" / f"ggml-vocab-{family.file}.gguf"
            path.write_bytes(tiny(vocabulary, family.named))
        return path

    return path_of


@asynccontextmanager
async def asking(runner: ModelRunner) -> AsyncIterator[tuple[httpx2.AsyncClient, Recording]]:
    """A client of a port with this one model, and what arrives at its engine."""
    engine = Engine(runner)
    execution = Execution(engine.n_ctx, 64, "f16", 1, 1, mmap=True, gpu_layers=0)
    plan = bare_plan(execution, ref="tiny")
    recording = Recording(LocalEngineClient(engine, describe(plan, engine)))

    async def open_model(name: str) -> ServedModel:
        return LocalChatModel(recording, Renderer())

    provider = LoadingProvider(unlimited(open_model), cards=lambda: [ModelCard("tiny", 0)])
    try:
        async with client_of(create_app(provider)) as client:
            yield client, recording
    finally:
        await provider.close()


def by_hand(runner: ModelRunner, prompt: list[int]) -> list[int]:
    """What the engine itself goes on with, asked without any dialect."""
    greedy = SamplingParams(temperature=0)
    asked = GenerationRequest("by hand", tuple(prompt), greedy, max_tokens=MADE)
    engine = Engine(runner)
    try:
        return [token for event in engine.submit(asked) for token in event.tokens]
    finally:
        engine.close()


OPENAI = {"model": "tiny", "max_tokens": MADE, "temperature": 0}
LLAMA = {"n_predict": MADE, "temperature": 0, "return_tokens": True}
OLLAMA = {"model": "tiny", "stream": False, "options": {"temperature": 0, "num_predict": MADE}}
GAP = {"input_prefix": BEFORE, "input_suffix": AFTER}
Way = tuple[str, dict[str, Any], tuple[str | int, ...]]
"""The path, the body and where the text of the answer is."""


def ways(family: Family) -> dict[str, Way]:
    raw, marks = family.raw, family.fim
    far = [{"text": "x = 1\n" * 2000, "filename": "x.py"}]
    ids = [*family.begins, marks.prefix, BEFORE, marks.suffix, AFTER, marks.middle]
    begun = {"input_prefix": BEFORE[:20], "prompt": BEFORE[20:], "input_suffix": AFTER}
    choice = ("choices", 0, "text")
    return {
        "infill": ("/infill", LLAMA | GAP, ("content",)),
        "infill of a line that has begun": ("/infill", LLAMA | begun, ("content",)),
        "infill without room": ("/infill", LLAMA | GAP | {"input_extra": far}, ("content",)),
        "a suffix": ("/v1/completions", OPENAI | {"prompt": BEFORE, "suffix": AFTER}, choice),
        "tokens in a prompt": ("/v1/completions", OPENAI | {"prompt": raw}, choice),
        "tokens in llama.cpp's": ("/completion", LLAMA | {"prompt": raw}, ("content",)),
        "ids and texts": ("/completion", LLAMA | {"prompt": ids}, ("content",)),
        "Ollama's suffix": (
            "/api/generate",
            OLLAMA | {"prompt": BEFORE, "suffix": AFTER},
            ("response",),
        ),
        "Ollama's raw": ("/api/generate", OLLAMA | {"prompt": raw, "raw": True}, ("response",)),
    }


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
async def test_every_way_to_ask_gives_the_same_tokens_and_the_engine_s_own_answer(
    load_model: LoadModel, tiny_path: Callable[[Family], Path], family: Family
) -> None:
    runner = load_model(tiny_path(family), n_ctx=512)
    pieces, fim = runner.vocabulary().tokens, runner.vocabulary().fim
    plain = [
        runner.tokenize(text, add_special=False, parse_special=False) for text in (BEFORE, AFTER)
    ]
    assert fim == family.fim
    prompt = [*family.begins, fim.prefix, *plain[0], fim.suffix, *plain[1], fim.middle]
    texts: dict[str, str] = {}
    async with asking(runner) as (client, recording):
        for about, (path, body, place) in ways(family).items():
            response = await client.post(path, json=body)
            assert response.status_code == 200, f"{about}: {response.text}"
            found = response.json()
            for name in place:
                found = found[name]
            texts[about] = found
        told, asked = recording.told, [list(each.prompt) for each in recording.requests]

    expected = by_hand(load_model(tiny_path(family), n_ctx=512), prompt)

    assert len(expected) == MADE
    assert asked == [prompt] * len(texts)
    assert told == expected * len(texts)
    text = b"".join(pieces[token] for token in expected).decode("utf-8", "replace")
    assert texts == dict.fromkeys(ways(family), text)


async def test_other_files_stand_before_the_gap_by_their_names(
    load_model: LoadModel, tiny_path: Callable[[Family], Path]
) -> None:
    runner = load_model(tiny_path(QWEN), n_ctx=512)
    extra = [{"text": "x = 1\n", "filename": "x.py"}, {"text": "y = 2\n"}]

    async with asking(runner) as (client, recording):
        response = await client.post("/infill", json=LLAMA | GAP | {"input_extra": extra})
        assert response.status_code == 200, response.text
        prompt = recording.requests[0].prompt
        told = await client.post("/detokenize", json={"tokens": prompt})

    assert told.json()["content"] == (
        "<|repo_name|>myproject\n<|file_sep|>x.py\nx = 1\n<|file_sep|>tmp\ny = 2\n"
        f"<|file_sep|>filename\n{QWEN.raw}"
    )
    marks = [QWEN_CODER[token] for token in prompt if token in QWEN_CODER]
    files, gap = ["<|file_sep|>"] * 3, [QWEN.prefix, QWEN.suffix, QWEN.middle]
    assert marks == ["<|repo_name|>", *files, *gap]


async def test_names_of_tokens_in_code_are_no_tokens_where_the_gap_is_told_apart(
    load_model: LoadModel, tiny_path: Callable[[Family], Path]
) -> None:
    runner = load_model(tiny_path(QWEN), n_ctx=512)
    body = LLAMA | {"input_prefix": 'TOKEN = "<|fim_middle|>"', "input_suffix": "<|file_sep|>"}

    async with asking(runner) as (client, recording):
        assert (await client.post("/infill", json=body)).status_code == 200

    marks = [token for token in recording.requests[0].prompt if token in QWEN_CODER]
    assert marks == [QWEN.fim.prefix, QWEN.fim.suffix, QWEN.fim.middle]


async def test_a_stream_joins_to_the_whole_answer_in_each_dialect(
    load_model: LoadModel, tiny_path: Callable[[Family], Path]
) -> None:
    runner = load_model(tiny_path(QWEN), n_ctx=512)
    async with asking(runner) as (client, _):
        whole = (await client.post("/infill", json=LLAMA | GAP)).json()
        stream = await client.post("/infill", json=LLAMA | GAP | {"stream": True})
        body = OPENAI | {"prompt": BEFORE, "suffix": AFTER, "stream": True}
        *chunks, done = events_of(await client.post("/v1/completions", json=body))

    blocks = [block for block in stream.text.split("\n\n") if block]
    told = [httpx2.Response(200, text=block.removeprefix("data: ")).json() for block in blocks]
    assert "".join(each["content"] for each in told) == whole["content"]
    assert [token for each in told for token in each["tokens"]] == whole["tokens"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["content"]
    assert done == "[DONE]"


async def test_a_gap_over_the_context_is_told_with_both_numbers(
    load_model: LoadModel, tiny_path: Callable[[Family], Path]
) -> None:
    runner = load_model(tiny_path(QWEN), n_ctx=256)
    long = "x = 1\n" * 200

    async with asking(runner) as (client, recording):
        answers = [
            await client.post("/infill", json=GAP | {"input_prefix": long}),
            await client.post("/v1/completions", json=OPENAI | {"prompt": long, "suffix": "y"}),
            await client.post("/v1/completions", json=OPENAI | {"prompt": long}),
            await client.post("/completion", json={"prompt": long}),
        ]

    assert recording.requests == [] or all(len(r.prompt) > 256 for r in recording.requests)
    for response in answers:
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["n_ctx"] == 256
        assert error["n_prompt_tokens"] > 256


async def test_a_model_that_was_not_trained_to_fill_gaps_says_so(load_model: LoadModel) -> None:
    async with asking(load_model(n_ctx=256)) as (client, recording):
        answers = [
            await client.post("/infill", json=GAP),
            await client.post("/infill", json=GAP | {"stream": True}),
            await client.post("/v1/completions", json=OPENAI | {"prompt": "a", "suffix": "b"}),
        ]

    assert recording.requests == []
    for response in answers:
        error = response.json()["error"]
        assert response.status_code == 400
        assert "fill-in-the-middle tokens (prefix, suffix and middle)" in error["message"]
        assert error["param"] == "model"

"""An encoder through llama.cpp: its embeddings are transformers', and so are its tokens."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.embeddings import EmbeddingJob
from localrun.engine.engine import Engine
from localrun.engine.request import EmbeddingRequest, GenerationRequest
from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner, SequenceId
from localrun.errors import ContextLengthError, EngineError, RequestError
from localrun.formats.read import read_header
from localrun.hardware.cpus import cpu
from localrun.models.describe import describe
from localrun.plan.memory import llamacpp_memory
from localrun.plan.plan import Execution
from localrun.plan.seats import repacked_types
from tests.encoders import Encoder, convert, write_checkpoint
from tests.plans import bare_plan

if TYPE_CHECKING:
    from tokenizers import Tokenizer

pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")

ROOT = Path(__file__).parents[2]
COSINE = 0.999
TEXTS = (
    "A cat sits on the mat.",
    "The feline rests on a rug.",
    "Quarterly revenue grew by 12.5% year over year.",
    "def main():\n    return 0  # nothing to do",
    "Größe, naïve café, Ångström, Çelik, ﬁn",
    "東京は日本の首都です。",
    "北京是中华人民共和国的首都",
    "한국어 문장은 자모로 나뉩니다.",
    "Привет, мир! Как дела?",
    "Ποιος είναι ο ΟΔΥΣΣΕΥΣ;",
    "مرحبا بالعالم",
    "नमस्ते दुनिया, यह हिन्दी है",
    "🚀 to the moon 🌕 with 👩‍👩‍👧‍👦 and 🇪🇺!",
    "email@example.com, https://example.com/a?b=c#d $5.00 (50%) [x] {y} <z>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "tabs\tand\r\nlines and\u00a0hard\u2003spaces\u200b",
    "null\x00 bell\x07 soft\u00adhyphen \ufeffmark \ufffd replaced",
    "the " * 200,
    "A",
    "Which planet is the largest in the solar system?",
    "SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 1;",
    "No, I have not been there; you have.",
)
# Nothing but control tokens and the one for unknown words: 8 bits blur these a little more.
BARE = ("", "x" * 300, "สวัสดีชาวโลก")
# What is no sentence at all, for the tokenizer alone.
ODD_TEXTS = (
    "a▁the ▁ ▁▁",
    "##ing ## # [unused1] [PAD] [MASK]",
    "y" * 100 + " " + "z" * 101,
    "가" * 34 + " " + "각" * 34,
    "İstanbul ŞIŞLI ǅ ẞ ﬀ Ⅷ ①",
    "e\u0301 vs é; A\u030a vs Å; क्षि",
    "\ud800 half",
    "''`` --- … “quoted” ‘single’ «guillemets» 、。！？",
    "1,234.56 3.14e-10 0xDEADBEEF v2.0.1-rc1",
)


def load(path: Path, positions: int = 512, n_ctx: int | None = None) -> ModelRunner:
    from localrun.backends.llamacpp.backend import load

    n_ctx = n_ctx or positions
    execution = Execution(n_ctx, n_ctx, "f16", 2, 2, True, gpu_layers=0)
    plan = bare_plan(execution, [str(path)])
    return load(replace(plan, model=replace(plan.model, architecture="bert")))


@pytest.fixture(scope="module")
def reference(
    minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.float32]:
    """``[texts, width]`` of transformers' BertModel, in a process of its own."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "texts.json").write_text(json.dumps([*TEXTS, *BARE]), encoding="utf-8")
    arguments = [str(minilm_checkpoint), str(folder / "texts.json"), str(folder / "out.npz")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.minilm_reference", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    vectors: NDArray[np.float32] = np.load(folder / "out.npz")["vectors"]
    return vectors


@pytest.fixture(scope="module")
def tokenizer(minilm_checkpoint: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


@pytest.fixture(scope="module")
def minilm(minilm_path: Path) -> Iterator[ModelRunner]:
    runner = load(minilm_path)
    yield runner
    runner.close()


def tokens(runner: ModelRunner, text: str) -> tuple[int, ...]:
    return tuple(runner.tokenize(text, add_special=True, parse_special=False))


def embedded(runner: ModelRunner, *texts: str) -> NDArray[np.float32]:
    request = EmbeddingRequest("e", tuple(tokens(runner, text) for text in texts))
    job = EmbeddingJob(
        request, runner.capabilities, vocabulary_size=len(runner.vocabulary().tokens)
    )
    while not job.step(runner):
        pass
    return job.vectors


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0"])
def test_embeddings_are_those_of_transformers(
    minilm_checkpoint: Path, reference: NDArray[np.float32], tmp_path: Path, type_name: str
) -> None:
    runner = load(convert(minilm_checkpoint, tmp_path / "minilm.gguf", type_name))
    ours = embedded(runner, *TEXTS, *BARE)
    runner.close()

    assert len(TEXTS) >= 20
    assert ours.shape == reference.shape == (len(TEXTS) + len(BARE), 384)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    cosines = (ours * reference).sum(axis=1)
    assert cosines[: len(TEXTS)].min() >= COSINE, dict(zip(TEXTS, cosines.tolist(), strict=False))
    assert cosines.min() >= (0.998 if type_name == "Q8_0" else COSINE)
    # The reference tells texts apart: agreement with it is no accident.
    assert np.median(reference @ reference.T) < 0.5


@pytest.mark.parametrize("text", [*TEXTS, *BARE, *ODD_TEXTS], ids=lambda text: ascii(text)[1:25])
def test_tokens_are_those_of_the_checkpoints_own_tokenizer(
    minilm: ModelRunner, tokenizer: Tokenizer, text: str
) -> None:
    plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # It parses the names of control tokens wherever they stand.
    ours = minilm.tokenize(text, add_special=True, parse_special=True)

    assert ours == tokenizer.encode(plain).ids


# The tokenizers library's tables are those of Unicode 8: what was assigned since is a letter to it.
YOUNGER_MAX = 150
EVERYDAY = (
    range(1, 0x600),  # Latin, Greek, Cyrillic, Armenian, Hebrew
    range(0x900, 0x980),  # Devanagari
    range(0xE00, 0xE80),  # Thai
    range(0x1100, 0x1200),  # Korean letters
    range(0x1E00, 0x2E43),  # more Latin and Greek, punctuation, symbols
    range(0x3000, 0x3100),  # kana
)


def test_characters_are_tokenized_alike(minilm: ModelRunner, tokenizer: Tokenizer) -> None:
    ranges = (range(1, 0x3100), range(0xAC00, 0xD7A4, 97), range(0x4E00, 0xA000, 211))
    texts = [f"a{chr(code)}b {chr(code)}" for each in ranges for code in each]
    other = {
        ord(text[1]) for text in texts if list(tokens(minilm, text)) != tokenizer.encode(text).ids
    }

    # The library's own normalizer differs at more than 400 of them, Korean syllables among those.
    assert len(other) <= YOUNGER_MAX
    assert not [code for code in other if any(code in block for block in EVERYDAY)]
    assert max(other, default=0) < 0x3000


def test_a_text_begins_and_ends_with_the_control_tokens_of_its_vocabulary(
    minilm: ModelRunner,
) -> None:
    bare = minilm.tokenize("a cat", add_special=False, parse_special=False)
    vocabulary = minilm.vocabulary()

    assert list(tokens(minilm, "a cat")) == [101, *bare, 102]
    assert tokens(minilm, "") == (101, 102)
    assert vocabulary.names[101] == "[CLS]"
    assert (vocabulary.bos, vocabulary.add_bos) == (101, True)


def test_control_tokens_are_text_unless_they_are_parsed(minilm: ModelRunner) -> None:
    parsed = minilm.tokenize("a [SEP] b", add_special=False, parse_special=True)
    plain = minilm.tokenize("a [SEP] b", add_special=False, parse_special=False)

    assert parsed == [1037, 102, 1038]
    assert 102 not in plain


def test_an_encoder_says_what_it_can_do(minilm: ModelRunner) -> None:
    can = minilm.capabilities

    assert (can.embeddings, can.generates, can.pooling) == (True, False, "mean")
    assert can.n_ctx == can.max_tokens == 512


def test_a_text_has_the_same_vector_alone_and_among_others(minilm: ModelRunner) -> None:
    together = embedded(minilm, *TEXTS)
    for at in (0, 6, 19):
        assert np.array_equal(embedded(minilm, TEXTS[at])[0], together[at])


def test_the_longest_text_is_embedded_and_a_longer_one_refused(minilm: ModelRunner) -> None:
    longest = tokens(minilm, "the " * 510)
    assert len(longest) == 512
    assert embedded(minilm, "the " * 510).shape == (1, 384)
    with pytest.raises(ContextLengthError, match=r"513 tokens.* 512"):
        embedded(minilm, "the " * 511)
    with pytest.raises(EngineError, match="1 to 512"):
        minilm.embed([[101] * 513])
    with pytest.raises(EngineError, match="1 to 512"):
        minilm.embed([[101], []])


WITHOUT: dict[str, Callable[[ModelRunner], object]] = {
    "a new sequence": lambda runner: runner.new_sequence(),
    "a fork": lambda runner: runner.fork(SequenceId(0)),
    "logits": lambda runner: runner.forward([BatchItem(SequenceId(0), [101])]),
    "a state": lambda runner: runner.restore(b"state"),
}


@pytest.mark.parametrize("ask", WITHOUT.values(), ids=list(WITHOUT))
def test_what_an_encoder_has_not_is_refused(
    minilm: ModelRunner, ask: Callable[[ModelRunner], object]
) -> None:
    with pytest.raises(EngineError, match="embeddings only"):
        ask(minilm)


def test_a_token_out_of_range_fails_alone(minilm: ModelRunner) -> None:
    for token in (30_522, -1, 2**40):
        with pytest.raises(EngineError):
            minilm.embed([[101, token, 102]])
    assert embedded(minilm, "a cat").shape == (1, 384)


def test_an_abort_ends_a_text_and_the_next_is_sound(minilm: ModelRunner) -> None:
    before = embedded(minilm, "a cat")
    text = list(tokens(minilm, "the " * 510))
    stop = threading.Event()

    def nag() -> None:
        while not stop.is_set():
            minilm.abort()

    nagging = threading.Thread(target=nag)
    nagging.start()
    try:
        with pytest.raises(ForwardAborted):
            minilm.embed([text])
    finally:
        stop.set()
        nagging.join()
    assert np.array_equal(embedded(minilm, "a cat"), before)


def test_a_plan_for_more_positions_than_there_are_is_refused(minilm_path: Path) -> None:
    with pytest.raises(EngineError, match=r"1024 tokens, .* 512 positions"):
        load(minilm_path, n_ctx=1024)


def test_an_engine_embeds_and_refuses_to_generate(minilm_path: Path) -> None:
    engine = Engine(load(minilm_path))
    try:
        ids = tuple(engine.tokenize("a cat", add_special=True, parse_special=False))
        vectors = engine.embed(EmbeddingRequest("e", (ids, ids))).result(timeout=60)
        with pytest.raises(RequestError, match="embeddings only"):
            engine.submit(GenerationRequest("g", ids))
    finally:
        engine.close()

    assert vectors.shape == (2, 384)


async def test_an_engine_in_its_own_process_embeds(minilm_path: Path) -> None:
    from localrun.engine.process.engine_process import EngineProcess

    execution = Execution(512, 512, "f16", 2, 2, True, gpu_layers=0)
    plan = bare_plan(execution, [str(minilm_path)])
    plan = replace(plan, model=replace(plan.model, architecture="bert"))
    client = await EngineProcess.start(
        plan, loader="localrun.backends.llamacpp.backend:load", chat_template=None
    )
    try:
        ids = tuple(await client.tokenize("a cat", add_special=True, parse_special=False))
        (vector,) = await client.embed(EmbeddingRequest("e", (ids,)))
        with pytest.raises(RequestError, match="embeddings only"):
            async for _ in client.generate(GenerationRequest("g", ids)):
                pass
    finally:
        await client.close()

    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert (client.info.generates, client.info.embeds, client.info.pooling) == (False, True, "mean")


SHAPES = {
    "MiniLM-L6": Encoder(6, 384, 12, 1536, 512, 30_522),
    "a wider model": Encoder(2, 768, 12, 3072, 512, 3000),
    "a narrow feed-forward": Encoder(3, 512, 8, 512, 512, 1000),
    "a wide feed-forward": Encoder(2, 256, 4, 4096, 256, 1000),
    "many layers": Encoder(12, 128, 2, 256, 128, 500),
}


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_an_encoder_takes_what_was_planned(tmp_path: Path, shape: Encoder, type_name: str) -> None:
    path = convert(write_checkpoint(tmp_path / "it", shape), tmp_path / "it.gguf", type_name)
    header = read_header([path])
    n_ctx = shape.positions
    plan = llamacpp_memory(
        describe(header),
        Execution(n_ctx, n_ctx, "f16", 2, 2, True, gpu_layers=0),
        header.tensors,
        repacked=repacked_types(cpu().flags),
    )["ram"]
    runner = load(path, n_ctx)
    real = runner.stats().memory_parts["ram"]
    runner.close()

    assert plan.weights + plan.mapped == pytest.approx(real["weights"], abs=(1 << 20) // 50)
    assert plan.output == pytest.approx(real["output"], abs=(1 << 20) // 50)
    assert 0.98 * sum(real.values()) <= plan.logged <= 1.10 * sum(real.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("type_name", ["F16", "Q8_0"])
def test_a_process_takes_what_was_planned_for_the_longest_text(
    minilm_checkpoint: Path, tmp_path: Path, type_name: str
) -> None:
    path = convert(minilm_checkpoint, tmp_path / "minilm.gguf", type_name)
    header = read_header([path])
    plan = llamacpp_memory(
        describe(header),
        Execution(512, 512, "f16", 2, 2, True, gpu_layers=0),
        header.tensors,
        repacked=repacked_types(cpu().flags),
    )["ram"]
    code = (
        "import sys; from pathlib import Path; from tests.backends import test_bert_embeddings;"
        "test_bert_embeddings.print_peak(Path(sys.argv[1]))"
    )
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    peak = int(outcome.stdout)

    assert 0.98 * peak <= plan.total <= 1.10 * peak, (plan, peak)


def print_peak(path: Path) -> None:
    """What a process takes for a load and the longest text, beyond what it had after another."""
    from tests.memory_child import status

    for _ in range(2):  # the first load also brings in modules and libraries
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status("VmRSS")
        runner = load(path)
        runner.embed([[1 + at % 50 for at in range(512)]])
        peak = status("VmHWM") - before
        runner.close()
    print(peak)

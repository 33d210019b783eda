"""What the torch backend takes and refuses, at load and after, and which steps it undoes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localrun.backends.registry import choose
from localrun.backends.torch import backend
from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner
from localrun.errors import (
    BackendMissingError,
    EngineError,
    HeaderError,
    LocalrunError,
    OutOfMemoryError,
    SourceError,
    UsageError,
)
from localrun.formats.header import Format
from localrun.models.spec import ModelSpec
from localrun.plan.plan import Execution, Placement, PlannedMachine, PlannedTier
from tests.plans import bare_plan

torch = pytest.importorskip("torch", reason="torch is not installed")
LLAMA = ModelSpec("llama", "a model", 1, 1, 1, 1, 1, 1, {}, None, None, None)
TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32]
ARCHITECTURES = ("llama", "deepseek_v32", "deepseek_v4", "deepseek_v41")
Tensors = dict[str, Any]


def execution(**changes: Any) -> Execution:
    plain = Execution(64, 32, "native", 1, 1, True, gpu_layers=0, numerics="float32")
    return replace(plain, **changes)


_OPEN: list[ModelRunner] = []


def load(folder: Path, **changes: Any) -> ModelRunner:
    """A runner that is closed when the test ends."""
    runner = opened(folder, **changes)
    _OPEN.append(runner)
    return runner


def opened(folder: Path, **changes: Any) -> ModelRunner:
    files = sorted(str(path) for path in folder.glob("*.safetensors"))
    return backend.load(bare_plan(execution(**changes), files, backend="torch"))


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The smallest release of each architecture, as it is published."""
    from tests import deepseek

    folder = tmp_path_factory.mktemp("released")
    return {name: deepseek.write(folder / name, deepseek.base(name)) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def llama(checkpoints: Mapping[str, Path]) -> Iterator[ModelRunner]:
    runner = opened(checkpoints["llama"])
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("architecture", "format", "refusal"),
    [
        ("llama", "safetensors", None),
        ("mistral", "safetensors", None),
        ("deepseek_v3", "safetensors", None),
        ("deepseek_v32", "safetensors", None),
        ("deepseek_v4", "safetensors", None),
        ("deepseek_v41", "safetensors", None),
        ("llama", "gguf", None),
        ("deepseek2", "gguf", None),
        ("deepseek41", "gguf", None),
        ("deepseek_v41", "gguf", "has no model of type 'deepseek_v41' in gguf files"),
        ("deepseek41", "safetensors", "has no model of type 'deepseek41' in safetensors files"),
        ("qwen3", "safetensors", "has no model of type 'qwen3' in safetensors files"),
    ],
)
def test_what_is_supported(architecture: str, format: Format, refusal: str | None) -> None:
    assert backend.supports(replace(LLAMA, architecture=architecture), format) == refusal


def test_an_encoder_is_refused() -> None:
    assert "embeddings" in (backend.supports(replace(LLAMA, encoder=True), "safetensors") or "")


@pytest.mark.parametrize(
    ("architecture", "format", "requested", "chosen"),
    [
        ("llama", "safetensors", None, "torch"),
        ("qwen3", "safetensors", None, "mlx"),
        ("llama", "gguf", None, "llama.cpp"),
        ("llama", "gguf", "torch", "torch"),
        ("deepseek4", "gguf", None, "llama.cpp"),
        ("deepseek41", "gguf", None, "torch"),
    ],
)
def test_torch_is_chosen_for_what_it_is_there_for(
    architecture: str, format: Format, requested: str | None, chosen: str
) -> None:
    assert choose(replace(LLAMA, architecture=architecture), format, requested)[0] == chosen


def test_asking_what_is_supported_imports_no_library() -> None:
    code = (
        "import sys; from localrun.backends.torch import backend; import localrun.models.spec as s;"
        "backend.supports(s.ModelSpec('llama','',1,1,1,1,1,1,{},None,None,None),'gguf');"
        "print([n for n in ('torch','numpy','tokenizers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_absent_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Mapping[str, Path]
) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda _name: None)
    report = backend.probe()

    assert not report.installed
    assert report.install.endswith(" -m pip install torch==2.13.0")
    with pytest.raises(BackendMissingError) as caught:
        load(checkpoints["llama"])
    assert caught.value.hint == report.install


def test_a_library_that_does_not_load_is_installed_anew(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Mapping[str, Path]
) -> None:
    import localrun.backends.torch as package

    monkeypatch.delattr(package, "library", raising=False)
    monkeypatch.setitem(sys.modules, f"{package.__name__}.library", None)
    report = backend.probe()

    assert report.installed
    assert "does not load" in (report.problem or "")
    assert "--force-reinstall torch==2.13.0" in report.install
    with pytest.raises(BackendMissingError, match="does not load") as caught:
        load(checkpoints["llama"])
    assert caught.value.hint == report.install


def test_the_installed_library_shows_its_devices() -> None:
    report = backend.probe()

    assert report.problem is None
    assert report.version == torch.__version__
    assert [device.name for device in report.devices if device.kind == "cpu"] == ["cpu"]
    assert report.has_gpu == torch.cuda.is_available()


@pytest.mark.parametrize("numerics", ["fast", "reference", "float32", "float32-qat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_as_released_in_every_mode(
    checkpoints: Mapping[str, Path], name: str, numerics: str
) -> None:
    runner = load(checkpoints[name], numerics=numerics)
    sequence = runner.new_sequence()
    whole = runner.forward([BatchItem(sequence, TOKENS, "all")]).numpy().copy()

    assert whole.shape == (len(TOKENS), len(runner.vocabulary().tokens))
    assert np.isfinite(whole).all()
    assert runner.stats().numerics == numerics
    assert numerics in runner.identity()
    restored = runner.restore(runner.save(sequence))
    after = [runner.forward([BatchItem(at, [7])]).numpy().copy() for at in (sequence, restored)]
    np.testing.assert_array_equal(*after)


def test_states_of_shortened_prompts_are_not_those_of_whole_ones(
    checkpoints: Mapping[str, Path],
) -> None:
    whole, shorter = (
        load(checkpoints["deepseek_v41"], approximate_prefill=asked) for asked in (False, True)
    )

    assert whole.identity() != shorter.identity()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_of_a_batch_are_those_of_each_sequence_alone(
    checkpoints: Mapping[str, Path], name: str
) -> None:
    runner = load(checkpoints[name], parallel=3)
    texts = {runner.new_sequence(): TOKENS[start:] for start in range(3)}
    alone = {}
    for sequence, tokens in texts.items():
        alone[sequence] = runner.forward([BatchItem(sequence, tokens, "all")]).numpy().copy()
        runner.truncate(sequence, 0)
    first = [BatchItem(sequence, tokens[:4], "all") for sequence, tokens in texts.items()]
    rest = [BatchItem(sequence, tokens[4:], "last") for sequence, tokens in texts.items()]

    made = runner.forward(first).numpy().copy()
    last = runner.forward(rest).numpy().copy()

    for at, sequence in enumerate(texts):
        np.testing.assert_allclose(made[4 * at : 4 * at + 4], alone[sequence][:4], atol=1e-4)
        np.testing.assert_allclose(last[at], alone[sequence][-1], atol=1e-4)


def edited(folder: Path, out: Path, edit: Callable[[Tensors], None], **config: Any) -> Path:
    """A checkpoint in one file, its tensors and its configuration changed."""
    from safetensors.torch import load_file, save_file

    out.mkdir()
    tensors: Tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    edit(tensors)
    save_file(tensors, out / "model.safetensors")
    for path in folder.glob("*.json"):
        if path.name != "model.safetensors.index.json":
            (out / path.name).write_bytes(path.read_bytes())
    told = json.loads((out / "config.json").read_text())
    inner = told.get("text_config", {})
    for key, value in config.items():
        (inner if key in inner else told)[key] = value
    (out / "config.json").write_text(json.dumps(told))
    return out


def without(name: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        del tensors[name]

    return edit


def put(name: str, made: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[name] = made(tensors.get(name))

    return edit


DOWN = "model.layers.1.mlp.down_proj.weight"
TENSORS: dict[str, tuple[Callable[[Tensors], None], type[LocalrunError], str]] = {
    "one is missing": (without(DOWN), HeaderError, f"{DOWN}.*is not in the checkpoint"),
    "one too many": (
        put("model.layers.1.mlp.gates.weight", lambda _: torch.zeros(2, 2)),
        HeaderError,
        "model.layers.1.mlp.gates.weight.*nobody reads it",
    ),
    "a layer too many": (
        put("model.layers.99.input_layernorm.weight", lambda _: torch.zeros(2)),
        HeaderError,
        "model.layers.99.input_layernorm.weight.*nobody reads it",
    ),
    "another shape": (put(DOWN, lambda old: old[:-1].clone()), HeaderError, f"{DOWN}.*shape"),
    "its columns for its rows": (
        put(DOWN, lambda old: old.T.contiguous()),
        HeaderError,
        f"{DOWN}.*shape",
    ),
    "integers": (put(DOWN, lambda old: old.to(torch.int64)), HeaderError, f"{DOWN}.*I64"),
    "codes without a scale": (
        put(DOWN, lambda old: old.to(torch.float8_e4m3fn)),
        HeaderError,
        f"{DOWN}.*without a scale",
    ),
    "no number": (
        put(DOWN, lambda old: old.index_fill(0, torch.tensor(3), float("nan"))),
        SourceError,
        DOWN,
    ),
}


@pytest.mark.parametrize(("edit", "error", "named"), TENSORS.values(), ids=TENSORS.keys())
def test_a_checkpoint_with_other_tensors_is_refused_by_their_name(
    checkpoints: Mapping[str, Path],
    tmp_path: Path,
    edit: Callable[[Tensors], None],
    error: type[LocalrunError],
    named: str,
) -> None:
    with pytest.raises(error, match=named) as caught:
        load(edited(checkpoints["llama"], tmp_path / "edited", edit))
    if isinstance(caught.value, HeaderError):
        assert caught.value.file.endswith(("edited", "model.safetensors"))


FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another model": ("llama", {"model_type": "qwen3"}, "qwen3"),
    "no model": ("llama", {"model_type": None}, "model_type"),
    "another activation": ("llama", {"hidden_act": "relu2"}, "hidden_act"),
    "an unknown rope": ("llama", {"rope_scaling": {"rope_type": "spiral"}}, "rope"),
    "fewer layers than tensors": ("llama", {"num_hidden_layers": 1}, "layers.1"),
    "an unknown score": ("deepseek_v32", {"scoring_func": "softplus"}, "scoring_func"),
    "an unknown way to choose": ("deepseek_v32", {"topk_method": "random"}, "topk_method"),
    "a negative ratio": ("deepseek_v4", {"compress_ratios": [0, 4, -128]}, "compress_ratios"),
    "a fraction of a ratio": ("deepseek_v4", {"compress_ratios": [0, 4, 1.5]}, "compress_ratios"),
    "another score of V4": ("deepseek_v4", {"scoring_func": "softmax2"}, "scoring_func"),
    "a ratio that is none of V4.1's": ("deepseek_v41", {"compress_ratios": [7]}, "compress_ratios"),
    "another number of classes": (
        "deepseek_v41",
        {"engram_compressed_vocab_size": 77},
        "engram_compressed_vocab_size",
    ),
}


@pytest.mark.parametrize(("name", "config", "named"), FIELDS.values(), ids=FIELDS.keys())
def test_a_configuration_that_is_not_understood_is_refused_by_its_field(
    checkpoints: Mapping[str, Path], tmp_path: Path, name: str, config: dict[str, Any], named: str
) -> None:
    with pytest.raises((HeaderError, UsageError), match=named):
        load(edited(checkpoints[name], tmp_path / "edited", lambda _: None, **config))


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = edited(checkpoints["llama"], tmp_path / "edited", lambda _: None)
    (folder / "tokenizer.json").unlink()

    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        load(folder)


@pytest.fixture(scope="module")
def endless(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers so large that their sum in the second layer is none."""

    def edit(tensors: Tensors) -> None:
        tensors[DOWN] = torch.full_like(tensors[DOWN], 3e38)

    return edited(checkpoints["llama"], tmp_path_factory.mktemp("endless") / "edited", edit)


def test_logits_that_are_no_numbers_end_the_step_and_leave_the_sequence(endless: Path) -> None:
    runner = load(endless)
    sequence = runner.new_sequence()

    with pytest.raises(EngineError, match="logits of token 2 are not numbers"):
        runner.forward([BatchItem(sequence, TOKENS[:3])])
    assert runner.truncate(sequence, 99) == 0
    assert runner.stats().tokens == 0


def test_a_table_on_disk_that_holds_no_numbers_ends_the_step_and_leaves_the_sequence(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    """Its rows are read, and looked at, when a step wants them."""

    def edit(tensors: Tensors) -> None:
        for name in [each for each in tensors if each.endswith(".engram.embed.weight")]:
            nan = torch.full_like(tensors[name].view(torch.uint8), 0x7F)
            tensors[name] = nan.view(torch.float8_e4m3fn)

    folder = edited(checkpoints["deepseek_v41"], tmp_path / "edited", edit)
    runner = load(folder, engram="disk")
    sequence = runner.new_sequence()

    with pytest.raises(EngineError, match=r"engram\.embed"):
        runner.forward([BatchItem(sequence, TOKENS)])
    assert runner.truncate(sequence, 99) == 0


def test_a_context_that_no_memory_holds_is_refused_at_load(
    checkpoints: Mapping[str, Path],
) -> None:
    with pytest.raises(OutOfMemoryError, match="a sequence"):
        load(checkpoints["llama"], n_ctx=1 << 42)


def test_the_first_layer_that_gives_no_numbers_is_named_where_that_is_asked_for(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALRUN_DEBUG_NAN", "1")
    runner = load(endless)

    with pytest.raises(EngineError, match="layer 1 is the first"):
        runner.forward([BatchItem(runner.new_sequence(), TOKENS[:3])])


def test_a_head_that_gives_no_numbers_is_told_from_the_layers(
    checkpoints: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(tensors: Tensors) -> None:
        norm = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = torch.full_like(norm, 3e38)

    monkeypatch.setenv("LOCALRUN_DEBUG_NAN", "1")
    runner = load(edited(checkpoints["llama"], tmp_path / "edited", edit))

    with pytest.raises(EngineError, match="logits of token 2") as caught:
        runner.forward([BatchItem(runner.new_sequence(), TOKENS[:3])])
    assert "every layer gave numbers" in caught.value.hint


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_that_ends_early_leaves_every_sequence_as_it_was(
    checkpoints: Mapping[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Abandoned behind each layer in turn, at tokens that overwrite rows of every window."""
    runner = load(checkpoints[name], n_ctx=256, ubatch=128)
    sequence, other = runner.new_sequence(), runner.new_sequence()
    text = [(7 * at) % 250 + 1 for at in range(90)]
    runner.forward([BatchItem(sequence, text[:30]), BatchItem(other, text[:7])])
    expected = runner.forward([BatchItem(runner.fork(sequence), text[30:])]).numpy().copy()
    watch = type(runner)._watch
    for end in (0, 1):

        def early(self: Any, layer: int, x: Any, end: int = end) -> None:
            if layer == end:
                raise ForwardAborted
            watch(self, layer, x)

        monkeypatch.setattr(type(runner), "_watch", early)
        with pytest.raises(ForwardAborted):
            runner.forward([BatchItem(other, text[7:20]), BatchItem(sequence, text[::-1])])
        monkeypatch.setattr(type(runner), "_watch", watch)

    assert runner.truncate(sequence, 99) == 30
    assert runner.truncate(other, 99) == 7
    made = runner.forward([BatchItem(sequence, text[30:])]).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_as_many_tokens_can_be_taken_back_as_it_says_over_any_steps(
    checkpoints: Mapping[str, Path], name: str
) -> None:
    runner = load(checkpoints[name], n_ctx=256, ubatch=128)
    depth = runner.capabilities.rollback_depth
    depth = 12 if depth is None else min(depth, 12)
    assert depth > 0
    sequence = runner.new_sequence()
    text = [(7 * at) % 250 + 1 for at in range(70)]
    runner.forward([BatchItem(sequence, text[:61], "none")])
    expected = runner.forward([BatchItem(runner.fork(sequence), text[61:])]).numpy().copy()
    for parts in ((depth,), (1,) * depth):
        runner.checkpoint(sequence)
        for count in parts:
            runner.forward([BatchItem(sequence, text[:count])])
        runner.rollback(sequence, depth)

        again = runner.fork(sequence)
        made = runner.forward([BatchItem(again, text[61:])]).numpy()
        np.testing.assert_allclose(made, expected, atol=1e-4)
        runner.free(again)


def test_what_cannot_be_taken_back_is_refused_and_changes_nothing(
    checkpoints: Mapping[str, Path],
) -> None:
    runner = load(checkpoints["deepseek_v4"], n_ctx=256, ubatch=128)
    sequence = runner.new_sequence()
    runner.forward([BatchItem(sequence, [5] * 100, "none")])
    runner.forward([BatchItem(sequence, [5] * 100, "none")])

    with pytest.raises(EngineError, match="cannot be taken back"):
        runner.rollback(sequence, 150)
    assert runner.truncate(sequence, 999) == 200
    assert runner.truncate(sequence, 50) == 0


def test_a_state_of_another_model_or_mode_is_refused(
    checkpoints: Mapping[str, Path], llama: ModelRunner
) -> None:
    sequence = llama.new_sequence()
    llama.forward([BatchItem(sequence, TOKENS)])
    state = llama.save(sequence)
    for name, changes in {
        "deepseek_v32": {},
        "llama": {"numerics": "fast"},
    }.items():
        other = load(checkpoints[name], **changes)
        with pytest.raises(EngineError, match="could not be restored"):
            other.restore(state)
    llama.free(sequence)


def test_a_damaged_state_is_refused_wherever_it_ends(llama: ModelRunner) -> None:
    sequence = llama.new_sequence()
    llama.forward([BatchItem(sequence, TOKENS)])
    state = llama.save(sequence)
    llama.free(sequence)
    end = state.index(b"}}") + 2

    for damaged in (
        *(state[:at] for at in (*range(0, end + 1, 5), len(state) - 1)),
        state + b"\0",
        state.replace(b'"tokens": 9', b'"tokens": 8'),
        state.replace(b'"tokens": 9', b'"tokens":-9'),
        state.replace(b'"float32"', b'"float16"'),
        state.replace(b'"float32"', b'"complex"'),
        state.replace(b"[9, ", b"[-9,"),
    ):
        assert damaged != state
        with pytest.raises(EngineError):
            llama.restore(damaged)


def test_a_plan_that_this_version_cannot_execute_is_refused_before_anything_is_read(
    checkpoints: Mapping[str, Path],
) -> None:
    files = sorted(str(path) for path in checkpoints["llama"].glob("*.safetensors"))
    plan = bare_plan(execution(), files, backend="torch")
    shared = replace(plan, model=replace(plan.model, layers=30), execution=execution(gpu_layers=30))
    refused = {
        "29 of 30 layers and the head on a card": shared,
        "--kv-type q8_0": replace(plan, execution=execution(kv_type="q8_0")),
        "n-gram tables in 'nowhere'": replace(plan, execution=execution(engram="nowhere")),
    }
    for named, each in refused.items():
        with pytest.raises(EngineError, match=named):
            backend.load(each)


def test_a_declared_card_is_computed_by_the_cpu(
    checkpoints: Mapping[str, Path], llama: ModelRunner
) -> None:
    files = sorted(str(path) for path in checkpoints["llama"].glob("*.safetensors"))
    tier = PlannedTier("vram:0", 1 << 30, 1 << 30, 10.0, "assumed", "simulated")
    plan = bare_plan(execution(gpu_layers=99), files, backend="torch")
    apart = (Placement("attention", "vram:0", 1, 1), Placement("experts", "ram", 1, 1))
    runner = backend.load(replace(plan, machine=PlannedMachine(tiers=(tier,)), placements=apart))
    rows = [
        each.forward([BatchItem(each.new_sequence(), TOKENS)]).numpy().copy()
        for each in (runner, llama)
    ]

    np.testing.assert_array_equal(*rows)
    runner.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_a_plan_for_a_card_that_is_not_here_is_refused(checkpoints: Mapping[str, Path]) -> None:
    with pytest.raises(EngineError, match="planned for a GPU"):
        load(checkpoints["llama"], gpu_layers=99)


def test_a_device_is_measured_by_type() -> None:
    """The CPU stands for a card, on matrices small enough for a test."""
    from localrun.backends.torch.calibrate import TYPES, measure_device

    figures = measure_device(torch.device("cpu"), 0.6, rows=128, columns=128)

    assert set(figures.gemv) == set(figures.prefill) == set(TYPES)
    assert all(speed.basis == "measured" and speed.value > 0 for speed in figures.gemv.values())


@pytest.mark.parametrize("k", [1, 3, 40, 300])
def test_rows_on_a_device_are_ranked_as_those_in_numpy(k: int) -> None:
    from localrun.backends.torch.logits import DeviceLogits
    from localrun.engine.rows import NumpyLogits

    rows = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    there, here = DeviceLogits(rows), NumpyLogits(rows.numpy())

    for row in range(2):
        assert there.argmax(row) == here.argmax(row)
        for found, expected in zip(there.topk(row, k), here.topk(row, k), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(there.numpy(), here.numpy())
    assert there.rows == 2

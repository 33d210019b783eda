"""A plan's execution is what is loaded, tensor by tensor, or it is refused by name."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.backends.llamacpp.buffers import Refusal, read_refusal
from localrun.engine.runner import BatchItem
from localrun.errors import EngineError
from localrun.plan.plan import Execution, Plan
from tests.plans import bare_plan
from tests.shapes import Shape, write

PLAIN = Execution(256, 64, "f16", 1, 1, True, gpu_layers=0)
MIB = 1 << 20
MODEL_BUFFER = re.compile(r"load_tensors: +(\S+) model buffer size = +(\d+\.\d+) MiB")
# Of every type that the CPU's kernels may hold repacked, one that most CPUs do.
SHAPE = Shape(layers=4, width=512, ffn=1536, type="Q4_0")

pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shapes") / "model.gguf", SHAPE)


@pytest.fixture
def buffers(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Plan], dict[str, float]]]:
    """Loads a plan and returns MiB of weights by the library's own name of the buffer."""
    from localrun.backends.llamacpp.backend import load

    def weights_of(plan: Plan) -> dict[str, float]:
        caplog.clear()
        load(plan).close()
        found: dict[str, float] = {}
        for name, size in MODEL_BUFFER.findall(caplog.text):
            found[name] = found.get(name, 0.0) + float(size)
        return found

    with caplog.at_level(logging.DEBUG, "localrun.llamacpp"):
        yield weights_of


def mib_of(shape: Shape, pattern: str) -> float:
    """Q4_0 packs 32 numbers in 18 bytes; the rest is F32."""
    total = 0.0
    for name, dims, kind in shape.tensors():
        if re.search(pattern, name):
            size = 1
            for dim in dims:
                size *= dim
            total += size / 32 * 18 if kind == "Q4_0" else size * 4
    return total / MIB


def test_overrides_put_exactly_those_tensors_in_the_buffer_they_name(
    model: Path, buffers: Callable[[Plan], dict[str, float]]
) -> None:
    everything = buffers(bare_plan(replace(PLAIN, mmap=False), [str(model)]))
    if "CPU_REPACK" not in everything:
        pytest.skip("this CPU has no repacked kernel for Q4_0")
    pattern = r"^blk\.[02]\.ffn_(up|down)\.weight$"
    moved = mib_of(SHAPE, pattern)

    placed = buffers(
        bare_plan(
            replace(PLAIN, mmap=False, tensor_overrides=((pattern, "ram:plain"),)), [str(model)]
        )
    )

    # The log rounds to 0.01; "CPU_Mapped" is the name of the plain type that is not the default.
    assert placed["CPU_Mapped"] == pytest.approx(moved, abs=0.006)
    assert placed["CPU_REPACK"] == pytest.approx(everything["CPU_REPACK"] - moved, abs=0.011)
    assert placed["CPU"] == pytest.approx(everything["CPU"], abs=0.006)


def test_the_first_override_that_matches_decides(
    model: Path, buffers: Callable[[Plan], dict[str, float]]
) -> None:
    pairs = ((r"blk\.1\.ffn_up", "ram"), (r"blk\.[01]\.ffn_up", "ram:plain"))

    placed = buffers(bare_plan(replace(PLAIN, mmap=False, tensor_overrides=pairs), [str(model)]))

    assert placed["CPU_Mapped"] == pytest.approx(mib_of(SHAPE, r"blk\.0\.ffn_up"), abs=0.006)


def test_a_model_computes_the_same_from_either_buffer(smollm2_path: Path) -> None:
    from localrun.backends.llamacpp.backend import load

    answers = []
    for pairs in ((), ((r"ffn_|attn_", "ram:plain"),)):
        runner = load(bare_plan(replace(PLAIN, tensor_overrides=pairs), [str(smollm2_path)]))
        logits = runner.forward([BatchItem(runner.new_sequence(), [504, 3575, 282])])
        answers.append(logits.topk(0, 5)[0].tolist())
        runner.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("parallel", "sequences"), [(1, 4), (4, 4), (6, 6)])
def test_a_plan_gets_the_sequences_it_asks_for(model: Path, parallel: int, sequences: int) -> None:
    from localrun.backends.llamacpp.backend import load

    runner = load(bare_plan(replace(PLAIN, parallel=parallel), [str(model)]))
    assert runner.capabilities.max_sequences == sequences
    runner.close()


def test_each_of_a_plans_sequences_has_the_whole_context(model: Path) -> None:
    from localrun.backends.llamacpp.backend import load

    def kv(parallel: int) -> int:
        runner = load(bare_plan(replace(PLAIN, parallel=parallel), [str(model)]))
        held = runner.stats().memory_parts["ram"]["kv"]
        runner.close()
        return held

    assert kv(3) == 3 * kv(1)


def test_parameters_are_the_plans() -> None:
    from localrun.backends.llamacpp.parameters import parameters, printed

    model, context = parameters(Execution(3000, 96, "q8_0", 3, 5, False, gpu_layers=0))

    assert printed(model)["load_mode"] == 0
    assert printed(model)["n_gpu_layers"] == 0
    values = printed(context)
    wanted = {
        "n_ctx": 3000,
        "n_batch": 96,
        "n_ubatch": 96,
        "n_threads": 3,
        "n_threads_batch": 3,
        "type_k": 8,
        "type_v": 8,
        "kv_unified": True,
        "offload_kqv": False,
        "op_offload": False,
    }
    assert {name: values[name] for name in wanted} == wanted
    assert parameters(replace(PLAIN, mmap=True))[0].load_mode == 1
    assert parameters(replace(PLAIN, flash_attention=False))[1].flash_attn_type == 0


def test_devices_get_their_shares_and_the_cache_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No test machine has a GPU: the library would be handed this."""
    from localrun.backends.llamacpp import parameters as module
    from localrun.backends.report import Device

    two = tuple((at, Device(f"CUDA{at}", "", "gpu")) for at in (0, 1))
    monkeypatch.setattr(module, "gpus", lambda: two)
    execution = replace(PLAIN, gpu_layers=20, tensor_split=(3.0, 1.0))

    model, context = module.parameters(execution)
    _, in_ram = module.parameters(replace(execution, kv_on_device=False))

    assert (model.n_gpu_layers, model.devices) == (20, None)
    assert list(model.tensor_split[:3]) == [3.0, 1.0, 0.0]
    assert (context.offload_kqv, context.op_offload) == (True, True)
    assert (in_ram.offload_kqv, in_ram.op_offload) == (False, True)


REFUSED = {
    "a tier nobody has": ({"tensor_overrides": (("ffn", "tape"),)}, "tier 'tape'"),
    "the disk": ({"tensor_overrides": (("ffn", "disk"),)}, "tier 'disk'"),
    "a device without a number": ({"tensor_overrides": (("ffn", "vram:x"),)}, "'vram:x'"),
    "a GPU that is not there": ({"tensor_overrides": (("ffn", "vram:7"),)}, "vram:7"),
    "layers on no GPU": ({"gpu_layers": 12}, "12 layers on GPUs"),
    "shares of no GPU": ({"tensor_split": (1.0, 1.0)}, r"tensor_split 1, 1 .* 2 GPUs"),
    "no such expression": ({"tensor_overrides": (("ffn_(", "ram"),)}, "could not be loaded"),
    "rows of a release's own": ({"kv_type": "native"}, "kv_type 'native'"),
    "quantized values": (
        {"kv_type": "q8_0", "flash_attention": False},
        "kv_type q8_0 without flash attention",
    ),
    "more sequences than the library has": ({"parallel": 1000}, "n_seq_max"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_executed_is_refused_by_name(
    model: Path, change: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localrun.backends.llamacpp import buffer_types, parameters
    from localrun.backends.llamacpp.backend import load

    for module in (buffer_types, parameters):
        monkeypatch.setattr(module, "gpus", lambda: ())
    execution = replace(PLAIN, **change)  # type: ignore[arg-type]  # a table of any fields
    with pytest.raises(EngineError, match=said) as caught:
        load(bare_plan(execution, [str(model)]))
    assert caught.value.hint


def test_what_a_runner_holds_is_split_into_its_parts(model: Path) -> None:
    from localrun.backends.llamacpp.backend import compute_buffers, load

    plan = bare_plan(replace(PLAIN, n_ctx=512), [str(model)])
    runner = load(plan)
    stats = runner.stats()
    runner.close()

    parts = stats.memory_parts["ram"]
    assert set(parts) == {"weights", "kv", "compute", "output"}
    assert sum(parts.values()) == stats.memory_bytes["ram"]
    # 512 tokens, 4 layers, 2 heads of 64 numbers of 2 bytes, keys and values.
    assert parts["kv"] == 512 * 4 * 2 * 64 * 2 * 2
    assert compute_buffers(plan) == {"ram": parts["compute"]}


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from localrun.backends.llamacpp.backend import load
from localrun.errors import OutOfMemoryError
from localrun.plan.plan import Execution
from tests.plans import bare_plan

def say(execution):
    try:
        load(bare_plan(execution, [sys.argv[1]])).close()
        print("loaded")
    except OutOfMemoryError as error:
        print(error.tier, error.needed_bytes, error.held_bytes)

small = Execution(256, 64, "f16", 1, 1, False, gpu_layers=0)
say(small)
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
say(replace(small, n_ctx=1 << 17))
say(small)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_load_that_gets_no_memory_says_how_much_it_wanted(model: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(model)]
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )

    first, refused, after = outcome.stdout.splitlines()
    tier, needed, held = refused.split()
    assert (first, after) == ("loaded", "loaded")
    assert (tier, int(needed)) == ("ram", (1 << 17) * 4 * 2 * 64 * 2 * 2)
    weights = mib_of(SHAPE, "") * MIB
    # By then the weights are held, and four rows of logits.
    assert int(held) == pytest.approx(weights + 4 * 4 * SHAPE.vocabulary, rel=0.01)


REFUSALS = {
    "CUDA, model": (
        [
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 1: "
            "cudaMalloc failed: out of memory",
            "alloc_tensor_range: failed to allocate CUDA1 buffer of size 4294967296",
            "llama_model_load: error loading model: unable to allocate CUDA1 buffer",
        ],
        Refusal("vram:1", 4 << 30),
    ),
    "CUDA, compute": (
        ["ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 1048576"],
        Refusal("vram:0", 1 << 20),
    ),
    "pinned host memory": (
        ["alloc_tensor_range: failed to allocate CUDA_Host buffer of size 2097152"],
        Refusal("ram", 2 << 20),
    ),
    "Metal": (
        ["ggml_metal_buffer_init: error: failed to allocate buffer, size =  8192.00 MiB"],
        Refusal("ram", 8 << 30),
    ),
    "output": (
        ["output_reserve: failed to allocate output buffer of size 12.50 MiB"],
        Refusal("ram", 25 << 19),
    ),
    "a mapping": (
        ["llama_model_load: error loading model: mmap failed: Cannot allocate memory"],
        Refusal("ram", 0),
    ),
    "something else": (["llama_model_load: error loading model: missing tensor 'x'"], None),
}


@pytest.mark.parametrize(("lines", "refusal"), REFUSALS.values(), ids=list(REFUSALS))
def test_refused_allocations_are_read_from_the_log(
    lines: list[str], refusal: Refusal | None
) -> None:
    assert read_refusal(lines) == refusal

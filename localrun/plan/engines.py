"""Knows no model and no machine: what engines do differently, one row an engine.

Everything else in a prediction is the same for all of them. The rows above the line are the
backends of this project, whose plans are executed; the others exist to compare predictions with
what their users published (bench/planner_accuracy.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from localrun.errors import UsageError
from localrun.plan.constants import MIB, TORCH_BLOCK_MS, TORCH_MISS_MS
from localrun.plan.plan import KvType

Kernels = Literal["tuned", "portable", "reference"]


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine places, reads and computes.

    ``experts``: where experts can be put apart, by whole ``layers`` or singly in ``slots``.
    ``streams``: whether weights beyond memory are read from disk, by explicit reads or through the
    page cache. ``tables``: when rows of n-gram tables are read, ahead of need, inside the step or
    by page faults. ``overlap`` is the share of disk reads that hide behind computing, 0 (they add
    up) to 1 (the longer of the two counts). ``prefill_layers`` is true where a prompt passes only
    the layers that the model's authors say it needs. ``uploads`` is true where a long prompt's host
    weights are computed on the GPU. ``kernels`` is ``portable`` for CPU code without tuned
    block-quantized kernels, ``reference`` for code that is there to be correct, on one thread.
    ``numa`` gives each socket weights of its own. ``fragments`` is the share of memory that its
    allocator loses. ``native_kv`` keeps rows in the release's own format; ``cells`` keeps one cache
    for all sequences, windows in full. ``parallel_cards`` splits each layer over all cards. ``kv``
    is the one type that it keeps keys and values in, None where a plan chooses among ``kv_types``,
    which are all where none is named; ``host_kv`` and ``host_kernels`` are for where no device
    computes. ``numerics`` names how exactly it can compute, the default first; empty where there is
    one way. ``divides`` is false where a device computes all layers or none, ``one_card`` is true
    where one does at most. ``hides`` says what a read hides behind: the whole step, or what its own
    layer computes meanwhile. ``block`` is what a block of a layer takes on a CPU whatever it reads,
    in milliseconds, where that was not measured, ``miss`` what an expert from disk takes beside its
    read. ``staged`` reads experts into memory that it
    measures out by their size; ``text_only`` leaves drafts and vision in the files; ``simulates``
    computes for a card that is a declared part of RAM. ``library`` is what its own code takes of
    RAM, bytes.
    """

    name: str
    experts: Literal["layers", "slots"]
    streams: Literal["no", "direct", "pages"]
    tables: Literal["ahead", "inside", "faults"]
    overlap: float = 0.0
    prefill_layers: bool = False
    uploads: bool = True
    kernels: Kernels = "tuned"
    numa: bool = False
    fragments: float = 0.0
    native_kv: bool = False
    cells: bool = False
    parallel_cards: bool = False
    kv: KvType | None = None
    kv_types: tuple[KvType, ...] = ()
    host_kv: KvType | None = None
    host_kernels: Kernels | None = None
    numerics: tuple[str, ...] = ()
    divides: bool = True
    one_card: bool = False
    hides: Literal["step", "layer"] = "step"
    block: float = 0.0
    miss: float = 0.0
    staged: bool = False
    text_only: bool = False
    simulates: bool = False
    library: int = 0
    source: str = ""

    def keeps(self, kv_type: KvType | None) -> bool:
        """Whether keys and values can have this type; None is left to the plan."""
        if kv_type is None:
            return True
        return kv_type == self.kv if self.kv else not self.kv_types or kv_type in self.kv_types

    def on(self, *, device: bool) -> Engine:
        """The same where a device computes, or where none does."""
        kernels = self.host_kernels or self.kernels
        return self if device else replace(self, kv=self.host_kv, kernels=kernels)


_ENGINES = (
    Engine("llama.cpp", "layers", "no", "faults", cells=True, source="backends/llamacpp"),
    Engine(
        "torch",
        "slots",
        "direct",
        "ahead",
        # Asynchronous readers gained 1.6 of a possible 1.81 (sqliteai/warp docs/LEARNED.md).
        overlap=0.8,
        native_kv=True,
        # Caching allocators lose 2 to 5 % to fragments; the least is planned.
        fragments=0.02,
        kv_types=("native", "bf16", "f16", "f32"),
        divides=False,
        one_card=True,
        hides="layer",
        block=TORCH_BLOCK_MS,
        miss=TORCH_MISS_MS,
        staged=True,
        text_only=True,
        simulates=True,
        # torch 2.13 for CPUs on Linux, imported and having computed its first products, with what
        # the C library keeps of memory that a step gave back.
        library=240 * MIB,
        numerics=("fast", "reference", "float32", "float32-qat"),
        source="backends/torch",
    ),
    # Keys and values are what the model computes in: 16 bits with Metal, 32 on a CPU.
    Engine(
        "mlx",
        "slots",
        "direct",
        "ahead",
        kv="f16",
        host_kv="f32",
        host_kernels="reference",
        source="backends/mlx",
    ),
    # ---------------------------------------------------------------------------------------------
    Engine("ollama", "layers", "no", "faults", source="runs llama.cpp"),
    Engine("lmstudio", "layers", "no", "faults", source="lmstudio.ai/docs: runs llama.cpp"),
    Engine("jan", "layers", "no", "faults", source="github.com/janhq/jan: runs llama.cpp"),
    Engine("koboldcpp", "layers", "no", "faults", source="github.com/LostRuins/koboldcpp: a fork"),
    Engine("llamafile", "layers", "no", "faults", source="github.com/Mozilla-Ocho/llamafile"),
    Engine("llama-cpp-python", "layers", "no", "faults", source="bindings of llama.cpp"),
    Engine("ik_llama.cpp", "layers", "no", "faults", source="a fork of llama.cpp"),
    Engine("mlx-lm", "layers", "no", "inside", source="github.com/ml-explore/mlx-lm"),
    Engine("omlx", "layers", "no", "inside", source="github.com/jundot/omlx: serves mlx-lm"),
    Engine("rapid-mlx", "layers", "no", "inside", source="github.com/raullenchai/Rapid-MLX"),
    Engine(
        "ktransformers",
        "slots",
        "no",
        "inside",
        uploads=False,
        numa=True,
        source="github.com/kvcache-ai/ktransformers: weights copied per socket, experts on the CPU",
    ),
    Engine(
        "freetoken",
        "slots",
        "direct",
        "inside",
        overlap=0.8,
        source="github.com/FlashML-org/FreeToken: CPU and upload arms finish together",
    ),
    Engine(
        "ds4",
        "slots",
        "direct",
        "inside",
        native_kv=True,
        source="github.com/antirez/ds4 docs/SSD_STREAMING.md",
    ),
    Engine(
        "colibri",
        "slots",
        "direct",
        "inside",
        uploads=False,
        kernels="portable",
        native_kv=True,
        source="github.com/JustVugg/colibri: plain C on the CPU, reads inside the step",
    ),
    Engine(
        "flash-moe",
        "slots",
        "pages",
        "inside",
        source="github.com/danveloper/flash-moe: experts through the page cache, no overlap",
    ),
    Engine(
        "warp",
        "slots",
        "direct",
        "inside",
        overlap=0.8,
        kernels="portable",
        source="github.com/sqliteai/warp docs/LEARNED.md: overlap 1.6 of 1.81",
    ),
    Engine(
        "atlas",
        "slots",
        "direct",
        "inside",
        source="github.com/Avarok-Cybersecurity/atlas pull 1148: a miss waits for its read",
    ),
    Engine(
        "vllm",
        "layers",
        "no",
        "faults",
        parallel_cards=True,
        source="docs.vllm.ai: tensor parallel inside a stage",
    ),
    Engine(
        "sglang",
        "layers",
        "no",
        "faults",
        parallel_cards=True,
        source="docs.sglang.ai: --tp-size",
    ),
    Engine(
        "tensorrt-llm",
        "layers",
        "no",
        "faults",
        parallel_cards=True,
        source="nvidia.github.io/TensorRT-LLM: tensor parallel mapping",
    ),
    Engine("exllama", "layers", "no", "faults", source="github.com/turboderp-org: layer split"),
    Engine("tabbyapi", "layers", "no", "faults", source="github.com/theroyallab: serves exllama"),
)
ENGINES = {engine.name: engine for engine in _ENGINES}


def engine(name: str) -> Engine:
    """Raises UsageError for a name that no row has."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UsageError(
            f"--backend {name}: no engine is called that", hint=f"one of: {', '.join(ENGINES)}"
        ) from None

"""Hypothesis strategies shared by all rooms' tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from hypothesis import strategies as st

from localrun.formats.types import GGUF_TYPES
from localrun.hardware.machine import (
    Basis,
    Compute,
    Cpu,
    DiskReads,
    Machine,
    Memory,
    Speed,
    Tier,
    TierKind,
)
from localrun.models.spec import (
    CacheKind,
    CacheRows,
    Experts,
    Group,
    GroupKind,
    ModelSpec,
    Table,
)
from localrun.plan.plan import EngramPlace, KvType, PlanRequest, Workload
from tests.gguf_builder import BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, U32, U64, As

_INTEGERS = {
    U8: (0, 2**8 - 1),
    I8: (-(2**7), 2**7 - 1),
    U16: (0, 2**16 - 1),
    I16: (-(2**15), 2**15 - 1),
    U32: (0, 2**32 - 1),
    I32: (-(2**31), 2**31 - 1),
    U64: (0, 2**64 - 1),
    I64: (-(2**63), 2**63 - 1),
}
Tensors = list[tuple[str, tuple[int, ...], str]]


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold, NUL excepted."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)


def _values(kind: int) -> st.SearchStrategy[Any]:
    if kind == BOOL:
        return st.booleans()
    if kind == STRING:
        return texts()
    if kind in (F32, F64):
        return st.floats(width=32, allow_nan=False)
    return st.integers(*_INTEGERS[kind])


@st.composite
def metadata_values(draw: st.DrawFn) -> As:
    """A scalar or an array of any GGUF value type, spelled out."""
    kind = draw(st.sampled_from([*_INTEGERS, BOOL, STRING, F32, F64]))
    if draw(st.booleans()):
        return As(kind, draw(st.lists(_values(kind), max_size=5)))
    return As(kind, draw(_values(kind)))


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, As], Tensors]:
    """What ``gguf_bytes`` makes a well-formed file of: metadata and tensors of every type."""
    keys = texts().filter(lambda key: key not in ("", "general.alignment"))
    metadata = draw(st.dictionaries(keys, metadata_values(), max_size=6))
    names = draw(
        st.lists(texts().filter(lambda n: 0 < len(n.encode()) < 64), unique=True, max_size=5)
    )
    tensors: Tensors = []
    for name in names:
        kind = draw(st.sampled_from(list(GGUF_TYPES.values())))
        outer = draw(st.lists(st.integers(1, 3), max_size=3))
        inner = kind.block_elements * draw(st.integers(1, 2))
        tensors.append((name, (*outer, inner), kind.name))
    return metadata, tensors


_KINDS = tuple(kind for kind in get_args(GroupKind) if kind not in ("experts", "engram"))
_TYPES = st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_K", "F8_E4M3", "I32"])


def sizes(largest: int = 44) -> st.SearchStrategy[int]:
    """Bytes or counts of any magnitude, zero among them."""
    magnitudes = st.integers(0, largest) | st.integers(largest // 2, largest)
    return st.integers(0, 9).flatmap(
        lambda rare: (
            magnitudes.flatmap(lambda bits: st.integers(0, 1 << bits)) if rare else st.just(0)
        )
    )


@st.composite
def _groups(draw: st.DrawFn, kind: GroupKind, layer: int, largest: int) -> Group:
    size, parameters, name = draw(sizes(largest)), draw(sizes(largest + 1)), draw(_TYPES)
    active, types = draw(st.sampled_from([0.0, 0.5, 1.0])), {name: size}
    if size > 1 and draw(st.booleans()):
        types = {name: size // 2, "Q6_K": size - size // 2}
    experts = table = None
    if kind == "experts" and draw(st.integers(0, 9)):
        count = draw(st.sampled_from([1, 2, 7, 64, 384, 4096]))
        used = min(count, draw(st.sampled_from([1, 2, 6, 8, 64])))
        experts = Experts(count, used, size // count)
        active = used / count
    if kind == "engram":
        rows = draw(st.integers(1, 1 << 30))
        table = Table(
            rows, size // rows, min(rows, draw(st.integers(0, 48))), draw(st.integers(1, 2))
        )
        active = 0.0
    return Group(
        kind,
        layer,
        draw(st.integers(1, 100)),
        parameters,
        size,
        int(parameters * active),
        int(size * active),
        types,
        experts,
        table,
    )


@st.composite
def _cache_rows(draw: st.DrawFn, layers: int) -> CacheRows:
    kind = draw(st.sampled_from(get_args(CacheKind)))
    among = st.lists(st.integers(0, max(0, layers - 1)), unique=True, min_size=1, max_size=6)
    elements = draw(st.integers(0, 1 << 16))
    return CacheRows(
        kind,
        tuple(sorted(draw(among))),
        elements,
        tokens_per_row=draw(st.sampled_from([1, 1, 4, 128])),
        window=draw(st.sampled_from([0, 0, 128, 4096])),
        read_rows=draw(st.sampled_from([0, 0, 512, 2048])),
        native_bytes=draw(st.sampled_from([0, elements])),
        readers=draw(st.sampled_from([1, 1, 3])),
        reader_rows=draw(st.sampled_from([0, 128])),
    )


@st.composite
def specs(draw: st.DrawFn, *, largest: int = 32) -> ModelSpec:
    """Models as no one released them: any groups in any layers, no two of a kind in one."""
    layers = draw(st.integers(0, 6) | st.sampled_from([33, 128]))
    chosen: list[Group] = []
    every: list[tuple[GroupKind, int]] = []
    if layers > 6:
        routed = draw(st.booleans())
        every = [("attention", layer) for layer in range(layers)]
        every += [("experts" if routed else "dense_ffn", layer) for layer in range(layers)]
        alike = {kind: draw(_groups(kind, 0, largest - 6)) for kind in ("attention", every[-1][0])}
        chosen = [replace(alike[kind], layer=layer) for kind, layer in every]
    places = st.tuples(
        st.sampled_from(_KINDS) | st.sampled_from(["experts", "engram"]),
        st.integers(-1, layers + 1),
    )
    for kind, layer in draw(st.lists(places, unique=True, max_size=12)):
        if (kind, layer) not in every:
            chosen.append(draw(_groups(kind, layer, largest)))
    used = max((group.experts.used for group in chosen if group.experts), default=0)
    return ModelSpec(
        architecture=draw(st.sampled_from(["llama", "deepseek4", "nobody's", ""])),
        name="",
        parameters=sum(group.parameters for group in chosen),
        tensor_bytes=sum(group.bytes for group in chosen),
        tensors=sum(group.tensors for group in chosen),
        layers=layers,
        n_ctx_train=draw(st.sampled_from([0, 1, 2, 300, 8192, 1 << 20, 1 << 31])),
        kv_bytes_per_token=0,
        tensor_types={},
        tokenizer=None,
        chat_template=None,
        licence=None,
        experts=used,
        experts_used=used,
        groups=tuple(chosen),
        caches=tuple(draw(st.lists(_cache_rows(layers), max_size=2 * bool(layers)))),
        state_bytes=tuple(
            (layer, draw(sizes(30))) for layer in range(draw(st.integers(0, min(layers, 3))))
        ),
        width=draw(st.sampled_from([0, 1, 64, 4096, 8192])),
        vocabulary=draw(st.sampled_from([0, 1, 32_000, 1 << 20])),
        heads=draw(st.sampled_from([0, 1, 32])),
        ffn_width=draw(st.sampled_from([0, 1024])),
        guessed=draw(st.booleans()),
        prefill_layers=draw(st.integers(0, layers)),
    )


def _speeds(low: float, high: float) -> st.SearchStrategy[Speed]:
    basis = st.sampled_from(get_args(Basis))
    return st.builds(Speed, st.floats(low, high), basis)


@st.composite
def _tiers(draw: st.DrawFn, name: str, kind: TierKind, *, bits: int = 44) -> Tier:
    capacity = draw(sizes(bits) | st.sampled_from([1 << bit for bit in range(31, bits)]))
    speeds = {"disk": (0.1, 20.0), "ram": (5.0, 600.0)}.get(kind, (50.0, 8000.0))
    card = kind in ("vram", "unified")
    return Tier(
        name,
        kind,
        capacity,
        draw(st.sampled_from([capacity, capacity, capacity // 2, capacity // 9])),
        draw(_speeds(*speeds)),
        device=draw(st.sampled_from(["", "m1-max", "rtx-4090"])),
        flops=draw(st.none() | _speeds(0.1, 3000.0)) if card else None,
        link=draw(st.none() | _speeds(1.0, 100.0)) if kind == "vram" else None,
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines that a probe could answer with: any sizes and speeds, measured or not."""
    tiers: list[Tier] = []
    if draw(st.integers(0, 4)):
        tiers += [draw(_tiers(f"vram:{at}", "vram")) for at in range(draw(st.integers(0, 4)))]
        tiers.append(draw(_tiers("ram", "ram")))
    else:
        tiers.append(draw(_tiers("unified", "unified")))
    reads = None
    if draw(st.integers(0, 3)):
        tiers.append(draw(_tiers("disk", "disk", bits=50)))
        depths = st.sampled_from([1, 4, 16, 32, 64])
        reads = DiskReads(draw(st.dictionaries(depths, _speeds(1.0, 1e6), max_size=3)))
    cores, sockets = draw(st.integers(1, 256)), draw(st.integers(1, 2))
    kinds = st.dictionaries(_TYPES, _speeds(0.1, 1000.0), max_size=2)
    compute = Compute(cores, sockets, draw(kinds), {}, draw(kinds))
    return Machine(
        system="Linux",
        architecture="x86_64",
        cpu=Cpu("", cores, 2 * cores, draw(st.integers(1, 2 * cores))),
        memory=Memory(0, 0, 0),
        gpus=(),
        disks=(),
        tiers=tuple(tiers),
        compute=draw(st.sampled_from([compute, None])),
        disk_reads=reads,
    )


_ASKED: dict[str, st.SearchStrategy[Any]] = {
    "n_ctx": st.integers(1, 1 << 20),
    "kv_type": st.sampled_from(get_args(KvType)),
    "threads": st.integers(1, 4),
    "vram_bytes": sizes(),
    "ram_bytes": sizes(),
    "disk_read": st.integers(1, 1 << 36),
    "parallel": st.sampled_from([3, 256]),
    "workload": st.builds(Workload, sizes(16), st.integers(1, 4096), sizes(16)),
    "ubatch": st.integers(1, 4096),
    "gpu_layers": st.integers(0, 200),
    "cpu_expert_layers": st.integers(0, 200),
    "expert_cache_bytes": sizes(),
    "engram": st.sampled_from(get_args(EngramPlace)),
}


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    """What a user may ask for, some of which no machine can do; most leave most of it out."""
    fields = draw(st.lists(st.sampled_from(list(_ASKED)), unique=True, max_size=2))
    return PlanRequest(**{name: draw(_ASKED[name]) for name in fields})

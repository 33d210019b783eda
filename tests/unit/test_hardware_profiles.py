"""Machines by name: the packaged parts, the grammar, and what it refuses."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import UsageError
from localrun.hardware import reserves
from localrun.hardware.machine import Tier
from localrun.hardware.parts import parts
from localrun.hardware.profiles import EXAMPLES, named

GIB = 1 << 30
ROWS = {
    row["slug"]: row
    for row in csv.DictReader(
        files("localrun.hardware").joinpath("hardware.csv").read_text("utf-8").splitlines()
    )
}
OF_KIND = {kind: [s for s, row in ROWS.items() if row["kind"] == kind] for kind in ("gpu", "mac")}
HOST = "+ddr5-6000x2:64+nvme4"


def test_the_packaged_parts_are_the_whole_file() -> None:
    assert list(parts()) == list(ROWS)
    assert {part.kind for part in parts().values()} == {"gpu", "mac", "apu", "dram", "disk"}
    assert all(part.source for part in parts().values())


@pytest.mark.parametrize("slug", OF_KIND["gpu"])
def test_a_named_gpu_is_its_row(slug: str) -> None:
    row = ROWS[slug]

    tier = named(slug + HOST).tiers[0]

    assert (tier.name, tier.kind, tier.device) == ("vram:0", "vram", slug)
    assert tier.capacity_bytes == int(row["memory_gb"]) * GIB
    assert tier.read.value == float(row["bandwidth_gbps"])
    assert (tier.flops.value if tier.flops else None) == (
        float(row["fp16_tflops"]) if row["fp16_tflops"] else None
    )
    assert tier.link is not None


@pytest.mark.parametrize("slug", OF_KIND["mac"])
def test_a_named_mac_is_its_row_with_the_most_memory_it_was_sold_with(slug: str) -> None:
    row = ROWS[slug]

    machine = named(slug)

    pool = machine.tiers[0]
    assert (pool.name, pool.kind, pool.link) == ("unified", "unified", None)
    assert pool.capacity_bytes == machine.memory.total == int(row["memory_gb"]) * GIB
    assert pool.read.value == float(row["bandwidth_gbps"])
    assert (pool.flops is None) == (not row["fp16_tflops"])
    assert machine.gpus[0].unified
    assert machine.compute is not None
    assert machine.compute.cores >= 8


@pytest.mark.parametrize("slug", [slug for slug, row in ROWS.items() if row["kind"] == "dram"])
def test_computed_memory_bandwidth_is_that_of_the_file(slug: str) -> None:
    tier = named(f"cpu:8+{slug}:64").tier("ram")

    assert tier is not None
    assert tier.read.value == pytest.approx(float(ROWS[slug]["bandwidth_gbps"]))
    assert tier.read.basis == "specified"


MACHINES = {
    "rtx-4090+ddr5-6000x2:128+nvme4": ["vram:0 24 1008", "ram 128 96", "disk 1862 6"],
    "2xrtx-3090+ddr4-3200x8:256+nvme4": [
        *("vram:0 24 936", "vram:1 24 936", "ram 256 204.8", "disk 1862 6"),
    ],
    "rtx-4090+2xrtx-3060-12gb+ddr4-2666x4:62.5+nvme3": [
        *("vram:0 24 1008", "vram:1 12 360", "vram:2 12 360", "ram 62.5 85.312", "disk 1862 2"),
    ],
    "cpu:16+ddr5-5600x2:64+nvme4": ["ram 64 89.6", "disk 1862 6"],
    "nvme5+ddr5-5600x2:64+cpu:16": ["ram 64 89.6", "disk 1862 9.5"],
    "m4-max-128": ["unified 128 546", "disk 1862 5.5"],
    "M3-Max-40c-48": ["unified 48 400", "disk 1862 5.5"],
    "m5-pro-64+usb-enclosure": ["unified 64 307", "disk 1862 0.94"],
    "gb10": ["unified 128 273", "disk 1862 6"],
    "strix-halo-8060s:96+nvme5": ["unified 96 256", "disk 1862 9.5"],
}


def shown(tier: Tier) -> str:
    size = tier.capacity_bytes / GIB if tier.kind != "disk" else tier.capacity_bytes // GIB
    return f"{tier.name} {size:g} {tier.read.value:g}"


@pytest.mark.parametrize("text", MACHINES)
def test_a_machine_by_name_has_these_tiers(text: str) -> None:
    machine = named(text)

    assert [shown(tier) for tier in machine.tiers] == MACHINES[text]
    assert machine.name == text.lower()


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_that_are_printed_are_machines(text: str) -> None:
    assert named(text).tiers


def test_a_core_count_stands_beside_gpus_and_is_else_assumed_with_a_note() -> None:
    given_count, assumed = named("rtx-4090+cpu:24" + HOST), named("rtx-4090" + HOST)

    assert given_count.cpu.cores == 24
    assert not given_count.notes
    assert "assumed" in assumed.notes[0]


def test_bases_tell_vendors_figures_from_guesses() -> None:
    sourced, recalled = named("rtx-4090" + HOST).tiers, named("gb10").tiers

    assert [tier.read.basis for tier in sourced] == ["specified", "specified", "assumed"]
    assert recalled[0].read.basis == "assumed"
    assert sourced[0].flops is not None
    assert sourced[0].flops.basis == "assumed"


def test_usable_memory_leaves_the_system_its_part() -> None:
    card, ram, _ = named("rtx-4090+ddr5-6000x2:128").tiers
    mac = named("m4-max-128").tiers[0]
    small = named("m1").tiers[0]

    assert card.usable_bytes == 24 * GIB - reserves.DRIVER_AND_DESKTOP
    assert ram.usable_bytes == 124 * GIB
    assert mac.usable_bytes == 96 * GIB
    # An M1 tells Metal's working set as 10922.67 MiB.
    assert small.usable_bytes == 16 * GIB * 2 // 3
    assert named("gb10").tiers[0].usable_bytes == 120 * GIB


@pytest.mark.parametrize(
    ("slug", "gbps"),
    [("rtx-4090", 26.0), ("rtx-4060", 13.0), ("rtx-5090", 52.0), ("t4", 12.0), ("cmp-90hx", 1.5)],
)
def test_a_link_is_the_usable_part_of_its_generation_and_lanes(slug: str, gbps: float) -> None:
    link = named(slug + HOST).tiers[0].link

    assert link is not None
    assert (link.value, link.basis) == (gbps, "assumed")


BAD = {
    "": "is no machine",
    "rtx-4090": "has no RAM",
    "rtx-4090+nvme4": "has no RAM",
    "nvme4": "has no RAM",
    "ddr5-6000x2:32": "neither GPU nor CPU",
    "rtx-409" + HOST: "nearest are rtx-4090",
    "rtx-3060" + HOST: "rtx-3060-12gb",
    "m3-max-64": "m3-max-40c",
    "m9-64": "no part is called 'm9'",
    "m4-max-256": "'m4-max-256' makes no machine: 1 to 128 GB",
    "m4-max-0": "makes no machine",
    "gb10:256": "makes no machine",
    "gb10:": "needs a number of GB",
    "rtx-4090+ddr5-6000x2:0+nvme4": "'ddr5-6000x2:0' makes no machine",
    "rtx-4090+ddr5-6000x2:1000000000": "makes no machine",
    "rtx-4090+ddr5-6000x2:-4": "needs a number of GB",
    "rtx-4090+ddr5-6000x2:1e3": "needs a number of GB",
    "rtx-4090+ddr5-6000x2:\u0663": "needs a number of GB",
    "rtx-4090+ddr5-6000x2": "needs a number of GB",
    "rtx-4090+ddr5-6000x0:64": "is no RAM",
    "rtx-4090+ddr5-60000x2:64": "is no RAM",
    "rtx-4090+ddr5-6000:64": "is no RAM",
    "rtx-4090+ddr9-6000x2:64": "is no RAM",
    "rtx-4090:48" + HOST: "memory is known",
    "rtx-4090+nvme3" + HOST: "second disk",
    "rtx-4090+ddr4-3200x2:8" + HOST: "second kind of RAM",
    "cpu:8+cpu:8" + HOST: "second CPU",
    "cpu:0" + HOST: "makes no machine",
    "cpu:9999" + HOST: "makes no machine",
    "cpu:1.5" + HOST: "number of cores",
    "cpu" + HOST: "number of cores",
    "0xrtx-4090" + HOST: "1 to 16 GPUs",
    "17xrtx-4090" + HOST: "1 to 16 GPUs",
    "16xrtx-4090+rtx-3090" + HOST: "1 to 16 GPUs",
    "2xm4-max": "only GPUs can",
    "rtx-4090+ddr5-6000x2:64+nvme4:2000": "takes no size",
    "m4-max-128+m4": "second machine",
    "m4-max-128+rtx-4090": "leave a GPU out",
    "gb10+ddr5-6000x2:64": "leave RAM out",
    "m4-max-128+cpu:8": "leave a CPU out",
    "rtx-4090++ddr5-6000x2:64": "no part is called ''",
    "rtx-4090+" * 100: "is no machine",
}


@pytest.mark.parametrize("text", BAD)
def test_what_names_no_machine_is_refused_naming_the_part(text: str) -> None:
    with pytest.raises(UsageError, match="--machine") as refused:
        named(text)

    assert BAD[text] in refused.value.message
    assert refused.value.hint


@st.composite
def names(draw: st.DrawFn) -> tuple[str, int, float]:
    """A machine's name with the number of its cards and its RAM in GB."""
    groups = draw(
        st.lists(st.tuples(st.integers(1, 4), st.sampled_from(OF_KIND["gpu"])), max_size=3)
    )
    cards = [f"{n}x{slug}" if n > 1 or draw(st.booleans()) else slug for n, slug in groups]
    gb = draw(st.integers(1, 4096))
    transfers, lanes = draw(st.integers(800, 9600)), draw(st.integers(1, 12))
    ram = f"ddr{draw(st.integers(3, 6))}-{transfers}x{lanes}:{gb}"
    rest = [ram]
    if not cards or draw(st.booleans()):
        rest.append(f"cpu:{draw(st.integers(1, 256))}")
    if draw(st.booleans()):
        rest.append(draw(st.sampled_from(["nvme3", "nvme4", "nvme5", "sata-ssd"])))
    text = "+".join([*cards, *rest])
    return (text.upper() if draw(st.booleans()) else text), sum(n for n, _ in groups), gb


@given(names())
def test_every_name_of_the_grammar_is_a_machine_with_whole_tiers(
    case: tuple[str, int, float],
) -> None:
    text, cards, gb = case

    machine = named(text)

    kinds = [tier.kind for tier in machine.tiers]
    assert kinds == ["vram"] * cards + ["ram", "disk"]
    assert machine.memory.total == gb * GIB
    for tier in machine.tiers:
        assert 0 < tier.usable_bytes <= tier.capacity_bytes
        assert tier.read.value > 0
        assert tier.read.source
    assert named(machine.name) == machine


@given(st.text(max_size=40) | st.text("rtx4090+dm:-x.1650ncpuve", max_size=40))
def test_any_other_text_is_refused_and_never_a_traceback(text: str) -> None:
    refusal = ""
    try:
        tiers = named(text).tiers
    except UsageError as error:
        tiers, refusal = (), error.message

    assert tiers or refusal.startswith("--machine: ")

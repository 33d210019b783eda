"""Knows no model and no machine: every number of the cost model that is not a part's own figure.

``FITTED`` are the twelve that were fitted to published runs; ``python bench/planner_accuracy.py
--runs FILE --fit`` fits them again and prints the error of each source with the others' fit. The
rest are quoted, each with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Constants:
    """Shares are of the part's theoretical figure; times in milliseconds.

    ``gpu_wide``, ``gpu_packed``: of a GPU's bandwidth, for 16-bit and for narrower weights.
    ``unified``: of a unified memory's bandwidth. ``unpack``: ALU operations a narrow weight costs
    on a GPU without matrix units to spare (unified memory). ``gpu_block``, ``unified_block``: the
    launches of one block of a layer, such as its attention or its experts. ``handover``: one change
    between GPU and CPU inside a layer, and back. ``ram``: of the bandwidth that streaming reads
    reach, for matrix-vector products of the CPU. ``core``: GB/s that one core computes at most.
    ``portable``: of both, for CPU code without tuned kernels. ``gpu_mfu``, ``unified_mfu``: of the
    arithmetic peak, in long prompts.
    """

    gpu_wide: float
    gpu_packed: float
    unified: float
    unpack: float
    gpu_block: float
    unified_block: float
    handover: float
    ram: float
    core: float
    portable: float
    gpu_mfu: float
    unified_mfu: float


FITTED = Constants(
    gpu_wide=0.858,
    gpu_packed=0.83,
    unified=0.803,
    unpack=10.4,
    gpu_block=0.0201,
    unified_block=0.0504,
    handover=0.205,
    ram=0.719,
    core=15.2,
    portable=0.189,
    gpu_mfu=0.798,
    unified_mfu=0.581,
)

# Of theoretical DRAM bandwidth, what streaming reads reach: measured 146 of 205, 113 of 171, 225 to
# 250 of 307 GB/s (ikawrakow/ik_llama.cpp pull 370).
STREAM_SHARE = 0.70
# Of a disk's direct large-block figure, what a run sustains (JustVugg/colibri docs/benchmarks.md:
# 0.85 to 0.93; Helldez/BigMoeOnEdge: a hot one 0.67).
DISK_SUSTAINED = 0.85
# Latency of one expert read, in milliseconds a GB/s-bound transfer does not explain.
EXPERT_READ_MS = 0.1
# Rows of a matrix product at which half of the arithmetic units' time is used: the tiles of
# quantized kernels have 32 to 64.
FULL_TILE = 32
# GFLOP/s of one core in large matrix products of quantized weights: 8-bit products of AVX2 and of
# AVX-512 VNNI lie between 70 and 250; a tenth or less without tuned kernels.
CORE_GFLOPS = 180.0
PORTABLE_GFLOPS = 12.0
# Products on one thread without tuned kernels of any kind: mlx 0.32.4 for Linux, whose matrices are
# netlib BLAS's. SmolLM2 in BF16 on an EPYC: 0.22 s a token, 8.4 tokens/s of a prompt.
REFERENCE_GBPS = 1.2
REFERENCE_GFLOPS = 2.3
# A page fault of a mapped table waits for one read at a time (FlashML-org/FreeToken issue 444).
FAULT_MS = 0.08
# Threads that gather rows of a mapped table for a prompt, each waiting for its page.
FAULT_DEPTH = 8
# Reads in flight of an engine that reads rows inside the step, by a pool of threads.
INSIDE_DEPTH = 16
# One row of a table in RAM: a cache miss or two.
RAM_ROW_MS = 0.0001
# What torch takes for a block of a layer on a CPU, whatever it reads: Python, and the dispatch of
# small operations. `localrun hardware --calibrate` measures it; this is of one EPYC.
TORCH_BLOCK_MS = 0.5
# The same of an expert that it fetches from disk, beside the read: beginning it, decoding it into
# its place, threads that wait for each other.
TORCH_MISS_MS = 1.0
# Time that sampling and the loop around a step take.
STEP_MS = 0.1
# One hop of activations between cards of a layer split: 5 to 20 microseconds.
HOP_MS = 0.02
# An all-reduce between cards without a switch, two a layer: 10 to 60 microseconds over PCIe.
REDUCE_MS = 0.06

# A CUDA context: 300 to 600 MiB, by card and driver.
DEVICE_CONTEXT = 450 * MIB
# Memory that experts are read into on their way to a slot: so much where it is plenty, otherwise a
# share of what is free, as long as it holds so many experts. No more are on their way while a token
# is decoded than it picks in two layers.
STAGING = 256 * MIB
STAGED_SHARE = 16
STAGED_EXPERTS = 4
STAGED_LAYERS = 2
# An expert is at most so many stretches of a file, each of which may begin and end inside a page.
STAGED_STRETCHES = 3
PAGE = 4096
# Rows of n-gram tables on disk that were read lately are kept in so much.
HOT_ROWS = 64 * MIB
# Rows that are read ahead of need come in whole pages into at most so much, which stays taken.
ROWS_READ = 64 * MIB

# Where runs of a plan were measured: they differ by so much from one day to the next.
LEAST_BAND = 0.05
# How far published runs of each class were from the prediction, between the 80th and the 90th
# percentile of the absolute error of decoding: the columns p80 and p90 of
# `python bench/planner_accuracy.py --runs FILE --quick`.
BANDS = {
    "all-gpu": 0.12,
    "unified": 0.25,
    "hybrid": 0.45,
    "cpu": 0.35,
    "streaming": 0.75,
    "engram": 0.35,
}

"""Loading, aborting, counting and closing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ModelRunner
from localrun.errors import EngineError

LoadModel = Callable[..., ModelRunner]


def test_two_runners_do_not_know_each_other(runner: ModelRunner, load_model: LoadModel) -> None:
    other = load_model(kv="q8_0", mmap=False)
    one, two = runner.new_sequence(), other.new_sequence()
    runner.forward([BatchItem(one, [1, 2, 3])])
    ours = runner.forward([BatchItem(one, [4])]).numpy()
    kept = ours.copy()
    other.forward([BatchItem(two, [100, 200, 300, 400], "all")])
    other.close()
    np.testing.assert_array_equal(ours, kept)
    assert runner.truncate(one, 4) == 4


def test_stats_count_tokens_weights_and_memory(load_model: LoadModel, smollm2_path: Path) -> None:
    runner = load_model()
    weights = smollm2_path.stat().st_size
    held = runner.stats().memory_bytes
    assert held.keys() == {"ram"}
    # 256 tokens of KV are 5.6 MiB; what remains is compute.
    assert weights * 0.95 < held["ram"] < weights + (64 << 20)
    sequence = runner.new_sequence()
    runner.forward([BatchItem(sequence, [1, 2, 3])])
    runner.forward([BatchItem(sequence, [4])])
    stats = runner.stats()
    assert stats.tokens == 4
    assert 1.9 * weights < stats.bytes_read["ram"] < 2 * weights
    runner.close()


def test_a_file_cut_short_is_refused_with_the_librarys_reason(
    load_model: LoadModel, smollm2_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.gguf"
    with smollm2_path.open("rb") as source:
        short.write_bytes(source.read(4 << 20))
    with pytest.raises(EngineError, match=r"short\.gguf .*not within the file bounds"):
        load_model(short)
    assert capfd.readouterr() == ("", "")


def test_the_librarys_log_goes_to_logging_only(
    load_model: LoadModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "localrun.llamacpp"):
        load_model().close()
    assert "buffer size" in caplog.text
    assert capfd.readouterr() == ("", "")


MAPPED = """
import sys
from pathlib import Path
from localrun.backends.llamacpp import library
from localrun.backends.llamacpp.backend import load
from localrun.engine.runner import BatchItem
from localrun.plan.plan import Execution, Plan, PlannedFile, PlannedModel

execution = Execution(256, 64, "f16", 2, 2, True, gpu_layers=0)
model = PlannedModel("test", "llama", files=(PlannedFile(sys.argv[1], 0),))
runner = load(Plan(model, "llama.cpp", execution))
runner.forward([BatchItem(runner.new_sequence(), [1, 2, 3])])
assert library.devices()
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
print(*(Path(path).name.partition(".so")[0] for path in mapped if "libggml" in path))
runner.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_native_library_is_loaded_once(load_model: LoadModel, smollm2_path: Path) -> None:
    """A second copy of one computes with tables that nobody filled: NaN from GELU models."""
    # In a process of its own: another test's library may open files of that name by itself.
    command = [sys.executable, "-W", "ignore", "-c", MAPPED, str(smollm2_path)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    names = loaded.stdout.split()
    assert "libggml-base" in names
    assert sorted(names) == sorted(set(names))

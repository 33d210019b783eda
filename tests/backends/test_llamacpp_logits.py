"""The logits handle over the library's own memory."""

from __future__ import annotations

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ModelRunner


def test_logits_are_the_librarys_memory_and_cannot_be_written(runner: ModelRunner) -> None:
    sequence = runner.new_sequence()
    first = runner.forward([BatchItem(sequence, [10])]).numpy()
    before = first.copy()
    second = runner.forward([BatchItem(sequence, [20])]).numpy()
    assert np.shares_memory(first, second)
    assert not np.array_equal(before, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0, 0] = 1.0

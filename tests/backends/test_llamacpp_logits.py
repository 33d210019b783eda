"""The logits handle over the library's own memory."""

from __future__ import annotations

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ModelRunner


@pytest.mark.parametrize("k", [1, 2, 40, 1000, 49152])
def test_topk_is_the_head_of_a_full_sort(runner: ModelRunner, k: int) -> None:
    logits = runner.forward([BatchItem(runner.new_sequence(), [1, 2, 3])])
    row = logits.numpy()[0]
    ids, values = logits.topk(0, k)
    order = np.lexsort((np.arange(row.size), -row))[:k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, row[order])
    assert logits.argmax(0) == ids[0]


def test_logits_are_the_librarys_memory_and_cannot_be_written(runner: ModelRunner) -> None:
    sequence = runner.new_sequence()
    first = runner.forward([BatchItem(sequence, [10])]).numpy()
    before = first.copy()
    second = runner.forward([BatchItem(sequence, [20])]).numpy()
    assert np.shares_memory(first, second)
    assert not np.array_equal(before, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0, 0] = 1.0

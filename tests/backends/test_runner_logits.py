"""The logits handle, whatever library's memory it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ModelRunner
from tests.backends.conftest import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def shared_runner(
    request: pytest.FixtureRequest, load_model: Callable[..., ModelRunner]
) -> Iterator[ModelRunner]:
    runner = load_model(backend=request.param)
    yield runner
    runner.close()


@pytest.mark.parametrize("k", [1, 2, 40, 1000, 49152])
def test_topk_is_the_head_of_a_full_sort(runner: ModelRunner, k: int) -> None:
    logits = runner.forward([BatchItem(runner.new_sequence(), [1, 2, 3])])
    row = logits.numpy()[0]
    ids, values = logits.topk(0, k)
    order = np.lexsort((np.arange(row.size), -row))[:k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, row[order])
    assert logits.argmax(0) == ids[0]


def test_logits_cannot_be_written(runner: ModelRunner) -> None:
    rows = runner.forward([BatchItem(runner.new_sequence(), [10, 11], "all")]).numpy()
    assert rows.shape[0] == 2
    assert rows.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1.0

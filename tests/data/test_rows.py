"""The arithmetic of ragged arrays, compared with plain loops."""

import numpy as np
import pytest

from data import rows as module
from data.rows import blocks, gather, offsets


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("width", [(), (2,)])
def test_gather(monkeypatch, block, width):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(block)
    counts = rng.integers(0, 5, 40)
    starts = offsets(counts)[:-1]
    values = rng.random((int(counts.sum()), *width)).astype(np.float32)
    order = rng.permutation(40)[:25]
    expected = [values[starts[run] : starts[run] + counts[run]] for run in order]
    joined = gather(values, starts[order], counts[order])
    np.testing.assert_array_equal(joined, np.concatenate(expected))
    assert joined.dtype == values.dtype
    assert gather(values, starts[:0], counts[:0]).shape == (0, *width)


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_blocks(monkeypatch, count):
    monkeypatch.setattr(module, "_BLOCK", 4)
    assert [index for part in blocks(count) for index in range(part.start, part.stop)] == list(range(count))

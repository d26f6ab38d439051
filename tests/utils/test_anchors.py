"""AutoAnchor: the measure against a plain loop, and clusters that are there to be found."""

import numpy as np
import pytest

from utils.anchors import cluster, fit_anchors, measure

DEFAULT = np.array(
    [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]], float
)


def test_measure_equals_a_loop() -> None:
    boxes = np.random.default_rng(0).uniform(2, 500, (300, 2))
    fitting = []
    for width, height in boxes:
        ratios = [max(width / w, w / width, height / h, h / height) for w, h in DEFAULT]
        fitting.append(sum(ratio < 4 for ratio in ratios))
    found = measure(boxes, DEFAULT, 4.0)
    assert found.recall == pytest.approx(np.mean([count > 0 for count in fitting]))
    assert found.anchors_per_box == pytest.approx(np.mean(fitting))
    assert measure(np.empty((0, 2)), DEFAULT, 4.0).recall == 1


def test_clusters_are_found_and_sorted() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[4, 4], [5, 20], [60, 12], [200, 190]], float)
    boxes = np.concatenate([centre * rng.uniform(0.9, 1.1, (50, 2)) for centre in centres])
    found = cluster(rng.permutation(boxes), 4)
    np.testing.assert_allclose(found, centres, rtol=0.05)
    assert (np.diff(found.prod(1)) > 0).all()


def test_good_anchors_are_kept_and_bad_ones_replaced() -> None:
    rng = np.random.default_rng(2)
    anchors = DEFAULT.reshape(3, 3, 2)
    usual, tiny = rng.uniform(10, 300, (500, 2)), rng.uniform(2, 2.4, (500, 2))
    kept, before, after = fit_anchors(usual, anchors, 4.0)
    assert kept is anchors
    assert before == after
    fitted, before, after = fit_anchors(tiny, anchors, 4.0)
    assert before.recall < 0.5 < after.recall == 1
    assert fitted.shape == anchors.shape
    few, *_ = fit_anchors(tiny[:5], anchors, 4.0)
    assert few is anchors
    forced, *_ = fit_anchors(usual, anchors, 4.0, always=True)
    assert forced is not anchors

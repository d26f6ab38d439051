"""Flat polygons against one-by-one references."""

import cv2
import numpy as np
import pytest

from data import rows
from data.polygons import Polygons, without_area

SIZE = 100


def _flat(parts) -> Polygons:
    return Polygons(
        np.concatenate([np.reshape(part, (-1, 2)) for part in parts]).astype(np.float32),
        np.array([len(part) for part in parts]),
    )


def test_take_bounds_and_item_keep_instances_without_points_apart():
    parts = [[(1, 2), (5, 3), (4, 9)], [], [(7, 7), (8, 7), (8, 8), (7, 8)]]
    polygons = _flat(parts)
    assert polygons.bounds_xyxy().tolist() == [[1, 2, 5, 9], [0, 0, 0, 0], [7, 7, 8, 8]]
    turned = polygons.take(np.array([2, 1, 0, 2]))
    assert turned.lengths.tolist() == [4, 0, 3, 4]
    for place, row in enumerate((2, 1, 0, 2)):
        assert turned[place].tolist() == [list(point) for point in parts[row]]
    assert len(polygons.take(np.zeros(0, np.int64))) == 0


def test_clip_of_known_shapes():
    around = [(-50, -50), (150, -50), (150, 150), (-50, 150)]  # no edge of it is in the image
    top = [(-50, -50), (150, -50), (150, 30), (-50, 10)]  # covers two corners
    outside = [(-9, -9), (-1, -9), (-1, -1)]
    inside = [(10, 10), (20, 10), (15, 30)]
    clipped = _flat([around, outside, [], top, inside]).clip((SIZE, SIZE))
    assert clipped.lengths[1] == clipped.lengths[2] == 0
    np.testing.assert_allclose(
        clipped.bounds_xyxy()[[0, 3, 4]], [[0, 0, 100, 100], [0, 0, 100, 25], [10, 10, 20, 30]], atol=1e-4
    )


@pytest.mark.parametrize("seed", range(5))
def test_clip_agrees_with_a_convex_intersection(seed):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(40):  # convex polygons of 3 to 8 corners, many across the borders
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        around = np.stack((np.cos(angles), np.sin(angles)), 1)
        parts.append(rng.uniform(-40, 140, 2) + rng.uniform(5, 90) * around)
    clipped = _flat(parts).clip((SIZE, SIZE))
    frame = np.array([(0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)], np.float32)
    for row, part in enumerate(parts):
        area, expected = cv2.intersectConvexConvex(part.astype(np.float32), frame)
        if area < 1:
            assert cv2.contourArea(clipped[row]) < 1.1 if len(clipped[row]) else True
            continue
        assert cv2.contourArea(clipped[row]) == pytest.approx(area, rel=1e-3)
        bounds = np.concatenate((expected.min((0, 1)), expected.max((0, 1))))
        np.testing.assert_allclose(clipped.bounds_xyxy()[row], bounds, atol=0.05)


@pytest.mark.parametrize("scale", [1, 1000])
def test_polygons_without_area(scale: int):
    rng = np.random.default_rng(0)
    lines = [(start := rng.random(2)) + rng.random((4, 1)) * (rng.random(2) - start) for _ in range(20)]
    parts = [*rng.random((20, 5, 2)), *lines, np.zeros((0, 2)), np.array([[0, 0], [1, 1], [1, 0], [0, 1]])]  # a bow tie
    points = np.concatenate(parts) * scale
    found = without_area(points, np.array([len(part) for part in parts]))
    boxes = [np.ptp(part, axis=0).prod() if len(part) else 0 for part in parts]
    areas = [cv2.contourArea(part.astype(np.float32)) for part in parts]
    expected = [len(part) > 0 and area < 1e-4 * box for part, area, box in zip(parts, areas, boxes, strict=True)]
    assert found.tolist() == expected
    assert sum(expected) == 21


@pytest.mark.parametrize("block", [1, 2, 100])
def test_polygons_without_area_are_flat(monkeypatch, block):
    monkeypatch.setattr(rows, "_BLOCK", block)
    line = [(10, 10), (20, 20), (30, 30)]
    there_and_back = [(5, 5), (50, 5), (50, 60), (50, 5)]
    point = [(1e6, 1e6)] * 4
    corner = [(0, 0), (9, 0), (0, 9)]
    far = [(1e6, 1e6), (1e6 + 1, 1e6), (1e6, 1e6 + 1)]
    parts = [[], line, corner, [], there_and_back, far, point, []]
    polygons = _flat(parts)
    assert without_area(polygons.points, polygons.lengths).nonzero()[0].tolist() == [1, 4, 6]
    assert without_area(polygons.points[:0], polygons.lengths[:0]).tolist() == []
    assert without_area(polygons.points[:0], np.zeros(3, np.int64)).tolist() == [False] * 3

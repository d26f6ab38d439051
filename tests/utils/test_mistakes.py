"""What went wrong in each image, counted in plain loops."""

import math

import numpy as np
import pytest

from tests.utils.splits import SQUARES, detections_of, plain_iou, random_set, truth_of
from utils.coco import Detections, evaluate_coco
from utils.mistakes import find_mistakes


def counted_in_loops(truth, metrics, image):
    """Labels, detections, TP, FP and misses of an image by COCO's rule at the metrics' confidence."""
    found, first, last = metrics.found, *truth.starts[image : image + 2]
    right = wrong = shown = 0
    free = {box for box in range(first, last) if not truth.crowd[box]}
    labels, kinds = len(free), range(len(truth.names))
    for kind in kinds:
        rows = np.flatnonzero((found.images == image) & (found.classes == kind))
        for row in sorted(rows, key=lambda row: -found.confidences[row])[:100]:
            if found.confidences[row] < metrics.confidence:
                continue
            shown += 1
            overlaps = {b: plain_iou(found.boxes[row], truth.boxes[b]) for b in free if truth.classes[b] == kind}
            best = max(overlaps, key=lambda box: (overlaps[box], box), default=None)
            crowds = [b for b in range(first, last) if truth.crowd[b] and truth.classes[b] == kind]
            if best is not None and overlaps[best] >= 0.5:
                free.remove(best)
                right += 1
            elif not any(plain_iou(found.boxes[row], truth.boxes[box], crowd=True) >= 0.5 for box in crowds):
                wrong += 1
    return labels, shown, right, wrong, len(free)


@pytest.mark.parametrize("seed", range(4))
def test_images_are_counted_and_ordered(seed):
    truth, detections = random_set(seed, images=10, most_found=150 if seed == 0 else 30)
    metrics = evaluate_coco(truth, detections)
    rows = find_mistakes(metrics).images(truth)
    assert sorted(row["image_id"] for row in rows) == sorted(truth.image_ids.tolist())
    for row in rows:
        index = truth.image_ids.tolist().index(row["image_id"])
        expected = counted_in_loops(truth, metrics, index)
        assert tuple(row[key] for key in ("labels", "detections", "TP", "FP", "misses")) == expected
        assert row["image"] == str(truth.paths[index])
        right, bad = expected[2], expected[3] + expected[4]
        assert row["F1"] == pytest.approx(2 * right / (2 * right + bad) if right + bad else math.nan, nan_ok=True)
    order = [(math.isnan(row["F1"]), row["F1"], -row["FP"] - row["misses"]) for row in rows]
    assert order == sorted(order)
    best = metrics.curves.best
    recall = metrics.curves.recall[:, best][metrics.curves.present]
    labels = np.bincount(truth.classes[~truth.crowd], minlength=4)[metrics.curves.present]
    assert sum(row["TP"] for row in rows) == round((recall * labels).sum())


def test_misses_without_a_trace_come_first_and_the_largest_of_them():
    boxes = [[0, 0, 0, 10, 10, 0], [0, 100, 0, 30, 30, 0], [0, 200, 0, 60, 60, 0], [0, 300, 0, 90, 90, 1]]
    truth = truth_of([boxes, boxes[:1]], ["a"])
    found = detections_of(
        {
            0: [[200, 0, 260, 60, 0.1, 0], [0, 50, 10, 60, 0.3, 0]],
            1: [[0, 0, 10, 10, 0.9, 0], [50, 50, 70, 70, 0.95, 0]],
        }
    )
    mistakes = find_mistakes(evaluate_coco(truth, found))
    assert mistakes.misses().tolist() == [1, 0]  # the third is found at the confidence of the best F1
    assert mistakes.found_at.tolist() == pytest.approx([-1, -1, 0.1, -1, 0.9])
    assert mistakes.found.confidences[mistakes.false_alarms()] == pytest.approx([0.95, 0.3])


def test_perfect_detections_have_no_mistakes():
    truth = truth_of(SQUARES, ["a", "b"])
    found = detections_of({0: [[10, 10, 30, 30, 0.9, 0], [100, 100, 150, 150, 0.8, 1]], 2: [[30, 30, 50, 50, 0.7, 0]]})
    mistakes = find_mistakes(evaluate_coco(truth, found))
    assert len(mistakes.misses()) == len(mistakes.false_alarms()) == 0
    assert [row["F1"] for row in mistakes.images(truth)] == pytest.approx([1, 1, math.nan], nan_ok=True)


def test_everything_is_missed_where_nothing_is_found():
    truth = truth_of(SQUARES, ["a", "b"])
    mistakes = find_mistakes(evaluate_coco(truth, Detections()))
    assert mistakes.misses().tolist() == [1, 0, 2]


def test_nothing_is_counted_where_nothing_is_labelled():
    truth = truth_of([[], []], ["a"])
    rows = find_mistakes(evaluate_coco(truth, detections_of({0: [[0, 0, 9, 9, 0.9, 0]]}))).images(truth)
    assert [row["detections"] for row in rows] == [0, 0]

"""Matching, curves over confidence and the confusion matrix against plain loops, pycocotools, and cases by hand."""

from dataclasses import replace

import numpy as np
import pytest

from tests.utils.splits import detections_of, evaluated_by_pycocotools, plain_iou, random_set, truth_of
from utils import curves
from utils.coco import Detections, confusion_matrix, evaluate_coco, truth_table


def brute_matches(truth, detections, iou=0.5):
    """COCO's rule in loops: for each class the confidences of (hits, false alarms) and the number of labels."""
    found = detections.table()
    image_of_box = np.repeat(np.arange(len(truth.paths)), np.diff(truth.starts))
    result = []
    for kind in range(len(truth.names)):
        hits, alarms = [], []
        for image in range(len(truth.paths)):
            boxes = np.flatnonzero((image_of_box == image) & (truth.classes == kind))
            rows = np.flatnonzero((found.images == image) & (found.classes == kind))
            rows = sorted(rows, key=lambda row: -found.confidences[row])[:100]
            free = {int(box) for box in boxes if not truth.crowd[box]}
            crowds = [box for box in boxes if truth.crowd[box]]
            for row in rows:
                overlaps = {box: plain_iou(found.boxes[row], truth.boxes[box]) for box in free}
                best = max(overlaps, key=lambda box: (overlaps[box], box), default=None)
                if best is not None and overlaps[best] >= iou:
                    free.remove(best)
                    hits.append(found.confidences[row])
                elif not any(plain_iou(found.boxes[row], truth.boxes[box], crowd=True) >= iou for box in crowds):
                    alarms.append(found.confidences[row])
        labels = int(((truth.classes == kind) & ~truth.crowd).sum())
        result.append((np.array(hits), np.array(alarms), labels))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_precision_recall_and_best_f1_equal_plain_loops(seed):
    truth, detections = random_set(seed, images=8, most_found=150 if seed == 0 else 20)
    metrics = evaluate_coco(truth, detections)
    reference = brute_matches(truth, detections)
    axis = np.linspace(0, 1, 1000)
    precision, recall, f1 = (np.full((len(truth.names), 1000), np.nan) for _ in range(3))
    for kind, (hits, alarms, labels) in enumerate(reference):
        if not labels:
            continue
        for column, threshold in enumerate(axis):
            right, wrong = (hits >= threshold).sum(), (alarms >= threshold).sum()
            precision[kind, column] = right / (right + wrong) if right + wrong else 1
            recall[kind, column] = right / labels
            f1[kind, column] = 2 * right / (right + wrong + labels)
    np.testing.assert_allclose(metrics.curves.precision, precision, atol=1e-12)
    np.testing.assert_allclose(metrics.curves.recall, recall, atol=1e-12)
    np.testing.assert_allclose(metrics.curves.f1, f1, atol=1e-12)
    best = np.nanmean(f1, 0).argmax()
    assert metrics.confidence == axis[best]
    claimed = np.where(recall[:, best] == 0, 0, precision[:, best])
    assert metrics.figures["P"] == pytest.approx(np.nanmean(claimed))
    assert metrics.figures["R"] == pytest.approx(np.nanmean(recall[:, best]))


@pytest.mark.parametrize("seed", range(3))
def test_matches_equal_pycocotools(seed):
    truth, detections = random_set(seed, most_found=300)
    table = detections.table()
    matches = curves.match(table, truth_table(truth))
    by_id = dict.fromkeys(range(1, len(table.images) + 1), "left out")
    for image in evaluated_by_pycocotools(truth, detections).evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            for row, box, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
                by_id[row] = "ignored" if ignored else "hit" if box else "alarm"
    for index, fate in enumerate(by_id.values()):
        ours = "ignored" if matches.ignored[index] else "hit" if matches.hit[index] else "alarm"
        assert (ours if matches.considered[index] else "left out") == fate


def test_blocks_of_pairs_change_nothing(monkeypatch):
    truth, detections = random_set(3)
    whole = evaluate_coco(truth, detections)
    monkeypatch.setattr(curves, "PAIRS_AT_ONCE", 5)
    assert evaluate_coco(truth, detections).figures == whole.figures
    assert whole.figures["P"] > 0


def test_confusion_matrix_by_hand():
    truth = truth_of(
        [
            [[0, 0, 0, 10, 10, 0], [1, 100, 0, 10, 10, 0], [1, 200, 0, 10, 10, 0]],
            [[0, 0, 0, 40, 40, 1], [1, 100, 0, 10, 10, 0]],
            [[0, 0, 0, 10, 10, 0]],
        ],
        ["a", "b"],
    )
    found = detections_of(
        {
            0: [
                [0, 0, 10, 8, 0.9, 0],  # IoU 0.8, less than the next
                [0, 0, 10, 9, 0.5, 1],  # takes a for b: the greater IoU goes first whatever the confidence
                [100, 0, 110, 10, 0.25, 1],  # right, and just confident enough
                [200, 0, 210, 10, 0.24, 1],  # not confident enough: its box is missed
            ],
            1: [
                [0, 0, 20, 20, 0.9, 0],  # inside the crowd of its class: left out
                [0, 0, 20, 20, 0.9, 1],  # the same place, another class: background
                [100, 0, 104.4, 10, 0.9, 1],  # IoU 0.44: background, and its box missed
            ],
        }
    )
    expected = [[0, 0, 1], [1, 1, 2], [1, 2, 0]]
    assert confusion_matrix(truth, found).tolist() == expected
    assert confusion_matrix(truth, found, conf=0.2)[1, 1] == 2
    assert confusion_matrix(truth, found, iou=0.4)[1, 1] == 2
    assert confusion_matrix(truth, Detections())[2].tolist() == [2, 3, 0]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_equals_taking_pairs_one_by_one(seed):
    truth, detections = random_set(seed, images=10)
    truth = replace(truth, crowd=np.zeros_like(truth.crowd))
    found, image_of_box = detections.table(), truth_table(truth).images
    rows = np.flatnonzero(found.confidences >= 0.25)
    pairs = [
        (-plain_iou(found.boxes[row], truth.boxes[box]), -found.confidences[row], row, box)
        for row in rows
        for box in np.flatnonzero(image_of_box == found.images[row])
    ]
    expected = np.zeros((5, 5), int)
    free_rows, free_boxes = set(rows.tolist()), set(range(len(truth.boxes)))
    for overlap, _, row, box in sorted(pairs):
        if -overlap >= 0.45 and row in free_rows and box in free_boxes:
            free_rows.remove(row)
            free_boxes.remove(box)
            expected[found.classes[row], truth.classes[box]] += 1
    for row in free_rows:
        expected[found.classes[row], 4] += 1
    for box in free_boxes:
        expected[4, truth.classes[box]] += 1
    assert (confusion_matrix(truth, detections) == expected).all()

"""The evaluator against pycocotools, against matching written out in plain loops, and on cases counted by hand."""

import contextlib
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils import curves
from utils.coco import (
    COCO_FIGURES,
    FIGURES,
    Detections,
    confusion_matrix,
    detections_to_json,
    evaluate_coco,
    official,
    to_coco_json,
)


@dataclass(frozen=True)
class Truth:
    """The fields of an annotations table that evaluation reads."""

    names: list[str]
    paths: list[Path]
    sizes_wh: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    starts: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    polygons: np.ndarray
    polygon_starts: np.ndarray


def truth_of(images, names, *, image_ids=None, category_ids=None, areas=None):
    """A table from, for each image, rows (class, x, y, w, h, crowd)."""
    rows = np.array([row for image in images for row in image], np.float64).reshape(-1, 6)
    count = len(images)
    return Truth(
        names=list(names),
        paths=[Path(f"images/{index:03}.png") for index in range(count)],
        sizes_wh=np.tile(np.int32([640, 480]), (count, 1)),
        image_ids=np.arange(count) if image_ids is None else np.asarray(image_ids, np.int64),
        category_ids=np.arange(len(names)) if category_ids is None else np.asarray(category_ids, np.int64),
        starts=np.cumsum([0, *map(len, images)]),
        classes=rows[:, 0].astype(np.int64),
        boxes=rows[:, 1:5],
        areas=rows[:, 3] * rows[:, 4] if areas is None else np.asarray(areas, np.float64),
        crowd=rows[:, 5] > 0,
        polygons=np.empty((0, 2), np.float32),
        polygon_starts=np.zeros(len(rows) + 1, np.int64),
    )


def detections_of(images):
    """Detections from, for each image index, rows (x1, y1, x2, y2, confidence, class)."""
    collected = Detections()
    for index, rows in images.items():
        collected.add(index, torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))
    return collected


def random_set(seed, *, images=12, classes=4, labelled_classes=3, most_boxes=8, most_found=40, levels=20):
    """Boxes of all sizes, crowds, mask areas, empty images, ids with gaps and in disorder, scores with many ties."""
    rng = np.random.default_rng(seed)
    truth, found = [], {}
    for index in range(images):
        count = int(rng.integers(0, most_boxes + 1))
        wh = np.exp(rng.uniform(np.log(4), np.log(250), (count, 2)))
        boxes = np.c_[rng.uniform(0, 400, (count, 2)), wh]
        labels = rng.integers(0, labelled_classes, count)
        truth.append(np.c_[labels, boxes, rng.random(count) < 0.15].tolist())
        near = boxes.repeat(3, 0) + rng.normal(0, 0.07, (count * 3, 4)) * wh.repeat(3, 0)[:, [0, 1, 0, 1]]
        far = np.c_[rng.uniform(0, 400, (most_found, 2)), np.exp(rng.uniform(1.4, 5.5, (most_found, 2)))]
        guess = np.where(rng.random(count * 3) < 0.8, labels.repeat(3), rng.integers(0, classes, count * 3))
        xywh = np.r_[near, far[: rng.integers(0, most_found + 1)]]
        kinds = np.r_[guess, rng.integers(0, classes, len(xywh) - len(guess))]
        exponent = np.r_[np.full(len(guess), 0.3), np.ones(len(xywh) - len(guess))]
        scores = np.round(rng.beta(1, 2, len(xywh)) ** exponent * levels) / levels
        if rng.random() < 0.85:
            found[index] = np.c_[xywh[:, :2], xywh[:, :2] + xywh[:, 2:], scores, kinds].tolist()
    ids = rng.permutation(images * 7)[:images] + 3
    table = truth_of(truth, "abcdefgh"[:classes], image_ids=ids, category_ids=rng.permutation(90)[:classes] + 1)
    table = replace(table, areas=table.areas * rng.uniform(0.4, 1, len(table.areas)))
    order = rng.permutation(list(found))  # images arrive in any order
    return table, detections_of({int(index): found[index] for index in order})


def exact_json(truth, detections):
    """Detections for pycocotools without rounding."""
    found = detections.table()
    return [
        {
            "image_id": int(truth.image_ids[image]),
            "category_id": int(truth.category_ids[kind]),
            "bbox": box.tolist(),
            "score": float(score),
        }
        for image, kind, box, score in zip(found.images, found.classes, found.boxes, found.confidences, strict=True)
    ]


def pycocotools_evaluation(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = to_coco_json(truth)
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(exact_json(truth, detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_same_figures(truth, detections):
    ours = evaluate_coco(truth, detections).figures
    expected = official(truth, exact_json(truth, detections))
    assert [ours[key] for key in COCO_FIGURES] == pytest.approx(list(expected.values()), abs=1e-6, nan_ok=True)
    return ours


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([3, 20, 10_000]), boxes=st.integers(0, 10))
def test_figures_equal_pycocotools(seed, levels, boxes):
    assert_same_figures(*random_set(seed, images=6, levels=levels, most_boxes=boxes))


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_pycocotools_beyond_100_detections(seed):
    truth, detections = random_set(seed, images=4, classes=2, labelled_classes=2, most_found=500)
    counts = np.bincount(detections.table().images * 2 + detections.table().classes)
    assert counts.max() > 130
    figures = assert_same_figures(truth, detections)
    assert figures["AR1"] < figures["AR100"]


def test_figures_equal_pycocotools_at_scale():
    truth, detections = random_set(7, images=150, classes=8, labelled_classes=7)
    figures = assert_same_figures(truth, detections)
    assert 0.1 < figures["AP"] < 0.9
    assert not any(math.isnan(value) for value in figures.values())


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


def plain_iou(a, b, *, crowd=False):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


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
    matches = curves.match(table, curves.TruthTable(*_truth_columns(truth)))
    by_id = dict.fromkeys(range(1, len(table.images) + 1), "left out")
    for image in pycocotools_evaluation(truth, detections).evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            for row, box, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
                by_id[row] = "ignored" if ignored else "hit" if box else "alarm"
    for index, fate in enumerate(by_id.values()):
        ours = "ignored" if matches.ignored[index] else "hit" if matches.hit[index] else "alarm"
        assert (ours if matches.considered[index] else "left out") == fate


def _truth_columns(truth):
    return np.repeat(np.arange(len(truth.paths)), np.diff(truth.starts)), truth.classes, truth.boxes, truth.crowd


def test_blocks_of_pairs_change_nothing(monkeypatch):
    truth, detections = random_set(3)
    whole = evaluate_coco(truth, detections)
    monkeypatch.setattr(curves, "PAIRS_AT_ONCE", 5)
    assert evaluate_coco(truth, detections).figures == whole.figures
    assert whole.figures["P"] > 0


def test_per_class_rows_are_the_classes_evaluated_alone():
    truth, detections = random_set(11, classes=4, labelled_classes=3)
    metrics = evaluate_coco(truth, detections)
    arrays = pycocotools_evaluation(truth, detections).eval
    sorted_ids = sorted(truth.category_ids.tolist())
    image_of_box = _truth_columns(truth)[0]
    for kind, row in enumerate(metrics.per_class):
        column = sorted_ids.index(truth.category_ids[kind])
        plain = (truth.classes == kind) & ~truth.crowd
        assert (row.name, row.labels) == (truth.names[kind], plain.sum())
        assert row.images == len(set(image_of_box[plain]))
        expected = {
            "AP": arrays["precision"][:, :, column, 0, 2],
            "AP50": arrays["precision"][0, :, column, 0, 2],
            "AP75": arrays["precision"][5, :, column, 0, 2],
            "AP_S": arrays["precision"][:, :, column, 1, 2],
            "AP_M": arrays["precision"][:, :, column, 2, 2],
            "AP_L": arrays["precision"][:, :, column, 3, 2],
            "AR100": arrays["recall"][:, column, 0, 2],
        }
        for key, values in expected.items():
            mean = math.nan if values.min() < 0 else values.mean()
            assert getattr(row, key) == pytest.approx(mean, abs=1e-9, nan_ok=True), key
    absent = metrics.per_class[3]
    assert absent.labels == 0
    assert all(math.isnan(value) for value in (absent.P, absent.R, absent.AP, absent.AR100))
    rows = np.array([[row.P, row.R, row.AP] for row in metrics.per_class[:3]])
    assert rows.mean(0) == pytest.approx([metrics.figures[key] for key in ("P", "R", "AP")])


SQUARES = [[[0, 10, 10, 20, 20, 0], [1, 100, 100, 50, 50, 0]], [], [[0, 30, 30, 20, 20, 0]]]


def test_perfect_detections():
    truth = truth_of(SQUARES, ["a", "b", "c"])
    found = detections_of({0: [[10, 10, 30, 30, 0.9, 0], [100, 100, 150, 150, 0.8, 1]], 2: [[30, 30, 50, 50, 0.7, 0]]})
    metrics = evaluate_coco(truth, found)
    assert list(metrics.figures) == list(FIGURES)
    assert [metrics.figures[key] for key in ("P", "R", "AP", "AP50", "AP_S", "AP_M", "AR100")] == pytest.approx([1] * 7)
    assert metrics.figures["AR1"] == pytest.approx(1)
    assert math.isnan(metrics.figures["AP_L"])
    plain = metrics.to_json()
    assert plain["AP_L"] is None
    assert plain["AR_L"] is None
    assert json.loads(json.dumps(plain, allow_nan=False))["confidence"] == metrics.confidence == 0
    assert metrics.curves.precision_at_recall.shape == (3, 101)
    assert metrics.curves.precision_at_recall[:2] == pytest.approx(np.ones((2, 101)))
    assert metrics.curves.present.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "found", [{}, {0: []}, {1: [[5, 5, 9, 9, 0.5, 2]]}], ids=["none", "empty rows", "absent class"]
)
def test_nothing_right_is_zero(found):
    truth = truth_of(SQUARES, ["a", "b", "c"])
    figures = assert_same_figures(truth, detections_of(found))
    assert {figures[key] for key in ("P", "R", "AP", "AP50", "AR100")} == {0}


@pytest.mark.parametrize(
    "images", [[], [[], []], [[[0, 5, 5, 50, 50, 1]], []]], ids=["no images", "empty", "crowd only"]
)
def test_nothing_to_find_is_nan(images):
    truth = truth_of(images, ["a", "b"])
    found = detections_of({0: [[5, 5, 60, 60, 0.9, 0]]} if images else {})
    metrics = evaluate_coco(truth, found)
    assert all(math.isnan(value) for value in metrics.figures.values())
    assert math.isnan(metrics.confidence)
    assert set(metrics.to_json().values()) == {None}
    assert all(math.isnan(value) for value in official(truth, exact_json(truth, found)).values())


def test_class_beyond_the_names_is_refused():
    with pytest.raises(AssertionError, match="beyond the names"):
        evaluate_coco(truth_of(SQUARES, ["a", "b"]), detections_of({0: [[0, 0, 5, 5, 0.5, 2]]}))


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
    found, image_of_box = detections.table(), _truth_columns(truth)[0]
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


def test_json_files_carry_ids_sizes_and_polygons(tmp_path):
    truth = truth_of(SQUARES, ["a", "b"], image_ids=[42, 7, 1000], category_ids=[18, 3], areas=[300, 2500, 400])
    truth = replace(
        truth,
        polygons=np.float32([[10, 10], [30, 10], [30.5, 30]]),
        polygon_starts=np.array([0, 3, 3, 3]),
    )
    gold = to_coco_json(truth)
    assert gold["images"][0] == {"id": 42, "file_name": "000.png", "width": 640, "height": 480}
    assert gold["categories"] == [{"id": 18, "name": "a"}, {"id": 3, "name": "b"}]
    assert gold["annotations"][0] == {
        "id": 1,
        "image_id": 42,
        "category_id": 18,
        "bbox": [10, 10, 20, 20],
        "area": 300,
        "iscrowd": 0,
        "segmentation": [[10, 10, 30, 10, 30.5, 30]],
    }
    assert "segmentation" not in gold["annotations"][1]

    found = detections_of({2: [[30, 30, 50.12345, 50, 0.1234567, 0]], 0: [[100, 100, 150, 150, 0.5, 1]]})
    results = detections_to_json(truth, found)
    assert results == [
        {"image_id": 1000, "category_id": 18, "bbox": [30, 30, 20.123, 20], "score": 0.12346},
        {"image_id": 42, "category_id": 3, "bbox": [100, 100, 50, 50], "score": 0.5},
    ]
    for name, content in (("gold.json", gold), ("results.json", results)):
        (tmp_path / name).write_text(json.dumps(content))
    figures = official(tmp_path / "gold.json", tmp_path / "results.json")
    assert list(figures) == list(COCO_FIGURES)
    assert list(figures.values()) == pytest.approx(list(official(truth, results).values()), nan_ok=True)
    assert figures["AR100"] == pytest.approx(0.75)
    alone = official(tmp_path / "gold.json", tmp_path / "results.json", image_ids=[42])
    assert alone["AR100"] == pytest.approx(0.5)


def test_evaluation_prints_nothing(capfd):
    truth, detections = random_set(0, images=3)
    evaluate_coco(truth, detections)
    official(truth, detections_to_json(truth, detections))
    assert capfd.readouterr() == ("", "")

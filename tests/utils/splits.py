"""Splits with ground truth and detections made up for the tests of evaluation."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.annotations import Annotations
from utils.areas import COCO_BANDS
from utils.coco import Detections
from utils.official import detections_to_json, pycocotools_evaluation, to_coco_json


def truth_of(images, names, *, image_ids=None, category_ids=None, areas=None):
    """A table from, for each image, rows (class, x, y, w, h, crowd)."""
    rows = np.array([row for image in images for row in image], np.float64).reshape(-1, 6)
    count = len(images)
    return Annotations(
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
        problems=[],
    )


def detections_of(images):
    """Detections from, for each image index, rows (x1, y1, x2, y2, confidence, class)."""
    collected = Detections()
    for index, rows in images.items():
        collected.add(index, torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))
    return collected


SQUARES = [[[0, 10, 10, 20, 20, 0], [1, 100, 100, 50, 50, 0]], [], [[0, 30, 30, 20, 20, 0]]]


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


def evaluated_by_pycocotools(truth, detections, *, bands=COCO_BANDS, limits=(1, 10, 100)):
    """pycocotools' own evaluation of the same split, in bands and limits of choice."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = pycocotools_evaluation(to_coco_json(truth), detections_to_json(truth, detections))
        squares = [[low**2, min(high, 1e5) ** 2] for low, high in bands.values()]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10], *squares], ["all", *bands]
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def plain_iou(a, b, *, crowd=False):
    """IoU of two boxes x, y, w, h; of a crowd, the share of the first."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)

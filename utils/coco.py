"""COCO's evaluation for any data set: collected detections, the metrics, and the json files of the official tools.

The figures are those of pycocotools, computed by faster-coco-eval; `official` asks pycocotools itself.
"""

import contextlib
import dataclasses
import gc
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pycocotools.coco
import pycocotools.cocoeval
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from utils.curves import (
    Curves,
    DetectionTable,
    Floats,
    Ints,
    Mask,
    TruthTable,
    confidence_curves,
    count_confusions,
    match,
)

# name: (array of COCO's evaluation, IoU thresholds, area band, detections per image)
_EVERY, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_FIGURES: dict[str, tuple[str, slice, int, int]] = {
    "AP": ("precision", _EVERY, 0, 2),
    "AP50": ("precision", _IOU_50, 0, 2),
    "AP75": ("precision", _IOU_75, 0, 2),
    "AP_S": ("precision", _EVERY, 1, 2),
    "AP_M": ("precision", _EVERY, 2, 2),
    "AP_L": ("precision", _EVERY, 3, 2),
    "AR1": ("recall", _EVERY, 0, 0),
    "AR10": ("recall", _EVERY, 0, 1),
    "AR100": ("recall", _EVERY, 0, 2),
    "AR_S": ("recall", _EVERY, 1, 2),
    "AR_M": ("recall", _EVERY, 2, 2),
    "AR_L": ("recall", _EVERY, 3, 2),
}
COCO_FIGURES = tuple(_FIGURES)  # in pycocotools' order
FIGURES = ("P", "R", *COCO_FIGURES)


class GroundTruth(Protocol):
    """What evaluation needs of a split's annotations; `data.annotations.Annotations` has it."""

    @property
    def names(self) -> Sequence[str]:
        """Class names."""

    @property
    def paths(self) -> Sequence[Path]:
        """(N) image files."""

    @property
    def sizes_wh(self) -> npt.NDArray[np.int32]:
        """(N, 2) pixels."""

    @property
    def image_ids(self) -> Ints:
        """(N) COCO's image ids."""

    @property
    def category_ids(self) -> Ints:
        """(nc) COCO's id of each class."""

    @property
    def starts(self) -> Ints:
        """(N + 1) image i owns the boxes starts[i] to starts[i + 1]."""

    @property
    def classes(self) -> Ints:
        """(M) class of each box."""

    @property
    def boxes(self) -> Floats:
        """(M, 4) x, y of the top left corner, width, height in the original image's pixels."""

    @property
    def areas(self) -> Floats:
        """(M) square pixels."""

    @property
    def crowd(self) -> Mask:
        """(M) regions of many objects, ignored."""

    @property
    def polygons(self) -> npt.NDArray[np.float32]:
        """(P, 2) outline points in pixels."""

    @property
    def polygon_starts(self) -> Ints:
        """(M + 1) box j owns the points polygon_starts[j] to polygon_starts[j + 1]."""


class Detections:
    """The detections of a split, gathered image by image in any order; images without any need not be added."""

    def __init__(self) -> None:
        self._images: list[int] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def add(self, image_index: int, rows: Tensor | npt.NDArray[np.float32]) -> None:
        """Add an image's (n, 6): x1, y1, x2, y2 in the original's pixels, confidence, class."""
        values = np.array(rows.detach().float().cpu().numpy() if isinstance(rows, Tensor) else rows)  # a copy
        assert values.shape == (len(values), 6), f"expected (n, 6) detections, got {values.shape}"
        self._images.append(image_index)
        self._rows.append(values)

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def table(self) -> DetectionTable:
        """All detections in flat arrays, in the order added."""
        images = np.repeat(np.array(self._images, np.int64), list(map(len, self._rows)))
        rows = np.concatenate([np.empty((0, 6)), *self._rows]).astype(np.float64)
        boxes = np.concatenate((rows[:, :2], rows[:, 2:4] - rows[:, :2]), 1)
        return DetectionTable(images, rows[:, 5].astype(np.int64), rows[:, 4], boxes)


@dataclass(frozen=True)
class ClassMetrics:
    """The figures of one class, fractions; nan where the class has no labels (in that area band)."""

    name: str
    images: int
    labels: int
    P: float
    R: float
    AP50: float
    AP75: float
    AP: float
    AP_S: float
    AP_M: float
    AP_L: float
    AR100: float


@dataclass(frozen=True)
class Metrics:
    """The figures of a split, fractions; nan where there are no labels to measure (in that area band)."""

    figures: dict[str, float]  # keys and order of FIGURES
    confidence: float  # where the mean F1 at IoU 0.5 peaks; P and R are taken there
    per_class: list[ClassMetrics]
    curves: Curves

    def to_json(self) -> dict[str, float | None]:
        """The figures and the confidence, None for nan, which json does not have."""
        values = {**self.figures, "confidence": self.confidence}
        return {key: None if math.isnan(value) else value for key, value in values.items()}


def evaluate_coco(annotations: GroundTruth, detections: Detections) -> Metrics:
    """Measure detections as COCO does: 101 recalls, IoU 0.50 to 0.95, 100 detections, crowds ignored.

    Classes without labels are left out of the means.
    """
    found, truths = detections.table(), truth_table(annotations)
    classes = len(annotations.names)
    assert found.classes.max(initial=0) < max(classes, 1), "a detection's class is beyond the names"
    labels = np.bincount(truths.classes[~truths.crowd], minlength=classes)
    matches = match(found, truths, iou=0.5)
    arrays = _coco_arrays(annotations, truths, found, matches.considered & (labels > 0)[found.classes])
    curves = confidence_curves(found, matches, labels, arrays["precision"][0, :, :, 0, 2].T)
    return _summarise(annotations, truths, labels, arrays, curves)


def confusion_matrix(annotations: GroundTruth, detections: Detections, conf: float = 0.25, iou: float = 0.45) -> Ints:
    """Count what each true class was taken for, (nc + 1, nc + 1): rows predicted, columns true, the last background.

    Detections of confidence `conf` or more and true boxes pair one to one whatever their classes, the greatest IoU
    (at least `iou`) first. Crowds are left out, and so are unpaired detections that cover one of their class.
    """
    found = detections.table()
    return count_confusions(found[found.confidences >= conf], truth_table(annotations), len(annotations.names), iou)


def to_coco_json(annotations: GroundTruth) -> dict[str, Any]:
    """Write a split's ground truth in COCO's json form, whatever it was read from; annotation ids count from 1."""
    image_ids = annotations.image_ids.tolist()
    sizes = annotations.sizes_wh.tolist()
    images = [
        {"id": image_id, "file_name": path.name, "width": width, "height": height}
        for image_id, path, (width, height) in zip(image_ids, annotations.paths, sizes, strict=True)
    ]
    category_ids = annotations.category_ids.tolist()
    categories = [
        {"id": category_id, "name": name} for category_id, name in zip(category_ids, annotations.names, strict=True)
    ]
    truths = truth_table(annotations)
    rows = _truth_rows(annotations, annotations.image_ids[truths.images], annotations.category_ids[annotations.classes])
    bounds = annotations.polygon_starts
    for index in np.flatnonzero(np.diff(bounds)):
        points = annotations.polygons[bounds[index] : bounds[index + 1]]
        rows[index]["segmentation"] = [points.astype(np.float64).ravel().tolist()]
    return {"info": {}, "images": images, "annotations": rows, "categories": categories}


def detections_to_json(annotations: GroundTruth, detections: Detections) -> list[dict[str, Any]]:
    """List detections in COCO's result form, with the data set's ids; boxes to 0.001 px, scores to 0.00001."""
    found = detections.table()
    image_ids, category_ids = annotations.image_ids[found.images], annotations.category_ids[found.classes]
    columns = (image_ids, category_ids, found.boxes.round(3), found.confidences.round(5))
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


def official(
    truth: GroundTruth | Path, results: list[dict[str, Any]] | Path, *, image_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """The 12 figures by pycocotools, nan where it says -1.

    Args:
        truth: annotations, or a COCO json.
        results: detections in COCO's result form, or a json of them.
        image_ids: the images that count, all of the truth's when None.
    """
    dataset = _read_json(truth) if isinstance(truth, Path) else to_coco_json(truth)
    rows = _read_json(results) if isinstance(results, Path) else results
    with contextlib.redirect_stdout(io.StringIO()):
        gold, answer = pycocotools.coco.COCO(), pycocotools.coco.COCO()
        gold.dataset, answer.dataset = dataset, {**dataset, "annotations": []}
        gold.createIndex()
        if rows:  # loadRes cannot read an empty list, and writes into what it is given
            answer = gold.loadRes([dict(row) for row in rows])
        evaluation = pycocotools.cocoeval.COCOeval(gold, answer, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {key: _nan_for_minus_one(value) for key, value in zip(COCO_FIGURES, evaluation.stats.tolist(), strict=True)}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _nan_for_minus_one(value: float) -> float:
    return math.nan if value == -1 else value


def truth_table(annotations: GroundTruth) -> TruthTable:
    """A split's true boxes as matching reads them."""
    images = np.repeat(np.arange(len(annotations.starts) - 1), np.diff(annotations.starts))
    return TruthTable(images, annotations.classes, annotations.boxes, annotations.crowd)


def _truth_rows(annotations: GroundTruth, image_ids: Ints, category_ids: Ints) -> list[dict[str, Any]]:
    """COCO's annotation of each box under the given (M) ids."""
    columns = (image_ids, category_ids, annotations.boxes, annotations.areas, annotations.crowd.astype(int))
    return [
        {"id": row, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
        for row, (image, category, box, area, crowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _coco_arrays(
    annotations: GroundTruth, truths: TruthTable, found: DetectionTable, counted: Mask
) -> dict[str, Floats]:
    """Precision (10 IoUs, 101 recalls, nc, 4 bands, 3 limits) and recall (10, nc, 4, 3), nan where nothing is labelled.

    Images go under the rank of their id and classes under their index: ranks keep the order in which COCO breaks ties
    of confidence, whatever the ids.
    """
    ranks = np.empty_like(annotations.image_ids)
    ranks[annotations.image_ids.argsort(kind="stable")] = np.arange(len(ranks))
    header = {
        "images": [{"id": image} for image in range(len(ranks))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(annotations.names)],
    }
    with _collector_paused():
        gold = COCO({**header, "annotations": _truth_rows(annotations, ranks[truths.images], truths.classes)})
        answer = COCO({**header, "annotations": _detection_rows(found[counted], ranks)})
        evaluation = COCOeval_faster(gold, answer, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = {key: np.asarray(evaluation.eval[key]) for key in ("precision", "recall")}
    return {key: np.where(array < 0, np.nan, array) for key, array in arrays.items()}


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking a million fresh rows again and again: a fifth of the whole time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _detection_rows(found: DetectionTable, ranks: Ints) -> list[dict[str, Any]]:
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    columns = (ranks[found.images], found.classes, found.boxes, areas, found.confidences)
    return [
        {"id": row, "image_id": image, "category_id": category, "bbox": box, "area": area, "score": score}
        for row, (image, category, box, area, score) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _summarise(
    annotations: GroundTruth, truths: TruthTable, labels: Ints, arrays: dict[str, Floats], curves: Curves
) -> Metrics:
    """Means over the classes that have labels, and the rows of the single classes."""
    P, R = curves.at_best()
    columns = {"P": P, "R": R}
    for key, (array, ious, band, limit) in _FIGURES.items():
        values = arrays[array][ious, ..., band, limit]  # (IoUs, [recalls,] nc)
        columns[key] = values.reshape(-1, len(labels)).mean(0)
    images = _images_per_class(truths, len(labels))
    wanted = [field.name for field in dataclasses.fields(ClassMetrics)[3:]]
    per_class = [
        ClassMetrics(name, int(images[row]), int(labels[row]), *(float(columns[key][row]) for key in wanted))
        for row, name in enumerate(annotations.names)
    ]
    figures = {key: _mean(columns[key]) for key in FIGURES}
    confidence = float(curves.confidence[curves.best]) if curves.present.any() else math.nan
    return Metrics(figures, confidence, per_class, curves)


def _mean(values: Floats) -> float:
    """Mean of what is not nan; nan when nothing is left."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else math.nan


def _images_per_class(truths: TruthTable, classes: int) -> Ints:
    """(nc) images that show each class, crowds apart."""
    plain = ~truths.crowd
    shown = np.unique(truths.images[plain] * classes + truths.classes[plain])
    return np.bincount(shown % max(classes, 1), minlength=classes)

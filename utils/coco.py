"""COCO's evaluation for any data set: collected detections and the metrics.

The figures are those of pycocotools, computed by faster-coco-eval; `utils/official.py` asks pycocotools itself.
"""

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from data.annotations import Annotations
from utils.areas import COCO_BANDS, Bands
from utils.curves import (
    MAX_DETECTIONS,
    Curves,
    DetectionTable,
    Floats,
    Ints,
    Matches,
    TruthTable,
    confidence_curves,
    count_confusions,
    match,
)

_EVERY, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_LIMITS = (1, 10, MAX_DETECTIONS)  # detections of an image and class that count
_USUAL_LIMIT = _LIMITS.index(MAX_DETECTIONS)
_WIDEST = 1e5  # pixels; COCO's greatest side


class _Figure(NamedTuple):
    """Where a figure is in the arrays of COCO's evaluation; band 0 is that of all sizes."""

    array: str
    ious: slice = _EVERY
    band: int = 0
    limit: int = _USUAL_LIMIT


def _figures(bands: Bands, max_det: int) -> dict[str, _Figure]:
    """The figures in pycocotools' order, with the recall at `max_det` among them where that is beyond COCO's limit."""
    numbers = list(enumerate(bands, 1))
    limits = _limits(max_det)
    return {
        "AP": _Figure("precision"),
        "AP50": _Figure("precision", _IOU_50),
        "AP75": _Figure("precision", _IOU_75),
        **{f"AP_{name}": _Figure("precision", band=number) for number, name in numbers},
        **{f"AR{most}": _Figure("recall", limit=number) for number, most in enumerate(limits)},
        **{f"AR_{name}": _Figure("recall", band=number) for number, name in numbers},
    }


def _limits(max_det: int) -> tuple[int, ...]:
    return (*_LIMITS, max_det) if max_det > MAX_DETECTIONS else _LIMITS


COCO_FIGURES = tuple(_figures(COCO_BANDS, MAX_DETECTIONS))  # the 12, in pycocotools' order
FIGURES = ("P", "R", "F1", *COCO_FIGURES)


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
    figures: dict[str, float]  # P R F1 AP50 AP75 AP, one for each band, AR100

    def row(self) -> dict[str, Any]:
        """All of it side by side, as a table has it."""
        return {"name": self.name, "images": self.images, "labels": self.labels, **self.figures}


@dataclass(frozen=True)
class Metrics:
    """The figures of a split, fractions; nan where there are no labels to measure (in that area band)."""

    figures: dict[str, float]  # FIGURES, of the bands measured, and AR at the greatest number of detections
    confidence: float  # where the mean F1 at IoU 0.5 peaks; P, R and F1 are taken there
    per_class: list[ClassMetrics]
    curves: Curves
    found: DetectionTable
    truths: TruthTable
    matches: Matches  # of `found` with `truths` at IoU 0.5

    @property
    def bands(self) -> list[str]:
        """The names of the figures by size."""
        return [key for key in self.figures if key.startswith("AP_")]

    def to_json(self) -> dict[str, float | None]:
        """The figures and the confidence, None for nan, which json does not have."""
        values = {**self.figures, "confidence": self.confidence}
        return {key: None if math.isnan(value) else value for key, value in values.items()}


def evaluate_coco(
    annotations: Annotations, detections: Detections, *, bands: Bands = COCO_BANDS, max_det: int = MAX_DETECTIONS
) -> Metrics:
    """Measure detections as COCO does: 101 recalls, IoU 0.50 to 0.95, 100 detections, crowds ignored.

    Classes without labels are left out of the means.

    Args:
        annotations: the ground truth.
        detections: what was found.
        bands: of the objects' sizes, each with an AP and an AR of its own.
        max_det: an AR is added for this many detections when they are more than COCO's 100.
    """
    found, truths = detections.table(), truth_table(annotations)
    classes = len(annotations.names)
    assert found.classes.max(initial=0) < max(classes, 1), "a detection's class is beyond the names"
    labels = np.bincount(truths.classes[~truths.crowd], minlength=classes)
    matches = match(found, truths, iou=0.5)
    counted = (matches.ranks < _limits(max_det)[-1]) & (labels > 0)[found.classes]
    beyond = bool((matches.ranks[counted] >= MAX_DETECTIONS).any())  # else a limit beyond COCO's changes nothing
    arrays = _coco_arrays(annotations, truths, found[counted], bands, _limits(max_det) if beyond else _LIMITS)
    curves = confidence_curves(found, matches, labels, arrays["precision"][0, :, :, 0, _USUAL_LIMIT].T)
    figures, per_class = _summarise(annotations.names, truths, labels, arrays, curves, _figures(bands, max_det))
    confidence = float(curves.confidence[curves.best]) if curves.present.any() else math.nan
    return Metrics(figures, confidence, per_class, curves, found, truths, matches)


def confusion_matrix(annotations: Annotations, detections: Detections, conf: float = 0.25, iou: float = 0.45) -> Ints:
    """Count what each true class was taken for, (nc + 1, nc + 1): rows predicted, columns true, the last background.

    Detections of confidence `conf` or more and true boxes pair one to one whatever their classes, the greatest IoU
    (at least `iou`) first. Crowds are left out, and so are unpaired detections that cover one of their class.
    """
    found = detections.table()
    return count_confusions(found[found.confidences >= conf], truth_table(annotations), len(annotations.names), iou)


def truth_table(annotations: Annotations) -> TruthTable:
    """A split's true boxes as matching reads them."""
    images = np.repeat(np.arange(len(annotations.starts) - 1), np.diff(annotations.starts))
    return TruthTable(images, annotations.classes, annotations.boxes, annotations.crowd)


def truth_rows(annotations: Annotations, image_ids: Ints, category_ids: Ints) -> list[dict[str, Any]]:
    """COCO's annotation of each box under the given (M) ids."""
    columns = (image_ids, category_ids, annotations.boxes, annotations.areas, annotations.crowd.astype(int))
    return [
        {"id": row, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
        for row, (image, category, box, area, crowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _coco_arrays(
    annotations: Annotations, truths: TruthTable, found: DetectionTable, bands: Bands, limits: tuple[int, ...]
) -> dict[str, Floats]:
    """Precision (10 IoUs, 101 recalls, nc, 1 + bands, limits) and recall (10, nc, 1 + bands, limits).

    Both are nan where nothing is labelled. Images go under the rank of their id and classes under their index: ranks
    keep the order in which COCO breaks ties of confidence, whatever the ids.
    """
    ranks = np.empty_like(annotations.image_ids)
    ranks[annotations.image_ids.argsort(kind="stable")] = np.arange(len(ranks))
    header = {
        "images": [{"id": image} for image in range(len(ranks))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(annotations.names)],
    }
    with _collector_paused():
        gold = COCO({**header, "annotations": truth_rows(annotations, ranks[truths.images], truths.classes)})
        answer = COCO({**header, "annotations": _detection_rows(found, ranks)})
        evaluation = COCOeval_faster(gold, answer, "bbox")
        evaluation.params.areaRng = [_squares((0, math.inf)), *map(_squares, bands.values())]
        evaluation.params.areaRngLbl = ["all", *bands]
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = {key: np.asarray(evaluation.eval[key]) for key in ("precision", "recall")}
    return {key: np.where(array < 0, np.nan, array) for key, array in arrays.items()}


def _squares(sides: tuple[float, float]) -> list[float]:
    return [min(side, _WIDEST) ** 2 for side in sides]


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
    names: Sequence[str],
    truths: TruthTable,
    labels: Ints,
    arrays: dict[str, Floats],
    curves: Curves,
    places: dict[str, _Figure],
) -> tuple[dict[str, float], list[ClassMetrics]]:
    """Means over the classes that have labels, and the rows of the single classes."""
    columns = dict(zip(("P", "R", "F1"), curves.at_best(), strict=True))
    for key, place in places.items():
        array = arrays[place.array]
        limit = min(place.limit, array.shape[-1] - 1)
        values = array[place.ious, ..., place.band, limit]  # (IoUs, [recalls,] nc)
        columns[key] = values.reshape(-1, len(names)).mean(0)
    images = _images_per_class(truths, len(names)).tolist()
    bands = [key for key in columns if key.startswith("AP_")]
    wanted = ("P", "R", "F1", "AP50", "AP75", "AP", *bands, f"AR{MAX_DETECTIONS}")
    per_class = [
        ClassMetrics(name, images[row], int(labels[row]), {key: float(columns[key][row]) for key in wanted})
        for row, name in enumerate(names)
    ]
    return {key: _mean(column) for key, column in columns.items()}, per_class


def _mean(values: Floats) -> float:
    """Mean of what is not nan; nan when nothing is left."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else math.nan


def _images_per_class(truths: TruthTable, classes: int) -> Ints:
    """(nc) images that show each class, crowds apart."""
    plain = ~truths.crowd
    shown = np.unique(truths.images[plain] * classes + truths.classes[plain])
    return np.bincount(shown % max(classes, 1), minlength=classes)

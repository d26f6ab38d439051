"""Which detection found which box: matching, curves over confidence, the confusion matrix.

Works on flat arrays of a whole split at once, so that hundreds of thousands of detections take a fraction of a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MAX_DETECTIONS = 100  # COCO's: of an image and class, the most confident ones that count
PAIRS_AT_ONCE = 1_000_000  # overlaps computed together; bounds the memory on crowded images


@dataclass(frozen=True)
class DetectionTable:
    """The detections of a split, a row each: image, class, confidence, and x, y (top left), width, height in pixels."""

    images: Ints
    classes: Ints
    confidences: Floats
    boxes: Floats

    def __getitem__(self, rows: Mask) -> "DetectionTable":
        return DetectionTable(self.images[rows], self.classes[rows], self.confidences[rows], self.boxes[rows])


@dataclass(frozen=True)
class TruthTable:
    """The true boxes of a split, a row each: image, class, x, y (top left), width, height in pixels, crowd or not."""

    images: Ints
    classes: Ints
    boxes: Floats
    crowd: Mask


@dataclass(frozen=True)
class Pairs:
    """Detections and true boxes that overlap: row of each in its table, and their IoU."""

    found: Ints
    truths: Ints
    overlaps: Floats

    def __getitem__(self, rows: Mask | Ints) -> "Pairs":
        return Pairs(self.found[rows], self.truths[rows], self.overlaps[rows])


@dataclass(frozen=True)
class Matches:
    """What became of each detection under COCO's rules at one IoU threshold.

    `ranks`: place among those of its image and class, 0 the most confident; `truths`: row of the true box it has, -1
    for none; `ignored`: it covers a crowd region instead, and counts neither as right nor as wrong. What is true of the
    more confident detections stays so when the less confident ones are left out.
    """

    ranks: Ints
    truths: Ints
    ignored: Mask

    @property
    def considered(self) -> Mask:
        """Among the `MAX_DETECTIONS` of its image and class."""
        return self.ranks < MAX_DETECTIONS

    @property
    def hit(self) -> Mask:
        """It has a true box."""
        return self.truths >= 0

    @property
    def wrong(self) -> Mask:
        """It has none, and counts."""
        return self.considered & ~self.hit & ~self.ignored


@dataclass(frozen=True)
class Curves:
    """Curves of each class at IoU 0.5; rows of classes without labels are nan.

    Precision is 1 above the last detection's confidence: nothing is claimed there, nothing is wrong.
    """

    confidence: Floats  # (1000)
    precision: Floats  # (nc, 1000) at each confidence
    recall: Floats  # (nc, 1000)
    f1: Floats  # (nc, 1000)
    recall_axis: Floats  # (101) COCO's recalls
    precision_at_recall: Floats  # (nc, 101) COCO's interpolated precision
    present: Mask  # (nc) classes with labels

    @property
    def best(self) -> int:
        """Position on the confidence axis where the mean F1 of the present classes peaks; the first of equal peaks."""
        return int(self.f1[self.present].mean(0).argmax()) if self.present.any() else 0

    def at_best(self) -> tuple[Floats, Floats, Floats]:
        """Precision, recall and F1 (nc) at `best`; what finds nothing there has precision 0, not an empty 1."""
        precision, recall, f1 = (curve[:, self.best] for curve in (self.precision, self.recall, self.f1))
        return np.where(recall == 0, 0.0, precision), recall, f1


def match(found: DetectionTable, truths: TruthTable, iou: float = 0.5) -> Matches:
    """Match as COCO does: by class, the most confident first, each to the free true box that it overlaps most."""
    found_keys, truth_keys = _image_and_class(found, truths)
    ranks = _ranks(found_keys, found.confidences)
    pairs = overlapping_pairs(found, found_keys, truths, truth_keys, iou)
    pairs = pairs[ranks[pairs.found] < MAX_DETECTIONS]
    over_crowd = truths.crowd[pairs.truths]
    plain = pairs[~over_crowd]
    # of equal overlaps COCO's matcher keeps the last box
    plain = plain[np.lexsort((-plain.truths, -plain.overlaps, ranks[plain.found]))]
    taken = one_to_one(plain)
    matched = np.full(len(found.images), -1, np.int64)
    matched[taken.found] = taken.truths
    ignored = np.zeros(len(found.images), np.bool_)
    ignored[pairs.found[over_crowd]] = True
    return Matches(ranks, matched, ignored & (matched < 0))


def overlapping_pairs(
    found: DetectionTable, found_keys: Ints, truths: TruthTable, truth_keys: Ints, iou: float
) -> Pairs:
    """Detections and true boxes of equal key whose IoU is at least `iou`; for a crowd, the share of the detection."""
    order = truth_keys.argsort(kind="stable")
    first, last = (np.searchsorted(truth_keys[order], found_keys, side) for side in ("left", "right"))
    counts = last - first
    kept = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for start, stop in _blocks(counts):
        count = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), count)
        position = np.arange(rows.size) - np.repeat(count.cumsum() - count, count)
        columns = order[first[rows] + position]
        overlaps = _overlaps(found.boxes[rows], truths.boxes[columns], truths.crowd[columns])
        kept.append(Pairs(rows, columns, overlaps)[overlaps >= iou])
    return Pairs(
        *(np.concatenate(parts) for parts in zip(*((p.found, p.truths, p.overlaps) for p in kept), strict=True))
    )


def one_to_one(pairs: Pairs) -> Pairs:
    """Take pairs in their order, each unless its detection or its true box is taken.

    A pair that comes first for both its sides is taken whatever happens elsewhere; so whole rounds are decided at once.
    """
    if not pairs.found.size:
        return pairs
    first_of_found, first_of_truth = (np.empty(side.max() + 1, np.int64) for side in (pairs.found, pairs.truths))
    taken_found, taken_truth = (np.zeros(first.size, np.bool_) for first in (first_of_found, first_of_truth))
    left, taken = np.arange(pairs.found.size), []
    while left.size:
        rows, columns = pairs.found[left], pairs.truths[left]
        first_of_found[rows[::-1]] = left[::-1]  # of repeated indices the last assignment, so the earliest pair, stays
        first_of_truth[columns[::-1]] = left[::-1]
        first = (first_of_found[rows] == left) & (first_of_truth[columns] == left)
        taken.append(left[first])
        taken_found[rows[first]] = True
        taken_truth[columns[first]] = True
        left = left[~(taken_found[rows] | taken_truth[columns])]
    return pairs[np.concatenate(taken)]


def confidence_curves(
    found: DetectionTable, matches: Matches, labels: Ints, precision_at_recall: Floats, *, points: int = 1000
) -> Curves:
    """Precision, recall and F1 of each class against the confidence threshold.

    Args:
        found: the detections.
        matches: their matches at IoU 0.5.
        labels: (nc) true boxes of each class, without crowds.
        precision_at_recall: (nc, 101) COCO's precision at IoU 0.5, kept beside them.
        points: length of the confidence axis, from 0 to 1.
    """
    axis = np.linspace(0, 1, points)
    claimed = _counts_above(found[matches.hit | matches.wrong], len(labels), axis)
    hits = _counts_above(found[matches.hit], len(labels), axis)
    present = labels > 0
    precision = np.divide(hits, claimed, out=np.ones_like(hits), where=claimed > 0)
    recall = hits / np.maximum(labels, 1)[:, None]
    f1 = 2 * hits / np.maximum(claimed + labels[:, None], 1)
    for curve in (precision, recall, f1):
        curve[~present] = np.nan
    recalls = np.linspace(0, 1, precision_at_recall.shape[1])
    return Curves(axis, precision, recall, f1, recalls, precision_at_recall, present)


def count_confusions(found: DetectionTable, truths: TruthTable, classes: int, iou: float) -> Ints:
    """Count what each true class was taken for, all confidences; see `utils.coco.confusion_matrix`."""
    pairs = overlapping_pairs(found, found.images, truths, truths.images, iou)
    over_crowd = truths.crowd[pairs.truths]
    crowd, plain = pairs[over_crowd], pairs[~over_crowd]
    plain = plain[np.lexsort((-found.confidences[plain.found], -plain.overlaps))]
    matched = one_to_one(plain)
    alone, missed = np.ones(len(found.images), np.bool_), ~truths.crowd
    alone[crowd.found[found.classes[crowd.found] == truths.classes[crowd.truths]]] = False
    alone[matched.found] = False
    missed[matched.truths] = False
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (found.classes[matched.found], truths.classes[matched.truths]), 1)
    matrix[:classes, classes] = np.bincount(found.classes[alone], minlength=classes)
    matrix[classes, :classes] = np.bincount(truths.classes[missed], minlength=classes)
    return matrix


def _image_and_class(found: DetectionTable, truths: TruthTable) -> tuple[Ints, Ints]:
    """One number for each image and class, of the detections and of the true boxes."""
    classes = 1 + max(found.classes.max(initial=0), truths.classes.max(initial=0))
    return found.images * classes + found.classes, truths.images * classes + truths.classes


def _ranks(keys: Ints, confidences: Floats) -> Ints:
    """Place of each detection among those of its key, 0 the most confident; of equal ones the earlier row."""
    order = np.lexsort((-confidences, keys))
    ordered, position = keys[order], np.arange(len(keys))
    starts = np.ones(len(keys), np.bool_)
    starts[1:] = ordered[1:] != ordered[:-1]
    ranks = np.empty_like(position)
    ranks[order] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return ranks


def _blocks(counts: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about `PAIRS_AT_ONCE` pairs each."""
    edges = np.flatnonzero(np.diff(counts.cumsum() // PAIRS_AT_ONCE)) + 1
    return pairwise([0, *edges.tolist(), len(counts)])


def _overlaps(found: Floats, truths: Floats, crowd: Mask) -> Floats:
    """IoU of paired (P, 4) boxes, in the very arithmetic of COCO's C code so that thresholds cut alike."""
    low = np.maximum(found[:, :2], truths[:, :2])
    high = np.minimum(found[:, :2] + found[:, 2:], truths[:, :2] + truths[:, 2:])
    width, height = (high - low).clip(min=0).T
    shared = width * height
    area, true_area = found[:, 2] * found[:, 3], truths[:, 2] * truths[:, 3]
    union = np.where(crowd, area, area + true_area - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _counts_above(found: DetectionTable, classes: int, axis: Floats) -> Floats:
    """How many detections of each class reach each confidence of the axis, (classes, axis)."""
    bins = np.searchsorted(axis, found.confidences, "right") - 1
    counts = np.bincount(found.classes * axis.size + bins, minlength=classes * axis.size).reshape(classes, axis.size)
    return counts[:, ::-1].cumsum(1)[:, ::-1].astype(np.float64)

"""What a detector got wrong, image by image: counts, the objects it missed and its false alarms, the worst first.

Reads the matches that the metrics were made from, at IoU 0.5 and the confidence where the mean F1 peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.annotations import Annotations
from utils.coco import Metrics
from utils.curves import DetectionTable, Floats, Ints, Mask, TruthTable


@dataclass(frozen=True)
class Mistakes:
    """Right and wrong at one confidence threshold; rows are those of `found` and `truths`."""

    found: DetectionTable
    truths: TruthTable
    shown: Mask  # (D) detections over the threshold, those over crowds too
    right: Mask  # (D) of them, those with a true box
    wrong: Mask  # (D) of them, those without
    found_at: Floats  # (M) confidence of the detection of each true box, however low; -1 for none
    missed: Mask  # (M)

    def misses(self) -> Ints:
        """Rows of the missed boxes: what left no trace at all first, of these the largest."""
        areas = self.truths.boxes[:, 2:].prod(1)
        return _first(self.missed, (-areas, self.found_at))

    def false_alarms(self) -> Ints:
        """Rows of the wrong detections, the most confident first."""
        return _first(self.wrong, (-self.found.confidences,))

    def images(self, annotations: Annotations) -> list[dict[str, Any]]:
        """A row for each image, the least F1 first and of equal ones the most mistakes.

        `detections` counts those over crowds too; F1 is nan, and comes last, where there is nothing to find and nothing
        was found.
        """
        counts = {
            "labels": self.truths.images[~self.truths.crowd],
            "detections": self.found.images[self.shown],
            "TP": self.found.images[self.right],
            "FP": self.found.images[self.wrong],
            "misses": self.truths.images[self.missed],
        }
        total = len(annotations.paths)
        columns: dict[str, Any] = {key: np.bincount(images, minlength=total) for key, images in counts.items()}
        mistakes = columns["FP"] + columns["misses"]
        claims = 2 * columns["TP"] + mistakes
        columns["F1"] = np.divide(2 * columns["TP"], claims, out=np.full(total, np.nan), where=claims > 0)
        order = np.lexsort((-mistakes, columns["F1"])).tolist()  # nan is sorted last
        names = {"image": [str(path) for path in annotations.paths], "image_id": annotations.image_ids.tolist()}
        cells = names | {key: column.tolist() for key, column in columns.items()}
        return [{key: column[index] for key, column in cells.items()} for index in order]


def find_mistakes(metrics: Metrics) -> Mistakes:
    """Tell right from wrong at the confidence where the mean F1 peaks; nothing is shown where nothing is labelled."""
    found, truths, matches = metrics.found, metrics.truths, metrics.matches
    shown = matches.considered & (found.confidences >= metrics.confidence)  # false for nan
    found_at = np.full(len(truths.images), -1.0)
    hit = matches.hit
    found_at[matches.truths[hit]] = found.confidences[hit]
    missed = ~truths.crowd & ~(found_at >= metrics.confidence)
    return Mistakes(found, truths, shown, shown & hit, shown & matches.wrong, found_at, missed)


def _first(rows: Mask, keys: Sequence[Floats]) -> Ints:
    """The rows marked, ordered by the keys, the last of which counts most."""
    chosen = np.flatnonzero(rows)
    return chosen[np.lexsort([key[chosen] for key in keys])]

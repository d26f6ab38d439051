"""Accuracy and its relatives from what a classifier says of each image."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
KEPT = 5  # of the likeliest classes, all that is kept of an image


@dataclass(frozen=True)
class Guesses:
    """The likeliest classes of N images and their probabilities, (N, k), the first the likeliest; k is up to KEPT."""

    classes: Ints
    probabilities: Floats


@dataclass(frozen=True)
class ClassMetrics:
    """What comes of comparing guesses with labels (N)."""

    names: list[str]
    labels: Ints
    guesses: Guesses

    @cached_property
    def matrix(self) -> Ints:
        """(nc, nc) images, row guessed, column true."""
        count = len(self.names)
        cells = self.guesses.classes[:, 0] * count + self.labels
        return np.bincount(cells, minlength=count**2).reshape(count, count)

    @cached_property
    def figures(self) -> dict[str, float]:
        """Shares of the images: right at first, right within five (nan where that is certain), and class means."""
        hits = self.guesses.classes == self.labels[:, None]
        rows = self.per_class()
        return {
            "top1": _mean(hits[:, 0]),
            "top5": _mean(hits.any(1)) if len(self.names) > KEPT else math.nan,
            **{key: _nanmean([row[key] for row in rows]) for key in ("P", "R", "F1")},
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Images, precision, recall and F1 of each class; nan where it is neither there nor guessed.

        The precision of a class that is there and never guessed is 0, or guessing few classes would pay.
        """
        right, guessed, true = np.diag(self.matrix), self.matrix.sum(1), self.matrix.sum(0)
        rows = []
        for name, hit, said, there in zip(self.names, right.tolist(), guessed.tolist(), true.tolist(), strict=True):
            precision = _ratio(hit, said) if said else _ratio(0, there)
            shares = {"P": precision, "R": _ratio(hit, there), "F1": _ratio(2 * hit, said + there)}
            rows.append({"name": name, "images": there, **shares})
        return rows

    def mistakes(self) -> Ints:
        """Places of the images that are guessed wrong, those with the greatest confidence first."""
        wrong = np.flatnonzero(self.guesses.classes[:, 0] != self.labels)
        return wrong[np.argsort(-self.guesses.probabilities[wrong, 0], kind="stable")]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

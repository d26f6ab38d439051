"""Boxes in flat arrays as the label readers hand them over, and the index arithmetic of ragged arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.problems import Problem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 14  # runs that are worked on at a time


@dataclass(frozen=True)
class Rows:
    """Boxes of some images.

    Attributes:
        images: (M,) index of the image a box is in.
        classes: (M,) index of its name.
        boxes: (M, 4) top-left x, y, width, height in pixels.
        areas: (M,) square pixels, of the mask where it is known.
        crowd: (M,) true for a region of many objects.
        points: (P, 2) polygon points in pixels, those of a box together, in the order of the boxes.
        point_counts: (M,) points of each box, 0 without a polygon.
        problems: of the rows left out or in doubt.
    """

    images: Ints
    classes: Ints
    boxes: Floats
    areas: Floats
    crowd: npt.NDArray[np.bool_]
    points: npt.NDArray[np.float32]
    point_counts: Ints
    problems: list[Problem]


def concatenate(parts: Sequence[Rows], image_counts: Sequence[int]) -> Rows:
    """Join the rows of consecutive runs of images, `image_counts` of them in each."""
    first = offsets(np.array(image_counts, np.int64))
    return Rows(
        images=np.concatenate([part.images + start for part, start in zip(parts, first[:-1], strict=True)]),
        classes=np.concatenate([part.classes for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        points=np.concatenate([part.points for part in parts]),
        point_counts=np.concatenate([part.point_counts for part in parts]),
        problems=[problem for part in parts for problem in part.problems],
    )


def offsets(counts: Ints) -> Ints:
    """Where each run begins in a flat array of runs of `counts` (N,), and its end: (N + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Concatenate the index ranges `starts[i] : starts[i] + counts[i]`."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts[: len(counts)] - (ends - counts), counts)


def blocks(count: int) -> Iterator[slice]:
    """Cut `count` runs into parts whose elements can be worked on at once without taking much memory."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def gather(values: npt.NDArray[Any], starts: Ints, counts: Ints) -> npt.NDArray[Any]:
    """Join the runs `values[starts[i] : starts[i] + counts[i]]`, without an index as large as all of them."""
    joined = np.empty((counts.sum(), *values.shape[1:]), values.dtype)
    bounds = offsets(counts)
    for part in blocks(len(counts)):
        joined[bounds[part.start] : bounds[part.stop]] = values[ranges(starts[part], counts[part])]
    return joined


def repeated(keys: Floats, sound: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether a sound row (M, K) equals a sound one before it."""
    candidates = sound.nonzero()[0]
    _, first = np.unique(keys[candidates], axis=0, return_index=True)
    again = sound.copy()
    again[candidates[first]] = False
    return again

"""Instance outlines as flat arrays: one array of points for all polygons of an image.

Flat arrays let a whole mosaic's outlines be moved, clipped and bounded without a loop over instances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.rows import Ints, blocks, offsets, ranges

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Polygons:
    """Closed polygons in pixels: (P, 2) points x, y of all of them in turn, and (n) how many belong to each.

    A length of 0 is an instance without an outline.
    """

    points: Floats
    lengths: Ints

    @staticmethod
    def concatenate(parts: Sequence["Polygons"]) -> "Polygons":
        """Join the polygons of several images into one list, in order."""
        return Polygons(
            np.concatenate([part.points for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Floats:
        """Points (k, 2) of one polygon."""
        end = self.lengths[: row + 1].sum()
        return self.points[end - self.lengths[row] : end]

    def take(self, rows: Ints) -> "Polygons":
        """Polygons at `rows`, in that order, repeats allowed."""
        lengths = self.lengths[rows]
        return Polygons(self.points[ranges(offsets(self.lengths)[rows], lengths)], lengths)

    def bounds_xyxy(self) -> Floats:
        """Enclosing boxes (n, 4) x1, y1, x2, y2; zeros for an instance without points."""
        boxes = np.zeros((len(self), 4), np.float32)
        filled = self.lengths > 0
        if filled.any():
            starts = offsets(self.lengths[filled])[:-1]
            boxes[filled, :2] = np.minimum.reduceat(self.points, starts)
            boxes[filled, 2:] = np.maximum.reduceat(self.points, starts)
        return boxes

    def clip(self, size_wh: tuple[int, int]) -> "Polygons":
        """Cut the polygons at the borders of an image; what lies outside altogether is left with no points.

        Sutherland and Hodgman's algorithm (CACM 1974), each border for all edges at once.
        """
        clipped = self
        for axis, limit in enumerate(size_wh):
            clipped = clipped._cut(clipped.points[:, axis])
            clipped = clipped._cut(limit - clipped.points[:, axis])
        return clipped

    def _cut(self, depth: Floats) -> "Polygons":
        """Keep the side of a line where `depth` (P), the points' signed distance from it, is not negative."""
        inside = depth >= 0
        if inside.all():
            return self
        following = np.arange(1, len(self.points) + 1)
        starts = offsets(self.lengths[self.lengths > 0])
        following[starts[1:] - 1] = starts[:-1]  # the last point's edge leads back to the first

        crosses = inside != inside[following]
        step = np.where(crosses, depth - depth[following], 1)
        meeting = self.points + (depth / step)[:, None] * (self.points[following] - self.points)
        written = np.stack((inside, crosses), 1)  # each point, then where its edge meets the line
        owners = np.repeat(np.arange(len(self)), self.lengths)
        lengths = np.bincount(owners, written.sum(1), minlength=len(self)).astype(np.int64)
        return Polygons(np.stack((self.points, meeting), 1)[written].astype(np.float32), lengths)


def without_area(points: npt.NDArray[np.floating[Any]], lengths: Ints) -> npt.NDArray[np.bool_]:
    """Whether polygons, `lengths` (n) of the points (P, 2) each, enclose less than a millionth of their boxes.

    An instance without points is not flat.
    """
    found = np.zeros(len(lengths), np.bool_)
    bounds = offsets(lengths)
    for part in blocks(len(lengths)):
        filled = lengths[part] > 0
        if filled.any():
            areas, boxes = _areas(points[bounds[part.start] : bounds[part.stop]], lengths[part][filled])
            found[part][filled] = areas <= 1e-6 * boxes
    return found


def _areas(
    points: npt.NDArray[np.floating[Any]], lengths: Ints
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.floating[Any]]]:
    """Areas (n) enclosed by polygons, none of them without points, and areas of their boxes."""
    starts = offsets(lengths)
    low, high = np.minimum.reduceat(points, starts[:-1]), np.maximum.reduceat(points, starts[:-1])
    near = (points - low.repeat(lengths, axis=0)).astype(np.float64)  # so that differences keep their digits
    following = np.roll(near, -1, axis=0)
    following[starts[1:] - 1] = near[starts[:-1]]
    crosses = near[:, 0] * following[:, 1] - near[:, 1] * following[:, 0]
    return np.abs(np.add.reduceat(crosses, starts[:-1])) / 2, (high - low).prod(1)

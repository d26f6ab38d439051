"""YOLO's label files: a text file for each image, a row for each object, everything in fractions of the image's size.

A row is `class x y w h` (centre and size) or `class x1 y1 x2 y2 x3 y3 ...` (a polygon, whose enclosing box counts).
Only splitting the text is done row by row; the rows of many files are then checked together.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.files import label_path
from data.polygons import without_area
from data.problems import Problem
from data.rows import Floats, Ints, Rows, offsets, ranges, repeated
from utils.options import InputError

TOLERANCE = 1e-3  # how far a fraction may lie outside 0..1; it is then clipped

_FAULTS = (  # the row is left out
    ("row", "expected 'class x y w h' or a class and at least 3 points"),
    ("row", "the class is not a whole number from 0"),
    ("class-range", "the class has no name in the data YAML"),
    ("box-outside", "coordinates outside 0..1"),
    ("box-empty", "a box of no size"),
    ("box-duplicate", "the same as a row before"),
)
_DOUBTS = (  # the row is taken
    ("box-over-edge", "hangs over the image's edge and is cut off there"),
    ("polygon-flat", "a polygon without area; its box counts"),
    ("box-two-classes", "the same box as in a row before with another class"),
)


@dataclass
class _Text:
    """Rows of numbers as they stand in the files, one after another."""

    files: list[Path]
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    counts: list[int] = field(default_factory=list)  # of numbers in a row
    images: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, rows: npt.NDArray[np.bool_], kind: str, what: str) -> None:
        """Note a problem of some of the rows (M,)."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        for row in rows.nonzero()[0].tolist():
            shown = " ".join(f"{number:g}" for number in self.numbers[ends[row] - self.counts[row] : ends[row]])
            place = str(self.files[self.images[row]])
            self.problems.append(Problem(kind, place, f"{what}: {shown[:80]}", self.lines[row]))


def read_labels(
    images: Sequence[Path], sizes_wh: npt.NDArray[np.int32], names: Sequence[str], *, refuse_nameless: bool = True
) -> Rows:
    """Read the labels of images of sizes (N, 2); an image without a label file has no objects.

    Bad rows are left out and reported; what hangs over the image's edge is cut off.

    Raises:
        InputError: a class has no name and `refuse_nameless`.
    """
    text = _read_text(images)
    counts = np.array(text.counts, np.int64)
    starts = offsets(counts)[:-1]
    numbers = np.frombuffer(text.numbers, np.float64) if len(counts) else np.zeros(0)
    classes = numbers[starts]
    fault = np.zeros(len(counts), np.int64)  # 1 + index in _FAULTS
    _note(fault, 1, ~((counts == 5) | ((counts >= 7) & (counts % 2 == 1))))
    _note(fault, 2, ~((classes >= 0) & (classes < 2**31) & (classes % 1 == 0)))
    if refuse_nameless:
        _refuse_nameless(text, np.where(fault, 0, classes), names)
    _note(fault, 3, classes >= len(names))
    _note(fault, 4, ~_inside(numbers, starts))
    drawn, points, point_counts = _geometry(np.clip(numbers, 0, 1), starts, counts, fault == 0)
    corners = drawn.clip(0, 1)
    _note(fault, 5, (corners[:, 2:] - corners[:, :2]).min(1) <= 0)
    owners = np.array(text.images, np.int64)
    _note(fault, 6, repeated(np.column_stack([owners, classes, corners]), fault == 0))
    good = fault == 0
    over = (np.abs(drawn - corners) > TOLERANCE).any(1)
    second = repeated(np.column_stack([owners, corners]), good)
    for number, told in enumerate(_FAULTS, 1):
        text.report(fault == number, *told)
    for doubt, told in zip((over, without_area(points, point_counts), second), _DOUBTS, strict=True):
        text.report(good & doubt, *told)
    kept_points = ranges(offsets(point_counts)[:-1][good], point_counts[good])
    scale = sizes_wh[owners[good]].astype(np.float64)
    low, high = corners[good, :2] * scale, corners[good, 2:] * scale
    return Rows(
        images=owners[good],
        classes=classes[good].astype(np.int64),
        boxes=np.concatenate([low, high - low], 1),
        areas=(high - low).prod(1),
        crowd=np.zeros(len(low), np.bool_),
        points=(points[kept_points] * scale.repeat(point_counts[good], axis=0)).astype(np.float32),
        point_counts=point_counts[good],
        problems=text.problems,
    )


def _read_text(images: Sequence[Path]) -> _Text:
    text = _Text([label_path(image) for image in images])
    for image, file in enumerate(text.files):
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            text.problems.append(Problem("label-unreadable", str(file), f"not a readable text: {error}"))
            continue
        for number, line in enumerate(lines, 1):
            try:
                row = [float(part) for part in line.split()]
            except ValueError:
                text.problems.append(Problem("row", str(file), f"expected numbers: {line.strip()[:80]}", number))
                continue
            if row:
                text.numbers.fromlist(row)
                text.counts.append(len(row))
                text.images.append(image)
                text.lines.append(number)
    return text


def _note(fault: Ints, number: int, bad: npt.NDArray[np.bool_]) -> None:
    """Give the bad rows this fault, unless they have one already."""
    fault[bad & (fault == 0)] = number


def _refuse_nameless(text: _Text, classes: Floats, names: Sequence[str]) -> None:
    nameless = (classes >= len(names)).nonzero()[0]
    if len(nameless):
        row = int(nameless[0])
        raise InputError(
            f"{text.files[text.images[row]]}:{text.lines[row]}: class {classes[row]:.0f} has no name; "
            f"the data YAML has {len(names)} names, so 0 to {len(names) - 1} are expected"
        )


def _inside(numbers: Floats, starts: Ints) -> npt.NDArray[np.bool_]:
    """Whether all the coordinates of a row are fractions; the class, its first number, is none of them."""
    coordinates = numbers.copy()
    coordinates[starts] = 0
    if not len(starts):
        return np.zeros(0, np.bool_)
    low, high = np.minimum.reduceat(coordinates, starts), np.maximum.reduceat(coordinates, starts)
    return (low >= -TOLERANCE) & (high <= 1 + TOLERANCE)  # false for NaN


def _geometry(numbers: Floats, starts: Ints, counts: Ints, sound: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Ints]:
    """Corners (M, 4), points (P, 2) and points a row (M,), in fractions; zeros where not sound."""
    corners = np.zeros((len(starts), 4))
    boxes = sound & (counts == 5)
    x, y, w, h = (numbers[starts[boxes] + column] for column in range(1, 5))
    corners[boxes] = np.column_stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    polygons = sound & (counts > 5)
    point_counts = np.where(polygons, counts // 2, 0)
    if not polygons.any():
        return corners, np.zeros((0, 2)), point_counts
    points = numbers[ranges(starts[polygons] + 1, counts[polygons] - 1)].reshape(-1, 2)
    first = offsets(point_counts[polygons])[:-1]
    corners[polygons, :2] = np.minimum.reduceat(points, first)
    corners[polygons, 2:] = np.maximum.reduceat(points, first)
    return corners, points, point_counts

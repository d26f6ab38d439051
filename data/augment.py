"""Augmentations of an image with its boxes: pure functions of samples, a random generator and strengths.

Coordinates are continuous (pixel i covers i to i + 1), so a box stays on its object to a fraction of a pixel; no
function writes into the arrays it is given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data.polygons import Floats, Polygons
from data.rows import Ints
from utils.boxes import GREY

MIN_VISIBLE_POLYGON = 0.01  # the same where an outline says what is still there
MAX_ASPECT = 100.0  # slivers beyond this ratio of the sides are dropped
MAX_COVER = 0.3  # share of a present box that a pasted instance may hide at most
MIXUP_BETA = 32.0  # both parameters of mixup's Beta distribution: close to half and half
HORIZON = 1e-3  # least homogeneous coordinate: points at or behind the horizon go far away, on their own side

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentations, named as in the recipes (hyp YAMLs); 0 turns one off."""

    hsv_h: float = 0.0  # hue, saturation, value: a random factor of 1 +- this
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0  # rotation, +- degrees
    translate: float = 0.0  # +- share of the image's side
    scale: float = 0.0  # a random factor of 1 +- this
    shear: float = 0.0  # +- degrees
    perspective: float = 0.0  # +- 1 / pixels, sensible up to 0.001
    flipud: float = 0.0  # probabilities from here on
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0  # share of the instances with an outline that are pasted again
    min_side: float = 2.0  # pixels; a box must be wider and higher to survive a warp
    min_visible: float = 0.1  # share of a box's area that must stay in the image


@dataclass(frozen=True)
class Sample:
    """An image (H, W, 3) BGR with its boxes (n, 4) x1, y1, x2, y2 in its own pixels, and classes (n).

    `polygons` are the outlines of the n instances; None when the data set has none.
    """

    image: Image
    boxes: Floats
    classes: Ints
    polygons: Polygons | None = None

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def take(self, rows: Ints) -> "Sample":
        """Keep the instances at `rows`."""
        polygons = None if self.polygons is None else self.polygons.take(rows)
        return replace(self, boxes=self.boxes[rows], classes=self.classes[rows], polygons=polygons)


class Tile(NamedTuple):
    """A sample laid on a canvas with its upper left corner at (x, y)."""

    sample: Sample
    corner: tuple[int, int] = (0, 0)


def mosaic(samples: Sequence[Sample], size: int, rng: np.random.Generator, min_visible: float = 0.1) -> list[Tile]:
    """Lay four images around a random point of a canvas of twice `size`, cut at its borders; nothing is drawn yet.

    Their sides must not exceed `size`. Boxes of which less than `min_visible` is left on the canvas are dropped.
    """
    assert len(samples) == 4
    centre_x, centre_y = rng.integers(size // 2, size + size // 2, 2, endpoint=True).tolist()
    tiles = []
    for place, sample in enumerate(samples):  # upper left, upper right, lower left, lower right
        width, height = sample.size_wh
        x, y = centre_x - (width if place % 2 == 0 else 0), centre_y - (height if place < 2 else 0)
        left, top = max(x, 0), max(y, 0)
        cut = crop(sample, (left - x, top - y), (min(width, 2 * size - x), min(height, 2 * size - y)), min_visible)
        tiles.append(Tile(cut, (left, top)))
    return tiles


def crop(
    sample: Sample, low: tuple[int, int], high: tuple[int, int], min_visible: float, *, strict: bool = False
) -> Sample:
    """Cut the pixels from `low` (x, y) up to `high` out; boxes of which less than a share shows are dropped.

    Those around an outline, which says what is still there, may show less, unless it is `strict`.
    """
    shift = np.array(low, np.float32)
    polygons = sample.polygons
    if polygons is not None:
        polygons = replace(polygons, points=polygons.points - shift)
    image = sample.image[low[1] : high[1], low[0] : high[0]]
    # however small they are: the warp that follows may enlarge them
    cut = Sample(image, sample.boxes - np.tile(shift, 2), sample.classes, polygons)
    return _clip(cut, 0, min_visible, min_visible if strict else MIN_VISIBLE_POLYGON)


def random_perspective(
    tiles: Sequence[Tile], canvas_wh: tuple[int, int], rng: np.random.Generator, size: int, strength: Augmentation
) -> Sample:
    """Rotate, scale, shear, tilt and shift a canvas about its centre, and cut the middle (size, size) out."""
    return warp(tiles, random_matrix(canvas_wh, rng, size, strength), size, strength)


def random_matrix(source_wh: tuple[int, int], rng: np.random.Generator, size: int, strength: Augmentation) -> Matrix:
    """Draw a (3, 3) matrix from the source's continuous pixel coordinates to those of a (size, size) image."""
    centre = np.eye(3)
    centre[:2, 2] = -source_wh[0] / 2, -source_wh[1] / 2

    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-strength.perspective, strength.perspective, 2)

    angle = math.radians(rng.uniform(-strength.degrees, strength.degrees))
    factor = max(rng.uniform(1 - strength.scale, 1 + strength.scale), 0.01)  # a scale of 1 must not mean nothing
    cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
    turn = np.array(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)))

    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-strength.shear, strength.shear, 2)))

    place = np.eye(3)
    place[:2, 2] = rng.uniform(0.5 - strength.translate, 0.5 + strength.translate, 2) * size
    return place @ shear @ turn @ tilt @ centre


def warp(tiles: Sequence[Tile], matrix: Matrix, size: int, strength: Augmentation = Augmentation()) -> Sample:
    """Carry tiles with their instances through `matrix` (3, 3) into one image (size, size), grey between them.

    A box is the bounds of its four carried corners, or of its outline where it has one. Dropped are boxes that become
    too small (`min_side`), too thin (MAX_ASPECT), or leave the image but for a corner (`min_visible`).
    """
    image = np.full((size, size, 3), GREY, np.uint8)
    boxes, outlines = [], []
    for sample, corner in tiles:
        carrier = matrix @ _translation(corner)
        if carrier[0, 1] == carrier[1, 0] == 0 and not carrier[2, :2].any():
            carrier = _stretch(image, sample.image, carrier)
        else:
            _paint(image, sample.image, carrier)
        corners = carry(sample.boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 2), carrier).reshape(-1, 4, 2)
        boxes.append(np.concatenate((corners.min(1), corners.max(1)), 1))
        if sample.polygons is not None:
            outlines.append(replace(sample.polygons, points=carry(sample.polygons.points, carrier)))
    assert len(outlines) in (0, len(tiles))
    classes = np.concatenate([tile.sample.classes for tile in tiles])
    polygons = Polygons.concatenate(outlines) if outlines else None
    warped = Sample(image, np.concatenate(boxes), classes, polygons)
    return _clip(warped, strength.min_side, strength.min_visible)


def _translation(shift: Sequence[float] | Ints) -> Matrix:
    matrix = np.eye(3)
    matrix[:2, 2] = shift
    return matrix


def _stretch(target: Image, image: Image, matrix: Matrix) -> Matrix:
    """Draw an image onto `target` through a matrix that only scales and shifts; many times cheaper than `_paint`.

    Returns:
        The matrix that was used: the edges of what shows are moved to whole pixels.
    """
    scale, shift = matrix.diagonal()[:2], matrix[:2, 2]
    wh, limit = np.array(image.shape[1::-1]), np.array(target.shape[1::-1])
    low = np.clip(np.floor(-shift / scale), 0, wh - 1).astype(int)
    high = np.clip(np.ceil((limit - shift) / scale), low + 1, wh).astype(int)
    start = np.rint(low * scale + shift).astype(int)
    end = np.maximum(np.rint(high * scale + shift).astype(int), start + 1)
    first, last = np.maximum(start, 0), np.minimum(end, limit)
    if (first < last).all():
        drawn = cv2.resize(image[low[1] : high[1], low[0] : high[0]], (end - start).tolist())
        (left, top), (right, bottom) = first - start, last - start
        target[first[1] : last[1], first[0] : last[0]] = drawn[top:bottom, left:right]
    used = np.diag((*((end - start) / (high - low)), 1.0))
    used[:2, 2] = start - low * used.diagonal()[:2]
    return used


def _paint(target: Image, image: Image, matrix: Matrix) -> None:
    """Draw an image through `matrix` onto `target`, where its pixels come to lie and nowhere else."""
    height, width = image.shape[:2]
    corners = carry(np.array(((0, 0), (width, 0), (width, height), (0, height)), np.float32), matrix)
    limit = target.shape[1], target.shape[0]
    low = np.clip(np.floor(corners.min(0)), 0, limit).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, limit).astype(int)
    if (low >= high).any():
        return
    half = _translation((0.5, 0.5))  # cv2 counts from pixel centres, boxes from pixel edges
    carrier = np.linalg.inv(half) @ _translation(-low) @ matrix @ half
    area, area_wh = target[low[1] : high[1], low[0] : high[0]], (high - low).tolist()
    drawn = cv2.warpPerspective(image, carrier, area_wh, borderMode=cv2.BORDER_REPLICATE)
    whole = np.full((height, width), 255, np.uint8)
    inside = cv2.warpPerspective(whole, carrier, area_wh, flags=cv2.INTER_NEAREST)
    cv2.copyTo(drawn, inside, area)


def carry(points: Floats, matrix: Matrix) -> Floats:
    """Apply a (3, 3) homogeneous matrix to points (N, 2)."""
    carried = points @ matrix[:, :2].T + matrix[:, 2]
    return (carried[:, :2] / np.maximum(carried[:, 2:], HORIZON)).astype(np.float32)


def _clip(
    sample: Sample, min_side: float, min_visible: float, min_visible_polygon: float = MIN_VISIBLE_POLYGON
) -> Sample:
    """Cut boxes and outlines at the image's borders and drop the instances of which too little is left."""
    limit = np.array(sample.size_wh * 2, np.float32)
    whole, least, polygons = sample.boxes, np.full(len(sample.boxes), min_visible), sample.polygons
    visible = np.clip(whole, 0, limit)
    if polygons is not None:
        outlined = polygons.lengths > 0
        whole = np.where(outlined[:, None], polygons.bounds_xyxy(), whole)
        polygons = polygons.clip(sample.size_wh)
        visible = np.where(outlined[:, None], np.clip(polygons.bounds_xyxy(), 0, limit), visible)
        least[outlined] = min(min_visible_polygon, min_visible)

    whole_wh, visible_wh = whole[:, 2:] - whole[:, :2], visible[:, 2:] - visible[:, :2]
    shorter, longer = visible_wh.min(1), visible_wh.max(1)
    keep = (shorter > min_side) & (longer < MAX_ASPECT * shorter) & (visible_wh.prod(1) > least * whole_wh.prod(1))
    return replace(sample, boxes=visible, polygons=polygons).take(keep.nonzero()[0])


def hsv(sample: Sample, rng: np.random.Generator, strength: Augmentation) -> Sample:
    """Multiply hue, saturation and value by random factors, through one lookup table for all pixels."""
    gains = np.array((strength.hsv_h, strength.hsv_s, strength.hsv_v))
    if not gains.any():
        return sample
    table = np.arange(256)[:, None] * (1 + rng.uniform(-1, 1, 3) * gains)
    table[:, 0] %= 180  # cv2 stores half degrees of hue
    lookup = np.clip(table, 0, 255).astype(np.uint8)[None]
    changed = cv2.LUT(cv2.cvtColor(sample.image, cv2.COLOR_BGR2HSV), lookup)
    return replace(sample, image=cv2.cvtColor(changed, cv2.COLOR_HSV2BGR))  # type: ignore[arg-type]


def flip_left_right(sample: Sample) -> Sample:
    """Mirror left and right."""
    return _flip(sample, axis=0)


def flip_up_down(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    return _flip(sample, axis=1)


def _flip(sample: Sample, axis: int) -> Sample:
    """Mirror along `axis`: 0 is x, 1 is y."""
    side = sample.size_wh[axis]
    boxes = sample.boxes.copy()
    boxes[:, axis], boxes[:, axis + 2] = side - sample.boxes[:, axis + 2], side - sample.boxes[:, axis]
    polygons = sample.polygons
    if polygons is not None:
        points = polygons.points.copy()
        points[:, axis] = side - points[:, axis]
        polygons = replace(polygons, points=points)
    image = cv2.flip(sample.image, 1 - axis)
    return Sample(image, boxes, sample.classes, polygons)  # type: ignore[arg-type]


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Blend two images of one size, with the boxes of both (Zhang et al., ICLR 2018)."""
    share = rng.beta(MIXUP_BETA, MIXUP_BETA)
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    polygons = None
    if first.polygons is not None and second.polygons is not None:
        polygons = Polygons.concatenate((first.polygons, second.polygons))
    return Sample(
        image,  # type: ignore[arg-type]
        np.concatenate((first.boxes, second.boxes)),
        np.concatenate((first.classes, second.classes)),
        polygons,
    )


def copy_paste(sample: Sample, rng: np.random.Generator, share: float) -> Sample:
    """Paste a random share of the outlined instances once more, mirrored left and right.

    An instance is left out where it would hide more than MAX_COVER of any box (after Ghiasi et al., CVPR 2021).
    """
    if share == 0 or sample.polygons is None:
        return sample
    outlined = sample.polygons.lengths.nonzero()[0]
    rows = rng.permutation(outlined)[: round(share * len(outlined))]
    mirrored = flip_left_right(sample)
    pasted = mirrored.take(_uncovering(sample.boxes, mirrored.boxes, rows))
    assert pasted.polygons is not None
    if not len(pasted.polygons):
        return sample

    mask = np.zeros(sample.image.shape[:2], np.uint8)
    for row in range(len(pasted.polygons)):  # one by one: filled together, overlapping outlines would cancel out
        cv2.fillPoly(mask, [np.rint(pasted.polygons[row] - 0.5).astype(np.int32)], (255,))
    return Sample(
        cv2.copyTo(mirrored.image, mask, sample.image.copy()),  # type: ignore[arg-type]
        np.concatenate((sample.boxes, pasted.boxes)),
        np.concatenate((sample.classes, pasted.classes)),
        Polygons.concatenate((sample.polygons, pasted.polygons)),
    )


def _uncovering(present: Floats, boxes: Floats, rows: Ints) -> Ints:
    """Of the `rows` of `boxes`, in order, those that may be pasted onto the `present` boxes and one another."""
    accepted = []
    for row in rows:
        overlap_wh = np.minimum(present[:, 2:], boxes[row, 2:]) - np.maximum(present[:, :2], boxes[row, :2])
        hidden = np.clip(overlap_wh, 0, None).prod(1)
        if (hidden <= MAX_COVER * (present[:, 2:] - present[:, :2]).prod(1)).all():
            accepted.append(row)
            present = np.concatenate((present, boxes[row : row + 1]))
    return np.array(accepted, np.int64)

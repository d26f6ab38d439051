"""Augmentations of an image with its boxes: pure functions of samples, a random generator and strengths.

Coordinates are continuous (pixel i covers i to i + 1), so a box stays on its object to a fraction of a pixel; no
function writes into the arrays it is given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from data.polygons import Floats, Polygons
from data.rows import Ints
from utils.boxes import GREY

MIN_SIDE = 2.0  # pixels; a box must be wider and higher to survive a warp
MIN_VISIBLE = 0.1  # share of a box's area that must stay in the image
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


def mosaic(samples: Sequence[Sample], size: int, rng: np.random.Generator) -> Sample:
    """Lay four images around a random point of a grey canvas of twice `size`, cut at its borders.

    Their sides must not exceed `size`. Boxes of which hardly anything is left on the canvas are dropped.
    """
    assert len(samples) == 4
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    centre_x, centre_y = rng.integers(size // 2, size + size // 2, 2, endpoint=True)
    boxes = []
    outlines = []
    for tile, sample in enumerate(samples):  # upper left, upper right, lower left, lower right
        width, height = sample.size_wh
        x = int(centre_x) - (width if tile % 2 == 0 else 0)
        y = int(centre_y) - (height if tile < 2 else 0)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, 2 * size), min(y + height, 2 * size)
        canvas[top:bottom, left:right] = sample.image[top - y : bottom - y, left - x : right - x]
        shift = np.array((x, y), np.float32)
        boxes.append(sample.boxes + np.tile(shift, 2))
        if sample.polygons is not None:
            outlines.append(replace(sample.polygons, points=sample.polygons.points + shift))
    assert len(outlines) in (0, 4)
    joined = Sample(
        canvas,
        np.concatenate(boxes),
        np.concatenate([sample.classes for sample in samples]),
        Polygons.concatenate(outlines) if outlines else None,
    )
    return clip(joined, min_side=0)  # the warp that follows may enlarge what is tiny here


def random_perspective(sample: Sample, rng: np.random.Generator, size: int, strength: Augmentation) -> Sample:
    """Rotate, scale, shear, tilt and shift about the centre, and cut the middle (size, size) out, grey outside."""
    return warp(sample, random_matrix(sample.size_wh, rng, size, strength), size)


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


def warp(sample: Sample, matrix: Matrix, size: int) -> Sample:
    """Carry an image and its instances through `matrix` (3, 3) into (size, size).

    A box is the bounds of its four carried corners, or of its outline where it has one. Dropped are boxes that become
    too small, too thin, or leave the image but for a corner (MIN_SIDE, MAX_ASPECT, MIN_VISIBLE).
    """
    half = np.eye(3)
    half[:2, 2] = 0.5  # cv2 counts from pixel centres, boxes from pixel edges
    image = cv2.warpPerspective(
        sample.image, np.linalg.inv(half) @ matrix @ half, (size, size), borderValue=(GREY, GREY, GREY)
    )
    corners = carry(sample.boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 2), matrix).reshape(-1, 4, 2)
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
    polygons = sample.polygons
    if polygons is not None:
        polygons = replace(polygons, points=carry(polygons.points, matrix))
    return clip(Sample(image, boxes, sample.classes, polygons), min_side=MIN_SIDE)  # type: ignore[arg-type]


def carry(points: Floats, matrix: Matrix) -> Floats:
    """Apply a (3, 3) homogeneous matrix to points (N, 2)."""
    carried = points @ matrix[:, :2].T + matrix[:, 2]
    return (carried[:, :2] / np.maximum(carried[:, 2:], HORIZON)).astype(np.float32)


def clip(
    sample: Sample, *, min_side: float, visible: float = MIN_VISIBLE, visible_polygon: float = MIN_VISIBLE_POLYGON
) -> Sample:
    """Cut boxes and outlines at the image's borders and drop the instances of which too little is left.

    `visible` is the least share of a box's area, `visible_polygon` that of the box around an outline.
    """
    limit = np.array(sample.size_wh * 2, np.float32)
    whole, least, polygons = sample.boxes, np.full(len(sample.boxes), visible), sample.polygons
    left = np.clip(whole, 0, limit)
    if polygons is not None:
        outlined = polygons.lengths > 0
        whole = np.where(outlined[:, None], polygons.bounds_xyxy(), whole)
        polygons = polygons.clip(sample.size_wh)
        left = np.where(outlined[:, None], np.clip(polygons.bounds_xyxy(), 0, limit), left)
        least[outlined] = visible_polygon

    whole_wh, left_wh = whole[:, 2:] - whole[:, :2], left[:, 2:] - left[:, :2]
    shorter, longer = left_wh.min(1), left_wh.max(1)
    keep = (shorter > min_side) & (longer < MAX_ASPECT * shorter) & (left_wh.prod(1) > least * whole_wh.prod(1))
    return replace(sample, boxes=left, polygons=polygons).take(keep.nonzero()[0])


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

"""Painted pictures: boxes of flat colours on grey that can be found again after any augmentation."""

import numpy as np

from data.augment import Augmentation
from utils.boxes import GREY

# the corners of the colour cube: a mixture of one with grey stays nearer to it than to the others
COLOURS = np.array([[255 * (number >> bit & 1) for bit in range(3)] for number in range(8)], np.uint8)

ALL = Augmentation(
    degrees=10,
    translate=0.1,
    scale=0.3,
    shear=3,
    perspective=0.0005,
    flipud=0.5,
    fliplr=0.5,
    mosaic=0.7,
    copy_paste=0.5,
)


def paint(size_wh, boxes, colours) -> np.ndarray:
    """A grey image with each box (x1, y1, x2, y2, whole pixels) filled in the colour of that number."""
    image = np.full((size_wh[1], size_wh[0], 3), GREY, np.uint8)
    for (x1, y1, x2, y2), colour in zip(np.asarray(boxes, int), colours, strict=True):
        image[y1:y2, x1:x2] = COLOURS[colour]
    return image


def find(image) -> dict[int, np.ndarray]:
    """The extent x1, y1, x2, y2 of every colour in an image, of the pixels that are at least half of that colour."""
    palette = np.concatenate((COLOURS, [[GREY] * 3])).astype(np.int32)
    # |pixel - colour|^2 without the pixel's own square, which is the same for all colours
    nearest = ((palette**2).sum(1) - 2 * image.astype(np.int32) @ palette.T).argmin(2)
    extents = {}
    for colour in range(len(COLOURS)):
        ys, xs = np.nonzero(nearest == colour)
        if len(xs):
            extents[colour] = np.array((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return extents


def random_boxes(rng, size_wh, count=2, sides=(24, 60)) -> np.ndarray:
    """Boxes of whole pixels that keep 3 pixels between them."""
    boxes: list[np.ndarray] = []
    while len(boxes) < count:
        wh = rng.integers(*sides, 2)
        low = rng.integers(0, np.array(size_wh) - wh, endpoint=True)
        box = np.concatenate((low, low + wh))
        if all((box[:2] > other[2:] + 3).any() or (box[2:] < other[:2] - 3).any() for other in boxes):
            boxes.append(box)
    return np.array(boxes)


def six_pictures(make_annotations):
    """Six pictures with two boxes each, of sizes that need no, less and more than the target's pixels."""
    rng = np.random.default_rng(0)
    sizes = [(128, 96), (200, 100), (60, 128), (128, 96), (300, 211), (90, 90)]
    boxes = [random_boxes(rng, size, sides=(20, 40)) for size in sizes]
    classes = [(2 * number % 8, (2 * number + 1) % 8) for number in range(6)]
    images = [paint(*each) for each in zip(sizes, boxes, classes, strict=True)]
    return make_annotations(images, boxes, classes)

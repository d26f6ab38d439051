"""Mosaics of mistakes: each cut out of its image with what is around it, tiny ones enlarged, so that one can look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.annotations import Annotations
from data.images import read_image
from utils.boxes import GREY, resize
from utils.curves import Floats
from utils.drawing import TITLE_LINE, Image, save_image, write_title
from utils.mistakes import Mistakes

MOST = 24  # mistakes in a mosaic
TILE, COLUMNS = 232, 6  # pixels, tiles
CONTEXT = 2.0  # side of what is shown over the longer side of the box
LEAST_WINDOW = 32  # pixels of the image that are shown at least
LABEL, DETECTION = (115, 158, 0), (0, 94, 213)  # BGR: green and orange that colour-blind eyes tell apart


@dataclass(frozen=True)
class Crop:
    """A box x, y (top left), width, height in an image's pixels, the boxes (k, 4) to compare it with, and a title."""

    image: Path
    box: Floats
    others: Floats
    title: str


def draw_misses(mistakes: Mistakes, annotations: Annotations, path: Path) -> bool:
    """Write the worst misses, with the detections around them; returns whether there are any."""
    truths, shown = mistakes.truths, mistakes.found[mistakes.shown]
    crops = []
    for row in mistakes.misses()[:MOST].tolist():
        index, found_at = int(truths.images[row]), float(mistakes.found_at[row])
        trace = f"only at {found_at:.3f}" if found_at >= 0 else "not found"
        title = f"{annotations.names[truths.classes[row]]}, {trace}\n{annotations.paths[index].name}"
        crops.append(Crop(annotations.paths[index], truths.boxes[row], shown.boxes[shown.images == index], title))
    return plot_crops(crops, path, colour=LABEL, other_colour=DETECTION)


def draw_false_alarms(mistakes: Mistakes, annotations: Annotations, path: Path) -> bool:
    """Write the most confident false alarms, with the labels around them; returns whether there are any."""
    found, truths = mistakes.found, mistakes.truths
    crops = []
    for row in mistakes.false_alarms()[:MOST].tolist():
        index = int(found.images[row])
        title = f"{annotations.names[found.classes[row]]} {found.confidences[row]:.3f}\n{annotations.paths[index].name}"
        crops.append(Crop(annotations.paths[index], found.boxes[row], truths.boxes[truths.images == index], title))
    return plot_crops(crops, path, colour=DETECTION, other_colour=LABEL)


def plot_crops(
    crops: Sequence[Crop], path: Path, *, colour: tuple[int, int, int], other_colour: tuple[int, int, int]
) -> bool:
    """Write crops as one mosaic, their boxes thick and the others thin; without any there is no file.

    Returns:
        Whether there is a file.
    """
    if not crops:
        path.unlink(missing_ok=True)  # that of an earlier run in this folder
        return False
    columns = min(COLUMNS, len(crops))
    height = TILE + 2 * TITLE_LINE + 4
    canvas = np.zeros((math.ceil(len(crops) / columns) * height, columns * TILE, 3), np.uint8)
    for number, crop in enumerate(crops):
        top, left = number // columns * height, number % columns * TILE
        tile = canvas[top : top + height, left : left + TILE]
        tile[:TILE] = _cut_out(read_image(crop.image), crop, colour, other_colour)
        tile[:, -1] = 255  # a white line between neighbours
        write_title(tile, crop.title)
    save_image(canvas, path)
    return True


def _cut_out(image: Image, crop: Crop, colour: tuple[int, int, int], other_colour: tuple[int, int, int]) -> Image:
    """The square around a box, (TILE, TILE, 3)."""
    height, width = image.shape[:2]
    side = min(max(math.ceil(CONTEXT * crop.box[2:].max()), LEAST_WINDOW), max(width, height))
    x, y = crop.box[:2] + crop.box[2:] / 2
    low = np.array((_start(x, side, width), _start(y, side, height)))
    window = np.full((side, side, 3), GREY, np.uint8)
    x1, y1 = np.maximum(low, 0)
    seen = image[y1 : low[1] + side, x1 : low[0] + side]
    window[y1 - low[1] :, x1 - low[0] :][: seen.shape[0], : seen.shape[1]] = seen
    tile = resize(window, (TILE, TILE))
    for box, ink, thickness in [*((other, other_colour, 1) for other in crop.others), (crop.box, colour, 2)]:
        corners = (np.array([box[:2], box[:2] + box[2:]]) - low) * (TILE / side)
        first, last = np.rint(corners).astype(int).tolist()
        cv2.rectangle(tile, first, last, ink, thickness, cv2.LINE_AA)
    return tile


def _start(centre: float, side: int, length: int) -> int:
    """Where a window of `side` begins along an image of `length`: inside where it can be, else around the image."""
    return min(max(round(centre - side / 2), 0), length - side) if side <= length else (length - side) // 2

"""Boxes drawn on images: the detections of one, and batches as mosaics.

A file appears under its name only when it is complete.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor

from utils.boxes import GREY, resize, xywh_to_xyxy, xyxy_to_xywh
from utils.options import InputError
from utils.plots import font_file
from utils.report import write_bytes_atomically
from utils.upstream import Annotator, colors

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

MOSAIC_SIDE, MOSAIC_IMAGES = 1920, 16
TITLE_LINE = 16  # pixels


def draw_detections(
    image: Image,
    rows: Tensor | Floats,
    names: Sequence[str],
    *,
    line_width: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
    copy: bool = True,
) -> Image:
    """Draw boxes on a BGR image, or a copy of it, the most confident on top.

    Args:
        image: (H, W, 3).
        rows: (n, 6) x1, y1, x2, y2 in pixels, confidence, class.
        names: a name for each class.
        line_width: pixels; by the image's size when None.
        hide_labels: boxes only.
        hide_conf: names without the confidence.
        copy: leave the given image as it is.
    """
    width = line_width or max(round(sum(image.shape[:2]) / 2 * 0.003), 1)
    text = "".join(names)
    # The package would look for a font for other scripts on the network; a font of this machine is given instead
    writing = {} if text.isascii() else {"pil": True, "font": font_file(), "font_size": max(7 * width, 12)}
    annotator = Annotator(image.copy() if copy else image, line_width=width, **writing)
    if text.isascii():
        annotator.sf = max(width / 3, 0.4)  # thin lines on small images still need letters that can be read
    for *xyxy, confidence, class_id in sorted(rows.tolist(), key=lambda row: float(row[4])):
        name = names[int(class_id)]
        label = "" if hide_labels else name if hide_conf else f"{name} {confidence:.2f}"
        annotator.box_label(xyxy, label, color=colors(int(class_id), bgr=True))
    return np.ascontiguousarray(annotator.result())


def as_batch_boxes(detections: Sequence[Tensor], padded_wh: tuple[int, int]) -> Tensor:
    """Turn each image's detections (n, 6) in pixels into the (M, 7) rows that `plot_batch` takes."""
    size = torch.tensor(padded_wh * 2)
    parts = [
        torch.cat(
            (
                torch.full((len(found), 1), float(number)),
                found[:, 5:6],
                xyxy_to_xywh(found[:, :4]) / size,
                found[:, 4:5],
            ),
            1,
        )
        for number, found in enumerate(one.detach().cpu().float() for one in detections)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, 7)


def plot_batch(
    images: Tensor,
    boxes: Tensor,
    names: Sequence[str],
    path: Path,
    *,
    titles: Sequence[str] = (),
    least_confidence: float = 0.25,
    most_scale: float = 2.0,
) -> None:
    """Write up to 16 images of a batch with their boxes as one mosaic of at most 1920 px.

    Args:
        images: (B, 3, H, W) RGB, uint8 or 0..1.
        boxes: (M, 6) image, class, x, y, w, h (centre, divided by the image's size), or (M, 7) with the confidence.
        names: a name for each class.
        path: the picture's file.
        titles: a text for each image, its file name for example.
        least_confidence: boxes below it are not drawn.
        most_scale: how many times small images grow, at most: what is in them is small as well.
    """
    count = min(len(images), MOSAIC_IMAGES)
    columns = math.ceil(math.sqrt(count))
    shown = images[:count]
    if shown.is_floating_point():
        shown = shown.float().clamp(0, 1) * 255
    pictures = shown.byte().permute(0, 2, 3, 1).flip(-1).cpu().numpy()
    height, width = pictures.shape[1:3]
    scale = min(MOSAIC_SIDE / columns / max(height, width), most_scale)
    tile_wh = (int(width * scale), int(height * scale))
    canvas = np.full((math.ceil(count / columns) * tile_wh[1], columns * tile_wh[0], 3), GREY, np.uint8)
    for number, picture in enumerate(pictures):
        tile = _tile(resize(picture, tile_wh), _rows_of(boxes, number, tile_wh, least_confidence), names)
        if number < len(titles):
            write_title(tile, titles[number])
        top, left = number // columns * tile_wh[1], number % columns * tile_wh[0]
        canvas[top : top + tile_wh[1], left : left + tile_wh[0]] = tile
    save_image(canvas, path)


def _rows_of(boxes: Tensor, number: int, size_wh: tuple[int, int], least_confidence: float) -> Tensor:
    """The (n, 6) or, without confidences, (n, 5) rows x1, y1, x2, y2, [confidence,] class of one image in pixels."""
    own = boxes[boxes[:, 0] == number].detach().cpu().float()
    if own.shape[1] > 6:
        own = own[own[:, 6] >= least_confidence]
    xyxy = xywh_to_xyxy(own[:, 2:6]) * torch.tensor(size_wh * 2)
    return torch.cat((xyxy, own[:, 6:7], own[:, 1:2]), 1)


def _tile(picture: Image, rows: Tensor, names: Sequence[str]) -> Image:
    has_confidence = rows.shape[1] == 6
    if not has_confidence:
        rows = torch.cat((rows[:, :4], torch.ones(len(rows), 1), rows[:, 4:]), 1)
    tile = draw_detections(picture, rows, names, line_width=1, hide_conf=not has_confidence)
    tile[:, -1], tile[-1, :] = 255, 255  # a white line between neighbours
    return tile


def write_title(tile: Image, text: str) -> None:
    """Write lines of text at the foot of a tile, light on dark, each shortened to what fits."""
    fits = max(tile.shape[1] // 8, 4)
    lines = [line if len(line) <= fits else line[: fits - 3] + "..." for line in text.split("\n")]
    width, height = max(_text_width(line) for line in lines) + 6, TITLE_LINE * len(lines) + 2
    plate = np.zeros((height, width, 3), np.uint8)
    for number, line in enumerate(lines):
        _write_line(plate, line, TITLE_LINE * number)
    plate = plate[: tile.shape[0] - 1, : tile.shape[1] - 1]
    foot = tile.shape[0] - 1
    tile[foot - plate.shape[0] : foot, : plate.shape[1]] = plate


def _text_width(line: str) -> int:
    return cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] if line.isascii() else 12 * len(line)


def _write_line(plate: Image, line: str, top: int) -> None:
    """Write a line in white; OpenCV's letters are ASCII only, the others come from a font of this machine."""
    if line.isascii():
        cv2.putText(plate, line, (3, top + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        return
    picture = PIL.Image.fromarray(plate)
    font = PIL.ImageFont.truetype(font_file(), 12)
    PIL.ImageDraw.Draw(picture).text((3, top + 8), line, (255, 255, 255), font, anchor="lm")
    plate[:] = np.asarray(picture)


def save_image(image: Image, path: Path) -> None:
    """Write a BGR picture in the format of its suffix, under its name when it is complete; any name will do.

    Raises:
        InputError: the file cannot be written (a full disk, a folder that is missing or read-only), or its format has
            no pictures so large.
    """
    is_encoded, encoded = cv2.imencode(path.suffix, image)  # cv2.imwrite opens no name beyond ASCII on Windows
    if not is_encoded:
        height, width = image.shape[:2]
        raise InputError(f"{path}: could not be written: {width} x {height} pixels are too many for {path.suffix}")
    write_bytes_atomically(path, encoded.data)

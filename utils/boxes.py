"""Boxes: formats, overlap, non-maximum suppression, and the letterbox with its inverse.

A name says the format: xyxy is corners and xywh is centre and size, both in pixels; a trailing n (xyxyn, xywhn) means
divided by the image's size. `_wh` is (width, height).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import nms as torch_nms

GREY = 114  # the letterbox's and the mosaic's fill, of 255
MAX_CANDIDATES = 30_000  # boxes an image may bring to suppression, the most confident first


def xywh_to_xyxy(xywh: Tensor) -> Tensor:
    """Turn centre and size into corners, (..., 4) to (..., 4)."""
    centre, half = xywh[..., :2], xywh[..., 2:4] / 2
    return torch.cat((centre - half, centre + half), -1)


def xyxy_to_xywh(xyxy: Tensor) -> Tensor:
    """Turn corners into centre and size, (..., 4) to (..., 4)."""
    low, high = xyxy[..., :2], xyxy[..., 2:4]
    return torch.cat(((low + high) / 2, high - low), -1)


def complete_iou(a_xywh: Tensor, b_xywh: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of paired boxes, (N, 4) and (N, 4) to (N,); differentiable.

    IoU, less the squared distance of the centres over the enclosing box's squared diagonal, less a term for the aspect
    ratios (Zheng et al., AAAI 2020).
    """
    a_wh, b_wh = a_xywh[:, 2:], b_xywh[:, 2:]
    a_low, a_high = a_xywh[:, :2] - a_wh / 2, a_xywh[:, :2] + a_wh / 2
    b_low, b_high = b_xywh[:, :2] - b_wh / 2, b_xywh[:, :2] + b_wh / 2
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(1)
    # eps keeps degenerate boxes finite, in the aspect ratio too
    iou = overlap / (a_wh.prod(1) + b_wh.prod(1) - overlap + eps)
    diagonal = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).square().sum(1) + eps
    distance = (a_xywh[:, :2] - b_xywh[:, :2]).square().sum(1)
    slant = torch.atan(b_wh[:, 0] / (b_wh[:, 1] + eps)) - torch.atan(a_wh[:, 0] / (a_wh[:, 1] + eps))
    aspect = (4 / math.pi**2) * slant.square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - distance / diagonal - aspect * weight


def nms(
    decoded: Tensor | Sequence[Tensor],
    *,
    conf: float = 0.25,
    iou: float = 0.45,
    classes: list[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Pick each image's detections from all decoded boxes.

    Args:
        decoded: (B, N, 5 + nc), or (n, 5 + nc) for each image: x, y, w, h in pixels, objectness, class scores.
        conf: least confidence (objectness times class score) kept.
        iou: overlap above which the less confident of two boxes goes.
        classes: the classes kept, all when None.
        agnostic: suppress across classes.
        multi_label: a box gives one detection for each class over `conf`, else for its best class only.
        max_det: most detections kept of an image.

    Returns:
        For each image (n, 6): x1, y1, x2, y2, confidence, class; the most confident first.
    """
    found = (_candidates(image, conf, classes, multi_label) for image in decoded)
    return [suppress(rows, iou=iou, agnostic=agnostic)[:max_det] for rows in found]


def _candidates(predictions: Tensor, conf: float, classes: list[int] | None, multi_label: bool) -> Tensor:
    """The (n, 6) detections of one image over the threshold, not yet suppressed, most confident first."""
    predictions = predictions[predictions[:, 4] > conf].float()
    scores = predictions[:, 5:] * predictions[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        rows, labels = (scores > conf).nonzero(as_tuple=True)
        confidence = scores[rows, labels]
    else:
        confidence, labels = scores.max(1)
        rows = (confidence > conf).nonzero().flatten()
        confidence, labels = confidence[rows], labels[rows]
    boxes = xywh_to_xyxy(predictions[rows, :4])
    found = torch.cat((boxes, confidence[:, None], labels[:, None].to(boxes.dtype)), 1)
    if classes is not None:
        found = found[torch.isin(labels, torch.tensor(classes, device=labels.device))]
    order = found[:, 4].argsort(descending=True, stable=True)
    return found[order[:MAX_CANDIDATES]]


def suppress(found: Tensor, *, iou: float, agnostic: bool) -> Tensor:
    """Drop of detections (n, 6) those that overlap a more confident one of their class, or of any if `agnostic`.

    The most confident come first.
    """
    if not len(found):
        return found
    boxes = apart(found, agnostic=agnostic)
    return found[torch_nms(boxes, found[:, 4].to(boxes), iou)]


def apart(found: Tensor, *, agnostic: bool) -> Tensor:
    """Corners (n, 4) of detections (n, 6), classes moved so far apart that only boxes of one can overlap."""
    # an offset of classes times the image's size costs float32 its sub-pixels; Apple's GPUs have nothing finer
    boxes = found[:, :4].to(torch.float32 if found.device.type == "mps" else torch.float64)
    if agnostic or not len(found):
        return boxes
    extent = boxes.max() - boxes.min() + 1
    return boxes + found[:, 5:6].to(boxes) * extent


@dataclass(frozen=True)
class Letterbox:
    """How an image was fitted into another size: scaled by `scale_wh`, then padded by `pad_wh` on the left and top.

    Everything in pixels: original size, size after scaling, and size after padding. If only a window of a larger image
    was fitted, a tile, it begins at `corner_xy` there and `original_wh` is its size.
    """

    original_wh: tuple[int, int]
    scaled_wh: tuple[int, int]
    pad_wh: tuple[int, int]
    padded_wh: tuple[int, int]
    corner_xy: tuple[int, int] = (0, 0)

    @property
    def scale_wh(self) -> tuple[float, float]:
        """Pixels of the letterbox for one of the original, exact for each side after rounding."""
        return self.scaled_wh[0] / self.original_wh[0], self.scaled_wh[1] / self.original_wh[1]

    def padded_to(self, padded_wh: tuple[int, int]) -> "Letterbox":
        """The same scaled image in the middle of another size."""
        return _centred(self.original_wh, self.scaled_wh, padded_wh)


def rectangle(original_wh: tuple[int, int], size: int, stride: int, pad: float = 0.5) -> tuple[int, int]:
    """Smallest padded (width, height), multiples of the stride, for an image whose longer side becomes `size`.

    `pad` strides are added before rounding up, as YOLOv5 does in rectangular validation: objects at the edge gain room.
    """
    longer = max(original_wh)
    width, height = (math.ceil(side * size / longer / stride + pad - 1e-9) * stride for side in original_wh)
    return width, height


def fit(original_wh: tuple[int, int], padded_wh: tuple[int, int]) -> Letterbox:
    """Scale an image to the largest size that fits in `padded_wh`, aspect kept, and centre it."""
    scale = min(padded_wh[0] / original_wh[0], padded_wh[1] / original_wh[1])
    return _centred(original_wh, _scaled(original_wh, scale), padded_wh)


def fit_rectangle(original_wh: tuple[int, int], size: int, stride: int) -> Letterbox:
    """Scale an image's longer side to `size` and pad it to its own `rectangle`."""
    scaled_wh = _scaled(original_wh, size / max(original_wh))
    return _centred(original_wh, scaled_wh, rectangle(original_wh, size, stride))


def fit_window(corner_xy: tuple[int, int], window_wh: tuple[int, int], scale: float, stride: int) -> Letterbox:
    """Scale a window of an image, and pad it to multiples of the stride."""
    scaled_wh = _scaled(window_wh, scale)
    width, height = (-(-side // stride) * stride for side in scaled_wh)
    return replace(_centred(window_wh, scaled_wh, (width, height)), corner_xy=corner_xy)


def _scaled(original_wh: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(round(original_wh[0] * scale), 1), max(round(original_wh[1] * scale), 1)


def _centred(original_wh: tuple[int, int], scaled_wh: tuple[int, int], padded_wh: tuple[int, int]) -> Letterbox:
    pad_wh = ((padded_wh[0] - scaled_wh[0]) // 2, (padded_wh[1] - scaled_wh[1]) // 2)
    return Letterbox(original_wh, scaled_wh, pad_wh, padded_wh)


def resize(image: npt.NDArray[np.uint8], size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize (H, W, 3): by area averages when the image shrinks (no aliasing), linearly when it grows."""
    height, width = image.shape[:2]
    if (width, height) == size_wh:
        return image
    shrinks = size_wh[0] * size_wh[1] < width * height
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[return-value]


def letterbox(image: npt.NDArray[np.uint8], geometry: Letterbox) -> npt.NDArray[np.uint8]:
    """Scale and pad (H, W, 3) with grey as `geometry` says."""
    scaled = resize(image, geometry.scaled_wh)
    left, top = geometry.pad_wh
    right = geometry.padded_wh[0] - geometry.scaled_wh[0] - left
    bottom = geometry.padded_wh[1] - geometry.scaled_wh[1] - top
    return cv2.copyMakeBorder(  # type: ignore[return-value]
        scaled, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(GREY, GREY, GREY)
    )


def unletterbox(xyxy: Tensor, geometry: Letterbox) -> Tensor:
    """Carry boxes (N, 4) from the letterboxed image back to the original's pixels, clipped to what was fitted of it."""
    scale, pad, corner, limit = (
        xyxy.new_tensor(pair * 2)
        for pair in (geometry.scale_wh, geometry.pad_wh, geometry.corner_xy, geometry.original_wh)
    )
    return ((xyxy - pad) / scale).clamp(min=0).minimum(limit) + corner


def to_letterbox(xyxy: Tensor, geometry: Letterbox) -> Tensor:
    """Carry boxes (N, 4) from the original's pixels to the letterboxed image, the inverse of `unletterbox`."""
    scale, pad, corner = (
        xyxy.new_tensor(pair * 2) for pair in (geometry.scale_wh, geometry.pad_wh, geometry.corner_xy)
    )
    return (xyxy - corner) * scale + pad

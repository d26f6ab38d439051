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
FIRST_LOOK = 1024  # of these, so many are looked at before any more


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
    conf: float | Sequence[float] = 0.25,
    iou: float = 0.45,
    classes: list[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Pick each image's detections from all decoded boxes.

    Args:
        decoded: (B, N, 5 + nc), or (n, 5 + nc) for each image: x, y, w, h in pixels, objectness, class scores.
        conf: least confidence (objectness times class score) kept, for all classes or for each.
        iou: overlap above which the less confident of two boxes goes.
        classes: the classes kept, all when None.
        agnostic: suppress across classes.
        multi_label: a box gives one detection for each class over `conf`, else for its best class only.
        max_det: most detections kept of an image.

    Returns:
        For each image (n, 6): x1, y1, x2, y2, confidence, class; the most confident first.
    """
    lengths = torch.tensor([len(image) for image in decoded])
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(decoded[0].device, non_blocking=True)
    found, owners = _candidates(torch.cat(list(decoded)), owners, conf, classes, multi_label)
    # a GPU does all images at once; elsewhere, where every pair of boxes costs, they go one after the other
    spans = [len(found)] if found.is_cuda else torch.bincount(owners, minlength=len(lengths)).tolist()
    kept, kept_owners = [], []
    for part, owner in zip(torch.split(found, spans), torch.split(owners, spans), strict=True):
        places = _suppress(part, owner, iou, agnostic, max_det)
        kept.append(part[places])
        kept_owners.append(owner[places])
    counts = torch.bincount(torch.cat(kept_owners), minlength=len(lengths)).tolist()
    return list(torch.split(torch.cat(kept), counts))


def _candidates(
    rows: Tensor, owners: Tensor, conf: float | Sequence[float], classes: list[int] | None, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """The (n, 6) detections over the threshold and their images: image by image, the most confident first."""
    limits = rows.new_tensor(conf, dtype=torch.float32).expand(rows.shape[1] - 5)  # of each class
    above = rows[:, 4] > limits.min()
    rows, owners = rows[above].float(), owners[above]
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        row, label = (scores > limits).nonzero(as_tuple=True)
        confidence = scores[row, label]
    else:
        confidence, label = scores.max(1)
        row = (confidence > limits[label]).nonzero().flatten()
        confidence, label = confidence[row], label[row]
    if classes is not None:
        wanted = torch.isin(label, torch.tensor(classes, device=label.device))
        row, label, confidence = row[wanted], label[wanted], confidence[wanted]
    owners = owners[row]
    order = confidence.argsort(descending=True, stable=True)
    order = order[owners[order].argsort(stable=True)]
    order = order[_rank(owners[order]) < MAX_CANDIDATES]
    row, label, confidence, owners = row[order], label[order], confidence[order], owners[order]
    found = torch.cat((xywh_to_xyxy(rows[row, :4]), confidence[:, None], label[:, None].to(rows.dtype)), 1)
    return found, owners


def _suppress(found: Tensor, owners: Tensor, iou: float, agnostic: bool, max_det: int) -> Tensor:
    """Places of what greedy suppression keeps of (n, 6) detections, at most `max_det` of each image, in order.

    Boxes of different images, and of different classes unless `agnostic`, are moved apart. What happens to a box
    depends on more confident ones alone: the most confident are looked at first, further ones only while an image that
    has some is short of `max_det`.
    """
    if not len(found):
        return owners
    groups = owners - owners[0]
    if not agnostic:
        groups = groups * (found[:, 5].max() + 1) + found[:, 5]
    boxes = apart(found[:, :4], groups)
    rank, candidates = _rank(owners), torch.bincount(owners)
    look = FIRST_LOOK
    while True:
        first = (rank < look).nonzero().flatten()
        kept = first[torch_nms(boxes[first], found[first, 4].to(boxes), iou)].sort().values
        short = torch.bincount(owners[kept], minlength=len(candidates)) < max_det
        if not (short & (candidates > look)).any():
            return kept[_rank(owners[kept]) < max_det]
        look *= 4


def suppress(found: Tensor, *, iou: float, agnostic: bool, max_det: int) -> Tensor:
    """Greedy suppression of an image's detections (n, 6), given and returned the most confident first."""
    owners = torch.zeros(len(found), dtype=torch.int64, device=found.device)
    return found[_suppress(found, owners, iou, agnostic, max_det)]


def apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Move boxes (n, 4) so far apart that only those of one group (n) can overlap."""
    # an offset of groups times the image's size costs float32 its sub-pixels; Apple's GPUs have nothing finer
    fine = boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)
    return fine + groups[:, None].to(fine) * (fine.max() - fine.min() + 1) if len(fine) else fine


def _rank(owners: Tensor) -> Tensor:
    """The place of each row among those of its image, given each row's image (n), in order."""
    return torch.arange(len(owners), device=owners.device) - torch.searchsorted(owners, owners)


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
    if not left + top + right + bottom:
        return scaled
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

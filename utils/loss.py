"""YOLOv5's loss: which cells answer for a box, and the box, objectness and class terms.

Each box is assigned, on every scale, to the anchors whose sides are within a factor `anchor_t` of its own, in the cell
of its centre and in the two nearest neighbours. Everything is computed on whole arrays; no loop runs over boxes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.boxes import complete_iou

# Objectness weighs more on finer scales, which hold more cells (YOLOv5's figures for P3-P5, and for four scales on).
OBJECTNESS_BALANCE = {3: (4.0, 1.0, 0.4)}
OBJECTNESS_BALANCE_MORE = (4.0, 1.0, 0.25, 0.06, 0.02)
FOCAL_ALPHA = 0.25
LOSSES = ("box", "obj", "cls")
# Half a cell towards the left, upper, right and lower neighbour; the first row is the cell itself.
NEIGHBOURS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


@dataclass(frozen=True)
class Assignment:
    """What one scale has to predict: T targets, each an anchor of a cell of an image."""

    where: Tensor  # (4, T) image, anchor, row, column
    label: Tensor  # (T) class
    xywh: Tensor  # (T, 4) in cells, x and y from the cell's corner
    anchor_wh: Tensor  # (T, 2) in cells

    def to(self, device: torch.device) -> "Assignment":
        """Move to a device, without waiting for it."""
        if device.type == "cpu":
            return self
        tensors = (self.where, self.label, self.xywh, self.anchor_wh)
        staged = [tensor.pin_memory() if device.type == "cuda" else tensor for tensor in tensors]
        return Assignment(*(tensor.to(device, non_blocking=True) for tensor in staged))


def assign(boxes: Tensor, anchors: Tensor, grid_wh: tuple[int, int], anchor_t: float) -> Assignment:
    """Assign boxes to the anchors and cells of one scale.

    Args:
        boxes: (M, 6) image, class, x, y, w, h in 0..1.
        anchors: (A, 2) width and height in cells.
        grid_wh: the scale's cells.
        anchor_t: largest ratio of a side to the anchor's, either way.
    """
    grid = torch.tensor(grid_wh)
    centre, size = boxes[:, 2:4] * grid, boxes[:, 4:6] * grid
    ratio = size[None] / anchors[:, None]  # (A, M, 2)
    anchor, box = (torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t).nonzero(as_tuple=True)
    to_start, to_end = centre[box], grid - centre[box]
    # A neighbour helps if the centre lies in the half cell next to it and it is on the grid.
    near = torch.cat(((to_start % 1 < 0.5) & (to_start > 1), (to_end % 1 < 0.5) & (to_end > 1)), 1)
    chosen = torch.cat((torch.ones_like(near[:, :1]), near), 1).T  # (5, candidates): itself, left, up, right, down
    step, candidate = chosen.nonzero(as_tuple=True)
    anchor, box = anchor[candidate], box[candidate]
    cell = (centre[box] - centre.new_tensor(NEIGHBOURS)[step]).long()
    column, row = cell[:, 0].clamp(0, grid_wh[0] - 1), cell[:, 1].clamp(0, grid_wh[1] - 1)
    offset = centre[box] - torch.stack((column, row), 1)
    return Assignment(
        where=torch.stack((boxes[box, 0].long(), anchor, row, column)),
        label=boxes[box, 1].long(),
        xywh=torch.cat((offset, size[box]), 1),
        anchor_wh=anchors[anchor],
    )


class _TakeCells(torch.autograd.Function):
    """Take the outputs at T cells, (T, 5 + nc), and every cell's objectness of a raw map (B, A, ny, nx, 5 + nc).

    Plain indexing does the same; its gradient would be two maps full of zeros, copied and added up.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(where)
        ctx.like = raw.new_empty(0), raw.shape, raw.stride()
        return raw[tuple(where)], raw[..., 4].contiguous()

    @staticmethod
    def backward(ctx: Any, cells: Tensor, objectness: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        empty, shape, stride = ctx.like
        gradient = torch.empty_strided(shape, stride, dtype=empty.dtype, device=empty.device).zero_()
        gradient[..., 4] = objectness
        return gradient.index_put_(tuple(where), cells, accumulate=True), None


class DetectionLoss(nn.Module):
    """Box, objectness and class losses of raw maps against boxes.

    Called on raw maps [(B, A, ny, nx, 5 + nc)] and boxes (M, 6) of image, class, x, y, w, h in 0..1, it returns the
    three named losses, each a scalar, the mean over the batch times its gain. Boxes and anchors stay on the CPU, where
    choosing cells for them waits for nothing; the maps may be anywhere.
    """

    names = LOSSES
    cls_pw: Tensor
    obj_pw: Tensor

    def __init__(
        self,
        anchors: Tensor,
        classes: int,
        gains: dict[str, float],
        *,
        anchor_t: float = 4.0,
        cls_pw: float | Tensor = 1.0,
        obj_pw: float = 1.0,
        fl_gamma: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        """Take anchors (scales, A, 2) in cells and the gains of `box`, `obj` and `cls`; the rest as in `Hyp`.

        `cls_pw` may have a weight for each class, (nc).
        """
        super().__init__()
        self.anchors = anchors.cpu().clone()
        self.register_buffer("cls_pw", torch.as_tensor(cls_pw, dtype=torch.float32).reshape(-1))
        self.register_buffer("obj_pw", torch.tensor([obj_pw]))
        self.classes = classes
        self.gains = gains
        self.anchor_t = anchor_t
        self.gamma = fl_gamma
        self.positive, self.negative = 1 - 0.5 * label_smoothing, 0.5 * label_smoothing
        assert len(anchors) <= len(OBJECTNESS_BALANCE_MORE), "no balance is known for so many scales"
        self.balance = OBJECTNESS_BALANCE.get(len(anchors), OBJECTNESS_BALANCE_MORE)

    def forward(self, raw: list[Tensor], boxes: Tensor) -> dict[str, Tensor]:
        """Sum each term over the scales."""
        boxes = boxes.cpu()
        total = {name: raw[0].new_zeros((), dtype=torch.float32) for name in LOSSES}
        for level, anchors, balance in zip(raw, self.anchors, self.balance, strict=False):
            target = assign(boxes, anchors, (level.shape[3], level.shape[2]), self.anchor_t).to(level.device)
            for name, value in self._level(level, target).items():
                total[name] = total[name] + value * (balance if name == "obj" else 1.0)
        return {name: value * self.gains[name] for name, value in total.items()}

    def _level(self, raw: Tensor, target: Assignment) -> dict[str, Tensor]:
        cells, scores = _TakeCells.apply(raw, target.where)
        objectness = torch.zeros_like(scores, dtype=torch.float32)
        losses = {}
        if len(target.label):
            predicted = cells.float()  # (T, 5 + nc)
            centre = predicted[:, :2].sigmoid() * 2 - 0.5
            size = (predicted[:, 2:4].sigmoid() * 2).square() * target.anchor_wh
            overlap = complete_iou(torch.cat((centre, size), 1), target.xywh)
            losses["box"] = (1 - overlap).mean()
            objectness[tuple(target.where)] = overlap.detach().clamp(min=0)
            if self.classes > 1:
                wanted = torch.full_like(predicted[:, 5:], self.negative)
                wanted.scatter_(1, target.label[:, None], self.positive)
                losses["cls"] = self._cross_entropy(predicted[:, 5:], wanted, self.cls_pw)
        losses["obj"] = self._cross_entropy(scores.float(), objectness, self.obj_pw)
        return losses

    def _cross_entropy(self, logits: Tensor, target: Tensor, positive_weight: Tensor) -> Tensor:
        """Mean binary cross-entropy, focal (Lin et al., ICCV 2017) when gamma is above 0."""
        if not self.gamma:
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=positive_weight)
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=positive_weight, reduction="none")
        score = logits.sigmoid()
        miss = 1 - (target * score + (1 - target) * (1 - score))
        alpha = target * FOCAL_ALPHA + (1 - target) * (1 - FOCAL_ALPHA)
        return (loss * alpha * miss**self.gamma).mean()

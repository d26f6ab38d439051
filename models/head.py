"""The detection head: one 1x1 convolution per scale, and the decoding of its raw maps to boxes in pixels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Detect(nn.Module):
    """Predict, in each cell of each scale and for each anchor, a box, an objectness and class scores.

    `anchors` (scales, anchors, 2) is kept in units of its scale's stride, as in YOLOv5's state_dicts.
    """

    anchors: Tensor

    def __init__(self, classes: int, anchors: Sequence[Sequence[float]], channels: Sequence[int]) -> None:
        """Take `anchors` as w, h, w, h, ... in pixels for each scale; `set_strides` brings them to their unit."""
        super().__init__()
        self.classes = classes
        self.outputs = 5 + classes
        self.strides: list[int] = []
        sides = torch.tensor(anchors, dtype=torch.float32, device="cpu")  # values, on the meta device too
        self.register_buffer("anchors", sides.view(len(anchors), -1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, self.outputs * self.anchors.shape[1], 1) for c in channels)

    def set_strides(self, strides: Sequence[int]) -> None:
        """Give the scales their strides, once: anchors come to their unit, biases to a sensible start."""
        self.strides = list(strides)
        areas = self.anchors.prod(-1).mean(-1)
        if (areas[-1] - areas[0]) * (strides[-1] - strides[0]) < 0:  # anchors written from large to small
            self.anchors.copy_(self.anchors.flip(0))
        self.anchors /= torch.tensor(strides, dtype=torch.float32, device=self.anchors.device).view(-1, 1, 1)
        self.initialise_biases()

    def initialise_biases(self) -> None:
        """Start from about 8 objects in an image of 640 px and from even classes, so that early loss is not wasted."""
        for convolution, stride in zip(self.m, self.strides, strict=True):
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            bias = convolution.bias.data.view(self.anchors.shape[1], -1)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.classes - 0.99999))

    def anchors_in_pixels(self) -> Tensor:
        """(scales, anchors, 2) width and height."""
        return self.anchors * torch.tensor(self.strides, device=self.anchors.device).view(-1, 1, 1)

    def set_anchors(self, anchors_wh: Tensor) -> None:
        """Take anchors (scales, anchors, 2) in pixels, from small to large, in place of the present ones."""
        strides = torch.tensor(self.strides, device=self.anchors.device).view(-1, 1, 1)
        rising = anchors_wh.flip(0) if self.strides[0] > self.strides[-1] else anchors_wh
        self.anchors.copy_(rising.to(self.anchors) / strides)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_i, ny, nx)] to raw maps [(B, anchors, ny, nx, 5 + classes)]."""
        raw = []
        for convolution, features in zip(self.m, maps, strict=True):
            out = convolution(features)
            batch, _, ny, nx = out.shape
            raw.append(out.view(batch, self.anchors.shape[1], self.outputs, ny, nx).permute(0, 1, 3, 4, 2))
        return raw

    def decode(self, raw: list[Tensor]) -> Tensor:
        """Raw maps to (B, N, 5 + classes): x, y, w, h in pixels, objectness, class scores in 0..1."""
        return torch.stack(self.decode_above(raw, 0.0))

    def decode_above(self, raw: list[Tensor], conf: float) -> list[Tensor]:
        """Decode only what has an objectness of `conf` or more, (n, 5 + classes) of each image.

        Nearly all of a map's values are background, so this is many times cheaper than decoding them all.
        """
        # a little below, since rounding may differ; whoever takes the boxes compares again
        least = math.log(conf / (1 - conf)) - 1e-3 if 0 < conf < 1 else -math.inf if conf <= 0 else math.inf
        found, owners = [], []
        for level, anchors, stride in zip(raw, self.anchors_in_pixels(), self.strides, strict=True):
            kept = level[..., 4] >= least
            image, anchor, row, column = kept.nonzero(as_tuple=True)
            scores = level[kept].float().sigmoid()  # (n, 5 + classes)
            centre = (scores[:, :2] * 2 - 0.5 + torch.stack((column, row), 1)) * stride  # half a cell beyond its own
            size = (scores[:, 2:4] * 2).square() * anchors[anchor]  # up to 4 times the anchor
            found.append(torch.cat((centre, size, scores[:, 4:]), 1))
            owners.append(image)
        order = torch.cat(owners).sort(stable=True)
        counts = torch.bincount(order.values, minlength=len(raw[0])).tolist()
        return list(torch.split(torch.cat(found)[order.indices], counts))

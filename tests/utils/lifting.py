"""Strided models and their SPD forms, narrow or of a few rows, for the tests of lifting."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from models.yolo import Model
from utils.checkpoint import Weights
from utils.options import ROOT

NAMES = ["car", "dog", "cup", "pen"]
PAIRS = [
    ("yolov5n.yaml", "yolov5-spd-n.yaml"),
    ("yolov5l.yaml", "yolov5-spd-l.yaml"),
    ("yolov5n.yaml", "hub/space_depth_n.yaml"),
    ("hub/yolov5-p2.yaml", "hub/yolov5-spd-p2.yaml"),
]
BACKBONE = [[-1, 1, "Conv", [8, 6, 2, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3", [16]]]
SPD_BACKBONE = [[-1, 1, "Focus", [8, 3]], [-1, 1, "Conv", [16, 3, 1]], [-1, 1, "SPD", []], [-1, 1, "C3", [16]]]


def narrow(name: str, **changes: Any) -> dict[str, Any]:
    """A YAML of the project at an eighth of its width, with its own depth."""
    return yaml.safe_load((ROOT / "models" / name).read_text()) | {"nc": 4, "width_multiple": 0.125} | changes


def small(*rows: list[Any], inputs: tuple[int, ...] = (-1,)) -> dict[str, Any]:
    """A model of these rows and a head."""
    head = [[list(inputs), 1, "Detect", ["nc", "anchors"]]]
    return {"nc": 4, "anchors": [[10, 13, 16, 30]] * len(inputs), "backbone": list(rows), "head": head}


def strided(config: dict[str, Any], names: list[str] = NAMES) -> tuple[Model, Weights]:
    """A model far from its initialisation, its statistics and anchors too, and its weights."""
    torch.manual_seed(1)
    model = Model(config, names=names).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for convolution in model.head.m:
        nn.init.normal_(convolution.bias)
    model.head.anchors *= torch.empty_like(model.head.anchors).uniform_(0.8, 1.2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return model, Weights(model.config, names, state, Path("strided.pt"))


def fresh(config: dict[str, Any], names: list[str] = NAMES) -> Model:
    torch.manual_seed(2)
    return Model(config, names=names)


@torch.no_grad()
def decode(model: Model, images: Tensor) -> Tensor:
    return model.decode(model.eval()(images))


def difference(new: Model, old: Model, size: int = 128) -> float:
    """Largest difference of decoded outputs, relative to the largest of each."""
    images = torch.rand(2, int(old.config.get("ch", 3)), size, size).to(next(new.parameters()).dtype)
    a, b = decode(new, images), decode(old, images)
    return float(((a - b).abs().amax((0, 1)) / b.abs().amax((0, 1))).max())


def outputs(model: Model, kept: list[int]) -> Tensor:
    return decode(model, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)))[..., kept]

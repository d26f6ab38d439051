"""The loss against the figures measured on upstream's, and against the rule of assignment written out box by box."""

import itertools
from typing import Any

import pytest
import torch

from models.yolo import load_model
from tests.formula import fill_by_formula, formula_images
from utils.loss import DetectionLoss, _TakeCells, assign


def test_golden_losses(spd_reference: dict[str, Any]) -> None:
    model = fill_by_formula(load_model("yolov5-spd-n.yaml"))
    for case in spd_reference["loss"]:
        hyp = dict(case["hyp"])
        gains = {name: hyp.pop(name) for name in ("box", "obj", "cls")}
        criterion = DetectionLoss(model.head.anchors, 80, gains, **hyp)
        fill_by_formula(model).train()  # batch statistics move the running ones, which the loss must not see
        losses = criterion(model(formula_images(*case["input"])), torch.tensor(case["targets"]).view(-1, 6))
        found = [losses[name].item() for name in ("box", "obj", "cls")]
        assert found == pytest.approx(case["box_obj_cls"], rel=0, abs=1e-5), case["name"]
        assert sum(found) * case["input"][0] == pytest.approx(case["total"], rel=1e-5)


def test_assignment_follows_the_rule() -> None:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(60, 6, generator=generator)
    boxes[:, 0], boxes[:, 1] = torch.arange(60) % 4, torch.arange(60) % 7
    boxes[:, 4:] = boxes[:, 4:] * 0.4 + 0.01
    anchors, grid = torch.tensor([[1.2, 1.6], [2.0, 3.7], [4.1, 2.9]]), (12, 9)
    found = assign(boxes, anchors, grid, 4.0)
    expected = set()
    for box, (a, anchor) in itertools.product(boxes.tolist(), enumerate(anchors.tolist())):
        x, y, w, h = box[2] * grid[0], box[3] * grid[1], box[4] * grid[0], box[5] * grid[1]
        if max(w / anchor[0], anchor[0] / w, h / anchor[1], anchor[1] / h) >= 4:
            continue
        cells = {(int(x), int(y))}
        cells |= {(int(x) + (-1 if x % 1 < 0.5 else 1), int(y)), (int(x), int(y) + (-1 if y % 1 < 0.5 else 1))}
        expected |= {(int(box[0]), a, r, c, int(box[1])) for c, r in cells if 0 <= c < grid[0] and 0 <= r < grid[1]}
    _, chosen, row, column = found.where
    assert set(zip(*found.where.tolist(), found.label.tolist(), strict=True)) == expected
    assert found.anchor_wh.equal(anchors[chosen])
    absolute = found.xywh[:, :2] + torch.stack((column, row), 1)
    assert ((found.xywh[:, :2] > -0.5) & (found.xywh[:, :2] < 1.5)).all()
    assert absolute.min() >= 0


def test_no_boxes_train_objectness_alone() -> None:
    model = load_model("yolov5-spd-n.yaml")
    criterion = DetectionLoss(model.head.anchors, 80, {"box": 0.05, "obj": 1.0, "cls": 0.5})
    losses = criterion(model(torch.rand(1, 3, 64, 64)), torch.zeros(0, 6))
    assert losses["box"] == 0
    assert losses["cls"] == 0
    sum(losses.values()).backward()
    assert model.head.m[0].bias.grad.abs().sum() > 0


def test_gradients_of_taken_cells_are_those_of_indexing() -> None:
    """Also where several boxes fall to one cell."""
    raw = torch.randn(2, 3, 4, 5, 9, dtype=torch.float64, requires_grad=True)
    where = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 1], [3, 1, 1, 0], [4, 2, 2, 0]])
    weights = torch.randn(4, 9, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    gradients = []
    for cells, scores in (_TakeCells.apply(raw, where), (raw[tuple(where)], raw[..., 4])):
        loss = (cells.sin() * weights[0]).sum() + (scores.cos() * weights[1]).sum()
        gradients += torch.autograd.grad(loss, raw)
    torch.testing.assert_close(*gradients)

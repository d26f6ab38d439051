"""Parts of a training: frozen rows, class weights, the loss of a recipe."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.annotations import Annotations
from models.yolo import Model, load_model
from utils.assemble import class_weights, freeze, make_loss
from utils.hyp import Hyp
from utils.options import InputError


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("yolov5-spd-n.yaml", names=["rare", "common", "unused"])


def table(counts: list[int], crowds: int = 0) -> Annotations:
    """One image with so many boxes of each class, and crowds of class 0."""
    classes = np.repeat(np.arange(len(counts)), counts)
    total = len(classes) + crowds
    return Annotations(
        names=[str(label) for label in range(len(counts))],
        paths=[],
        sizes_wh=np.full((1, 2), 64, np.int32),
        image_ids=np.arange(1),
        category_ids=np.arange(len(counts)),
        starts=np.array([0, total]),
        classes=np.concatenate((classes, np.zeros(crowds, int))),
        boxes=np.ones((total, 4)),
        areas=np.ones(total),
        crowd=np.arange(total) >= len(classes),
        polygons=np.zeros((0, 2), np.float32),
        polygon_starts=np.zeros(total + 1, int),
        problems=[],
    )


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [(["0"], []), (["3"], [0, 1, 2]), (["1", "4"], [1, 4]), (["backbone"], list(range(14)))],
)
def test_frozen_rows_have_no_gradients(wanted: list[str], rows: list[int]) -> None:
    model = load_model("yolov5-spd-n.yaml")
    assert len(model.config["backbone"]) == 14
    freeze(model, wanted)
    frozen = [i for i, row in enumerate(model.model) if any(not p.requires_grad for p in row.parameters())]
    assert frozen == [row for row in rows if list(model.model[row].parameters())]
    assert all(not p.requires_grad for row in rows for p in model.model[row].parameters())


@pytest.mark.parametrize("wanted", [["-1"], ["99"], ["1", "99"], ["head"], ["1", "backbones"]])
def test_rows_that_do_not_exist_are_refused(model: Model, wanted: list[str]) -> None:
    with pytest.raises(InputError, match=f"--freeze {' '.join(wanted)}: "):
        freeze(model, wanted)


def test_all_rows_cannot_be_frozen(model: Model) -> None:
    with pytest.raises(InputError, match="one must be left to learn"):
        freeze(model, [str(len(model.model))])


def test_rarer_classes_weigh_more() -> None:
    weights = class_weights(table([4, 100, 0, 1, 25], crowds=1000))
    torch.testing.assert_close(weights, torch.tensor([5.0, 1.0, 1.0, 10.0, 2.0]))  # roots of 25, 1, none, 100, 4


def test_the_class_loss_is_weighed_by_class(model: Model) -> None:
    """`auto` gives each class its own weight, and a number gives all the same."""
    boxes = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3], [0, 1, 0.3, 0.3, 0.2, 0.2]])
    raw: list[Any] = [level.detach() for level in model.train()(torch.rand(2, 3, 64, 64))]
    data = table([4, 100, 1])

    def loss(weight: float | str) -> float:
        return float(make_loss(model, replace(Hyp(), cls_pw=weight), data, 64)(raw, boxes)["cls"])

    assert loss("auto") > loss(1.0)
    criterion = make_loss(model, replace(Hyp(), cls_pw="auto"), data, 64)
    torch.testing.assert_close(criterion.cls_pw, torch.tensor([5.0, 1.0, 10.0]))
    criterion.cls_pw.fill_(2)
    assert float(criterion(raw, boxes)["cls"]) == pytest.approx(loss(2.0))

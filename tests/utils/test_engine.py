"""The parts of the engine that the scripts' tests do not reach."""

import copy

import numpy as np
import pytest
import torch

from data.dataset import letterboxed_item
from data.loader import collate
from models.fold import fold
from models.yolo import load_model
from tests.formula import fill_by_formula
from utils.engine import NmsSettings, Predictor, image_weights
from utils.loss import LOSSES, DetectionLoss
from utils.training import find_amp


def test_images_with_rare_and_badly_found_classes_weigh_more() -> None:
    classes = np.array([0, 0, 0, 1, 0])
    starts = np.array([0, 2, 4, 5, 5])  # images with classes 00, 01, 0, none
    weights = image_weights(classes, starts, [0.5, 0.0])
    each = {0: 0.25 / 4, 1: 1.0 / 1}
    np.testing.assert_allclose(weights, [2 * each[0], each[0] + each[1], each[0], 0], atol=1e-5)
    assert weights[3] > 0  # drawn now and then
    assert np.isfinite(image_weights(np.zeros(0, int), np.zeros(3, int), [0.1])).all()


def predictor(**settings: object) -> Predictor:
    model = fill_by_formula(load_model("yolov5-spd-n.yaml")).eval()
    extra = {key: settings.pop(key) for key in ("augment", "folded", "half") if key in settings}
    return Predictor(model, torch.device("cpu"), settings=NmsSettings(conf=0.3, **settings), **extra)


def batch() -> object:
    image = np.random.default_rng(0).integers(0, 255, (60, 96, 3), np.uint8)
    return collate([letterboxed_item(image, 96, 32)])


def test_folded_and_plain_predict_the_same() -> None:
    folded, plain = (predictor(folded=choice)(batch()) for choice in (True, False))
    for a, b in zip(folded.raw, plain.raw, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    confidences = (prediction.original[0][:10, 4] for prediction in (folded, plain))  # of equals, either may be first
    torch.testing.assert_close(*confidences, rtol=1e-4, atol=1e-4)


def test_boxes_stay_in_the_original_image() -> None:
    rows = predictor()(batch()).original[0]
    assert (rows[:, :4] >= 0).all()
    assert (rows[:, [0, 2]] <= 96).all()
    assert (rows[:, [1, 3]] <= 60).all()


def test_single_class_forgets_classes() -> None:
    rows = predictor(single_class=True, multi_label=True)(batch()).original[0]
    assert len(rows) > 0
    assert (rows[:, 5] == 0).all()
    best = predictor(agnostic=True)(batch()).original[0]
    torch.testing.assert_close(rows[:, :5], best[:, :5])


def test_a_view_of_the_full_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.engine.TEST_TIME_VIEWS", ((1.0, False),))
    torch.testing.assert_close(predictor(augment=True)(batch()).original[0], predictor()(batch()).original[0])


def test_half_is_close_to_full() -> None:
    half, full = (predictor(half=choice, max_det=5)(batch()).original[0] for choice in (True, False))
    assert abs(half[:, 4].max() - full[:, 4].max()) < 0.05


def test_amp_is_what_the_hardware_has() -> None:
    assert find_amp(torch.device("cpu")) in (None, torch.bfloat16)


def test_fifty_steps_lose_the_same_folded_and_plain(tiny_cfg: str) -> None:
    """In double precision: in single, rounding alone drives any two runs apart within twenty steps."""
    torch.manual_seed(0)
    images, boxes = torch.rand(4, 3, 64, 64, dtype=torch.float64), torch.rand(12, 6)
    boxes[:, 0], boxes[:, 1] = torch.arange(12) % 4, torch.arange(12) % 80
    start, losses = load_model(tiny_cfg).double().train(), []
    for prepare in (fold, lambda model: model):
        model = prepare(copy.deepcopy(start))
        criterion = DetectionLoss(model.head.anchors.float(), 80, {"box": 0.05, "obj": 1.0, "cls": 0.5})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        losses.append([])
        for _ in range(50):
            found = criterion(model(images), boxes)
            loss = torch.stack([found[name] for name in LOSSES]).sum() * 4
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append([found[name].item() for name in LOSSES])
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert np.sum(losses[0][-1]) < 0.8 * np.sum(losses[0][0])

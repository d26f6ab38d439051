"""A start from scratch as a lifted strided model: the same zeros and spreads as lifting a fresh one gives."""

from pathlib import Path

import pytest
import torch

from models.yolo import Model, load_model
from tests.utils.lifting import NAMES, PAIRS, narrow
from utils.checkpoint import Weights
from utils.lift import lift, start_strided


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_it_is_the_lift_of_a_freshly_initialised_strided_model(old: str, new: str) -> None:
    torch.manual_seed(0)
    fresh, lifted = (Model(narrow(new), names=NAMES) for _ in range(2))
    strided = Model(narrow(old), names=NAMES)
    assert lift(Weights(strided.config, NAMES, strided.state_dict(), Path("fresh")), lifted) is not None
    rows = start_strided(fresh)
    changed = [name for name, tensor in lifted.state_dict().items() if tensor.ndim == 4 and (tensor == 0).sum() > 9]
    assert {int(name.split(".")[1]) for name in changed} == set(rows)
    for name, wanted in lifted.state_dict().items():
        if wanted.ndim == 4:
            found = fresh.state_dict()[name]
            columns = (found.abs().sum((0, 2, 3)) == 0, wanted.abs().sum((0, 2, 3)) == 0)
            assert columns[0].equal(columns[1]), name
            assert found.std() == pytest.approx(float(wanted.std()), rel=0.35), name


def test_nothing_random_is_drawn_and_a_strided_model_stays() -> None:
    torch.manual_seed(0)
    model = load_model("yolov5n.yaml")
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    assert start_strided(model) == []
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    start_strided(load_model("yolov5-spd-n.yaml"))


def test_a_convolution_with_another_reader_is_no_strided_one() -> None:
    config = {
        "nc": 4,
        "anchors": [[10, 13, 16, 30]] * 2,
        "backbone": [[-1, 1, "Focus", [8, 3]], [-1, 1, "Conv", [16, 3, 1]], [-1, 1, "SPD", []], [-1, 1, "C3", [16]]],
        "head": [[[1, 3], 1, "Detect", ["nc", "anchors"]]],
    }
    assert start_strided(Model(config, names=NAMES)) == []

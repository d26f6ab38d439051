"""Lifting: the SPD model gives what the strided one gives, whatever the graph; what cannot be lifted starts anew."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from models.fold import fold
from models.yolo import Model
from tests.utils.lifting import BACKBONE, NAMES, PAIRS, SPD_BACKBONE, decode, difference, fresh, narrow, small, strided
from utils.checkpoint import Weights
from utils.lift import LiftReport, lift


def check(old_config: dict[str, Any], new_config: dict[str, Any]) -> LiftReport:
    """Lift and expect the same outputs, with nothing started anew."""
    old, weights = strided(old_config)
    new = fresh(new_config)
    report = lift(weights, new)
    assert report is not None
    assert not any(row.anew for row in report.rows)
    assert difference(new, old) < 1e-5
    assert difference(new.double(), old.double()) < 1e-12
    assert report.difference is not None
    assert report.difference < 1e-5
    return report


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[Path(new).stem for _, new in PAIRS])
def test_pairs_of_the_project(old: str, new: str) -> None:
    report = check(narrow(old), narrow(new))
    assert len(report.lifted) == (8 if new.endswith("p2.yaml") else 7)
    assert sum(len(row.carried) for row in report.rows) == len(Model(narrow(old)).state_dict())


def test_only_sub_map_0_0_is_read() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("yolov5-spd-n.yaml"))
    lift(weights, new)
    state, theirs = new.state_dict(), weights.state_dict
    torch.testing.assert_close(state["model.3.cv1.conv.weight"][:, :16], theirs["model.2.cv1.conv.weight"])
    assert not state["model.3.cv2.conv.weight"][:, 16:].any()
    neck = theirs["model.20.cv2.conv.weight"]  # behind a concatenation with the head's P4
    torch.testing.assert_close(state["model.25.cv2.conv.weight"][:, :32], neck[:, :32])
    torch.testing.assert_close(state["model.25.cv2.conv.weight"][:, 128:], neck[:, 32:])
    assert not state["model.25.cv2.conv.weight"][:, 32:128].any()
    torch.testing.assert_close(state["model.25.m.0.cv1.conv.weight"], theirs["model.20.m.0.cv1.conv.weight"])


def test_the_other_sub_maps_learn() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fold(fresh(narrow("yolov5-spd-n.yaml")))
    lift(weights, new)
    sum(level.square().mean() for level in new.train()(torch.rand(2, 3, 64, 64))).backward()
    gradient = new.model[3].cv1.conv.weight.grad
    assert (gradient[:, 16:].abs().amax((0, 2, 3)) > 0).all()


UP_AND_POOLED = [
    [-1, 1, "nn.MaxPool2d", [3, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [-1, 1, "CrossConv", [16]],
]
FORMS: dict[str, tuple[list[list[Any]], list[list[Any]]]] = {  # strided rows, SPD rows
    "SPDConv": (BACKBONE[:2], [SPD_BACKBONE[0], [-1, 1, "SPDConv", [16, 3]]]),
    "SPDConv of 5x5": ([[-1, 1, "Conv", [8, 5, 2]]], [[-1, 1, "SPDConv", [8, 5]]]),
    "SPD then Conv": (BACKBONE, [SPD_BACKBONE[0], [-1, 1, "SPD", []], SPD_BACKBONE[1], BACKBONE[2]]),
    "3x3 in Focus": ([[-1, 1, "Conv", [8, 3, 2]]], [[-1, 1, "Focus", [8, 3]]]),
    "after SPD, SPDConv": ([*BACKBONE[:2], BACKBONE[1]], [*SPD_BACKBONE[:3], [-1, 1, "SPDConv", [16, 3]]]),
    "Detect reads SPD": (BACKBONE[:2], SPD_BACKBONE[:3]),
    "a strided stem that stays": (BACKBONE, [BACKBONE[0], *SPD_BACKBONE[1:]]),
    "SPD in both": ([BACKBONE[0], *SPD_BACKBONE[1:]], SPD_BACKBONE),
    "depthwise": (
        [*BACKBONE[:1], [-1, 1, "DWConv", [8, 3, 2]], BACKBONE[2]],
        [*SPD_BACKBONE[:1], [-1, 1, "DWConv", [8, 3, 1]], [-1, 1, "SPD", []], BACKBONE[2]],
    ),
    "pool and upsampling": ([*BACKBONE[:2], *UP_AND_POOLED], [*SPD_BACKBONE[:3], *UP_AND_POOLED]),
    "repeated rows": ([*BACKBONE[:2], [-1, 2, "Conv", [8, 3]]], [*SPD_BACKBONE[:3], [-1, 2, "Conv", [8, 3]]]),
}


@pytest.mark.parametrize(("old", "new"), FORMS.values(), ids=FORMS)
def test_forms(old: list[list[Any]], new: list[list[Any]]) -> None:
    assert check(small(*old), small(*new)).lifted


@pytest.mark.parametrize("rows", [[[-1, 1, "SPDConv", [8, 3, 3]]], [[-1, 1, "Conv", [8, 3, 1]], [-1, 1, "SPD", [3]]]])
def test_a_stride_of_three(rows: list[list[Any]]) -> None:
    old, weights = strided(small([-1, 1, "Conv", [8, 3, 3]], BACKBONE[2]))
    new = fresh(small(*rows, BACKBONE[2]))
    assert lift(weights, new) is not None
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(new.eval()(images), old(images), rtol=1e-5, atol=1e-5)


def test_a_pyramid_right_behind_space_to_depth_is_as_wide_as_its_input_and_starts_partly_anew() -> None:
    _, weights = strided(small(*BACKBONE[:2], [-1, 1, "SPPF", [16]]))
    report = lift(weights, fresh(small(*SPD_BACKBONE[:3], [-1, 1, "SPPF", [16]])))
    assert report is not None
    assert [row.row for row in report.rows if row.anew] == [3]
    assert "cv1.conv.weight" in report.rows[2].anew


def test_joins_in_another_order_and_a_model_of_ones_own() -> None:
    """Rows have other numbers, joins another order, a join comes twice, and the head reads its scales the other way."""
    old = small(
        *BACKBONE,  # 2
        [-1, 1, "Conv", [16, 3, 2]],
        [2, 1, "nn.MaxPool2d", [2, 2]],
        [[3, 4], 1, "Concat", [1]],  # 5
        [-1, 1, "C3", [24]],
        [[6, 3, 6], 1, "Concat", [1]],
        [-1, 1, "Conv", [16, 3, 2]],  # 8
        [-1, 1, "Conv", [16, 1]],
        [[8, 9], 1, "Concat", [1]],
        [-1, 1, "GhostConv", [16]],  # 11
        [7, 1, "CrossConv", [16]],
        inputs=(12, 11),
    )
    new = small(
        *SPD_BACKBONE,  # 3
        [3, 1, "nn.MaxPool2d", [2, 2]],
        [3, 1, "Conv", [16, 3, 1]],
        [-1, 1, "SPD", [2]],  # 6
        [[4, 6], 1, "Concat", [1]],
        [-1, 1, "C3", [24]],  # 8
        [[8, 8, 6], 1, "Concat", [1]],
        [9, 1, "CrossConv", [16]],
        [9, 1, "Conv", [16, 3, 1]],
        [-1, 1, "SPD", [2]],  # 12
        [-1, 1, "Conv", [16, 1]],
        [[13, 12], 1, "Concat", [1]],
        [-1, 1, "GhostConv", [16]],
        inputs=(10, 15),
    )
    old["anchors"][1] = [60, 50, 70, 90]
    new["anchors"][1] = [50, 60, 80, 70]
    report = check(old, new)
    assert [row.row for row in report.lifted] == [0, 1, 5, 11]


def test_scales_in_another_order() -> None:
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3", [16]]]
    spd_rows = [[-1, 1, "Conv", [16, 3, 1]], [-1, 1, "SPD", []], [-1, 1, "C3", [16]]]
    old, weights = strided(small(*BACKBONE, *rows, inputs=(2, 4)))
    new = fresh(small(*SPD_BACKBONE, *spd_rows, inputs=(6, 3)))
    report = lift(weights, new)
    assert report is not None
    assert report.difference < 1e-5
    fine, coarse = decode(old, torch.ones(1, 3, 64, 64)).split([2 * 256, 2 * 64], 1)
    swapped = decode(new, torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(swapped, torch.cat((coarse, fine), 1), rtol=1e-4, atol=1e-4)


def test_a_kernel_without_room_starts_anew_and_the_rows_after_it_do_not() -> None:
    """SPDConv of 1x1 sees 2x2 pixels: no room for 3x3."""
    old, weights = strided(small(*BACKBONE))
    new = fresh(small(SPD_BACKBONE[0], [-1, 1, "SPDConv", [16, 1]], BACKBONE[2]))
    before = copy.deepcopy(new.state_dict())
    report = lift(weights, new)
    assert report is not None
    assert [(row.row, row.source, bool(row.carried)) for row in report.rows] == [
        (0, 0, True), (1, 1, False), (2, 2, True), (3, 3, True),
    ]  # fmt: skip
    assert report.difference > 1e-3
    assert "row 1 (SPDConv) from row 1, of another kind: 0 tensors carried over, 6 anew (conv.conv.weight" in str(
        report
    )
    for name, tensor in new.model[1].state_dict().items():
        assert torch.equal(tensor, before[f"model.1.{name}"])
    torch.testing.assert_close(new.model[2].cv1.conv.weight, old.model[2].cv1.conv.weight)


def test_a_row_of_another_kind_starts_anew_alone() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    config = narrow("yolov5-spd-n.yaml")
    config["backbone"][6] = [-1, 6, "C3Ghost", [256]]
    report = lift(weights, fresh(config))
    assert report is not None
    assert [row.row for row in report.rows if not row.carried] == [6]
    assert len(report.lifted) == 7


def test_a_deeper_row_keeps_its_further_units() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("yolov5-spd-s.yaml", depth_multiple=0.67))
    report = lift(weights, new)
    assert report is not None
    anew = {name for row in report.rows for name in row.anew}
    assert anew
    assert all(name.startswith("m.") for name in anew)


def test_what_a_fourth_scale_adds_starts_anew() -> None:
    """The backbone and the way down are common to P5 and P2 models; the way up reads what only the latter has."""
    old, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("hub/yolov5-spd-p2.yaml", depth_multiple=0.33))
    before = copy.deepcopy(new.state_dict())
    report = lift(weights, new)
    assert report is not None
    assert [row.row for row in report.rows if row.carried] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 14, 17, 18, 21]
    assert report.difference is None
    assert "row 38 (Detect) without a counterpart" in str(report)
    torch.testing.assert_close(
        new.state_dict()["model.21.cv3.conv.weight"], old.state_dict()["model.17.cv3.conv.weight"]
    )
    for name in ("model.22.conv.weight", "model.38.m.0.bias", "model.38.anchors"):
        assert torch.equal(new.state_dict()[name], before[name])


UNLIKE = {
    "strided to strided": ("yolov5n.yaml", narrow("yolov5n.yaml")),
    "SPD to SPD": ("yolov5-spd-n.yaml", narrow("yolov5-spd-n.yaml")),
    "SPD to strided": ("yolov5-spd-n.yaml", narrow("yolov5n.yaml")),
    "another width": ("yolov5n.yaml", narrow("yolov5-spd-n.yaml", width_multiple=0.25)),
    "grey images": ("yolov5n.yaml", narrow("yolov5-spd-n.yaml", ch=1)),
}


@pytest.mark.parametrize(("old", "config"), UNLIKE.values(), ids=UNLIKE)
def test_models_without_a_strided_row_in_common_are_left_alone(old: str, config: dict[str, Any]) -> None:
    _, weights = strided(narrow(old))
    new = fresh(config)
    before = copy.deepcopy(new.state_dict())
    assert lift(weights, new) is None
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), before.values(), strict=True))


def test_weights_of_a_model_that_does_not_build_are_left_to_the_transfer_by_name() -> None:
    _, weights = strided(small(*BACKBONE))
    config = weights.config | {"backbone": [[-1, 1, "C3TR", [8]]]}
    assert lift(Weights(config, NAMES, weights.state_dict, weights.source), fresh(small(*SPD_BACKBONE))) is None
    part = {key: value for key, value in weights.state_dict.items() if "bias" not in key}
    assert lift(Weights(weights.config, NAMES, part, weights.source), fresh(small(*SPD_BACKBONE))) is None


def test_lifting_draws_no_random_number_and_keeps_the_mode() -> None:
    _, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE)).train()
    state = torch.get_rng_state()
    lift(weights, new)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in new.modules())

"""The YAML builder: every YAML builds, the authors' spelling too, and a wrong one is told by row and name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.blocks import SPD, space_to_depth
from models.summary import gflops
from models.yolo import Model, load_model
from utils.options import ROOT, InputError

YAMLS = sorted((ROOT / "models").glob("**/*.yaml"))
SMALL: dict[str, Any] = {
    "nc": 3,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "SPD", [2]]],
    "head": [[-1, 1, "C3", [16]], [[2], 1, "Detect", ["nc", "anchors"]]],
}


def small(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(SMALL) | changes


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_builds_and_detects_at_its_strides(path: Path) -> None:
    model = load_model(path)
    raw = model.shapes_only(model.max_stride * 2)
    assert [level.shape[2] * stride for level, stride in zip(raw, model.head.strides, strict=True)] == [
        model.max_stride * 2
    ] * len(raw)
    assert model.head.strides == sorted(model.head.strides)


@pytest.mark.parametrize("variant", ["n", "s", "m", "l"])
def test_authors_spelling_is_the_same_network(variant: str) -> None:
    theirs, ours = load_model(f"space_depth_{variant}.yaml"), load_model(f"yolov5-spd-{variant}.yaml")
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert sum(isinstance(m, SPD) for m in theirs.modules()) == 7


def test_space_to_depth_order_and_scale() -> None:
    x = torch.arange(2 * 6 * 6).view(1, 2, 6, 6).float()
    two = space_to_depth(x, 2)
    for k, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        assert torch.equal(two[:, 2 * k : 2 * k + 2], x[..., row::2, column::2])
    permutation = [0, 4, 2, 6, 1, 5, 3, 7]
    assert torch.equal(two, nn.PixelUnshuffle(2)(x)[:, permutation])
    assert space_to_depth(x, 3).shape == (1, 18, 2, 2)
    with pytest.raises(AssertionError, match="not divisible by 4"):
        space_to_depth(x, 4)


def test_gflops_count_multiply_adds_twice() -> None:
    model = Model(small())
    # 64 px: Conv 3x3x3x8 on 32x32; C3 on 16x16 from 32 channels: 1x1 to 8 twice, 1x1 and 3x3 of 8, 1x1 16 to 16; head
    conv = 3 * 9 * 8 * 32 * 32
    c3 = (32 * 8 * 2 + 8 * 8 + 8 * 8 * 9 + 16 * 16) * 256
    head = 16 * 2 * 8 * 256
    assert gflops(model, 64) == pytest.approx(2 * (conv + c3 + head) / 1e9)


def test_names_and_anchors_take_the_place_of_the_yaml() -> None:
    model = Model(small(anchors=4), names=["a", "b"])
    assert model.config["nc"] == 2
    assert model.head.anchors.shape == (1, 4, 2)
    assert model.head.m[0].out_channels == 4 * 7


def test_activation_is_replaced_where_there_was_one() -> None:
    model = Model(small(activation="nn.LeakyReLU(0.1)"))
    found = [m for m in model.modules() if isinstance(m, nn.LeakyReLU)]
    assert found
    assert all(m.negative_slope == 0.1 for m in found)
    assert not any(isinstance(m, nn.SiLU) for m in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": [[-1, 1, "Convv", [8, 3, 2]]]}, r"row 0: layer: unknown key 'Convv'; did you mean Conv"),
        ({"backbone": [[-1, 1, "Conv", [8, 3, 2, 1, 1, 1, True, 9]]]}, r"row 0 \(Conv\): arguments .* do not fit"),
        ({"backbone": [[-1, 1, "Conv", []]]}, r"row 0 \(Conv\)"),
        ({"backbone": [[-1, 1, "Conv"]]}, r"row 0: expected \[from, number, module, args\]"),
        ({"backbone": [[5, 1, "Conv", [8]]]}, r"row 0: 'from' 5 is not a row before it"),
        ({"backbone": [[-1, 0, "Conv", [8]]]}, r"row 0 \(Conv\): expected a number"),
        ({"backbone": [[-1, 1, "__import__('os').system('true')", [8]]]}, "unknown key"),
        ({"head": [[-1, 1, "C3", [16]]]}, "the last row must be Detect"),
        ({"anchorz": 3}, "unknown key 'anchorz'; did you mean anchors"),
        ({"activation": "nn.Bogus()"}, "activation 'nn.Bogus"),
        ({"anchors": [[10, 13], [16, 30]]}, "do not fit"),
        (
            {"backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "SPD", [2]], [[-1, 0], 1, "Concat", [1]]]},
            r"row 2 \(Concat\) does not fit its inputs",
        ),
    ],
)
def test_a_wrong_yaml_is_told_by_row_and_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Model(small(**changes), source="my.yaml")
    assert str(caught.value).startswith("my.yaml")
    assert "\n" not in str(caught.value)


def test_missing_key() -> None:
    config = small()
    del config["head"]
    with pytest.raises(InputError, match=r"m\.yaml: missing key 'head'"):
        Model(config, source="m.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"nc": 0}, {"nc": "many"}, {"ch": "three"}, {"depth_multiple": "deep"}, {"width_multiple": 1e9},
        {"channel_multiple": 0}, {"activation": 5}, {"anchors": 0}, {"anchors": -1}, {"anchors": [[10]]},
        {"anchors": [[10, -3]]}, {"backbone": None}, {"backbone": []}, {"head": 3},
        {"backbone": [[-1, 1, "Conv", [8, 3, 0]]]},
        {"backbone": [[-1, 1, "Conv", [8, 3, 2]], [[-1, 0], 1, "Conv", [8, 3, 2]]]},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_their_kind_or_range(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^my\.yaml: ") as caught:
        Model(small(**changes), source="my.yaml")
    assert "\n" not in str(caught.value)


def test_strides_of_three_are_measured() -> None:
    model = Model(small(backbone=[[-1, 1, "Conv", [8, 3, 3]], [-1, 1, "SPD", [2]]]))
    assert model.head.strides == [6]
    assert model.max_stride == 96

"""The models against the figures measured on the authors' YOLOv5-SPD and on upstream YOLOv5."""

from typing import Any

import numpy as np
import pytest
import torch

from models.summary import parameters
from models.yolo import load_model
from tests.formula import fill_by_formula, formula_images


def rows(reference: dict[str, Any], part: str) -> list[tuple[str, Any]]:
    return [(variant, row) for variant, content in reference[part].items() for row in content]


@pytest.mark.parametrize("variant", ["n", "s", "m", "l"])
def test_spd_parameters_and_keys(variant: str, spd_reference: dict[str, Any]) -> None:
    expected = spd_reference["models"][variant]
    model = load_model(f"yolov5-spd-{variant}.yaml")
    state = model.state_dict()
    assert parameters(model) == expected["params"]
    assert len(state) == expected["keys"]
    if "state_dict" in expected:
        assert {key: list(value.shape) for key, value in state.items()} == expected["state_dict"]


@pytest.mark.parametrize("variant", ["n", "s", "m", "l", "x", "p2"])
def test_strided_parameters_and_keys(variant: str, yolov5_reference: dict[str, Any]) -> None:
    expected = yolov5_reference["models"]["p2(width 1, depth 1)" if variant == "p2" else variant]
    model = load_model("yolov5-p2.yaml" if variant == "p2" else f"yolov5{variant}.yaml")
    state = model.state_dict()
    assert parameters(model) == expected["params"]
    assert len(state) == expected.get("keys", len(state))
    if "state_dict" in expected:
        assert {key: list(value.shape) for key, value in state.items()} == expected["state_dict"]


@pytest.mark.parametrize(
    ("reference", "family", "variant"),
    [("spd_reference", "yolov5-spd-", "n"), ("spd_reference", "yolov5-spd-", "s"), ("yolov5_reference", "yolov5", "n")],
)
def test_forward(reference: str, family: str, variant: str, request: pytest.FixtureRequest) -> None:
    model = fill_by_formula(load_model(f"{family}{variant}.yaml")).eval()
    cases = request.getfixturevalue(reference)["forward"][variant]
    assert cases
    for case in cases:
        with torch.inference_mode():
            raw = model(formula_images(*case["input"]))
            decoded = model.decode(raw)
        assert [list(level.shape) for level in raw] == case["raw_shapes"]
        assert [level.abs().sum().item() for level in raw] == pytest.approx(case["raw_abs_sum"], rel=1e-4)
        assert list(decoded.shape) == case["decoded_shape"]
        assert decoded.double().sum().item() == pytest.approx(case["decoded_sum"], rel=1e-4)
        assert decoded.double().abs().sum().item() == pytest.approx(case["decoded_abs_sum"], rel=1e-4)
        picked = decoded.flatten()[case["decoded_flat_index"]].numpy()
        np.testing.assert_allclose(picked, case["decoded_values"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conf", [0.0, 0.001, 0.4, 0.5, 1.0])
def test_decoding_a_part_gives_the_same_boxes(conf: float) -> None:
    model = fill_by_formula(load_model("yolov5-spd-n.yaml")).eval()
    with torch.inference_mode():
        raw = model(formula_images(2, 3, 64, 96))
        whole, parts = model.decode(raw), model.decode_above(raw, conf)
    assert len(parts) == 2
    for image, part in zip(whole, parts, strict=True):
        torch.testing.assert_close(part[part[:, 4] >= conf], image[image[:, 4] >= conf], rtol=1e-6, atol=1e-6)
        assert len(part) <= len(image)
    assert sum(map(len, parts)) < whole.shape[0] * whole.shape[1] or conf <= 0.001

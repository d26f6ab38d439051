"""Boxes: NMS against the measured figures, overlap against torchvision, the letterbox against its inverse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import complete_box_iou

from tests.conftest import GOLDEN
from utils import boxes

CASES = json.loads((GOLDEN / "spd_reference.json").read_text())["nms"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case["args"]))
def test_golden_nms(case: dict) -> None:
    decoded = torch.from_numpy(np.load(Path(GOLDEN) / "nms_input.npy"))
    names = {"conf_thres": "conf", "iou_thres": "iou"}
    found = boxes.nms(decoded, **{names.get(key, key): value for key, value in case["args"].items()})
    assert [len(rows) for rows in found] == case["count"]
    assert [rows.double().sum().item() for rows in found] == pytest.approx(case["sum"], rel=1e-4)
    for rows, top in zip(found, case["top5"], strict=True):
        np.testing.assert_allclose(rows[: len(top)].numpy(), top, atol=1e-3)


def test_nms_of_nothing() -> None:
    assert [tuple(rows.shape) for rows in boxes.nms(torch.zeros(2, 0, 7))] == [(0, 6), (0, 6)]
    assert [tuple(rows.shape) for rows in boxes.nms(torch.zeros(1, 5, 7))] == [(0, 6)]


def test_complete_iou_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(200, 4, generator=generator) * 20 + 1 for _ in range(2))
    expected = complete_box_iou(boxes.xywh_to_xyxy(a), boxes.xywh_to_xyxy(b)).diagonal()
    torch.testing.assert_close(boxes.complete_iou(a, b), expected, atol=1e-5, rtol=1e-4)


def test_formats_invert() -> None:
    xywh = torch.rand(10, 4) * 50 + 1
    torch.testing.assert_close(boxes.xyxy_to_xywh(boxes.xywh_to_xyxy(xywh)), xywh)


@pytest.mark.parametrize("original", [(640, 480), (481, 640), (33, 1000), (2048, 1536), (17, 19)])
def test_letterbox_and_back(original: tuple[int, int]) -> None:
    geometry = boxes.fit_rectangle(original, 320, 32)
    assert all(side % 32 == 0 for side in geometry.padded_wh)
    assert max(geometry.scaled_wh) == 320
    image = np.zeros((original[1], original[0], 3), np.uint8)
    fitted = boxes.letterbox(image, geometry)
    assert fitted.shape == (geometry.padded_wh[1], geometry.padded_wh[0], 3)
    left, top = geometry.pad_wh
    width, height = geometry.scaled_wh
    assert (fitted[top : top + height, left : left + width] == 0).all()
    assert (fitted == boxes.GREY).all(-1).sum() == fitted.shape[0] * fitted.shape[1] - width * height
    whole = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    torch.testing.assert_close(boxes.unletterbox(whole, geometry), torch.tensor([[0.0, 0.0, *original]]))
    outside = torch.tensor([[-50.0, -50.0, 5000.0, 5000.0]])
    torch.testing.assert_close(boxes.unletterbox(outside, geometry), torch.tensor([[0.0, 0.0, *original]]))


def test_rectangle_pads_half_a_stride() -> None:
    assert boxes.rectangle((640, 480), 640, 32) == (672, 512)
    assert boxes.rectangle((640, 480), 640, 32, pad=0) == (640, 480)

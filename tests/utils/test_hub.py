"""The model that is called on images: the same boxes as detect.py, and settings that count from the next call on."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detect
from utils import hub
from utils.hub import HubModel
from utils.options import InputError
from utils.results import Results

RNG = np.random.default_rng(0)
SHAPES = [(60, 96), (96, 60), (40, 96), (200, 80)]  # none is padded as another
IMAGES = [RNG.integers(0, 255, (*shape, 3), np.uint8) for shape in SHAPES]  # RGB


@pytest.fixture(scope="module")
def loaded(random_checkpoint: Path) -> HubModel:
    return hub.custom(random_checkpoint, device="cpu")


@pytest.fixture
def model(loaded: HubModel) -> HubModel:
    return copy.deepcopy(loaded)


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    """Compare detections of which equally confident ones may change places."""
    assert [len(rows) for rows in a] == [len(rows) for rows in b]
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one[:, 4], other[:, 4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one[:, 5].sort().values, other[:, 5].sort().values)


def test_boxes_are_those_of_detect(model: HubModel, random_checkpoint: Path, tmp_path: Path) -> None:
    files = [tmp_path / "images" / f"{number}.png" for number in range(len(IMAGES))]
    files[0].parent.mkdir()
    for file, image in zip(files, IMAGES, strict=True):
        cv2.imwrite(str(file), image[..., ::-1])
    folder = detect.run(
        weights=str(random_checkpoint), source=str(tmp_path / "images"), imgsz=96, device="cpu", nosave=True,
        save_txt=True, save_conf=True, project=str(tmp_path),
    )  # fmt: skip
    found = model([files[0], IMAGES[1], Image.fromarray(IMAGES[2]), str(files[3])], size=96)
    for rows, file in zip(found.xywhn, files, strict=True):
        expected = np.loadtxt(folder / "labels" / f"{file.stem}.txt", ndmin=2)
        assert len(expected) > 20
        np.testing.assert_allclose(rows[:, [5, 0, 1, 2, 3, 4]], expected, atol=2e-6)


def test_many_images_at_once_are_as_one_by_one(model: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "BATCH", 2)
    images = [IMAGES[0], IMAGES[1], IMAGES[0][:, ::-1], IMAGES[2], IMAGES[0][::-1]]  # three of one shape
    together = model(images, size=96)
    assert len(together) == 5
    assert_same(together.xyxy, [model(image, size=96).xyxy[0] for image in images])
    assert together.s == (5, 3, 128, 128)
    assert len(model([])) == 0
    assert_same(model(tuple(images), size=[64, 96]).xyxy, together.xyxy)


def test_a_batch_goes_as_it_is(model: HubModel) -> None:
    batch = torch.from_numpy(RNG.integers(0, 255, (2, 3, 64, 96), np.uint8))
    found = model(batch / 255)
    assert found.s == (2, 3, 64, 96)
    assert [image.shape for image in found.ims] == [(64, 96, 3)] * 2
    assert (found.ims[1] == batch[1].permute(1, 2, 0).numpy()).all()
    network = model.model.eval()
    with torch.inference_mode():
        decoded = network.decode(network(batch / 255))
    scores = decoded[..., 4] * decoded[..., 5:].amax(-1)
    torch.testing.assert_close([rows[0, 4] for rows in found.xyxy], list(scores.amax(1)), rtol=1e-4, atol=1e-5)
    assert_same(model(batch).xyxy, found.xyxy)
    for wrong in (batch[:, :1], batch[..., :90]):
        with pytest.raises(InputError, match="expected 3 channels and sides that are multiples of 32"):
            model(wrong)
    assert len(model(list(batch[..., :90]), size=96)) == 2


def test_settings_count_from_the_next_call(model: HubModel) -> None:
    image = IMAGES[0]

    def found(**settings: Any) -> torch.Tensor:
        for name, value in settings.items():
            setattr(model, name, value)
        return model(image, size=96).xyxy[0]

    start = found()
    assert set(start[:, 5].tolist()) == {0, 1, 2}
    assert found(conf=0.28)[:, 4].min() > 0.28
    assert len(found(conf=0.25, iou=0.1)) < len(start)
    assert len(found(iou=0.45, max_det=7)) == 7
    assert set(found(max_det=1000, classes=(0, 2))[:, 5].tolist()) == {0, 2}
    assert set(found(classes=1)[:, 5].tolist()) == {1}
    assert len(found(classes=None, multi_label=True)) > len(start)
    assert len(found(multi_label=False, agnostic=True)) < len(start)
    rounded = found(agnostic=False, amp=True)
    assert not torch.equal(rounded[:5], start[:5])
    torch.testing.assert_close(rounded[0, 4], start[0, 4], atol=0.1, rtol=0)
    assert model.half() is model
    assert_same([found(amp=False)], [start])
    assert not torch.equal(model(image, size=96, augment=True).xyxy[0][:5, :4], start[:5, :4])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("conf", 2, r"^model.conf = 2: expected 0 to 1$"),
        ("iou", -0.1, "model.iou = -0.1: expected 0 to 1"),
        ("max_det", 0, "model.max_det = 0: expected 1 or more"),
        ("classes", [0, 3], r"^model.classes = \[0, 3\]: the model has classes 0 to 2$"),
        ("classes", 5, "classes 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(model: HubModel, name: str, value: Any, text: str) -> None:
    setattr(model, name, value)
    with pytest.raises(InputError, match=text):
        model(IMAGES[0], size=96)


@pytest.mark.parametrize("how", ["inner", "assigned", "in place", "replaced"])
def test_weights_that_change_inside_are_used(model: HubModel, how: str) -> None:
    before = model(IMAGES[0], size=96).xyxy[0]
    assert model._predictor() is model._predictor()
    state = {
        key: value * 0.9 if key.endswith("conv.weight") else value for key, value in model.model.state_dict().items()
    }
    weights = [value for key, value in model.model.named_parameters() if key.endswith("conv.weight")]
    with torch.no_grad():
        if how in ("inner", "assigned"):
            model.model.load_state_dict(state, assign=how == "assigned")
        for weight in weights if how in ("in place", "replaced") else ():
            if how == "in place":
                weight.mul_(0.9)
            else:
                weight.data = weight * 0.9
    assert len(model(IMAGES[0], size=96).xyxy[0]) != len(before)


def test_weights_that_change_are_used(model: HubModel) -> None:
    before = model(IMAGES[0], size=96).xyxy
    twin = copy.deepcopy(model)
    assert_same(twin(IMAGES[0], size=96).xyxy, before)
    changed = {key: value * 0.9 if key.endswith("conv.weight") else value for key, value in model.state_dict().items()}
    twin.load_state_dict(changed)
    assert len(twin(IMAGES[0], size=96).xyxy[0]) != len(before[0])
    assert_same(model(IMAGES[0], size=96).xyxy, before)
    model.train()
    with torch.no_grad():
        model.model.head.m[0].bias.fill_(-9)
    assert len(model(IMAGES[0], size=96).xyxy[0]) < len(before[0])


def test_what_a_program_may_ask_of_the_model(model: HubModel) -> None:
    assert model.names == {0: "disc", 1: "cross", 2: "star"}
    assert model.stride == 32
    assert model.cpu() is model.to("cpu") is model
    assert model.device == torch.device("cpu")
    assert not model.training


def test_results_can_be_changed_and_have_names(model: HubModel, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    cv2.imwrite(str(file), IMAGES[0])
    found = model([file, IMAGES[1], str(file), IMAGES[2]], size=96)
    assert isinstance(found, Results)
    assert found.files == ["photo.jpg", "image1.jpg", "photo_2.jpg", "image3.jpg"]
    found.xyxy[0][:, 4] += 1  # tensors of inference mode refuse that
    assert all(value > 0 for value in found.t)
    assert found.names == model.names

"""What the tests share: the figures measured on the authors' code and on upstream YOLOv5."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from data.annotations import Annotations
from models.yolo import load_model
from utils.checkpoint import save_checkpoint
from utils.options import ROOT

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def spd_reference() -> dict[str, Any]:
    """Figures of the authors' YOLOv5-SPD."""
    return json.loads((GOLDEN / "spd_reference.json").read_text())


@pytest.fixture(scope="session")
def yolov5_reference() -> dict[str, Any]:
    """Figures of upstream's strided YOLOv5."""
    return json.loads((GOLDEN / "yolov5_reference.json").read_text())


@pytest.fixture(scope="session")
def resnet_reference() -> dict[str, Any]:
    """Figures of the authors' ResNet-SPD."""
    return json.loads((GOLDEN / "resnet_spd_reference.json").read_text())


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data YAML of 8 images of 96 to 128 px with light squares and dark discs on grey."""
    root = tmp_path_factory.mktemp("squares")
    for folder in ("images/all", "labels/all"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        width, height = 96 + 32 * (number % 2), 96 + 32 * (number // 4)
        image = rng.integers(100, 140, (height, width, 3), np.uint8)
        rows = []
        for place, label in enumerate((0, 1, number % 2)):  # each in a quarter of its own
            side = int(rng.integers(20, 36))
            x = int(rng.integers(0, width // 2 - side)) + place % 2 * width // 2
            y = int(rng.integers(0, height // 2 - side)) + place // 2 * height // 2
            if label == 0:
                cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), (250, 240, 220), -1)
            else:
                cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (10, 20, 60), -1)
            centre = ((x + side / 2) / width, (y + side / 2) / height)
            rows.append(f"{label} {centre[0]:.6f} {centre[1]:.6f} {side / width:.6f} {side / height:.6f}\n")
        cv2.imwrite(str(root / f"images/all/{number}.png"), image)
        (root / f"labels/all/{number}.txt").write_text("".join(rows))
    data = root / "squares.yaml"
    data.write_text("train: images/all\nval: images/all\nnames: [square, disc]\n")
    return data


@pytest.fixture(scope="session")
def film(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of 96 x 96 px."""
    path = tmp_path_factory.mktemp("film") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    images = [cv2.imread(str(squares.parent / f"images/all/{number}.png"))[:96, :96] for number in range(8)]
    for number in range(20):
        writer.write(np.roll(images[number % 8], number, axis=1))
    writer.release()
    return path


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model YAML: YOLOv5-SPD at half the width of nano and the least depth."""
    content = yaml.safe_load((ROOT / "models/yolov5-spd-n.yaml").read_text())
    path = tmp_path_factory.mktemp("cfg") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | {"width_multiple": 0.125, "depth_multiple": 0.1}))
    return str(path)


@pytest.fixture(scope="session")
def random_checkpoint(tiny_cfg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model that has learnt nothing, and finds its three classes everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_model(tiny_cfg, names=["disc", "cross", "star"])
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of these images, so that no signal fades
        with torch.no_grad():
            model(torch.rand(2, 3, 96, 96))
            for convolution in model.head.m:
                convolution.weight.mul_(0.3)
                convolution.bias.zero_()
    path = tmp_path_factory.mktemp("random") / "random.pt"
    save_checkpoint(path, {"config": model.config, "names": model.names, "model": model.state_dict()})
    return path


@pytest.fixture(scope="session")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learnt `squares` by heart: SPD-n, 128 px."""
    import train

    hyp = tmp_path_factory.mktemp("hyp") / "overfit.yaml"
    hyp.write_text(
        "optimizer: AdamW\nlr0: 0.003\nlrf: 0.05\nmomentum: 0.9\nwarmup_epochs: 2\nwarmup_bias_lr: 0.01\n"
        "nominal_batch: 3\nema_tau: 100\nbox: 0.3\ncls: 20\nobj: 20\nmosaic: 0\nscale: 0\ntranslate: 0\nfliplr: 0\n"
        "hsv_h: 0\nhsv_s: 0\nhsv_v: 0\n"
    )
    train.run(
        data=str(squares),
        cfg="yolov5-spd-n.yaml",
        hyp=str(hyp),
        imgsz=128,
        epochs=80,
        batch_size=3,
        rect=True,
        noval=True,
        workers=0,
        project=str(tmp_path_factory.mktemp("runs")),
        name="squares",
    )
    return next(tmp_path_factory.getbasetemp().glob("runs*/squares"))


@pytest.fixture
def make_annotations(tmp_path) -> Callable[..., Annotations]:
    """A function that writes images and makes their table, by hand."""

    def make(
        images: Sequence[np.ndarray],
        boxes_xyxy: Sequence[np.ndarray],
        classes: Sequence[Sequence[int]],
        *,
        crowd: Sequence[bool] | None = None,
        polygons: Sequence[np.ndarray] | None = None,
    ) -> Annotations:
        paths = [Path(tmp_path) / f"picture {number:03}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            assert cv2.imwrite(str(path), image)
        xyxy = np.concatenate([np.asarray(boxes, float).reshape(-1, 4) for boxes in boxes_xyxy])
        wh = xyxy[:, 2:] - xyxy[:, :2]
        lengths = [len(points) for points in polygons] if polygons else [0] * len(xyxy)
        return Annotations(
            names=[str(number) for number in range(8)],
            paths=paths,
            sizes_wh=np.array([image.shape[1::-1] for image in images], np.int32),
            image_ids=np.arange(len(images)),
            category_ids=np.arange(8),
            starts=np.cumsum([0, *(len(boxes) for boxes in boxes_xyxy)]),
            classes=np.concatenate([np.asarray(group, np.int64) for group in classes]),
            boxes=np.concatenate((xyxy[:, :2], wh), 1),
            areas=wh.prod(1),
            crowd=np.zeros(len(xyxy), bool) if crowd is None else np.array(crowd),
            polygons=np.concatenate(polygons).astype(np.float32) if polygons else np.zeros((0, 2), np.float32),
            polygon_starts=np.cumsum([0, *lengths]),
            problems=[],
        )

    return make

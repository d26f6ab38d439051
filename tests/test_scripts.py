"""The scripts from end to end, as a user runs them: what they learn, what they write, and what they refuse."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.ops import box_iou

import detect
import train
import val
from tests.helpers import command, read_txt, same_end
from utils.coco import FIGURES
from utils.options import ROOT

RUN_FILES = (
    "opt.yaml hyp.yaml results.csv results.png labels.jpg train_batch0.jpg val_batch0_labels.jpg val_batch0_pred.jpg "
    "PR_curve.png P_curve.png R_curve.png F1_curve.png confusion_matrix.png metrics.json per_class.csv "
    "per_image.csv report.html "
    "weights/last.pt weights/best.pt"
).split()


@pytest.fixture
def short(squares: Path, tiny_cfg: str, tmp_path: Path) -> dict[str, Any]:
    """Options of a training that takes seconds and learns nothing."""
    settings = {"cfg": tiny_cfg, "hyp": "glyphs.yaml", "imgsz": 64, "batch_size": 4, "noplots": True, "workers": 0}
    return settings | {"data": str(squares), "project": str(tmp_path)}


def test_eight_images_are_learnt_by_heart(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["AP50"] > 0.9
    assert set(FIGURES) <= metrics.keys()
    assert metrics["AP_L"] is None  # no object of these images is large


def test_a_run_writes_its_files(trained: Path) -> None:
    assert [name for name in RUN_FILES if not (trained / name).is_file()] == []
    for picture in [*trained.glob("*.jpg"), *trained.glob("*.png")]:
        image = cv2.imread(str(picture))
        assert image.std() > 5, f"{picture.name} is blank"
    rows = list(csv.DictReader((trained / "results.csv").open()))
    assert [int(row["epoch"]) for row in rows] == list(range(80))
    assert float(rows[-1]["train/box_loss"]) < float(rows[0]["train/box_loss"])
    assert math.isnan(float(rows[0]["metrics/mAP_0.5"]))
    assert float(rows[-1]["metrics/mAP_0.5"]) > 0.9


def test_tensorboard_holds_scalars_pictures_and_the_graph(trained: Path) -> None:
    events = EventAccumulator(str(trained))
    events.Reload()
    tags = events.Tags()
    assert {"train/box_loss", "metrics/mAP_0.5:0.95", "x/lr0"} <= set(tags["scalars"])
    assert len(events.Scalars("train/box_loss")) == 80
    assert {"labels", "train_batch0", "val_batch0_pred", "PR_curve", "results"} <= set(tags["images"])
    assert tags["graph"]


def test_val_and_detect_give_the_same_boxes(squares: Path, trained: Path, tmp_path: Path) -> None:
    weights = str(trained / "weights/best.pt")
    common = {"weights": weights, "imgsz": 128, "iou_thres": 0.45, "conf_thres": 0.25, "max_det": 100}
    common |= {"save_txt": True, "save_conf": True, "project": str(tmp_path)}
    val.run(**common, data=str(squares), name="val", batch_size=1, workers=0)
    detect.run(**common, source=str(squares.parent / "images/all"), name="detect")
    # several images of a batch share a padded size, as in YOLOv5; alone, each has the one that detection gives it
    measured, detected = read_txt(tmp_path / "val/labels"), read_txt(tmp_path / "detect/labels")
    assert measured.keys() == detected.keys() == {str(number) for number in range(8)}
    for name, rows in detected.items():
        np.testing.assert_allclose(rows, measured[name], rtol=0, atol=2e-6, err_msg=name)


def test_the_same_seed_gives_the_same_losses_with_any_number_of_workers(short: dict[str, Any], tmp_path: Path) -> None:
    for workers in (0, 2):
        train.run(**short | {"epochs": 2, "workers": workers, "seed": 3, "name": str(workers)})
    assert (tmp_path / "0/results.csv").read_text() == (tmp_path / "2/results.csv").read_text()


def test_a_run_resumes_where_it_stopped(short: dict[str, Any], tmp_path: Path) -> None:
    train.run(**short, epochs=3, name="whole")
    train.run(**short, epochs=3, name="cut", save_period=1)
    weights = tmp_path / "cut/weights"
    shutil.copy(weights / "epoch0.pt", weights / "last.pt")
    train.run(resume=str(weights / "last.pt"))
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "SGD", "cos_lr": True, "rect": True},
        {"optimizer": "Adam", "multi_scale": True, "image_weights": True, "cache": "ram"},
        {"single_cls": True, "freeze": [3], "fold": False, "label_smoothing": 0.1, "cache": "disk", "noval": True},
        {"sync_bn": True, "batch_size": -1, "hyp": "hyp.scratch-high.yaml", "amp": False, "nosave": True},
        {"tile": 48, "cache": "disk", "seed": 1},
        {"cfg": "yolov5-spd-p2.yaml", "noautoanchor": True, "patience": 1, "save_period": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_training_options(
    options: dict[str, Any], short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = short | {"epochs": 2} | options
    if not settings["cfg"].startswith("/"):
        content = yaml.safe_load((ROOT / "models/hub" / settings["cfg"]).read_text())
        settings["cfg"] = str(tmp_path / "small.yaml")
        Path(settings["cfg"]).write_text(yaml.safe_dump(content | {"width_multiple": 0.125, "depth_multiple": 0.1}))
    report = train.run(**settings)
    told = capsys.readouterr()
    assert ("--sync-bn: has no effect" in told.out + told.err) == ("sync_bn" in options)
    folder = tmp_path / "exp"
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert (folder / "weights/best.pt").is_file()
    assert report.annotations.names == (["object"] if options.get("single_cls") else ["square", "disc"])
    assert yaml.safe_load((folder / "opt.yaml").read_text())["imgsz"] == settings["imgsz"]


def test_training_starts_from_weights_with_other_classes(
    short: dict[str, Any], squares: Path, trained: Path, tmp_path: Path
) -> None:
    data = tmp_path / "other.yaml"
    content = yaml.safe_load(squares.read_text())
    data.write_text(yaml.safe_dump(content | {"path": str(squares.parent), "names": ["square", "disc", "third"]}))
    changes = {"data": str(data), "weights": str(trained / "weights/best.pt"), "cfg": "", "epochs": 1}
    report = train.run(**short | changes)
    assert report.annotations.names == ["square", "disc", "third"]


def test_val_writes_json_that_pycocotools_confirms(squares: Path, trained: Path, tmp_path: Path) -> None:
    weights = str(trained / "weights/best.pt")
    options = {"weights": weights, "data": str(squares), "imgsz": 128, "workers": 0, "project": str(tmp_path)}
    report = val.run(**options, save_json=True, save_hybrid=True, verbose=True)
    metrics = json.loads((tmp_path / "exp/metrics.json").read_text())
    for key, value in metrics["pycocotools"].items():
        assert value == (None if metrics[key] is None else pytest.approx(metrics[key], abs=1e-6)), key
    rows = json.loads((tmp_path / "exp/best_predictions.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert [row["name"] for row in csv.DictReader((tmp_path / "exp/per_class.csv").open())] == ["square", "disc"]
    hybrid = read_txt(tmp_path / "exp/labels")
    assert all((rows[:3, 0] == [0, 1, number % 2]).all() for number, rows in enumerate(hybrid.values()))
    turned = val.run(**options, augment=True)
    assert turned.metrics.figures["AP50"] > 0.8
    assert abs(turned.metrics.figures["AP"] - report.metrics.figures["AP"]) > 1e-6


def test_bands_of_choice_and_recall_of_more_detections(squares: Path, trained: Path, tmp_path: Path) -> None:
    options = {"weights": str(trained / "weights/best.pt"), "data": str(squares), "imgsz": 128, "workers": 0}
    report = val.run(**options, areas="0,24,30,inf", max_det=200, save_json=True, project=str(tmp_path))
    assert report.metrics.bands == ["AP_0-24", "AP_24-30", "AP_30-inf"]
    metrics = json.loads((tmp_path / "exp/metrics.json").read_text())
    assert {"AP_0-24", "AR_30-inf", "AR200", "AR100", "F1", "confidence"} <= metrics.keys()
    assert "AP_S" not in metrics
    assert "AP_24-30" in next(csv.DictReader((tmp_path / "exp/per_class.csv").open()))


@pytest.mark.parametrize("with_json", [True, False])
def test_a_test_split_without_labels_gives_a_submission(
    squares: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_json: bool
) -> None:
    shutil.copytree(squares.parent / "images/all", tmp_path / "images/test")
    names = {"train": "images/test", "val": "images/test", "test": "images/test", "names": ["square", "disc"]}
    if with_json:
        images = [{"id": 7 * n + 3, "file_name": f"{n}.png"} for n in range(8)]
        categories = [{"id": 90, "name": "disc"}, {"id": 4, "name": "square"}]
        listed = tmp_path / "image_info_test-dev2017.json"
        listed.write_text(json.dumps({"images": images, "categories": categories}))
        names["annotations"] = {"test": listed.name}
    data = tmp_path / "mine.yaml"
    data.write_text(yaml.safe_dump(names))
    weights = str(trained / "weights/best.pt")
    val.run(weights=weights, data=str(data), task="test", imgsz=128, workers=0, project=str(tmp_path / "runs"))
    name = "detections_test-dev2017_best_results.json" if with_json else "detections_mine-test_best_results.json"
    rows = json.loads((tmp_path / "runs/exp" / name).read_text())
    assert {row["category_id"] for row in rows} == ({4, 90} if with_json else {0, 1})
    assert {row["image_id"] for row in rows} == {7 * n + 3 if with_json else n for n in range(8)}
    assert not (tmp_path / "runs/exp/metrics.json").exists()
    output = capsys.readouterr().out
    assert "AP" not in output
    assert ("numbered" in output) != with_json


def test_speed_and_study(squares: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(val, "STUDY_SIZES", range(64, 129, 64))
    options = {"weights": str(trained / "weights/best.pt"), "data": str(squares), "imgsz": 128, "workers": 0}
    report = val.run(**options, task="speed", project=str(tmp_path), name="speed")
    assert set(report.evaluation.milliseconds) == {"preprocess", "inference", "nms"}
    val.run(**options, task="study", project=str(tmp_path), name="study")
    rows = list(csv.DictReader((tmp_path / "study/study_squares_best.csv").open()))
    assert [row["imgsz"] for row in rows] == ["64", "128"]
    assert float(rows[1]["AP50"]) > float(rows[0]["AP50"])
    assert cv2.imread(str(tmp_path / "study/study.png")) is not None


def test_detect_on_a_video_and_on_all_kinds_of_output(film: Path, squares: Path, trained: Path, tmp_path: Path) -> None:
    weights = str(trained / "weights/best.pt")
    options = {"weights": weights, "imgsz": 128, "project": str(tmp_path)}
    folder = detect.run(**options, source=str(film), save_csv=True, save_crop=True, save_txt=True)
    capture = cv2.VideoCapture(str(folder / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (96, 96)
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert {row["frame"] for row in rows} == {str(number + 1) for number in range(20)}
    assert len(read_txt(folder / "labels")) == 20
    assert len(list(folder.glob("crops/*/*.jpg"))) == len(rows)
    drawn = cv2.imread(str(next(iter(folder.glob("crops/square/*.jpg")))))
    assert drawn.mean() > 130  # the light squares
    only = detect.run(**options, source=str(squares.parent / "images/all"), classes=[1], save_csv=True, nosave=True)
    assert {row["name"] for row in csv.DictReader((only / "predictions.csv").open())} == {"disc"}
    assert list(only.iterdir()) == [only / "predictions.csv"]


def test_detected_boxes_lie_on_their_objects(squares: Path, trained: Path, tmp_path: Path) -> None:
    folder = detect.run(
        weights=str(trained / "weights/best.pt"), source=str(squares.parent / "images/all/*.png"), imgsz=128,
        save_txt=True, project=str(tmp_path),
    )  # fmt: skip
    truth, overlaps = read_txt(squares.parent / "labels/all"), []
    for name, rows in read_txt(folder / "labels").items():
        corners = [
            torch.from_numpy(np.hstack((t[:, 1:3] - t[:, 3:5] / 2, t[:, 1:3] + t[:, 3:5] / 2)))
            for t in (rows, truth[name])
        ]
        overlaps.append(box_iou(*corners).amax(1))
    assert len(overlaps) == len(truth)
    assert (torch.cat(overlaps) > 0.5).float().mean() > 0.8


def test_tiles_of_a_large_image_keep_the_scale_of_training(squares: Path, trained: Path, tmp_path: Path) -> None:
    images = [cv2.imread(str(squares.parent / f"images/all/{number}.png")) for number in (5, 7)]
    sheet = np.full((2 * 128, 2 * 128, 3), 120, np.uint8)
    truth = []
    for place, number in enumerate((5, 7, 7, 5)):
        image = images[number == 7]
        x, y = place % 2 * 128, place // 2 * 128
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
        rows = np.loadtxt(squares.parent / f"labels/all/{number}.txt", ndmin=2)
        rows[:, 1:] *= np.tile(image.shape[1::-1], 2)
        truth.append(
            np.hstack((rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2)) + np.array((x, y, x, y))
        )
    data = tmp_path / "sheet.yaml"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images/sheet.png"), sheet)
    data.write_text("train: images\nval: images\nnames: [square, disc]\n")
    options = {"weights": str(trained / "weights/best.pt"), "imgsz": 128, "project": str(tmp_path), "tile": "auto"}
    folder = detect.run(**options, source=str(tmp_path / "images/sheet.png"), save_csv=True, conf_thres=0.4)
    rows = csv.DictReader((folder / "predictions.csv").open())
    found = torch.tensor([[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in rows])
    overlaps = box_iou(found, torch.from_numpy(np.concatenate(truth)).float())
    assert (overlaps.amax(0) > 0.5).float().mean() > 0.8
    assert ((overlaps > 0.3).sum(0) <= 1).all(), "an object was found twice"
    report = val.run(**options, data=str(data), workers=0, save_txt=True, full=False, merge="nms")
    assert set(report.evaluation.milliseconds) == {"preprocess", "inference", "nms", "merge"}
    assert len(read_txt(tmp_path / "exp2/labels")) == 1


def test_a_broken_image_among_good_ones(
    squares: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(squares.parent / "images/all", folder)
    (folder / "3.png").write_bytes(b"no image")
    weights = trained / "weights/best.pt"
    status = command(detect, monkeypatch, "--weights", weights, "--source", folder, "--project", tmp_path, "--img", 64)
    assert status == 1
    assert "1 of 8 files could not be read" in capsys.readouterr().err
    assert len(list((tmp_path / "exp").glob("*.png"))) == 7


def broken_data(folder: Path, squares: Path, **changes: Any) -> Path:
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(squares.read_text()) | {"path": str(squares.parent)} | changes))
    return path


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run a command that must end with status 2 and one line on stderr, and leave no run behind."""

    def run(script: Any, *arguments: str | Path) -> str:
        status = command(script, monkeypatch, *arguments, "--project", tmp_path / "none")
        lines = capsys.readouterr().err.strip().splitlines()
        assert status == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert not (tmp_path / "none").exists()
        return lines[0]

    return run


def test_train_refuses(refuse: Any, squares: Path, trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    content = yaml.safe_load((ROOT / "models/yolov5n.yaml").read_text())
    content["backbone"][2][2] = "C33"
    model.write_text(yaml.safe_dump(content))
    assert "row 2: layer: unknown key 'C33'; did you mean C3" in refuse(train, "--cfg", model, "--data", squares)
    content["backbone"][2] = [-1, 3, "C3", [128, True, 1, 0.5, 7, 7]]
    model.write_text(yaml.safe_dump(content))
    assert "row 2 (C3): arguments" in refuse(train, "--cfg", model, "--data", squares)
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("lr0: 0.1\nmosiac: 1.0\n")
    start = ("--cfg", "yolov5-spd-n.yaml", "--data", squares)
    assert "unknown key 'mosiac'; did you mean mosaic" in refuse(train, *start, "--hyp", hyp)
    hyp.write_text("lr0: fast\n")
    assert "lr0: expected float, found 'fast'" in refuse(train, *start, "--hyp", hyp)
    assert "no such file" in refuse(train, *start, "--hyp", "none.yaml")
    assert "--weights or --cfg" in refuse(train, "--data", squares)
    assert "--tile: not together with --rect" in refuse(train, *start, "--tile", "64", "--rect")
    assert "the model has rows 0 to 30" in refuse(train, *start, "--freeze", "99", "100")
    assert "--device 7: no such device" in refuse(train, *start, "--device", "7")
    assert "unknown key 'trian'" in refuse(train, *start[:2], "--data", broken_data(tmp_path, squares, trian="x"))
    assert "no images" in refuse(train, *start[:2], "--data", broken_data(tmp_path, squares, train="labels/all"))
    one_class = broken_data(tmp_path, squares, names=["square"])
    line = refuse(train, *start[:2], "--data", one_class)
    assert "labels/all/0.txt:2" in line
    assert "names" in line
    finished = trained / "weights/best.pt"
    assert "finished model" in refuse(train, "--resume", finished)


def test_val_refuses(refuse: Any, squares: Path, trained: Path, tmp_path: Path) -> None:
    weights = trained / "weights/best.pt"
    other = broken_data(tmp_path, squares, names=["square", "disc", "third"])
    assert "has 2 classes, but the data YAML names 3" in refuse(val, "--weights", weights, "--data", other)
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    assert "no checkpoint" in refuse(val, "--weights", text, "--data", squares)
    assert "no such file" in refuse(val, "--weights", tmp_path / "none.pt", "--data", squares)
    assert "--weights" in refuse(val, "--data", squares)
    tiles = ("--weights", weights, "--data", squares, "--tile")
    assert "--tile 3: expected pixels, 32 or more, or 'auto'" in refuse(val, *tiles, "3")
    assert "--areas 0,9,3: expected two or more rising" in refuse(val, "--weights", weights, "--areas", "0,9,3")
    assert "no split 'test'" in refuse(val, "--weights", weights, "--data", squares, "--task", "test")


def test_the_authors_command_ends_at_the_missing_coco(
    refuse: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path / "datasets"))
    weights = trained / "weights/best.pt"
    words = f"--weights {weights} --img 640 --iou 0.65 --half --batch-size 1 --data data/coco.yaml".split()
    line = refuse(val, *words)
    assert str(tmp_path / "datasets/coco/images/val2017") in line
    assert "get it with: python -m data.download coco --splits val" in line


def test_detect_refuses(refuse: Any, squares: Path, trained: Path, tmp_path: Path) -> None:
    weights, images = trained / "weights/best.pt", squares.parent / "images/all"
    assert "no such source" in refuse(detect, "--weights", weights, "--source", tmp_path / "none")
    assert "no image" in refuse(detect, "--weights", weights, "--source", tmp_path)
    assert "classes 0 to 1" in refuse(detect, "--weights", weights, "--source", images, "--classes", "5")


def test_model_yaml_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from models import summary

    assert command(summary, monkeypatch, "--cfg", "yolov5-spd-n.yaml", "--profile", "--img", 64) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 33
    assert lines[-1].startswith("yolov5-spd-n.yaml: 2,256,157 parameters, 0.1 GFLOPs")
    assert command(summary, monkeypatch, "--cfg", "none.yaml") == 2
    for flag in ("--img", "--batch"):
        assert command(summary, monkeypatch, flag, "0") == 2
        assert "0: expected at least 1" in capsys.readouterr().err

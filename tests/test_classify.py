"""The classifier's scripts from end to end, as a user runs them: what they learn, what they write, what they refuse."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision

import detect
import train as detector_train
import val as detector_val
from classify import predict, train, val
from tests.helpers import command, raise_signal, same_end
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.classification import Classifier
from utils.options import ROOT, InputError, Interrupted

FILES = (
    "opt.yaml hyp.yaml results.csv results.png labels.jpg train_batch0.jpg val_batch0_pred.jpg confusion_matrix.png "
    "metrics.json per_class.csv per_image.csv report.html weights/last.pt weights/best.pt "
    "test/metrics.json test/per_class.csv test/confusion_matrix.png test/report.html"
).split()
COLOURS = {"blue": (200, 60, 40), "red": (40, 50, 210)}  # BGR


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images, mostly blue or mostly red."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.array(colour) + rng.integers(-40, 40, (20, 24, 3))
                cv2.imwrite(str(folder / f"{number}.png"), image.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="session")
def hyp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hyp") / "colours.yaml"
    path.write_text("lr0: 0.01\nmomentum: 0.9\nwarmup_epochs: 0\nnominal_batch: 4\nema_tau: 1000\ndegrees: 10\n")
    return path


@pytest.fixture(scope="session")
def settings(pictures: Path, hyp: Path) -> dict[str, Any]:
    return {"data": str(pictures), "hyp": str(hyp), "imgsz": 32, "batch_size": 4, "workers": 0, "epochs": 2}


@pytest.fixture(scope="session")
def coloured(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that tells blue from red."""
    project = tmp_path_factory.mktemp("classify")
    train.run(**settings | {"epochs": 6}, project=str(project), name="run")
    return project / "run"


@pytest.fixture
def short(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Options of a training of 4 batches an epoch, at the network's least size."""
    return settings | {"model": "resnet18_spd", "imgsz": 16, "noplots": True, "project": str(tmp_path)}


def test_colours_are_learnt_and_the_files_written(coloured: Path) -> None:
    assert [name for name in FILES if not (coloured / name).is_file()] == []
    for picture in [*coloured.glob("*.jpg"), *coloured.glob("*.png")]:
        assert cv2.imread(str(picture)).std() > 5, f"{picture.name} is blank"
    for folder, images in ((coloured, 6), (coloured / "test", 4)):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["top1"] == 1
        assert metrics["top5"] is None  # with two classes nothing is said by it
        assert metrics["images"] == images
    rows = list(csv.DictReader((coloured / "results.csv").open()))
    assert float(rows[-1]["train/cls_loss"]) < float(rows[0]["train/cls_loss"])
    assert float(rows[-1]["metrics/accuracy_top1"]) == 1


def test_val_measures_what_training_did(coloured: Path, pictures: Path, tmp_path: Path) -> None:
    settings = {"weights": str(coloured / "weights/best.pt"), "data": str(pictures), "workers": 0}
    report = val.run(**settings, split="test", project=str(tmp_path))
    assert report.metrics.figures["top1"] == 1
    theirs, ours = (list(csv.DictReader((f / "per_image.csv").open())) for f in (coloured / "test", tmp_path / "exp"))
    assert theirs == ours
    plain = val.run(**settings, split="test", project=str(tmp_path), fold=False, noplots=True)
    np.testing.assert_allclose(
        plain.metrics.guesses.probabilities, report.metrics.guesses.probabilities, rtol=1e-4, atol=1e-5
    )
    assert not list((tmp_path / "exp2").glob("*.png"))


def test_val_sees_images_as_training_did(short: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    """The same shrunk images of the same share of the training images, unless it is told otherwise."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(pictures / "train")
    told = short | {"data": str(tmp_path / "set"), "epochs": 1}
    trained = train.run(**told, val_share=0.25, shrink=2)
    settings = {"weights": str(tmp_path / "exp/weights/best.pt"), "data": told["data"], "workers": 0, "noplots": True}
    report = val.run(**settings, project=str(tmp_path / "val"))
    assert report.split.places.tolist() == trained.split.places.tolist()
    np.testing.assert_array_equal(report.metrics.guesses.probabilities, trained.metrics.guesses.probabilities)
    other = val.run(**settings, project=str(tmp_path / "val"), shrink=1, val_share=0.5)
    assert len(other.split) == 8
    assert not np.isin(trained.metrics.guesses.probabilities, other.metrics.guesses.probabilities).all()


@pytest.mark.parametrize("changes", [{"stem": "large"}, {"imgsz": 0}, {"shrink": "2"}, {"arch": "resnet9"}])
def test_a_crafted_config_is_told_in_a_line(
    changes: dict[str, Any], coloured: Path, short: dict[str, Any], tmp_path: Path
) -> None:
    content = load_checkpoint(coloured / "weights/best.pt")
    content["options"] = {"val_share": "all"}
    save_checkpoint(tmp_path / "x.pt", content | {"config": content["config"] | changes})
    key = next(iter(changes))
    told = {name: value for name, value in short.items() if name not in ("model", "imgsz")}
    for use in (train, val):
        settings = told if use is train else {"data": short["data"], "workers": 0}
        with pytest.raises(InputError, match=f"x.pt: {key}: expected"):
            use.run(**settings, weights=str(tmp_path / "x.pt"))


def test_val_refuses_data_of_other_classes(coloured: Path, pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, source in (("red", "red"), ("zblue", "blue")):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / split / name).symlink_to(pictures / split / source)
    with pytest.raises(InputError, match=r"best.pt: class 0 is 'blue', but 'red' in the data; they must agree"):
        val.run(weights=str(coloured / "weights/best.pt"), data=str(tmp_path / "set"), project=str(tmp_path))


def test_predict_classifies_files_of_any_size_together(
    coloured: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixed").mkdir()
    for number, shape in enumerate([(30, 30), (24, 60), (2, 5000), (60, 24)]):
        cv2.imwrite(str(tmp_path / f"mixed/a_{number}.png"), np.full((*shape, 3), COLOURS["red"], np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "mixed/a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (32, 24))
    for _ in range(2):
        writer.write(np.full((24, 32, 3), COLOURS["blue"], np.uint8))
    writer.release()
    batches = []
    forward = Classifier.__call__
    monkeypatch.setattr(Classifier, "__call__", lambda self, batch: batches.append(len(batch)) or forward(self, batch))
    weights, source = str(coloured / "weights/best.pt"), str(tmp_path / "mixed")
    predict.run(weights=weights, source=source, project=str(tmp_path), batch_size=4, save_txt=True)
    assert batches == [4, 2]
    assert len(list((tmp_path / "exp/labels").iterdir())) == 6
    assert cv2.imread(str(tmp_path / "exp/a_2.png")).shape == (2, 5000, 3)  # enlarged, it would be of 400,000 columns


def test_predict_labels_a_folder(
    coloured: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mixed").mkdir()
    for name in COLOURS:
        os.link(pictures / "test" / name / "0.png", tmp_path / "mixed" / f"{name}.png")
    (tmp_path / "mixed/broken.png").write_bytes(b"no image")
    arguments = ["--weights", coloured / "weights/best.pt", "--source", tmp_path / "mixed", "--project", tmp_path]
    assert command(predict, monkeypatch, *arguments, "--save-txt", "--save-json") == 1
    told = capsys.readouterr()
    assert "2 frames, 1 blue, 1 red" in told.out
    assert "1 of 3 files could not be read" in told.err
    rows = list(csv.DictReader((tmp_path / "exp/predictions.csv").open()))
    assert {Path(row["image"]).stem: row["name1"] for row in rows} == {"blue": "blue", "red": "red"}
    entries = json.loads((tmp_path / "exp/predictions.json").read_text())
    assert [entry["guesses"][0]["name"] for entry in entries] == ["blue", "red"]
    assert sum(guess["confidence"] for guess in entries[0]["guesses"]) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "exp/labels/red.txt").read_text().endswith("blue\n")
    assert cv2.imread(str(tmp_path / "exp/red.png")).shape == (160, 192, 3)


def test_a_run_stopped_by_a_signal_ends_as_one_left_alone(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one without worker processes, the other with two."""
    train.run(**short, name="whole")
    with monkeypatch.context() as patch:
        raise_signal(patch, signal.SIGTERM, batch=1)
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in (short | {"workers": 2}).items()]
        flags = [flag.removesuffix("=True") for flag in flags]
        assert command(train, patch, *flags, "--name", "cut") == 143
    assert load_checkpoint(tmp_path / "cut/weights/last.pt")["place"]["batch"] == 2
    train.run(resume=str(tmp_path / "cut"))
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_bare_resume_goes_on_with_a_run_of_its_own_task(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        raise_signal(patch, signal.SIGTERM, batch=1)
        with pytest.raises(Interrupted):
            train.run(**short | {"project": "runs/classify/train"})
    with pytest.raises(InputError, match=r"--resume: no last.pt below runs/train"):
        detector_train.run(resume="newest")
    assert train.run(resume="newest") is not None


def test_a_set_without_validation_images_has_some_set_aside(
    short: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(pictures / "train")
    (tmp_path / "exp/test").mkdir(parents=True)
    (tmp_path / "exp/test/metrics.json").write_text("{}")  # of a run before
    told = short | {"data": str(tmp_path / "set"), "epochs": 1, "exist_ok": True}
    report = train.run(**told, val_share=0.25, shrink=2)
    assert report.split.counts.tolist() == [2, 2]
    saved = load_checkpoint(tmp_path / "exp/weights/last.pt")
    assert saved["data"]["train"]["number of images"] == 12
    assert not list((tmp_path / "exp/test").iterdir())


def test_each_task_refuses_the_others_checkpoints(
    coloured: Path, random_checkpoint: Path, squares: Path, pictures: Path, tmp_path: Path
) -> None:
    best = coloured / "weights/best.pt"
    classifier, detector = "holds a classifier, for the scripts in classify/", "holds a detector, for train.py"
    attempts = [
        (detect.run, {"weights": best, "source": squares.parent / "images"}, classifier),
        (detector_val.run, {"weights": best, "data": squares}, classifier),
        (detector_train.run, {"weights": best, "data": squares}, classifier),
        (detector_train.run, {"resume": coloured}, classifier),
        (predict.run, {"weights": random_checkpoint, "source": squares.parent / "images"}, detector),
        (val.run, {"weights": random_checkpoint, "data": pictures}, detector),
        (train.run, {"weights": random_checkpoint, "data": pictures}, detector),
    ]
    for run, options, message in attempts:
        place = {} if "resume" in options else {"project": str(tmp_path)}
        with pytest.raises(InputError, match=message):
            run(**{key: str(value) for key, value in options.items()}, **place)
    assert not list(tmp_path.iterdir())


def test_weights_go_on_to_another_number_of_classes(
    short: dict[str, Any], coloured: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    for name, source in (("a", "blue"), ("b", "red"), ("c", "red")):
        (tmp_path / "set/train" / name).symlink_to(pictures / "train" / source)
    told = short | {"data": str(tmp_path / "set"), "epochs": 1}
    del told["model"], told["imgsz"]
    before = load_checkpoint(coloured / "weights/best.pt")
    train.run(**told, weights=str(coloured / "weights/best.pt"))
    after = load_checkpoint(tmp_path / "exp/weights/best.pt")["config"]
    assert {key: after[key] for key in ("arch", "mean")} == {key: before["config"][key] for key in ("arch", "mean")}
    assert "2 of another shape (fc.weight: (2, 512) for (3, 512))" in capsys.readouterr().out
    with pytest.raises(InputError, match="has 2 classes, but the data 3; they must agree"):
        val.run(weights=str(coloured / "weights/best.pt"), data=str(tmp_path / "set"))


def test_torchvisions_weights_decide_on_network_size_and_colours(
    short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "tv.pth")
    told = short | {"epochs": 1, "weights": str(tmp_path / "tv.pth")}
    train.run(**{key: value for key, value in told.items() if key not in ("model", "imgsz")})
    assert "2 of another shape (fc.weight: (1000, 512) for (2, 512))" in capsys.readouterr().out
    config = load_checkpoint(tmp_path / "exp/weights/best.pt")["config"]
    assert (config["arch"], config["stem"], config["imgsz"]) == ("resnet18", "imagenet", 224)
    assert config["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "--data nowhere: neither a folder nor one of glyphs, cifar10, cifar100, tiny-imagenet"),
        ({"hyp": "glyphs.yaml"}, "glyphs.yaml: unknown key 'box'"),
        ({"model": "resnet18", "spd_shortcut": True}, "spd_shortcut: resnet18 has no space-to-depth"),
        ({"fitness": "AP"}, "--fitness 'AP': expected a sum such as 'top1', of top1, top5, P, R, F1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"shrink": 100}, "--shrink 100: leaves nothing of images of 32 px"),
        ({"val_share": 0.2}, "--val-share: has no effect, as .* has val/"),
        ({"hyp": "resnet50-cifar10.yaml", "cos_lr": True}, "--cos-lr: has no effect, as .* sets lr_steps"),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    short: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train.run(**short | changes)
    assert not list(tmp_path.iterdir())


def test_recipe_and_size_are_those_of_the_data_set() -> None:
    assert (train.Options().hyp, train.Options().imgsz) == ("glyph-crops.yaml", 32)
    tiny = train.Options(data="tiny-imagenet")
    assert (tiny.hyp, tiny.imgsz) == ("resnet18-tinyimagenet.yaml", 64)
    folder = train.Options(data="photos", stem="imagenet")
    assert (folder.hyp, folder.imgsz) == ("classes.yaml", 224)
    own = train.Options(data="cifar10", hyp="mine.yaml", imgsz=48)
    assert (own.hyp, own.imgsz) == ("mine.yaml", 48)


def test_the_scripts_run_from_the_projects_folder() -> None:
    done = subprocess.run(
        [sys.executable, "classify/predict.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--shrink" in done.stdout


def test_checkpoints_open_with_torch_alone(coloured: Path) -> None:
    content = torch.load(coloured / "weights/best.pt", weights_only=True)
    assert content["config"]["task"] == "classify"
    assert content["config"]["arch"] == "resnet18_spd"
    assert content["names"] == ["blue", "red"]

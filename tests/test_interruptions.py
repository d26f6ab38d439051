"""Runs that are killed, asked to end, or meet a full disk, a dead worker or a loss that is no number: nothing lost."""

import csv
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import train
from data.dataset import DetectionDataset
from tests.helpers import command, error_line, flags, raise_signal, same_end
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.options import ROOT, InputError, Interrupted
from utils.run_log import RunLog

SETTINGS = {"imgsz": 64, "batch_size": 2, "noplots": True, "workers": 0}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A step of the optimizer for each batch of 2, and mosaics, so that workers have something to do."""
    path = tmp_path / "recipe.yaml"
    path.write_text("optimizer: AdamW\nlr0: 0.001\nwarmup_epochs: 0.5\nnominal_batch: 2\nmosaic: 0.5\n")
    return path


@pytest.fixture
def short(squares: Path, tiny_cfg: str, recipe: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a training of 4 batches an epoch that takes seconds."""
    return SETTINGS | {"cfg": tiny_cfg, "data": str(squares), "hyp": str(recipe), "project": str(tmp_path)}


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_and_resumed_is_the_run_left_alone(
    squares: Path, tiny_cfg: str, recipe: Path, workers: int
) -> None:
    """Random moments, new ones each time; the seed is told when it fails."""
    seed = random.randrange(10**6)
    soak = ["-m", "benchmarks.soak", "--kills", "3", "--epochs", "6", "--data", squares, "--cfg", tiny_cfg]
    extra = ["--batch-size", "2", "--workers", workers, "--seed", seed, "--hyp", recipe]
    done = subprocess.run(
        [sys.executable, *map(str, soak + extra)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (seed, done.stdout[-2000:], done.stderr[-2000:])
    assert done.stdout.count("- kill") == 3
    assert "differences: none" in done.stdout


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_ends_with_its_status(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signum: int, status: int
) -> None:
    handler = signal.getsignal(signum)
    train.run(**short, epochs=2, name="whole")
    with monkeypatch.context() as patch:
        raise_signal(patch, signum, batch=1)
        assert command(train, patch, *flags(short | {"epochs": 2, "name": "cut"})) == status
    assert load_checkpoint(tmp_path / "cut/weights/last.pt")["place"]["batch"] == 2  # of the four
    assert signal.getsignal(signum) == handler
    assert command(train, monkeypatch, "--resume", tmp_path / "cut") == 0
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_a_signal_to_the_workers_too_saves_and_ends_with_its_status(short: dict[str, Any], tmp_path: Path) -> None:
    """As a scheduler ends a job, or a container its processes."""
    options = flags(short | {"epochs": 1000, "name": "run", "workers": 2, "noval": True, "nosave": True})
    command = [sys.executable, "train.py", *options]
    last = tmp_path / "run/weights/last.pt"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while not (rows := tmp_path / "run/results.csv").is_file() or len(rows.read_text().splitlines()) < 3:
            assert run.poll() is None
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM)
        told = run.communicate()[1]
    assert run.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    assert load_checkpoint(last)["place"]["epoch"] >= 2


def test_a_second_signal_does_not_wait(short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def twice(number: int, _: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "batch_drawer", lambda *_: twice)
    with pytest.raises(Interrupted):
        train.run(**short, epochs=1, name="run")


def test_a_signal_in_the_validation_keeps_the_epoch(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train.run(**short, epochs=2, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train.run(**short, epochs=2, name="cut")
    place = load_checkpoint(tmp_path / "cut/weights/last.pt")["place"]
    assert (place["epoch"], place["batch"], place["images"]) == (0, 4, 8)
    train.run(resume=str(tmp_path / "cut"))
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("options", [{"epochs": 1}, {"epochs": 9, "patience": 1}], ids=["all epochs", "stopped early"])
def test_a_signal_in_the_last_measurement_leaves_that_alone_to_be_done(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any]
) -> None:
    values = itertools.chain([0.5], itertools.repeat(0.4))
    monkeypatch.setattr(train.Report, "fitness", lambda *_: next(values))
    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "finish", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train.run(**short, **options, name="cut")
    run = tmp_path / "cut"
    rows = (run / "results.csv").read_text()
    assert not (run / "report.html").exists()
    train.run(resume=str(run))
    assert (run / "report.html").is_file()
    assert (run / "results.csv").read_text() == rows
    with pytest.raises(InputError, match="with a larger number goes on"):
        train.run(resume=str(run))


def test_epochs_may_be_raised_on_resuming(short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train.run(**short, epochs=1, name="run")
    with pytest.raises(InputError, match="trained 1 epochs; --epochs"):
        train.run(resume=str(tmp_path / "run"))
    train.run(resume=str(tmp_path / "run"), epochs=3)
    assert "3 epochs, not 1: learning rates follow the new length" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run/results.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]


def test_what_may_not_change_is_refused_on_resuming(short: dict[str, Any], tmp_path: Path, squares: Path) -> None:
    train.run(**short, epochs=1, name="run")
    for name, value, told in (
        ("batch_size", 4, "--batch-size 4: the run in .* has 2"),
        ("cfg", "yolov5n.yaml", "--cfg"),
    ):
        with pytest.raises(InputError, match=told):
            train.run(resume=str(tmp_path / "run"), epochs=2, **{name: value})
    copy = tmp_path / "data"
    subprocess.run(["cp", "-r", squares.parent, copy], check=True)
    train.run(resume=str(tmp_path / "run"), epochs=2, data=str(copy / squares.name))  # moved, not changed
    label = copy / "labels/all/3.txt"
    rows = label.read_text().splitlines()
    for text, told in (
        ("\n".join(rows[:-1]), "train: number of labels changed .*: 24 then, 23 now"),
        ("\n".join([rows[0].replace(rows[0].split()[1], "0.4"), *rows[1:]]), "train: labels changed"),
    ):
        label.write_text(text + "\n")
        with pytest.raises(InputError, match=told):
            train.run(resume=str(tmp_path / "run"), epochs=3, data=str(copy / squares.name))


def test_what_is_no_run_is_told_and_left_alone(short: dict[str, Any], tmp_path: Path) -> None:
    train.run(**short, epochs=1, name="run")
    last = tmp_path / "run/weights/last.pt"
    content = load_checkpoint(last)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(last, mine)
    with pytest.raises(InputError, match=r"last\.pt: expected RUN/weights/last\.pt in the folder of the run"):
        train.run(resume=str(mine / "last.pt"), epochs=2)
    assert [path.name for path in mine.iterdir()] == ["last.pt"]
    for key, value in (
        ("best", None),
        ("data", {}),
        ("optimizer", {}),
        ("model", {"a": torch.zeros(1)}),
        ("hyp", content["hyp"] | {"optimizer": "Foo"}),
        ("hyp", content["hyp"] | {"lr0": -1.0}),
    ):
        save_checkpoint(last, content | {key: value})
        with pytest.raises(InputError, match=str(tmp_path / "run")):
            train.run(resume=str(tmp_path / "run"), epochs=2)


def test_a_frozen_backbone_is_left_as_it_is(short: dict[str, Any], tmp_path: Path) -> None:
    train.run(**short, epochs=1, name="run")
    before = load_checkpoint(tmp_path / "run/weights/last.pt")
    best = str(tmp_path / "run/weights/best.pt")
    options = short | {"weights": best, "cfg": "", "freeze": ["backbone"], "name": "frozen", "noautoanchor": True}
    train.run(**options, epochs=1)
    after, start = load_checkpoint(tmp_path / "frozen/weights/last.pt")["model"], load_checkpoint(Path(best))["ema"]
    rows = len(before["config"]["backbone"])
    frozen = [name for name in after if int(name.split(".")[1]) < rows]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(after[name], start[name].to(after[name].dtype)) for name in frozen)
    assert any(not torch.equal(after[name], start[name].float()) for name in after if name not in frozen)


def test_a_worker_that_dies_is_told_and_nothing_is_lost(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make, main_process = DetectionDataset.__getitems__, os.getpid()

    def deadly(dataset: DetectionDataset, draws: list[Any]) -> Any:
        if os.getpid() != main_process and dataset.augmentation is not None and draws[0].seed[1] == 1:  # epoch 1
            os.kill(os.getpid(), signal.SIGKILL)
        return make(dataset, draws)

    monkeypatch.setattr(DetectionDataset, "__getitems__", deadly)
    options = short | {"epochs": 3, "name": "run", "workers": 1}
    assert command(train, monkeypatch, *flags(options)) == 2
    assert error_line(capsys).startswith("DataLoader worker")
    assert load_checkpoint(tmp_path / "run/weights/last.pt")["place"]["epoch"] == 1


def test_a_loss_that_is_no_number_is_told_with_its_images(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wild = tmp_path / "wild.yaml"
    wild.write_text("lr0: 1.0e+30\nwarmup_epochs: 0\nnominal_batch: 1\nmosaic: 0\n")
    train.run(**short, epochs=1, name="run")
    good = load_checkpoint(tmp_path / "run/weights/last.pt")
    options = short | {"epochs": 2, "name": "run", "exist_ok": True, "hyp": wild}
    assert command(train, monkeypatch, *flags(options)) == 2
    error = error_line(capsys)
    assert "the loss is not finite" in error
    assert ".png" in error
    (picture,) = (tmp_path / "run/debug").iterdir()
    assert str(picture) in error
    assert cv2.imread(str(picture)).std() > 5
    kept = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert all(torch.equal(value, kept["model"][key]) for key, value in good["model"].items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes Linux and root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_leaves_the_old_checkpoint(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, small_disk: Path, capsys: pytest.CaptureFixture
) -> None:
    path = small_disk / "last.pt"
    content = {"config": {}, "names": [], "model": {"a": torch.rand(600_000)}}
    save_checkpoint(path, content)
    with pytest.raises(InputError, match=r"last\.pt: the checkpoint could not be written: No space left"):
        save_checkpoint(path, content | {"model": {"a": torch.zeros(600_000)}})
    assert torch.equal(load_checkpoint(path)["model"]["a"], content["model"]["a"])
    assert [file.name for file in small_disk.iterdir()] == ["last.pt"]
    (small_disk / "ballast").write_bytes(bytes(1_400_000))
    options = short | {"project": small_disk, "epochs": 2, "name": "run"}
    assert command(train, monkeypatch, *flags(options)) == 2
    assert "No space left" in error_line(capsys)


def test_a_folder_that_may_not_be_written_is_told(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    assert command(train, monkeypatch, *flags(short | {"project": tmp_path / "taken", "epochs": 1})) == 2
    assert "taken" in error_line(capsys)

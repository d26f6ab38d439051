"""What scripts say at their start."""

import copy
import logging
from pathlib import Path

import pytest

from data.config import load_data_config
from models.yolo import load_model
from tests.data.annotation_sets import label, save
from utils import runs
from utils.checkpoint import save_checkpoint
from utils.options import InputError
from utils.runs import open_model, start_model


def test_a_split_is_summed_up_with_its_first_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    (tmp_path / "labels/train").mkdir(parents=True)
    for name in "ab":
        save(tmp_path / f"images/train/{name}.png", (20, 20))
    label(tmp_path, "a.txt", "0 0.5 0.5 0.1 0.1\n" + "bad\n" * 7)
    data = tmp_path / "data.yaml"
    data.write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    with caplog.at_level(logging.INFO, "yolov5-spd"):
        table = runs.read_split(load_data_config(data), "train")
    problems = list(map(str, table.problems))
    assert len(problems) == 7
    assert caplog.messages == [
        "train: 2 images, 1 labels, 1 images without",
        *problems[: runs.SHOWN_PROBLEMS],
        f"train: 7 problems; python -m data.check {data} shows them all",
    ]


def test_a_config_larger_than_its_tensors_is_refused_without_memory_for_it(tmp_path: Path) -> None:
    model = load_model("yolov5n.yaml")
    config = copy.deepcopy(model.config)
    config["backbone"][1][3][0] = 40_000_000  # channels: more memory than there is
    path = tmp_path / "wide.pt"
    save_checkpoint(path, {"config": config, "names": model.names, "model": model.state_dict()})
    with pytest.raises(InputError, match=r"wide\.pt: its weights do not fit its own model"):
        open_model(str(path))
    with pytest.raises(InputError, match=r"wide\.pt: its weights do not fit its own model"):
        start_model(str(path), "", model.names)

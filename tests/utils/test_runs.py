"""What scripts say at their start."""

import logging
from pathlib import Path

import pytest

from data.config import load_data_config
from tests.data.test_annotations import label, save
from utils import runs


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

"""Reports are tables and JSON that others' tools read, complete or not there at all."""

import csv
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from utils import report
from utils.options import InputError

NAN = float("nan")


def test_text_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "note.txt"
    for text in ("first, and long", "ü\n"):
        report.write_text_atomically(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def epoch_row(epoch: int, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "train/box_loss": 0.123456789 / (epoch + 1), "metrics/mAP_0.5:0.95": NAN, **more}


def test_results_csv_is_a_clean_table(tmp_path: Path):
    table = report.ResultsCsv(tmp_path / "results.csv")
    for epoch in range(3):
        table.append(epoch_row(epoch))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[:2] == ["epoch,train/box_loss,metrics/mAP_0.5:0.95", "0,0.123457,nan"]
    assert len(lines) == 4


@pytest.mark.parametrize("row", [epoch_row(1, extra=1.0), {"epoch": 1}, dict(reversed(epoch_row(1).items()))])
def test_results_csv_refuses_other_columns(tmp_path: Path, row: dict[str, float]):
    table = report.ResultsCsv(tmp_path / "results.csv")
    table.append(epoch_row(0))
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(InputError, match=r"results\.csv: the columns are not"):
        table.append(row)
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.parametrize(("first_epoch", "epochs"), [(0, ["9"]), (2, ["0", "1", "9"]), (7, ["0", "1", "2", "9"])])
def test_results_csv_resumes_at_an_epoch(tmp_path: Path, first_epoch: int, epochs: list[str]):
    path = tmp_path / "results.csv"
    table = report.ResultsCsv(path)
    for epoch in range(3):
        table.append(epoch_row(epoch))
    report.ResultsCsv(path, first_epoch=first_epoch).append(epoch_row(9))
    with path.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == epochs


def test_results_csv_does_not_resume_a_strange_file(tmp_path: Path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected a column 'epoch', found a, b"):
        report.ResultsCsv(tmp_path / "results.csv", first_epoch=1)


def test_metrics_json_has_no_nan_and_sorted_keys(tmp_path: Path):
    metrics = {
        "P": np.float32(0.5),
        "AP": torch.tensor(0.25),
        "AP_L": NAN,
        "speed": {"ms": [1.0, float("inf")], "n": np.int64(3)},
        "weights": Path("best.pt"),
        "half": True,
    }
    path = tmp_path / "metrics.json"
    report.write_metrics_json(path, metrics)
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert list(found) == sorted(metrics)
    assert found == {
        "P": 0.5,
        "AP": 0.25,
        "AP_L": None,
        "speed": {"ms": [1.0, None], "n": 3},
        "weights": "best.pt",
        "half": True,
    }
    report.write_metrics_json(tmp_path / "again.json", dict(reversed(metrics.items())))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


ROWS = [
    {"name": "disc", "images": 4, "labels": 9, "P": 0.5, "R": 0.25, "AP50": 0.4, "AP": np.float64(1 / 3), "AP_S": NAN},
    {
        "name": "a name, with a comma",
        "images": 0,
        "labels": 0,
        "P": NAN,
        "R": NAN,
        "AP50": NAN,
        "AP": NAN,
        "AP_S": NAN,
    },
]


def test_per_class_csv(tmp_path: Path):
    report.write_csv(tmp_path / "per_class.csv", ROWS)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in ROWS]
    assert rows[0]["AP"] == "0.333333"
    assert rows[1]["AP"] == "nan"
    assert rows[0]["labels"] == "9"


def test_console_table_has_a_line_for_all_and_one_for_each_class():
    metrics = {"images": 4, "labels": 9, **dict.fromkeys((*report.METRICS, "AP_S", "AP_M"), 0.5), "AP_L": NAN}
    lines = report.console_table(metrics, ROWS).splitlines()
    assert lines[0].split() == ["Class", "Images", "Labels", "P", "R", "AP50", "AP75", "AP", "AP_S", "AP_M", "AP_L"]
    assert lines[1].split() == ["all", "4", "9", *["0.500"] * 7, "-"]
    assert lines[2].split() == ["disc", "4", "9", "0.500", "0.250", "0.400", "-", "0.333", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1
    assert report.console_table(metrics).splitlines()[0] == lines[0]
    other = report.console_table(metrics | {"AP_96-inf": 0.25}, bands=["AP_96-inf"]).splitlines()
    assert other[0].split()[-2:] == ["AP", "AP_96-inf"]
    assert other[1].split()[-2:] == ["0.500", "0.250"]


def test_comparison_has_a_line_for_each_origin():
    lines = report.comparison_table({"ours": {"AP": 0.12345, "AP_L": NAN}, "others": {"AP_L": NAN, "AP": 0.5}})
    assert [line.split() for line in lines.splitlines()] == [
        ["AP", "AP_L"],
        ["ours", "0.1235", "-"],
        ["others", "0.5000", "-"],
    ]


def test_versions_are_those_imported():
    assert report.versions()["torch"] == torch.__version__
    assert set(report.versions()) >= {"python", "numpy", "opencv", "pycocotools", "faster-coco-eval"}


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(x), 2 * x]


def test_tensorboard_events_hold_scalars_pictures_and_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((20, 30, 3), (0, 0, 255), np.uint8))
    monkeypatch.setattr(cv2, "imread", None)  # on Windows it knows no name beyond ASCII
    model = Doubler().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    board = report.TensorBoard(tmp_path / "run")
    for step in range(3):
        board.scalars({"train/box_loss": 1.0 - step, "x/lr0": 0.1}, step)
    board.picture("labels", tmp_path / "red.png", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.graph(model, torch.rand(1, 3, 8, 8))
    board.close()
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.value for event in events.Scalars("train/box_loss")] == [1, 0, -1]
    encoded = np.frombuffer(events.Images("labels")[0].encoded_image_string, np.uint8)
    assert tuple(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[5, 5]) == (0, 0, 255)
    assert "Doubler" in str(events.Graph())

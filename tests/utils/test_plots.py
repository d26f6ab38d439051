"""Pictures exist, can be read, have their size, and show boxes and lines where they belong."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.utils.pictures import has_colour, many_names, read
from utils import plots
from utils.options import ROOT, InputError
from utils.report import ResultsCsv

NAMES = ["disc", "cross", "star"]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_curves(tmp_path: Path, classes: int):
    names = many_names(classes)
    confidences = np.linspace(0, 1, 1000)
    values = RNG.random((classes, 1)) * (1 - confidences)
    if classes > 1:
        values[0] = np.nan
    plots.plot_curves(confidences, values, names, tmp_path / "F1_curve.png", ylabel="F1")
    assert read(tmp_path / "F1_curve.png").shape == (600, 900, 3)
    precision = 1 - np.linspace(0, 1, 101) ** RNG.uniform(1, 4, (classes, 1))
    plots.plot_precision_recall(np.linspace(0, 1, 101), precision, precision.mean(1), names, tmp_path / "PR_curve.png")
    picture = read(tmp_path / "PR_curve.png")
    assert has_colour(picture, (0xB2, 0x72, 0x00), 3)  # the mean's line, in BGR


def test_curves_without_ground_truth(tmp_path: Path):
    nothing = np.full((3, 101), np.nan)
    plots.plot_precision_recall(np.linspace(0, 1, 101), nothing, nothing[:, 0], NAMES, tmp_path / "PR_curve.png")
    assert not has_colour(read(tmp_path / "PR_curve.png"), (0xB2, 0x72, 0x00), 3)


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_confusion_matrix_is_dark_on_the_diagonal(tmp_path: Path, classes: int):
    matrix = np.zeros((classes + 1, classes + 1))
    matrix[np.arange(classes), np.arange(classes)] = 7
    plots.plot_confusion_matrix(matrix, many_names(classes), tmp_path / "confusion_matrix.png")
    picture = read(tmp_path / "confusion_matrix.png")
    assert 400 <= picture.shape[0] <= 1700
    assert has_colour(picture, (107, 48, 8), 3)  # the darkest blue of the scale, in BGR


@pytest.mark.parametrize(("labels", "classes"), [(0, 3), (1, 1), (500, 80)])
def test_labels(tmp_path: Path, labels: int, classes: int):
    xywhn = RNG.uniform(0.1, 0.3, (labels, 4))
    chosen = RNG.integers(0, classes, labels)
    plots.plot_labels(chosen, xywhn, many_names(classes), tmp_path / "labels.jpg", wh=xywhn[:, 2:] * 640)
    assert read(tmp_path / "labels.jpg").shape[0] == 900


@pytest.mark.parametrize("epochs", [1, 40])
def test_results(tmp_path: Path, epochs: int):
    table = ResultsCsv(tmp_path / "results.csv")
    keys = [key for _, keys in plots.RESULT_PANELS for key in keys if "accuracy" not in key]  # those are classifiers'
    unknown = dict.fromkeys(("metrics/AP_L", "unmeasured"), float("nan"))  # a line, a whole panel that is left out
    for epoch in range(epochs):
        table.append({"epoch": epoch, **dict.fromkeys(keys, 1 / (epoch + 1)), **unknown, "own": 1.0})
    plots.plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert read(tmp_path / "results.png").shape == (640, 1600, 3)


def test_study(tmp_path: Path):
    rows = [
        {"imgsz": size, "AP": 0.5 - 100 / size, "AP_S": float("nan"), "inference_ms": size / 50} for size in (256, 640)
    ]
    plots.plot_study(rows, tmp_path / "study.png")
    assert read(tmp_path / "study.png").shape == (500, 1200, 3)


def test_matplotlib_is_loaded_when_needed_and_its_settings_stay(tmp_path: Path):
    code = f"""
import sys, numpy, pathlib, utils.plots
assert "matplotlib" not in sys.modules
import matplotlib
before = dict(matplotlib.rcParams)
utils.plots.plot_confusion_matrix(numpy.eye(2), ["a"], pathlib.Path({str(tmp_path)!r}) / "m.png")
assert dict(matplotlib.rcParams) == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "m.png").is_file()


def test_names_are_text_in_any_script(tmp_path: Path):
    names = ["$a^$", "\N{CJK UNIFIED IDEOGRAPH-732B}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_confusion_matrix(np.eye(3), names, tmp_path / "matrix.png")
        values = np.ones((2, 101))
        plots.plot_precision_recall(np.linspace(0, 1, 101), values, values[:, 0], names, tmp_path / "curve.png")


def test_a_picture_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "matrix.png").mkdir()
    with pytest.raises(InputError, match="could not be written"):
        plots.plot_confusion_matrix(np.eye(2), ["a"], tmp_path / "matrix.png")
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]

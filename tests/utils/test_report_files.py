"""A report's files are complete, and its page opens in a real browser with every picture."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.annotations import read_annotations
from data.config import load_data_config
from utils.coco import COCO_FIGURES, Detections, evaluate_coco
from utils.engine import Evaluation
from utils.page import Picture
from utils.report_files import write_coco_json, write_report
from utils.validation import Report

CHROMIUM = shutil.which("chromium")
EVIL = "<script>document.title='evil'</script>"


@pytest.fixture(scope="session")
def report(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A validation of the squares by a detector that finds most of them, one class having a name to beware of."""
    table = replace(read_annotations(load_data_config(squares), "val"), names=[EVIL, "квадрат & co"])
    rng = np.random.default_rng(0)
    found = Detections()
    for index in range(len(table)):
        boxes, labels = table.boxes[table.rows(index)], table.classes[table.rows(index)]
        shaken = boxes + rng.normal(0, 3, boxes.shape)
        rows = np.c_[shaken[:, :2], shaken[:, :2] + shaken[:, 2:], rng.random(len(boxes)), labels]
        found.add(index, torch.tensor(rows, dtype=torch.float32))
    evaluation = Evaluation(detections=found, milliseconds={"inference": 1.5})
    return Report(evaluate_coco(table, found), evaluation, table, "cpu")


@pytest.fixture(scope="session")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    extra = folder / "magenta.png"
    cv2.imwrite(str(extra), np.full((90, 160, 3), (255, 0, 255), np.uint8))
    confirmed = write_coco_json(report, folder / "found.json", None)
    settings = {"weights": Path("best.pt"), "name": EVIL}
    picture = Picture(extra, EVIL, wide=True)
    write_report(report, folder, settings, title=f"best.pt {EVIL}", confirmed=confirmed, pictures=[picture])
    return folder


def test_metrics_json_has_everything(report: Report, folder: Path) -> None:
    content = json.loads((folder / "metrics.json").read_text())
    keys = {"P", "R", "F1", "confidence", "speed_ms", "settings", "versions", "device", "images", "labels"}
    assert set(content) == {*COCO_FIGURES, *keys, "pycocotools"}
    assert (content["images"], content["labels"]) == (8, 24)
    for key, value in content["pycocotools"].items():
        assert value == (None if content[key] is None else pytest.approx(content[key], abs=1e-6)), key
    assert content["versions"]["torch"] == torch.__version__


def test_tables(report: Report, folder: Path) -> None:
    classes = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["name"] for row in classes] == report.annotations.names
    images = list(csv.DictReader((folder / "per_image.csv").open()))
    assert list(images[0]) == ["image", "image_id", "labels", "detections", "TP", "FP", "misses", "F1"]
    assert {row["image"] for row in images} == set(map(str, report.annotations.paths))
    f1 = [float(row["F1"]) for row in images]
    assert f1 == sorted(f1)
    assert f1[0] < f1[-1]


def test_page_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert EVIL not in text
    assert "<script" not in text
    references = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?([^"'>)]{1,40})""", text)
    assert len(references) == len(list(folder.glob("*.png"))) + len(list(folder.glob("*.jpg")))
    assert all(reference.startswith("data:image/") for reference in references)
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)


def chromium(*arguments: str | Path) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_every_picture_is_shown_in_a_browser(folder: Path, tmp_path: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    # the page allows itself no script: the copy that measures it does
    text = re.sub("<meta http-equiv[^>]*>", "", text)
    measure = (
        "addEventListener('load', () => document.body.innerHTML = JSON.stringify({title: document.title, sizes: "
        "[...document.images].map(image => [image.naturalWidth, image.naturalHeight, image.width]), "
        "tables: document.querySelectorAll('table').length}))"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(text.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    dom = chromium(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri())
    body = re.search("<body>(.*?)</body>", dom, re.DOTALL)
    assert body is not None, dom[:2000]
    found = json.loads(body.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["title"] == f"best.pt {EVIL}"
    assert found["tables"] == 5
    assert len(found["sizes"]) == len(list(folder.glob("*.png"))) + len(list(folder.glob("*.jpg")))
    assert all(min(sizes) > 0 for sizes in found["sizes"])
    assert [160, 90, 160] in found["sizes"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize(("scheme", "light"), [(0, False), (1, True)], ids=["dark", "light"])
def test_page_follows_the_scheme_of_the_system(folder: Path, tmp_path: Path, scheme: int, light: bool) -> None:
    chromium(
        f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1200,6000", f"--screenshot={tmp_path / 'page.png'}", (folder / "report.html").as_uri(),
    )  # fmt: skip
    page = cv2.imread(str(tmp_path / "page.png"))
    assert page is not None
    assert (page[5, 5].mean() > 128) == light
    assert (page == (255, 0, 255)).all(-1).sum() > 0.9 * 160 * 90  # the last picture, under all the others


def test_without_plots_there_are_tables_only(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path, {}, title="plain", plots=False)
    names = ["metrics.json", "per_class.csv", "per_image.csv", "report.html"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_a_report_of_nothing(report: Report, tmp_path: Path) -> None:
    table = report.annotations
    none = table.subset([0])
    none = replace(none, starts=np.zeros(2, np.int64), classes=none.classes[:0], boxes=none.boxes[:0])
    none = replace(none, areas=none.areas[:0], crowd=none.crowd[:0], polygon_starts=none.polygon_starts[:1])
    write_report(Report(evaluate_coco(none, Detections()), Evaluation(), none, "cpu"), tmp_path, {}, title="nothing")
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] is None
    assert "misses.jpg" not in {file.name for file in tmp_path.iterdir()}

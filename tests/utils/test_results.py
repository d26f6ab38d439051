"""Results take YOLOv5's forms: boxes, tables, texts, drawn pictures and crops, each for the right image."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

from tests.utils.pictures import has_colour
from utils.options import InputError
from utils.results import Results
from utils.upstream import colors

NAMES = {0: "disc", 1: "a/b", 2: "star"}
ROWS = [
    [[10.0, 20, 40, 60, 0.9, 2], [50, 30, 80, 50, 0.5, 0], [0, 0, 100, 80, 0.3, 2]],
    [],
    [[5, 5, 15, 25, 0.75, 1]],
]
SIZES = [(100, 80), (30, 20), (20, 40)]
COLUMNS = {
    "xyxy": ["xmin", "ymin", "xmax", "ymax"],
    "xywh": ["xcenter", "ycenter", "width", "height"],
    "xyxyn": ["xmin", "ymin", "xmax", "ymax"],
    "xywhn": ["xcenter", "ycenter", "width", "height"],
}


@pytest.fixture
def results() -> Results:
    """Detections in three images of red (RGB), the second without any."""
    ims = [np.full((height, width, 3), (200, 0, 0), np.uint8) for width, height in SIZES]
    pred = [torch.tensor(rows).reshape(-1, 6) for rows in ROWS]
    return Results(ims, pred, ["a.jpg", "b.jpg", "c.jpg"], NAMES, t=(1.0, 20.0, 3.0), s=(3, 3, 96, 128))


def expected(form: str, row: list[float], size_wh: tuple[int, int]) -> list[float]:
    x1, y1, x2, y2, *rest = row
    box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1] if "wh" in form else [x1, y1, x2, y2]
    width, height = size_wh if form.endswith("n") else (1, 1)
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height, *rest]


@pytest.mark.parametrize("form", COLUMNS)
def test_forms_of_boxes(results: Results, form: str) -> None:
    for rows, given, size in zip(getattr(results, form), ROWS, SIZES, strict=True):
        assert rows.shape == (len(given), 6)
        np.testing.assert_allclose(rows, np.reshape([expected(form, row, size) for row in given], (-1, 6)), rtol=1e-6)


@pytest.mark.parametrize("form", COLUMNS)
def test_tables(results: Results, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))  # columns are all that a table needs
    tables = getattr(results.pandas(), form)
    assert [list(table) for table in tables] == [[*COLUMNS[form], "confidence", "class", "name"]] * 3
    assert tables[0]["name"] == ["star", "disc", "star"]
    assert tables[0]["class"].tolist() == [2, 0, 2]
    assert np.issubdtype(tables[0]["class"].dtype, np.integer)
    for place, column in enumerate(COLUMNS[form]):
        wanted = [expected(form, row, SIZES[0])[place] for row in ROWS[0]]
        np.testing.assert_allclose(tables[0][column], wanted, rtol=1e-6)
    assert tables[1]["name"] == []


def test_tables_of_pandas_itself(results: Results) -> None:
    pytest.importorskip("pandas")
    table = results.pandas().xyxy[0].sort_values("xmin")
    assert list(table["name"]) == ["star", "star", "disc"]
    assert '"class":2' in table.to_json(orient="records")


def test_supervision(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    first, second, _ = results.to_supervision()
    np.testing.assert_array_equal(first.xyxy, np.array(ROWS[0], np.float32)[:, :4])
    assert first.confidence.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert first.class_id.tolist() == [2, 0, 2]
    assert first.data["class_name"].tolist() == ["star", "disc", "star"]
    assert second.xyxy.shape == (0, 4)


@pytest.mark.parametrize(("method", "package"), [("pandas", "pandas"), ("to_supervision", "supervision")])
def test_a_package_that_is_not_there(
    results: Results, method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with pytest.raises(InputError, match=rf"^{method}\(\) needs the package {package}: pip install {package}$"):
        getattr(results, method)()


def test_texts(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    results.print()
    assert capsys.readouterr().out.splitlines() == [
        "image 1/3 a.jpg: 80x100 1 disc, 2 star",
        "image 2/3 b.jpg: 20x30 nothing found",
        "image 3/3 c.jpg: 40x20 1 a/b",
        "speed of an image: 1.0 ms preprocess, 20.0 ms inference, 3.0 ms nms at 3 x 3 x 96 x 128",
    ]
    assert repr(results) == "<Results of 3 images: 4 detections>"
    assert (len(results), results.n) == (3, 3)


def test_one_result_for_each_image(results: Results) -> None:
    parts = results.tolist()
    assert [len(part) for part in parts] == [1, 1, 1]
    assert [part.files for part in parts] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    torch.testing.assert_close(parts[2].xywhn[0], results.xywhn[2])


def test_rendering_draws_on_copies_and_repeats_itself(results: Results) -> None:
    given = [image.copy() for image in results.ims]
    bare = list(results.ims)
    named = [picture.copy() for picture in results.render()]
    plain = results.render(labels=False)
    assert plain is results.ims
    assert has_colour(plain[0][35:45, 48:53], colors(0))  # RGB, at the edge of the box of class 0
    assert not has_colour(plain[0], colors(0, bgr=True))
    assert (plain[0] != named[0]).any()
    assert (plain[1] == given[1]).all()
    assert all((a == b).all() for a, b in zip(bare, given, strict=True))
    assert all((a == b).all() for a, b in zip(results.render(), named, strict=True))


def test_saved_pictures(results: Results, tmp_path: Path) -> None:
    first, second = (results.save(save_dir=tmp_path / "runs/exp") for _ in range(2))
    assert (first, second) == (tmp_path / "runs/exp", tmp_path / "runs/exp2")
    assert results.save(labels=False, save_dir=first, exist_ok=True) == first
    assert sorted(file.name for file in first.iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    saved = np.array(Image.open(first / "b.jpg"))
    assert saved.shape == (20, 30, 3)
    assert has_colour(saved, (200, 0, 0))


def test_crops(results: Results, tmp_path: Path) -> None:
    results.ims[0][22:58, 12:38] = (0, 0, 250)  # blue in the first box
    results.render()  # what is drawn must not be in the crops
    crops = results.crop(save_dir=tmp_path / "exp")
    assert [crop["label"] for crop in crops] == ["star 0.90", "disc 0.50", "star 0.30", "a/b 0.75"]
    assert [int(crop["cls"]) for crop in crops] == [2, 0, 2, 1]
    assert [float(side) for side in crops[0]["box"]] == ROWS[0][0][:4]
    assert float(crops[3]["conf"]) == 0.75
    assert tuple(crops[0]["im"][25, 20]) == (0, 0, 250)
    assert crops[0]["im"].shape[0] >= 40
    assert has_colour(crops[0]["im"], (200, 0, 0))  # the margin
    assert not has_colour(crops[0]["im"], colors(2))
    files = sorted(str(file.relative_to(tmp_path / "exp")) for file in tmp_path.rglob("*.jpg"))
    assert [file.partition("/")[0] for file in files] == ["crops"] * 4
    assert sorted(file.split("/")[1] for file in files) == ["a_b", "disc", "star", "star"]
    saved = np.array(Image.open(tmp_path / "exp/crops/star/a.jpg")).astype(int)
    assert abs(saved - crops[0]["im"]).mean() < 5


def test_crops_without_files(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(results.crop(save=False)) == 4
    assert list(tmp_path.iterdir()) == []


def test_showing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, Any]] = []

    def show(image: Image.Image, title: str) -> bool:
        shown.append((title, np.array(image)))
        return True

    monkeypatch.setattr(ImageShow, "show", show)
    results.show()
    assert [title for title, _ in shown] == results.files
    assert all((picture == drawn).all() for (_, picture), drawn in zip(shown, results.ims, strict=True))
    monkeypatch.setattr(ImageShow, "show", lambda *_, **__: False)
    with pytest.raises(InputError, match="no viewer"):
        results.show()

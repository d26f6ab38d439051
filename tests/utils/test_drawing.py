"""Pictures exist, can be read, have their size, and show boxes and lines where they belong."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.utils.pictures import has_colour, read
from utils import drawing
from utils.options import InputError
from utils.upstream import colors

NAMES = ["disc", "cross", "star"]
RNG = np.random.default_rng(0)


def test_boxes_are_drawn_in_their_class_colour_on_a_copy():
    image = np.full((200, 300, 3), 114, np.uint8)
    rows = torch.tensor([[50.0, 60, 150, 160, 0.9, 0], [200, 100, 280, 180, 0.5, 2]])
    drawn = drawing.draw_detections(image, rows, NAMES, line_width=3, hide_labels=True)
    assert (image == 114).all()
    for x1, y1, x2, y2, _, class_id in rows.long().tolist():
        for x, y in ((x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), ((x1 + x2) // 2, y1), ((x1 + x2) // 2, y2)):
            assert tuple(drawn[y, x]) == colors(class_id, bgr=True)
    changed = (drawn != 114).any(-1)
    assert not changed[:55].any()
    assert not changed[70:150, 60:140].any()


def test_labels_take_room_and_can_be_hidden():
    image = np.full((200, 300, 3), 114, np.uint8)
    rows = np.array([[50.0, 60, 150, 160, 0.9, 0]])
    full, bare, none = (
        int((drawing.draw_detections(image, rows, NAMES, **options) != image).sum())
        for options in ({}, {"hide_conf": True}, {"hide_labels": True})
    )
    assert full > bare > none > 0


def test_names_in_other_scripts_are_written_without_the_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.getaddrinfo", None)
    image = np.full((200, 300, 3), 114, np.uint8)
    drawn = [
        drawing.draw_detections(image, np.array([[50.0, 60, 150, 160, 0.9, 0]]), [name], hide_conf=True)
        for name in ("яблоко", "кошка")
    ]
    assert has_colour(drawn[0], colors(0, bgr=True))
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("count", "side", "shape"), [(1, 320, (640, 640)), (5, 320, (1280, 1920)), (20, 640, (1920, 1920))]
)
def test_mosaic_shows_at_most_sixteen_images(tmp_path: Path, count: int, side: int, shape: tuple[int, int]):
    images = torch.full((count, 3, side, side), 114, dtype=torch.uint8)
    drawing.plot_batch(images, torch.zeros(0, 6), NAMES, tmp_path / "batch.jpg", titles=["a.jpg"] * count)
    assert read(tmp_path / "batch.jpg").shape[:2] == shape


@pytest.mark.parametrize("scaled", [False, True])
def test_mosaic_draws_each_box_in_its_image(tmp_path: Path, scaled: bool):
    images = torch.zeros(4, 3, 64, 96, dtype=torch.uint8)
    images[:, 0] = 200  # red: RGB in, so blue stays 0 in the file
    boxes = torch.tensor([[3.0, 1, 0.5, 0.5, 0.5, 0.5, 0.9], [1, 1, 0.5, 0.5, 0.5, 0.5, 0.1]])
    given = images.float() / 255 if scaled else images
    drawing.plot_batch(given, boxes, NAMES, tmp_path / "batch.png")
    mosaic = read(tmp_path / "batch.png")
    assert mosaic.shape == (256, 384, 3)
    tiles = [mosaic[top : top + 127, left : left + 191] for top in (0, 128) for left in (0, 192)]
    assert tuple(mosaic[5, 5]) == (0, 0, 200)
    assert [has_colour(tile, colors(1, bgr=True)) for tile in tiles] == [False, False, False, True]


def test_detections_become_rows_of_a_batch():
    detections = [torch.zeros(0, 6), torch.tensor([[10.0, 20, 30, 60, 0.7, 2]])]
    rows = drawing.as_batch_boxes(detections, (100, 200))
    assert rows.tolist() == [pytest.approx([1, 2, 0.2, 0.2, 0.2, 0.2, 0.7])]
    assert drawing.as_batch_boxes([], (100, 200)).shape == (0, 7)


@pytest.mark.parametrize("text", ["a.jpg", "line\nline", "яблоко\nЮлия.jpg", "a long name " * 9])
def test_titles_are_light_on_dark_at_the_foot(text: str):
    tile = np.full((120, 160, 3), 114, np.uint8)
    drawing.write_title(tile, text)
    height = drawing.TITLE_LINE * len(text.split("\n")) + 2
    assert (tile[: 119 - height] == 114).all()
    plate = tile[119 - height : 119, :6]
    assert (plate != 114).all()
    for number in range(len(text.split("\n"))):
        line = tile[119 - height + number * drawing.TITLE_LINE :][: drawing.TITLE_LINE]
        assert line.max() > 200


@pytest.mark.parametrize("name", ["plain.png", "Übersicht 図.png", "a.part.PNG"])
def test_pictures_have_any_name_without_opencv_opening_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    image = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imwrite", None)  # on Windows it knows no name beyond ASCII
        drawing.save_image(image, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(cv2.imdecode(np.fromfile(tmp_path / name, np.uint8), cv2.IMREAD_COLOR), image)


def test_a_picture_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fill(path: Path, _content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(InputError, match=r"a\.jpg: could not be written: No space left on device"):
        drawing.save_image(np.zeros((4, 4, 3), np.uint8), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"none/a\.jpg: could not be written: No such file"):
        drawing.save_image(np.zeros((4, 4, 3), np.uint8), tmp_path / "none/a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: could not be written: 70000 x 1 pixels are too many for \.jpg"):
        drawing.save_image(np.zeros((1, 70_000, 3), np.uint8), tmp_path / "a.jpg")

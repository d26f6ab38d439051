"""Mosaics show each mistake in the middle of its tile, tiny ones enlarged, at edges and in small images too."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.utils.pictures import has_colour, read
from tests.utils.splits import detections_of, truth_of
from utils import crops
from utils.coco import evaluate_coco
from utils.mistakes import find_mistakes

BLUE, GREY = (230, 40, 20), 114


def painted(folder: Path, box: tuple[int, int, int, int], size_wh: tuple[int, int] = (320, 240)) -> Path:
    """A grey image with a blue box x, y, w, h."""
    image = np.full((size_wh[1], size_wh[0], 3), GREY, np.uint8)
    x, y, w, h = box
    image[y : y + h, x : x + w] = BLUE
    path = folder / f"{x}-{y}-{w}-{h}.png"
    cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize(
    ("box", "size_wh", "share"),
    [
        ((150, 100, 60, 60), (320, 240), 0.25),  # half of the window's side
        ((150, 100, 4, 4), (320, 240), 1 / 64),  # of 32 px that are shown at least
        ((0, 0, 60, 60), (320, 240), 0.25),
        ((260, 200, 60, 40), (320, 240), 1 / 6),
        ((10, 0, 300, 40), (320, 240), 300 * 40 / 320**2),  # no more than the image's longer side
        ((2, 2, 10, 5), (20, 12), 50 / 20**2),
    ],
)
def test_a_box_is_shown_with_what_is_around_it(tmp_path: Path, box, size_wh, share):
    crop = crops.Crop(painted(tmp_path, box, size_wh), np.array(box, float), np.empty((0, 4)), "a title")
    assert crops.plot_crops([crop], tmp_path / "out.png", colour=(0, 0, 255), other_colour=(0, 255, 0))
    mosaic = read(tmp_path / "out.png")
    assert mosaic.shape == (crops.TILE + 2 * crops.TITLE_LINE + 4, crops.TILE, 3)
    tile = mosaic[: crops.TILE]
    blue = (np.abs(tile.astype(int) - BLUE).max(-1) < 60).mean()
    assert blue == pytest.approx(share, rel=0.45)  # its outline covers part of it
    assert has_colour(tile, (0, 0, 255))
    assert not has_colour(tile, (0, 255, 0))


def test_many_boxes_make_a_grid_with_the_others_around_them(tmp_path: Path):
    path = painted(tmp_path, (100, 100, 40, 40))
    crop = crops.Crop(path, np.array([100.0, 100, 40, 40]), np.array([[90.0, 90, 60, 60]]), "name\nимя.jpg")
    crops.plot_crops([crop] * 8, tmp_path / "out.png", colour=(0, 0, 255), other_colour=(0, 255, 0))
    mosaic = read(tmp_path / "out.png")
    assert mosaic.shape[:2] == (2 * (crops.TILE + 2 * crops.TITLE_LINE + 4), 6 * crops.TILE)
    assert has_colour(mosaic[: crops.TILE, : crops.TILE], (0, 255, 0))
    assert (mosaic[-crops.TILE :, 2 * crops.TILE :] == 0).all()


def test_mosaics_of_an_evaluation(tmp_path: Path):
    paths = [painted(tmp_path, (50, 50, 60, 60)), painted(tmp_path, (200, 100, 30, 30))]
    truth = replace(truth_of([[[0, 50, 50, 60, 60, 0]], [[1, 200, 100, 30, 30, 0]]], ["a", "b"]), paths=paths)
    found = detections_of({0: [[50, 50, 110, 110, 0.9, 0], [150, 150, 170, 170, 0.9, 1]]})
    mistakes = find_mistakes(evaluate_coco(truth, found))
    assert crops.draw_misses(mistakes, truth, tmp_path / "misses.png")
    assert crops.draw_false_alarms(mistakes, truth, tmp_path / "alarms.png")
    miss, alarm = read(tmp_path / "misses.png"), read(tmp_path / "alarms.png")
    assert has_colour(miss, BLUE)
    assert has_colour(miss, crops.LABEL, 20)
    assert not has_colour(alarm[: crops.TILE], BLUE)
    assert has_colour(alarm, crops.DETECTION, 20)
    right = find_mistakes(evaluate_coco(truth, detections_of({0: [[50, 50, 110, 110, 0.9, 0]]})))
    assert not crops.draw_false_alarms(right, truth, tmp_path / "alarms.png")
    assert not (tmp_path / "alarms.png").exists()  # that of before is gone

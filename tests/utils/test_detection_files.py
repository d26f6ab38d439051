"""Each frame has results of its own, and they are whole or it is said that they are not."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data.frames import Frame
from utils.detection_files import Found, result_stems

IMAGE = np.zeros((48, 64, 3), np.uint8)


def found(path: Path, stem: str, index: int = 0, rows: int = 0) -> Found:
    return Found(Frame(path, IMAGE, index, is_video=path.suffix in (".avi", ".mp4")), torch.zeros(rows, 6), stem)


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        ("film.mp4 a.jpg b_1.jpg", "film a b_1"),
        ("a.jpg a.png a_2.png", "a a_2 a_2_2"),
        ("film.avi film.jpg", "film_2 film"),
        ("film.mp4 film_1.jpg", "film_2 film_1"),
        ("film.mp4 film.jpg film_2.jpg film_2_7.jpg", "film_3 film film_2 film_2_7"),
        ("film.mp4 film.avi film_1.avi", "film film_2 film_1"),
    ],
)
def test_stems_are_the_files_own_where_they_can_be(names: str, stems: str) -> None:
    files = [Path("in", name) for name in names.split()]
    assert list(map(result_stems(files).get, files)) == stems.split()


def test_no_two_frames_have_one_name() -> None:
    dice = random.Random(0)
    for _ in range(300):
        stems = ("a", "a_1", "a_2", "a_2_1", "a_1_1", "b")
        files = [Path(str(n), dice.choice(stems) + dice.choice((".mp4", ".jpg"))) for n in range(6)]
        named = result_stems(files)
        frames = [
            found(file, named[file], index) for file in files for index in range(4 if file.suffix == ".mp4" else 1)
        ]
        assert len({frame.name for frame in frames}) == len(frames), files
        assert len(set(named.values())) == len(files), files

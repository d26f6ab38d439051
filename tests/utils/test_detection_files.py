"""Each frame has results of its own, and they are whole or it is said that they are not."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.frames import Frame
from data.video import VideoWriter
from utils.detection_files import Found, Pictures, result_stems
from utils.options import InputError

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


@contextmanager
def little_room() -> Iterator[None]:
    """Let no file grow beyond 8 kB; a block, for it is true of the file that a test run reports to, as well."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_videos_that_the_disk_has_no_room_for_are_told(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    with little_room():
        for index in range(100):
            for stem in ("one", "two"):
                frame = Frame(Path(stem), NOISE, index, is_video=True, fps=10, live=True)
                pictures.write(Found(frame, torch.zeros(0, 6), stem, np.roll(NOISE, index, 0)))
    with little_room(), pytest.raises(InputError, match=r"(one|two)\.mp4: could not be written: \d+ of 100 frames"):
        pictures.close()


@pytest.mark.parametrize("name", ["a.png", "été.jpg", "b.webp", "c.mpo"])
def test_images_have_their_names_and_formats(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    pictures = Pictures(tmp_path)
    pictures.write(Found(Frame(path, IMAGE), torch.zeros(0, 6), path.stem, IMAGE))
    (written,) = tmp_path.iterdir()
    assert written.name == name.replace(".mpo", ".jpg")
    assert cv2.imdecode(np.fromfile(written, np.uint8), cv2.IMREAD_COLOR).shape == IMAGE.shape


@pytest.mark.parametrize("fps", [0.5, 10, 29.97, 60])
@pytest.mark.parametrize("count", [1, 2, 47])
def test_whole_videos_are_taken_for_whole(count: int, fps: float, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", fps=fps, size_wh=(64, 48)) as writer:
        for shift in range(count):
            writer.write(np.roll(NOISE, shift, 0))


def test_an_image_that_the_disk_has_no_room_for_leaves_none(tmp_path: Path) -> None:
    image = Found(Frame(Path("a.bmp"), NOISE), torch.zeros(0, 6), "a", NOISE)
    with little_room(), pytest.raises(InputError, match=r"a\.bmp: could not be written: File too large"):
        Pictures(tmp_path).write(image)
    assert not (tmp_path / "a.bmp").exists()

"""The screen as a source, with a stand-in for the package that grabs it."""

import itertools
import sys
import time
import types

import numpy as np
import pytest

from data.sources import open_source
from utils.options import InputError

MONITORS = [{"left": 0, "top": 0, "width": 500, "height": 300}, {"left": 200, "top": 50, "width": 300, "height": 250}]


@pytest.fixture
def grabbed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The regions asked for; a pixel's blue is its column, its green its row, on all monitors together."""
    regions: list[dict[str, int]] = []

    class Grabber:
        monitors = MONITORS

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def grab(self, region):
            regions.append(region)
            image = np.zeros((region["height"], region["width"], 4), np.uint8)
            image[..., 0] = np.arange(region["left"], region["left"] + region["width"])[None]
            image[..., 1] = np.arange(region["top"], region["top"] + region["height"])[:, None]
            return image

    package = types.SimpleNamespace(mss=Grabber, exception=types.SimpleNamespace(ScreenShotError=OSError))
    monkeypatch.setitem(sys.modules, "mss", package)
    return regions


@pytest.mark.parametrize(
    ("text", "corner", "size_wh"),
    [
        ("screen", (0, 0), (500, 300)),
        ("screen 1", (200, 50), (300, 250)),
        ("screen 10 20 30 40", (10, 20), (30, 40)),
        ("screen 1 10 20 30 40", (210, 70), (30, 40)),
    ],
)
def test_monitors_and_parts_of_them(grabbed, text: str, corner: tuple[int, int], size_wh: tuple[int, int]):
    with open_source(text) as source:
        frames = [frame for frame, _ in zip(source, range(3), strict=False)]
    assert all(frame.image.shape == (size_wh[1], size_wh[0], 3) and frame.live for frame in frames)
    assert tuple(frames[0].image[0, 0, :2]) == (corner[0] % 256, corner[1] % 256)
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})


def test_a_stride_leaves_frames_out(grabbed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.screen.FPS", 300.0)
    start = time.monotonic()
    with open_source("screen", vid_stride=15) as source:
        frames = [frame for frame, _ in zip(source, range(4), strict=False)]
    assert time.monotonic() - start >= 3 * 15 / 300
    assert all(frame.index % 15 == 0 and frame.fps == 20 for frame in frames)
    steps = [later.index - frame.index for frame, later in itertools.pairwise(frames)]
    assert steps == [15 * (frame.dropped + 1) for frame in frames[1:]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("screen x", "expected screen"),
        ("screen 1 2", "expected screen"),
        ("screen 2", "monitors 0 to 1"),
        ("screen 1 10 0 300 5", "not within the 300 x 250"),
    ],
)
def test_what_there_is_not(grabbed, text: str, told: str):
    with pytest.raises(InputError, match=told):
        open_source(text)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(InputError, match="pip install mss"):
        open_source("screen")

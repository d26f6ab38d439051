"""What the tests of pictures share."""

from pathlib import Path

import cv2
import numpy as np


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    assert [file.name for file in path.parent.iterdir() if ".part" in file.name] == []
    return image


def many_names(count: int) -> list[str]:
    return [f"class number {i}" for i in range(count)]


def has_colour(image: np.ndarray, bgr: tuple[int, ...], tolerance: int = 40) -> bool:
    return bool((np.abs(image.astype(int) - bgr).max(-1) < tolerance).any())

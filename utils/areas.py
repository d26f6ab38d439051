"""Bands of object size, by which accuracy is told apart: COCO's small, medium and large, or a user's own.

Bounds are sides in pixels, the square root of an object's area in the original image.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

from utils.options import InputError

Bands = Mapping[str, tuple[float, float]]  # name: least and greatest side, both included, as COCO counts

COCO_BANDS: Bands = {"S": (0.0, 32.0), "M": (32.0, 96.0), "L": (96.0, math.inf)}


def parse_bands(text: str) -> Bands:
    """Read bounds such as `0,8,16,32,inf` into bands named `0-8`, `8-16` and so on; COCO's own keep COCO's names.

    Raises:
        InputError: the bounds are not two or more numbers from 0 on that rise.
    """
    expected = "expected two or more rising sides in pixels from 0 on, such as 0,8,16,32,96,inf"
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--areas {text}: {expected}") from None
    pairs = list(pairwise(bounds))
    if not pairs or bounds[0] < 0 or not all(low < high for low, high in pairs):  # false for NaN
        raise InputError(f"--areas {text}: {expected}")
    if pairs == list(COCO_BANDS.values()):
        return COCO_BANDS
    return {f"{low:g}-{high:g}": (low, high) for low, high in pairs}

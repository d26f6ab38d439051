"""Bands of object size as the command line gives them."""

import math

import pytest

from utils.areas import COCO_BANDS, parse_bands
from utils.options import InputError


def test_coco_bands_keep_their_names():
    assert parse_bands("0,32,96,inf") is COCO_BANDS


def test_bands_are_named_by_their_bounds():
    bands = parse_bands("0, 7.5,16,inf")
    assert bands == {"0-7.5": (0, 7.5), "7.5-16": (7.5, 16), "16-inf": (16, math.inf)}


@pytest.mark.parametrize("text", ["", "32", "0,32,16", "0,0,8", "-1,8", "0,nan,8", "0,8,inf,inf", "0;8", "small,large"])
def test_other_bounds_are_refused(text):
    with pytest.raises(InputError, match=r"^--areas .*: expected two or more rising sides"):
        parse_bands(text)

"""Paths in one buffer behave as a list of them does."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.path_list import PathList

PATHS = [Path("/data/a.jpg"), Path("b/été 图.png"), Path("c"), Path(os.fsdecode(b"/not/utf-8/\xff\xfe.jpg"))]


@pytest.fixture
def paths() -> PathList:
    return PathList(PATHS)


def test_it_reads_as_a_list(paths):
    assert len(paths) == 4
    assert list(paths) == PATHS
    assert list(reversed(paths)) == PATHS[::-1]
    assert [paths[index] for index in range(-4, 4)] == PATHS + PATHS
    assert paths[np.int64(2)] == PATHS[2]
    assert PATHS[1] in paths
    assert Path("d") not in paths
    assert paths.index(PATHS[2]) == 2
    assert paths.texts() == [str(path) for path in PATHS]
    assert list(zip(paths, range(4), strict=True))[3] == (PATHS[3], 3)


@pytest.mark.parametrize("index", [4, -5, 10**9])
def test_an_index_too_far(paths, index):
    with pytest.raises(IndexError):
        paths[index]


@pytest.mark.parametrize("cut", [slice(1, 3), slice(None, None, -1), slice(-2, None), slice(3, 1), slice(0, 99, 2)])
def test_slices(paths, cut):
    assert isinstance(paths[cut], PathList)
    assert list(paths[cut]) == PATHS[cut]


def test_equality(paths):
    assert paths == PathList(map(str, PATHS))
    assert paths == PATHS
    assert paths != PATHS[::-1]
    assert paths != PathList(PATHS[:3])
    assert paths != 3
    with pytest.raises(TypeError):
        hash(paths)


def test_take(paths):
    assert list(paths.take([3, 0, 0])) == [PATHS[3], PATHS[0], PATHS[0]]


def test_none(paths):
    assert list(PathList()) == list(PathList([])) == list(paths.take([])) == PathList().texts() == []
    assert len(PathList()) == 0
    with pytest.raises(IndexError):
        PathList()[0]


@pytest.mark.parametrize("given", [PATHS, []])
def test_it_travels(given):
    paths = PathList(given)
    assert pickle.loads(pickle.dumps(paths)) == paths == PathList.from_buffer(paths.buffer)


def test_it_is_small():
    names = [f"/datasets/coco/images/train2017/{number:012}.jpg" for number in range(1000)]
    assert len(pickle.dumps(PathList(names))) < 1000 * (len(names[0]) + 10)

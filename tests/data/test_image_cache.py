"""Caches of images: what happens where they do not fit."""

import gc
import logging

import numpy as np
import pytest
import torch

from data import image_cache
from data.dataset import DetectionDataset, Draw

SIZE = 64


@pytest.fixture
def annotations(make_annotations):
    """Three images of noise without objects, each of 12,288 bytes."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(3)]
    return make_annotations(images, [np.zeros((0, 4))] * 3, [()] * 3)


@pytest.mark.parametrize("error", [OSError("12288 requested and 5 written"), OSError(28, "No space left on device")])
def test_a_disk_that_fills_is_told_once_and_used_no_further(annotations, tmp_path, monkeypatch, caplog, error):
    folder = tmp_path / "cache"
    dataset = DetectionDataset(annotations, SIZE, cache="disk", cache_folder=folder)
    plain = DetectionDataset(annotations, SIZE)
    kept = dataset[Draw(0)].image
    (file,) = folder.iterdir()

    def fill(path, _image):
        path.write_bytes(b"a part")
        raise error

    monkeypatch.setattr(np, "save", fill)
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            assert torch.equal(dataset[Draw(index)].image, plain[Draw(index)].image)
    assert torch.equal(kept, plain[Draw(0)].image)
    assert list(folder.iterdir()) == [file]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"--cache disk: {folder}")
    assert (error.strerror or str(error)) in record.getMessage()


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_data_sets_share_the_room_until_they_are_gone(annotations, cache, tmp_path, monkeypatch, caplog):
    room = 2.5 * 3 * 12_288
    monkeypatch.setattr(image_cache, "_GRANTED", type(image_cache._GRANTED)())
    monkeypatch.setattr(image_cache, "_memory_bytes", lambda: room / image_cache.MEMORY_SHARE)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": room}))
    kept = []

    def warnings_of_another():
        caplog.clear()
        kept.append(DetectionDataset(annotations, SIZE, cache=cache, cache_folder=tmp_path / "cache"))
        return [record.getMessage() for record in caplog.records]

    assert warnings_of_another() == warnings_of_another() == []
    (warning,) = warnings_of_another()
    assert warning.startswith(f"--cache {cache}: 0.0 GB of images, beside 0.0 GB of other splits, do not fit in")
    kept.clear()
    gc.collect()
    assert warnings_of_another() == []


def test_files_of_an_earlier_run_need_no_room_on_the_disk(annotations, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache"
    first = DetectionDataset(annotations, SIZE, cache="disk", cache_folder=folder)
    for index in range(2):
        first[Draw(index)]
    del first
    gc.collect()
    monkeypatch.setattr(image_cache, "_GRANTED", type(image_cache._GRANTED)())
    usage = {"free": 12_288}
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _folder: type("Usage", (), usage))
    again = DetectionDataset(annotations, SIZE, cache="disk", cache_folder=folder)
    again[Draw(2)]
    assert len(list(folder.iterdir())) == 3
    assert not caplog.records
    usage["free"] = 12_287
    next(folder.iterdir()).unlink()
    DetectionDataset(annotations, SIZE, cache="disk", cache_folder=folder)
    assert len(caplog.records) == 1

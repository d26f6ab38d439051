"""Caches of images: they change nothing, notice changed files, and are left out where they do not fit."""

import gc
import logging
import os

import numpy as np
import pytest
import torch

from data import image_cache
from data.dataset import DetectionDataset, Draw
from tests.data.painting import ALL, six_pictures

SIZE = 64


@pytest.fixture
def annotations(make_annotations):
    return six_pictures(make_annotations)


@pytest.fixture
def noise(make_annotations):
    """Three images of noise without objects, each of 12,288 bytes."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(3)]
    return make_annotations(images, [np.zeros((0, 4))] * 3, [()] * 3)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_change_nothing_and_write_nothing_beside_the_images(annotations, cache, tmp_path):
    pictures = sorted(path.name for path in annotations.paths[0].parent.iterdir())
    told = []
    folder = tmp_path.parent / f"{tmp_path.name} cache"
    plain = DetectionDataset(annotations, SIZE, augmentation=ALL)
    cached = DetectionDataset(
        annotations,
        SIZE,
        augmentation=ALL,
        cache=cache,
        cache_folder=folder,
        progress=lambda done, total: told.append((done, total)),
    )
    for _ in range(2):  # filled, then used
        for index in range(6):
            assert torch.equal(cached[Draw(index, 7)].image, plain[Draw(index, 7)].image)
    assert sorted(path.name for path in annotations.paths[0].parent.iterdir()) == pictures
    if cache == "ram":
        assert told == [(done, 6) for done in range(1, 7)]
        assert not folder.exists()
    else:
        assert len(list(folder.iterdir())) == len(list(folder.glob("*.npy"))) == 6


def test_disk_cache_is_used_and_notices_a_changed_file(annotations, tmp_path):
    folder = tmp_path / "cache"
    dataset = DetectionDataset(annotations, SIZE, cache="disk", cache_folder=folder)
    before = dataset[Draw(0)].image
    (file,) = folder.iterdir()
    np.save(file, np.full_like(np.load(file), 9))
    assert (dataset[Draw(0)].image == 9).any()
    image = annotations.paths[0]
    os.utime(image, ns=(1, 1))
    assert torch.equal(dataset[Draw(0)].image, before)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cache_that_does_not_fit_is_told_and_left_out(annotations, cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_cache, "_memory_bytes", lambda: 1000)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 500}))
    with caplog.at_level(logging.WARNING):
        dataset = DetectionDataset(annotations, SIZE, cache=cache, cache_folder=tmp_path / "cache")
    assert f"--cache {cache}" in caplog.text
    assert "do not fit" in caplog.text
    assert dataset[Draw(0)].image.shape == (3, SIZE, SIZE)


def test_memory_is_told_in_bytes():
    assert 1e8 < image_cache._memory_bytes() < 1e14


@pytest.mark.parametrize("error", [OSError("12288 requested and 5 written"), OSError(28, "No space left on device")])
def test_a_disk_that_fills_is_told_once_and_used_no_further(noise, tmp_path, monkeypatch, caplog, error):
    folder = tmp_path / "cache"
    dataset = DetectionDataset(noise, SIZE, cache="disk", cache_folder=folder)
    plain = DetectionDataset(noise, SIZE)
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
def test_data_sets_share_the_room_until_they_are_gone(noise, cache, tmp_path, monkeypatch, caplog):
    room = 2.5 * 3 * 12_288
    monkeypatch.setattr(image_cache, "_GRANTED", type(image_cache._GRANTED)())
    monkeypatch.setattr(image_cache, "_memory_bytes", lambda: room / image_cache.MEMORY_SHARE)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": room}))
    kept = []

    def warnings_of_another():
        caplog.clear()
        kept.append(DetectionDataset(noise, SIZE, cache=cache, cache_folder=tmp_path / "cache"))
        return [record.getMessage() for record in caplog.records]

    assert warnings_of_another() == warnings_of_another() == []
    (warning,) = warnings_of_another()
    assert warning.startswith(f"--cache {cache}: 0.0 GB of images, beside 0.0 GB of other splits, do not fit in")
    kept.clear()
    gc.collect()
    assert warnings_of_another() == []


def test_files_of_an_earlier_run_need_no_room_on_the_disk(noise, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache"
    first = DetectionDataset(noise, SIZE, cache="disk", cache_folder=folder)
    for index in range(2):
        first[Draw(index)]
    del first
    gc.collect()
    monkeypatch.setattr(image_cache, "_GRANTED", type(image_cache._GRANTED)())
    usage = {"free": 12_288}
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _folder: type("Usage", (), usage))
    again = DetectionDataset(noise, SIZE, cache="disk", cache_folder=folder)
    again[Draw(2)]
    assert len(list(folder.iterdir())) == 3
    assert not caplog.records
    usage["free"] = 12_287
    next(folder.iterdir()).unlink()
    DetectionDataset(noise, SIZE, cache="disk", cache_folder=folder)
    assert len(caplog.records) == 1

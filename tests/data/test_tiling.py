"""Tiles of large images for training: where they lie, what they show, and how much of an object makes a label."""

import numpy as np
import pytest
import torch

from data.augment import Augmentation
from data.dataset import Draw
from data.images import read_image
from data.loader import make_loader
from data.tiling import TrainingTiles, WholeImages, dataset_kind, typical_scale
from tests.data.painting import find, paint, random_boxes
from utils.boxes import GREY, xywh_to_xyxy

SIZE = 128
PLAIN = Augmentation()


@pytest.fixture
def annotations(make_annotations):
    """A large picture, a wide one, one smaller than a tile, and a large one without objects."""
    rng = np.random.default_rng(0)
    sizes = [(500, 400), (700, 90), (60, 50), (300, 300)]
    boxes = [random_boxes(rng, size, count, sides=(15, 30)) for size, count in zip(sizes, (7, 5, 1, 0), strict=True)]
    classes = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4], [7], []]
    images = [paint(*each) for each in zip(sizes, boxes, classes, strict=True)]
    return make_annotations(images, boxes, classes)


def pixels(item) -> np.ndarray:
    return (xywh_to_xyxy(item.labels[:, 1:]) * SIZE).numpy()


@pytest.mark.parametrize("tile", [128, 64, 200])
def test_labels_lie_on_their_objects_and_every_occupied_tile_shows_one(annotations, tile):
    dataset = TrainingTiles(annotations, SIZE, tile=tile, augmentation=PLAIN)
    assert dataset.cells.occupied <= 13 < len(dataset.cells)
    for number in range(dataset.cells.occupied):
        for seed in range(3):
            item = dataset[Draw(number, (0, seed, number))]
            assert item.image.shape == (3, SIZE, SIZE)
            assert item.geometry is None
            assert len(item.labels) >= 1
            extents = find(item.image.numpy()[::-1].transpose(1, 2, 0))
            for label, box in zip(item.labels[:, 0].tolist(), pixels(item), strict=True):
                np.testing.assert_allclose(box, extents[int(label)], atol=1.6)
                assert annotations.classes[annotations.rows(item.index)].tolist().count(label) == 1


def test_an_epoch_has_a_tile_for_each_occupied_cell_and_a_share_without(annotations):
    dataset = TrainingTiles(annotations, SIZE, tile=100, augmentation=PLAIN, empty=0.25)
    assert len(dataset) == dataset.cells.occupied + round(dataset.cells.occupied / 3)
    empty = [dataset[Draw(number, seed)] for number in range(dataset.cells.occupied, len(dataset)) for seed in range(9)]
    assert {item.index for item in empty} >= {0, 1, 3}
    assert np.mean([len(item.labels) for item in empty]) < 0.5
    seen = np.concatenate([dataset.cells.objects(cell) for cell in range(dataset.cells.occupied)])
    assert sorted(seen) == list(range(13))
    only = TrainingTiles(annotations, SIZE, tile=100, augmentation=PLAIN, empty=0)
    assert len(only) == only.cells.occupied


def test_without_any_object_every_cell_is_drawn(annotations):
    dataset = TrainingTiles(annotations.subset([3]), SIZE, tile=100, augmentation=PLAIN)
    assert len(dataset) == 9
    assert len(dataset[Draw(0, 1)].labels) == 0


@pytest.mark.parametrize(("visible", "kept"), [(0.0, True), (0.45, True), (0.55, False)])
def test_a_cut_box_is_kept_by_its_visible_share(make_annotations, visible, kept, monkeypatch):
    table = make_annotations([paint((256, 128), [(118, 40, 138, 60)], [3])], [[(118, 40, 138, 60)]], [[3]])
    dataset = TrainingTiles(table, SIZE, tile=128, augmentation=PLAIN, visible=visible)
    monkeypatch.setattr(dataset, "_place", lambda *_: (0, 0))
    item = dataset[Draw(0, 1)]
    assert len(item.labels) == kept
    if kept:
        np.testing.assert_allclose(pixels(item), [(118, 40, 128, 60)], atol=1e-3)


def test_outlines_are_cut_like_boxes(make_annotations, monkeypatch):
    box, triangle = (100, 20, 160, 60), np.array([(100, 20), (160, 20), (100, 60)])
    table = make_annotations([paint((256, 128), [box], [3])], [[box]], [[3]], polygons=[triangle])
    dataset = TrainingTiles(table, SIZE, tile=128, augmentation=PLAIN)
    monkeypatch.setattr(dataset, "_place", lambda *_: (0, 0))
    np.testing.assert_allclose(pixels(dataset[Draw(0, 1)]), [(100, 20, 128, 60)], atol=1e-3)


def test_an_image_smaller_than_a_tile_is_padded_not_enlarged(annotations):
    item = TrainingTiles(annotations.subset([2]), SIZE, tile=128, augmentation=PLAIN)[Draw(0, 1)]
    assert (item.image[:, :39] == GREY).all()
    np.testing.assert_array_equal(
        item.image[:, 39:89, 34:94].numpy()[::-1].transpose(1, 2, 0), read_image(annotations.paths[2])
    )


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_seed_and_epoch_alone_decide_what_is_drawn(annotations, cache, workers, tmp_path):
    strength = Augmentation(mosaic=0.5, mixup=0.3, scale=0.3, fliplr=0.5)

    def epochs(**settings):
        dataset = TrainingTiles(annotations, SIZE, tile=100, augmentation=strength, **settings)
        loader = make_loader(dataset, batch_size=4, workers=workers, seed=5, train=True)
        for epoch in range(2):
            loader.set_epoch(epoch)
            yield from loader

    plain = list(epochs())
    for batch, other in zip(plain, epochs(cache=cache, cache_folder=tmp_path / "cache"), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.boxes, other.boxes)
        assert batch.indices == other.indices
    half = len(plain) // 2
    assert not torch.equal(plain[0].images, plain[half].images)


def test_validation_carries_the_whole_image(annotations):
    item = WholeImages(annotations, SIZE, rect=True, cache="ram")[Draw(0)]
    np.testing.assert_array_equal(item.whole.numpy(), read_image(annotations.paths[0]))
    assert item.geometry is not None
    assert max(item.geometry.scaled_wh) == SIZE


def test_the_scale_is_that_of_most_objects(annotations):
    assert annotations.scales(320).tolist() == [320 / 500, 320 / 700, 320 / 60, 320 / 300]
    assert typical_scale(annotations, 320, None) == 320 / 500
    assert typical_scale(annotations, 320, 160) == 2
    assert typical_scale(annotations.subset([3]), 300, None) == 1
    assert isinstance(dataset_kind(None, visible=0, empty=0, train=True), type)

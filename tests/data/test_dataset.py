"""Items: decoding, letterboxes, and the augmented whole."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data import image_cache
from data.augment import Augmentation
from data.dataset import DetectionDataset, Draw
from data.images import read_image
from tests.data.painting import ALL, find, paint, six_pictures
from utils.boxes import unletterbox, xywh_to_xyxy
from utils.options import InputError

SIZE = 128


@pytest.fixture
def annotations(make_annotations):
    return six_pictures(make_annotations)


def picture(item) -> np.ndarray:
    """The item's image as (H, W, 3) BGR again."""
    return item.image.numpy()[::-1].transpose(1, 2, 0)


def pixels(item) -> torch.Tensor:
    """The item's boxes (n, 4) x1, y1, x2, y2 in pixels."""
    height, width = item.image.shape[1:]
    return xywh_to_xyxy(item.labels[:, 1:] * torch.tensor((width, height, width, height)))


@pytest.mark.parametrize("rect", [False, True])
def test_validation_items_are_letterboxed_and_come_back_with_unletterbox(annotations, rect):
    dataset = DetectionDataset(annotations, SIZE, rect=rect)
    assert len(dataset) == 6
    for index in range(len(dataset)):
        item = dataset[Draw(index)]
        assert item.index == index
        assert item.image.dtype == torch.uint8
        assert item.image.permute(1, 2, 0).is_contiguous()  # channels last
        assert item.geometry is not None
        assert item.image.shape == (3, *item.geometry.padded_wh[::-1])
        assert tuple(dataset.shapes_wh[index]) == item.geometry.padded_wh
        assert all(side % 32 == 0 for side in item.geometry.padded_wh)
        assert rect or item.geometry.padded_wh == (SIZE, SIZE)
        span = annotations.rows(index)
        assert item.labels[:, 0].tolist() == annotations.classes[span].tolist()
        extents = find(picture(item))
        for colour, box in zip(item.labels[:, 0].tolist(), pixels(item), strict=True):
            np.testing.assert_allclose(box, extents[int(colour)], atol=1.1)
        original = annotations.boxes[span] + np.pad(annotations.boxes[span, :2], ((0, 0), (2, 0)))
        np.testing.assert_allclose(unletterbox(pixels(item), item.geometry), original, atol=1e-3)


def test_rectangles_are_smaller_than_squares(annotations):
    shapes = DetectionDataset(annotations, SIZE, rect=True).shapes_wh
    # longer side 128 and half a stride before rounding up; the shorter sides become 96, 64, 60, 96, 90, 128
    assert shapes.tolist() == [[160, 128], [160, 96], [96, 160], [160, 128], [160, 128], [160, 160]]


@pytest.mark.parametrize("seed", range(12))
def test_training_items_keep_boxes_on_their_objects(annotations, seed):
    item = DetectionDataset(annotations, SIZE, augmentation=ALL)[Draw(seed % 6, (1, 2, seed))]
    assert item.geometry is None
    assert item.image.shape == (3, SIZE, SIZE)
    extents = find(picture(item))
    for colour in {int(label) for label in item.labels[:, 0]}:  # a mosaic may hold an image, and its colours, twice
        boxes = pixels(item)[item.labels[:, 0] == colour].numpy()
        union = np.concatenate((boxes[:, :2].min(0), boxes[:, 2:].max(0)))
        assert (union[:2] < extents[colour][:2] + 2).all() or len(boxes) < 2
        assert (union[2:] > extents[colour][2:] - 2).all() or len(boxes) < 2


def test_same_draw_same_item_and_no_augmentation_no_change(annotations):
    dataset = DetectionDataset(annotations, SIZE, augmentation=ALL)
    first, again, other = (dataset[draw] for draw in (Draw(2, 5), Draw(2, 5), Draw(2, 6)))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.image, other.image)
    plain, validation = (
        DetectionDataset(annotations, SIZE, augmentation=Augmentation()),
        DetectionDataset(annotations, SIZE),
    )
    for index in range(6):
        assert torch.equal(plain[Draw(index)].image, validation[Draw(index)].image)
        np.testing.assert_allclose(plain[Draw(index)].labels, validation[Draw(index)].labels, atol=1e-6)


def test_rectangular_training_flips_and_recolours_only(annotations):
    strength = Augmentation(degrees=30, mosaic=1, mixup=1, fliplr=1, flipud=1)
    training = DetectionDataset(annotations, SIZE, augmentation=strength, rect=True)
    validation = DetectionDataset(annotations, SIZE, rect=True)
    for index in range(6):
        turned, upright = training[Draw(index)], validation[Draw(index)]
        assert torch.equal(turned.image, upright.image.flip(1, 2))
        centre, size = turned.labels[:, 1:3], turned.labels[:, 3:]
        torch.testing.assert_close(centre, 1 - upright.labels[:, 1:3])
        torch.testing.assert_close(size, upright.labels[:, 3:])


def test_mosaic_and_mixup_bring_other_images(annotations):
    mosaic = DetectionDataset(annotations, SIZE, augmentation=Augmentation(mosaic=1, scale=0.5))
    counts = [len(mosaic[Draw(0, seed)].labels) for seed in range(10)]
    assert max(counts) >= 4
    both = DetectionDataset(annotations, SIZE, augmentation=Augmentation(mixup=1))
    assert [len(both[Draw(0, seed)].labels) for seed in range(4)] == [4] * 4


def test_crowd_regions_are_left_out_and_outlines_stay_with_their_boxes(make_annotations):
    boxes = np.array([[10, 10, 40, 40], [50, 50, 90, 90], [60, 10, 100, 40]])
    images = [paint((SIZE, SIZE), boxes, [1, 2, 4])]
    triangle = np.array([(60, 10), (100, 10), (80, 40)])
    table = make_annotations(
        images,
        [boxes],
        [[1, 2, 4]],
        crowd=[False, True, False],
        polygons=[boxes[0].reshape(2, 2), np.zeros((0, 2)), triangle],
    )
    assert DetectionDataset(table, SIZE)[Draw(0)].labels[:, 0].tolist() == [1, 4]
    dataset = DetectionDataset(table, 2 * SIZE, augmentation=Augmentation())
    assert dataset[Draw(0)].labels[:, 0].tolist() == [1, 4]
    sample = dataset._letterboxed(0, dataset._letterboxes[0], dataset._images.read)
    assert sample.polygons is not None
    assert sample.polygons[1].tolist() == (2 * triangle).tolist()
    np.testing.assert_array_equal(sample.boxes[1], [120, 20, 200, 80])


@pytest.mark.parametrize(("size_wh", "reduce"), [((1024, 513), 8), ((1000, 600), 4), ((500, 500), 2), ((250, 200), 1)])
def test_training_decodes_large_jpegs_at_reduced_scale(make_annotations, monkeypatch, size_wh, reduce):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), size_wh, interpolation=cv2.INTER_CUBIC)
    annotations = make_annotations([smooth], [np.zeros((0, 4))], [()])
    path = annotations.paths[0].with_suffix(".jpg")
    cv2.imwrite(str(path), smooth)
    annotations = replace(annotations, paths=[path])
    asked = []
    monkeypatch.setattr(
        image_cache, "read_image", lambda path, reduce: asked.append(reduce) or read_image(path, reduce)
    )
    training = DetectionDataset(annotations, SIZE, augmentation=Augmentation())[Draw(0)].image
    exact = DetectionDataset(annotations, SIZE)[Draw(0)].image
    assert asked == [reduce, 1]
    assert (training.float() - exact.float()).abs().mean() < 1.5
    cv2.imwrite(str(path), smooth[:-8])
    with pytest.raises(InputError, match=r"pixels now, was"):
        DetectionDataset(annotations, SIZE, augmentation=Augmentation())[Draw(0)]


def test_an_image_replaced_by_another_size_is_refused(annotations):
    cv2.imwrite(str(annotations.paths[1]), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"picture 001\.png: is \(10, 10\) pixels now, was \(200, 100\)"):
        DetectionDataset(annotations, SIZE)[Draw(1)]

"""Batches: contents, order, and independence of the workers."""

import pickle

import numpy as np
import pytest
import torch

from data.augment import Augmentation
from data.dataset import DetectionDataset, Draw
from data.images import read_header
from data.loader import Batch, ShapeSampler, collate, make_loader
from tests.data.painting import paint
from utils.options import InputError

SIZE = 64
STRENGTH = Augmentation(hsv_h=0.1, hsv_s=0.5, hsv_v=0.4, scale=0.5, fliplr=0.5, mosaic=0.8, mixup=0.3)


@pytest.fixture
def annotations(make_annotations):
    """Ten pictures of three shapes with 0, 1 or 2 boxes."""
    sizes = [(64, 48), (48, 64), (64, 64)]
    boxes = [np.array([[8, 8, 24, 32], [30, 10, 46, 40]])[: number % 3] for number in range(10)]
    classes = [(number % 8, 7)[: number % 3] for number in range(10)]
    images = [paint(sizes[number % 3], boxes[number], classes[number]) for number in range(10)]
    return make_annotations(images, boxes, classes)


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.boxes, second.boxes)
        and first.indices == second.indices
        and first.geometries == second.geometries
    )


def test_a_batch_holds_shares_of_its_padded_images(annotations):
    (batch,) = make_loader(DetectionDataset(annotations, SIZE), batch_size=16, workers=0, train=False)
    assert batch.images.shape == (10, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8
    assert batch.boxes.dtype == torch.float32
    assert batch.indices == list(range(10))
    assert batch.boxes[:, 0].tolist() == [1, 2, 2, 4, 5, 5, 7, 8, 8]
    assert batch.boxes[:, 1].tolist() == [1, 2, 7, 4, 5, 7, 7, 0, 7]
    # picture 1 is 48 x 64: padded by 8 on the left; picture 4 likewise
    expected = [(8 + 8 + 8) / 64, 20 / 64, 16 / 64, 24 / 64]
    torch.testing.assert_close(batch.boxes[[0, 3], 2:], torch.tensor([expected, expected]))
    assert [geometry.pad_wh for geometry in batch.geometries[:3]] == [(0, 8), (8, 0), (0, 0)]


def test_to_scales_once_and_turns_colours_to_rgb(make_annotations):
    blue = np.full((SIZE, SIZE, 3), (255, 51, 0), np.uint8)
    dataset = DetectionDataset(make_annotations([blue], [np.zeros((0, 4))], [()]), SIZE)
    batch = collate([dataset[Draw(0)]])
    assert batch.boxes.shape == (0, 6)
    moved = batch.to("cpu", memory_format=torch.channels_last)
    assert moved.images.dtype == torch.float32
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved.images[0, :, 0, 0], torch.tensor([0, 0.2, 1]))
    assert batch.images.dtype == torch.uint8
    with pytest.raises(AssertionError, match="scaled already"):
        moved.to("cpu")


@pytest.mark.parametrize("rect", [False, True])
def test_workers_give_the_batches_of_the_main_process(annotations, rect):
    def epochs(workers):
        dataset = DetectionDataset(annotations, SIZE, augmentation=STRENGTH, rect=rect)
        loader = make_loader(dataset, batch_size=4, workers=workers, seed=3, train=True)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            yield list(loader)

    alone, helped = list(epochs(0)), list(epochs(2))
    for one, other in zip(alone, helped, strict=True):
        assert len(one) == len(other)
        assert all(same(*pair) for pair in zip(one, other, strict=True))
    assert [batch.indices for batch in alone[0]] != [batch.indices for batch in alone[1]]


def test_training_order_depends_on_seed_and_epoch_only(annotations):
    def draws(seed, epoch):
        sampler = ShapeSampler(np.full((100, 2), SIZE), np.ones(100), 8, seed=seed, shuffle=True)
        list(sampler)
        sampler.epoch = epoch
        return list(sampler)

    assert draws(0, 1) == draws(0, 1)
    assert draws(0, 1) != draws(0, 2)
    assert draws(0, 1) != draws(1, 1)
    batches = draws(5, 3)
    assert sorted(draw.image for batch in batches for draw in batch) == list(range(100))
    assert len({draw.seed for batch in batches for draw in batch}) == 100
    assert all(draw.seed[:2] == (5, 3) for batch in batches for draw in batch)
    assert sorted(len(batch) for batch in batches) == [4] + [8] * 12


def test_weights_draw_with_replacement():
    sampler = ShapeSampler(np.full((50, 2), SIZE), np.ones(50), 8, seed=0, shuffle=True)
    weights = np.zeros(50)
    weights[[3, 7]] = 1, 3
    sampler.weights = weights
    counts = np.zeros(50, int)
    for epoch in range(20):
        sampler.epoch = epoch
        for batch in sampler:
            np.add.at(counts, [draw.image for draw in batch], 1)
    assert counts.sum() == 1000
    assert counts[3] + counts[7] == 1000
    assert counts[7] == pytest.approx(750, abs=60)


@pytest.mark.parametrize(("batch_size", "count"), [(2, 8), (8, 16), (16, 16), (40, 40)])
def test_partners_of_a_training_batch_are_its_own_images_and_few_more(batch_size, count):
    sampler = ShapeSampler(np.full((160, 2), SIZE), np.ones(160), batch_size, shuffle=True)
    sampler.weights = np.arange(160.0) % 2  # the further ones are drawn by weight, too
    for batch in sampler:
        (partners,) = {draw.partners for draw in batch}
        assert list(partners[:batch_size]) == [draw.image for draw in batch]
        assert len(partners) == count
        assert all(partner % 2 for partner in partners)


def test_a_batch_of_mosaics_reads_each_image_once(annotations, monkeypatch):
    dataset = DetectionDataset(annotations, SIZE, augmentation=Augmentation(mosaic=1, mixup=1))
    read, seen = dataset._images.read, []
    monkeypatch.setattr(dataset._images, "read", lambda index: seen.append(index) or read(index))
    draws = [Draw(image, (0, image), None, (1, 2, 3, 4)) for image in (1, 2, 3, 4)]
    items = dataset.__getitems__(draws)
    assert sorted(seen) == [1, 2, 3, 4]
    assert all(torch.equal(item.image, dataset[draw].image) for item, draw in zip(items, draws, strict=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_have_one_shape_and_lose_no_image(shuffle):
    rng = np.random.default_rng(0)
    shapes, ratios = rng.choice([64, 96, 128], (203, 2)), rng.random(203)
    sampler = ShapeSampler(shapes, ratios, 8, shuffle=shuffle)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 26
    images = [[draw.image for draw in batch] for batch in batches]
    assert sorted(image for batch in images for image in batch) == list(range(203))
    for batch, members in zip(batches, images, strict=True):
        assert {draw.padded_wh for draw in batch} == {tuple(shapes[members].max(0))}
    flat = ratios[[image for batch in images for image in batch]]
    assert (np.diff(flat) >= 0).all() is not shuffle
    assert all((np.diff(ratios[members]) >= 0).all() for members in images)


def test_an_image_alone_in_its_batch_has_its_own_shape(annotations):
    dataset = DetectionDataset(annotations, SIZE, rect=True)
    for batch in make_loader(dataset, batch_size=1, workers=0, train=False):
        alone = dataset[Draw(batch.indices[0])]
        assert torch.equal(batch.images[0], alone.image)
        assert batch.geometries[0] == alone.geometry


def test_a_batch_pads_images_and_moves_their_boxes_along(annotations):
    dataset = DetectionDataset(annotations, SIZE, rect=True)
    (batch,) = make_loader(dataset, batch_size=10, workers=0, train=False)
    padded = torch.tensor(batch.images.shape[:1:-1] * 2)
    for place, index in enumerate(batch.indices):
        alone = dataset[Draw(index)]
        own = torch.tensor(alone.image.shape[:0:-1] * 2)
        moved = torch.tensor(batch.geometries[place].pad_wh) - torch.tensor(alone.geometry.pad_wh)
        expected = alone.labels[:, 1:] * own + torch.cat((moved, torch.zeros(2)))
        found = batch.boxes[batch.boxes[:, 0] == place, 2:] * padded
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("vanished", "reason"),
    [(True, "cannot be read: No such file or directory"), (False, "not an image that OpenCV can decode")],
)
def test_a_vanished_or_broken_image_is_told_in_one_line_with_what_to_do(annotations, workers, vanished, reason):
    path = annotations.paths[4]
    if vanished:
        path.unlink()
    else:
        content = path.read_bytes()
        start = content.index(b"IDAT") + 4
        path.write_bytes(content[:start] + bytes(len(content) - start - 12) + content[-12:])
        assert read_header(path).is_whole
    loader = make_loader(DetectionDataset(annotations, SIZE), batch_size=4, workers=workers, train=False)
    with pytest.raises(InputError) as caught:
        list(loader)
    advice = "python -m data.check DATA finds all such images, with --write FOLDER it makes a copy without them"
    assert str(caught.value) == f"{path}: {reason}; {advice}"


def test_what_workers_are_sent_can_be_pickled(annotations, tmp_path):
    for cache in (None, "ram", "disk"):
        dataset = DetectionDataset(
            annotations, SIZE, augmentation=STRENGTH, cache=cache, cache_folder=tmp_path / "cache"
        )
        loader = make_loader(dataset, batch_size=4, workers=1, train=True)
        sent = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
        assert torch.equal(sent[0][Draw(3, 1)].image, dataset[Draw(3, 1)].image)


def test_no_more_workers_than_batches(annotations):
    dataset = DetectionDataset(annotations, SIZE)
    assert make_loader(dataset, batch_size=16, workers=8, train=False).num_workers <= 1

"""Tiles: they cover the image, merging equals a plain loop, and what an edge cuts is found once."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from data.dataset import letterboxed_item
from data.loader import Batch, collate, make_loader
from data.tiling import WholeImages
from utils.boxes import suppress, unletterbox
from utils.engine import NmsSettings, Prediction, Stopwatch
from utils.options import InputError
from utils.tiles import TiledPredictor, Tiling, merge_parts, tile_side, windows
from utils.validation import validate

LIGHT = 200


@pytest.mark.parametrize("image_wh", [(1000, 700), (640, 640), (641, 5000), (100, 90), (333, 64)])
@pytest.mark.parametrize(("tile", "overlap"), [(640, 0.2), (64, 0.0), (64, 0.9), (33, 0.25)])
def test_tiles_cover_every_pixel_and_overlap(image_wh, tile, overlap):
    cells = windows(image_wh, tile, overlap)
    count = np.zeros(image_wh[::-1], np.int32)
    for x, y, width, height in cells:
        assert (width, height) == (min(tile, image_wh[0]), min(tile, image_wh[1]))
        assert x + width <= image_wh[0]
        assert y + height <= image_wh[1]
        count[y : y + height, x : x + width] += 1
    assert count.min() == 1 if overlap < 0.5 else count.min() >= 1
    for axis, side in enumerate(image_wh):
        begins = sorted({cell[axis] for cell in cells})
        assert begins[0] == 0
        assert begins[-1] == max(side - tile, 0)
        assert all(b - a <= max(int(tile * (1 - overlap)), 1) for a, b in itertools.pairwise(begins))


def test_no_more_tiles_than_needed():
    assert windows((1152, 640), 640, 0.2) == [(0, 0, 640, 640), (512, 0, 640, 640)]
    assert len(windows((1153, 640), 640, 0.2)) == 3


def overlaps(a, b, *, either_cut: bool) -> bool:
    """Whether two boxes are one object, by the definition."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return False
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    if either_cut:
        return wide * high / min(area_a, area_b) > 0.5
    return wide * high / (area_a + area_b - wide * high) > 0.6


def merge_box_after_box(found: Tensor, cut: Tensor, agnostic: bool) -> tuple[list[list[float]], list[bool]]:
    """Greedy merging as a plain loop, until nothing matches any more."""
    left = sorted(zip(found.tolist(), cut.tolist(), strict=True), key=lambda each: -each[0][4])
    merged, still_cut = [], []
    while left:
        (keeper, keeper_cut), *others = left
        left, grown, parts = [], list(keeper), [keeper_cut]
        for box, box_cut in others:
            same = agnostic or box[5] == keeper[5]
            if not (same and overlaps(keeper, box, either_cut=keeper_cut or box_cut)):
                left.append((box, box_cut))
            elif keeper_cut and box[4] >= 0.5 * keeper[4]:
                grown[:2] = min(grown[0], box[0]), min(grown[1], box[1])
                grown[2:4] = max(grown[2], box[2]), max(grown[3], box[3])
                parts.append(box_cut)
        merged.append(grown)
        still_cut.append(all(parts))
    if len(merged) == len(found):
        return merged, still_cut
    return merge_box_after_box(torch.tensor(merged).reshape(-1, 6), torch.tensor(still_cut), agnostic)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("cut_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("count", "extent", "seed"), [(0, 9, 0), (1, 9, 1), (40, 30, 2), (300, 100, 3), (400, 400, 4)])
def test_merging_equals_a_plain_loop(count, extent, seed, cut_share, agnostic, monkeypatch):
    monkeypatch.setattr("utils.tiles.PAIRS_AT_ONCE", 5000)
    rng = torch.Generator().manual_seed(seed)
    low, size = torch.rand(count, 2, generator=rng) * extent, torch.rand(count, 2, generator=rng) * 30 + 1
    labels = torch.randint(0, 3, (count, 1), generator=rng)
    found = torch.cat((low, low + size, torch.rand(count, 1, generator=rng), labels), 1)
    cut = torch.rand(count, generator=rng) < cut_share
    merged = merge_parts(found, cut, iou=0.6, agnostic=agnostic)
    expected = torch.tensor(merge_box_after_box(found, cut, agnostic)[0]).reshape(-1, 6)
    torch.testing.assert_close(merged, expected)
    assert count < 300 or 1 < len(merged) < count


def test_merging_of_whole_boxes_is_suppression():
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(200, 2, generator=rng) * 60
    found = torch.cat((low, low + 20, torch.rand(200, 1, generator=rng), torch.zeros(200, 1)), 1)
    merged = merge_parts(found, torch.zeros(200, dtype=torch.bool), iou=0.4, agnostic=False)
    torch.testing.assert_close(
        merged, suppress(found[found[:, 4].argsort(descending=True)], iou=0.4, agnostic=False, max_det=200)
    )


class Finder:
    """Stands in for a Predictor: finds the light blobs of an image, and is surer of large ones."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.watch = Stopwatch(self.device)
        self.settings = NmsSettings()
        self.model = type("Model", (), {"max_stride": 32})
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, batch: Batch) -> Prediction:
        self.batches.append(tuple(batch.images.shape))
        padded = [self.find(image[0].numpy()) for image in batch.images]
        original = [
            torch.cat((unletterbox(rows[:, :4], geometry), rows[:, 4:]), 1)
            for rows, geometry in zip(padded, batch.geometries, strict=True)
        ]
        return Prediction(padded, original, [])

    def find(self, image: np.ndarray) -> Tensor:
        *_, stats, _ = cv2.connectedComponentsWithStats((image > LIGHT).astype(np.uint8))
        x, y, width, height, area = torch.from_numpy(stats[1:]).float().T
        return torch.stack((x, y, x + width, y + height, 1 - 1 / area, torch.zeros_like(x)), 1)


def scene(size_wh, boxes) -> np.ndarray:
    image = np.full((size_wh[1], size_wh[0], 3), 90, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 255
    return image


def found_in(image, **tiling) -> Tensor:
    predictor = TiledPredictor(Finder(), Tiling(**{"tile": 128, "batch_size": 3, **tiling}), 128)
    rows = predictor(collate([letterboxed_item(image, 128, 32)])).original[0]
    return rows[rows[:, :2].sum(1).argsort()]


@pytest.mark.parametrize(
    "box",
    [
        (60, 40, 90, 80),  # within one tile only
        (100, 30, 128, 60),  # ends at the first tile's edge
        (120, 110, 140, 150),  # cut by edges, whole in another tile
        (110, 20, 180, 100),  # whole in none: wider than the overlap
        (0, 0, 30, 30),
        (300, 200, 333, 222),
    ],
)
def test_an_object_is_found_once_wherever_edges_cut_it(box):
    rows = found_in(scene((333, 222), [box]), full=False)
    assert rows[:, :4].tolist() == [list(box)]


def test_what_no_tile_can_hold_is_found_in_the_whole_image():
    image = scene((512, 512), [(64, 64, 448, 448)])
    assert len(found_in(image, full=False)) > 1
    assert found_in(image)[:, :4].tolist() == [[64, 64, 448, 448]]


def test_tiles_go_through_the_model_in_batches_of_one_shape():
    predictor = TiledPredictor(Finder(), Tiling(tile=100, overlap=0.1, batch_size=4), 200)
    told = []
    predictor.on_tiles = lambda *numbers: told.append(numbers)
    predictor(collate([letterboxed_item(scene((280, 60), []), 200, 32)]))
    assert predictor.predictor.batches == [(1, 3, 64, 224), (3, 3, 128, 224)]  # doubled: 200 x 120, padded
    predictor.predictor.batches.clear()
    predictor(collate([letterboxed_item(scene((280, 280), []), 200, 32)]))
    assert [batch[0] for batch in predictor.predictor.batches] == [1, 4, 4, 1]
    assert told == [(3, 3), (4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize(
    ("size_wh", "full", "passes"), [((100, 60), True, 1), ((100, 60), False, 1), ((80, 60), True, 2)]
)
def test_an_image_of_one_tile_is_looked_at_once(size_wh, full, passes):
    predictor = TiledPredictor(Finder(), Tiling(tile=100, full=full), 128)
    predictor(collate([letterboxed_item(scene(size_wh, []), 128, 32)]))
    assert len(predictor.predictor.batches) == passes


def test_suppression_drops_repeats_but_leaves_parts():
    image = scene((222, 128), [(98, 40, 120, 60), (20, 20, 40, 40)])  # the first is whole in both tiles
    assert found_in(image, merge="nms", full=False)[:, :4].tolist() == [[20, 20, 40, 40], [98, 40, 120, 60]]
    image = scene((222, 128), [(90, 40, 130, 60)])
    assert found_in(image, merge="nms", full=False)[:, :4].tolist() == [[90, 40, 128, 60], [94, 40, 130, 60]][:1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_perfect_predictor_has_perfect_figures(make_annotations, workers):
    rng = np.random.default_rng(0)
    sizes, boxes = [(500, 300), (128, 96), (210, 400)], []
    for width, height in sizes:
        cells = np.array([(x, y) for x in range(0, width - 49, 50) for y in range(0, height - 49, 50)])
        low = cells + rng.integers(1, 8, cells.shape)
        boxes.append(np.concatenate((low, low + rng.integers(8, 41, cells.shape)), 1))
    table = make_annotations(
        [scene(*each) for each in zip(sizes, boxes, strict=True)], boxes, [np.zeros(len(each)) for each in boxes]
    )
    loader = make_loader(WholeImages(table, 128, rect=True), batch_size=1, workers=workers, train=False)
    for full, least in ((False, 1.0), (True, 0.9)):  # the whole image is seen with less than its pixels
        report = validate(TiledPredictor(Finder(), Tiling(tile=128, full=full), 128), loader, table)
        assert report.metrics.figures["AP50"] == pytest.approx(1)
        assert report.metrics.figures["AP"] >= least - 1e-9


@pytest.mark.parametrize("text", ["large", "16", "-640", "6.4", "0"])
def test_a_tile_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=f"--tile {text}: expected pixels, 32 or more, or 'auto'"):
        tile_side(text, 640, Path("any.pt"))

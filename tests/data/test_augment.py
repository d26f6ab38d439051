"""Boxes are painted, augmented, and found again by their colour."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from data import augment
from data.augment import Augmentation, Sample, Tile
from data.polygons import Polygons
from tests.data.painting import COLOURS, find, paint, random_boxes
from utils.boxes import GREY

SIZE = 160
SEEDS = range(6)


def painted(rng, size_wh=(SIZE, 120), colours=(0, 1), outlined=False) -> Sample:
    """A sample whose boxes' classes are the colours they are painted in."""
    boxes = random_boxes(rng, size_wh, len(colours))
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    polygons = Polygons(corners.astype(np.float32), np.full(len(boxes), 4)) if outlined else None
    return Sample(paint(size_wh, boxes, colours), boxes.astype(np.float32), np.array(colours), polygons)


def four(rng, outlined=False) -> list[Sample]:
    sizes = [(SIZE, 120), (100, SIZE), (SIZE, SIZE), (SIZE, 90)]
    return [painted(rng, size, (2 * tile, 2 * tile + 1), outlined) for tile, size in enumerate(sizes)]


def iou(first, second) -> float:
    overlap = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
    return overlap / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - overlap)


def check(sample: Sample, tolerance, least_iou=1.0) -> int:
    """Every box is where its colour is, and no colour of size is without a box; how many boxes there are.

    The tip of a sharp corner has less than half of its colour in its pixels: there, `least_iou` is enough.
    """
    extents = find(sample.image)
    assert len(set(sample.classes.tolist())) == len(sample.classes) == len(sample.boxes)
    for colour, box in zip(sample.classes.tolist(), sample.boxes, strict=True):
        extent = extents.pop(colour)
        assert np.abs(box - extent).max() <= tolerance or iou(box, extent) > least_iou, (colour, box, extent)
    for lost in extents.values():
        assert (lost[2:] - lost[:2]).prod() < 300 or (lost[2:] - lost[:2]).min() < 6, lost
    return len(sample.boxes)


@pytest.mark.parametrize("seed", SEEDS)
def test_mosaic_keeps_boxes_on_their_objects_to_the_pixel(seed):
    rng = np.random.default_rng(seed)
    result = augment.warp(augment.mosaic(four(rng), SIZE, rng), np.eye(3), 2 * SIZE)
    assert result.image.shape == (2 * SIZE, 2 * SIZE, 3)
    assert check(result, tolerance=0) >= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_mosaic_is_cut_to_its_middle(seed):
    rng = np.random.default_rng(seed)
    tiles = augment.mosaic(four(rng), SIZE, rng)
    canvas = augment.warp(tiles, np.eye(3), 2 * SIZE)
    result = augment.random_perspective(tiles, canvas.size_wh, rng, SIZE, Augmentation())
    middle = slice(SIZE // 2, SIZE // 2 + SIZE)
    np.testing.assert_array_equal(result.image, canvas.image[middle, middle])
    check(result, tolerance=0.01)


GEOMETRIES = {
    "scale": Augmentation(scale=0.5, translate=0.1),
    "rotation": Augmentation(degrees=45),
    "shear": Augmentation(shear=15),
    "perspective": Augmentation(perspective=0.001),
    "all": Augmentation(degrees=20, translate=0.1, scale=0.5, shear=8, perspective=0.0008),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("source", ["single", "mosaic"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_outlined_instances_are_bounded_after_any_warp(geometry, source, seed):
    """The outlines are the painted rectangles' own, so that the box must be the colour's extent, cut or not."""
    rng = np.random.default_rng(seed)
    if source == "mosaic":
        tiles, canvas_wh = augment.mosaic(four(rng, outlined=True), SIZE, rng), (2 * SIZE, 2 * SIZE)
    else:
        tiles, canvas_wh = [Tile(painted(rng, (SIZE, SIZE), range(5), outlined=True))], (SIZE, SIZE)
    result = augment.random_perspective(tiles, canvas_wh, rng, SIZE, GEOMETRIES[geometry])
    assert result.image.shape == (SIZE, SIZE, 3)
    assert check(result, tolerance=2, least_iou=0.9) >= 1
    assert result.polygons is not None
    np.testing.assert_allclose(result.polygons.bounds_xyxy(), result.boxes, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_tiles_warped_one_by_one_look_like_their_canvas_warped_whole(geometry, seed):
    """But for seams and edges, moved to whole pixels by `_stretch` and blended in the whole: no gap between tiles."""
    rng = np.random.default_rng(seed)
    tiles = augment.mosaic(four(rng), SIZE, rng)
    canvas = augment.warp(tiles, np.eye(3), 2 * SIZE)
    matrix = augment.random_matrix(canvas.size_wh, rng, SIZE, GEOMETRIES[geometry])
    parts, whole = augment.warp(tiles, matrix, SIZE), augment.warp([Tile(canvas)], matrix, SIZE)
    difference = np.abs(parts.image.astype(int) - whole.image).max(2)
    assert (difference > 2).mean() < 0.1
    assert (cv2.erode((difference > 90).astype(np.uint8), np.ones((3, 3), np.uint8)) == 0).all()
    np.testing.assert_allclose(parts.boxes, whole.boxes, atol=1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_boxes_enclose_their_objects_after_any_warp(geometry, seed):
    """Without outlines a box is its corners' bounds: the extent itself, unless the border cuts a turned one."""
    rng = np.random.default_rng(seed)
    sample = painted(rng, (SIZE, SIZE), range(5))
    result = augment.random_perspective([Tile(sample)], sample.size_wh, rng, SIZE, GEOMETRIES[geometry])
    extents = find(result.image)
    assert len(result.boxes) >= 2
    for colour, box in zip(result.classes.tolist(), result.boxes, strict=True):
        extent = extents[colour]
        assert (box[:2] < extent[:2] + 1.5).all()
        assert (box[2:] > extent[2:] - 1.5).all()
        if geometry == "scale" or (box.min() > 0 and box.max() < SIZE):
            assert iou(box, extent) > 0.8
            np.testing.assert_allclose(box, extent, atol=2)


def test_warp_is_exact_to_a_fraction_of_a_pixel():
    """Enlarged threefold, the box and the colour's soft edge agree to a quarter pixel: no half-pixel drift."""
    boxes = np.array([[40, 44, 60, 59]])
    sample = Sample(paint((SIZE, SIZE), boxes, [7]), boxes.astype(np.float32), np.array([7]))
    result = augment.warp([Tile(sample)], np.array(((3.0, 0, -80), (0, 3.0, -90), (0, 0, 1))), SIZE)
    np.testing.assert_allclose(result.boxes[0], [40, 42, 100, 87], atol=1e-4)
    white = (result.image[..., 0].astype(float) - GREY) / (255 - GREY)  # coverage, rows and columns through the middle
    row, column = white[65], white[:, 70]
    assert row[:70].sum() == pytest.approx(70 - 40, abs=0.25)
    assert row[70:].sum() == pytest.approx(100 - 70, abs=0.25)
    assert column[:65].sum() == pytest.approx(65 - 42, abs=0.25)
    assert column[65:].sum() == pytest.approx(87 - 65, abs=0.25)


def test_rules_of_dropping():
    boxes = np.array(
        [
            [10, 10, 30, 30],  # stays
            [10, 50, 12, 70],  # 2 wide: too small
            [10, 60, 13, 81],  # 3 wide stays
            [-18, 10, 2.5, 30],  # 2.5 of 20.5 columns are left: stays
            [-28, 40, 2.5, 60],  # 2.5 of 30.5 columns are left: gone
            [200, 10, 220, 30],  # outside
            [0, 90, 160, 90.1],  # a sliver
        ],
        np.float32,
    )
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    result = augment.warp([Tile(Sample(image, boxes, np.arange(7)))], np.eye(3), SIZE)
    assert result.classes.tolist() == [0, 2, 3]
    outlines = Polygons(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2), np.full(7, 4))
    result = augment.warp([Tile(Sample(image, boxes, np.arange(7), outlines))], np.eye(3), SIZE)
    assert result.classes.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("strength", "kept"),
    [
        (Augmentation(), [0, 1]),
        (Augmentation(min_side=12), [0]),
        (Augmentation(min_side=0), [0, 1, 2]),
        (Augmentation(min_visible=0.6), [1]),
        (Augmentation(min_visible=0), [0, 1, 3]),
    ],
)
def test_the_smallest_box_kept_is_the_recipes(strength, kept):
    boxes = np.array([[-20, 10, 20, 60], [50, 50, 60, 70], [80, 80, 81, 81], [155, 10, 255, 60]], np.float32)
    sample = Sample(np.zeros((SIZE, SIZE, 3), np.uint8), boxes, np.arange(4))
    result = augment.warp([Tile(sample)], np.eye(3), SIZE, strength)
    assert result.classes.tolist() == kept


def test_points_behind_the_horizon_leave_the_image_on_their_own_side():
    """Homogeneous coordinate 1 - 0.01 x: from x = 100 on the plane is behind the viewer."""
    matrix = np.array(((1.0, 0, 0), (0, 1, 0), (-0.01, 0, 1)))
    carried = augment.carry(np.array([(50, 10), (99, 10), (150, 10)], np.float32), matrix)
    np.testing.assert_allclose(carried[:2], [(100, 20), (9900, 1000)], rtol=1e-4)
    assert carried[2, 0] > 9900


@pytest.mark.parametrize("flip", [augment.flip_left_right, augment.flip_up_down])
@pytest.mark.parametrize("outlined", [False, True])
def test_flips(flip, outlined):
    sample = painted(np.random.default_rng(1), (SIZE, 121), range(4), outlined)
    before = sample.boxes.copy()
    flipped = flip(sample)
    assert check(flipped, tolerance=0) == 4
    np.testing.assert_array_equal(sample.boxes, before)
    if flipped.polygons is not None:
        np.testing.assert_array_equal(flipped.polygons.bounds_xyxy(), flipped.boxes)
    twice = flip(flipped)
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_array_equal(twice.boxes, sample.boxes)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixup_shows_the_boxes_of_both(seed):
    rng = np.random.default_rng(seed)
    first, second = painted(rng, (SIZE, SIZE), (0, 7)), painted(rng, (SIZE, SIZE), (0, 7))
    result = augment.mixup(first, second, rng)
    assert result.classes.tolist() == [0, 7, 0, 7]
    shares = []
    for sample, other, rows in ((first, second, slice(0, 2)), (second, first, slice(2, 4))):
        np.testing.assert_array_equal(result.boxes[rows], sample.boxes)
        alone = (sample.image != GREY).all(2) & (other.image == GREY).all(2)
        weight = (result.image[alone].astype(float) - GREY) / (sample.image[alone].astype(float) - GREY)
        assert np.ptp(weight) < 0.02
        shares.append(weight.mean())
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert 0.2 < shares[0] < 0.8


def test_hsv_turns_hue_saturation_and_value_separately():
    image = np.full((4, 4, 3), (40, 80, 160), np.uint8)
    sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    before = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[0, 0].astype(int)
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("hsv_h", "hsv_s", "hsv_v")):
        results = [augment.hsv(sample, rng, replace(Augmentation(), **{name: 0.5})).image for _ in range(20)]
        values = np.array([cv2.cvtColor(result, cv2.COLOR_BGR2HSV)[0, 0] for result in results], int)
        factors = values / before
        assert 0.45 < factors[:, channel].min() < 0.8
        assert 1.2 < factors[:, channel].max() < 1.55
        others = [other for other in range(3) if other != channel]
        np.testing.assert_allclose(values[:, others], np.tile(before[others], (20, 1)), atol=5)
    assert (image == (40, 80, 160)).all()
    assert augment.hsv(sample, rng, Augmentation()).image is image


def test_copy_paste_pastes_mirrored_instances_where_they_hide_little():
    boxes = np.array([[5, 10, 35, 40], [100, 60, 130, 90], [30, 62, 64, 88]])
    image = paint((SIZE, 120), boxes, [1, 2, 4])
    outlines = Polygons(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2).astype(np.float32), np.full(3, 4))
    sample = Sample(image, boxes.astype(np.float32), np.array([1, 2, 4]), outlines)
    result = augment.copy_paste(sample, np.random.default_rng(0), 1.0)
    # 1 has room; 2's mirror image would hide 4, and 4's would hide 2
    assert result.classes.tolist() == [1, 2, 4, 1]
    np.testing.assert_array_equal(result.boxes[3], [SIZE - 35, 10, SIZE - 5, 40])
    assert result.polygons is not None
    np.testing.assert_array_equal(result.polygons.bounds_xyxy(), result.boxes)
    x1, y1, x2, y2 = result.boxes[3].astype(int)
    assert (result.image[y1 : y2 - 1, x1 : x2 - 1] == COLOURS[1]).all()
    changed = (result.image != image).any(2)
    assert abs(int(changed.sum()) - 900) < 62  # the outline's own border pixels
    assert augment.copy_paste(sample, np.random.default_rng(0), 0.0) is sample
    assert augment.copy_paste(replace(sample, polygons=None), np.random.default_rng(0), 1.0).boxes.shape == (3, 4)


def test_empty_images_pass_through_everything():
    empty = Sample(
        np.full((120, SIZE, 3), 50, np.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        Polygons(np.zeros((0, 2), np.float32), np.zeros(0, np.int64)),
    )
    rng = np.random.default_rng(0)
    tiles = augment.mosaic([augment.copy_paste(empty, rng, 1.0)] * 4, SIZE, rng)
    sample = augment.random_perspective(tiles, (2 * SIZE, 2 * SIZE), rng, SIZE, GEOMETRIES["all"])
    sample = augment.flip_left_right(augment.flip_up_down(augment.mixup(sample, sample, rng)))
    assert sample.boxes.shape == (0, 4)
    assert sample.boxes.dtype == np.float32


def test_same_seed_same_result():
    def run(seed):
        rng = np.random.default_rng(seed)
        tiles = augment.mosaic(four(rng), SIZE, rng)
        sample = augment.random_perspective(tiles, (2 * SIZE, 2 * SIZE), rng, SIZE, GEOMETRIES["all"])
        return augment.hsv(sample, rng, Augmentation(hsv_h=0.1, hsv_s=0.7, hsv_v=0.4))

    first, again, other = run(3), run(3), run(4)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (first.image != other.image).any()

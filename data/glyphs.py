"""The embedded data set `glyphs`: four kinds of small marks on cluttered ground, drawn on first use, always the same.

Each image has a random stream of its own, so that no image depends on another one, on the order or on the threads.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.options import InputError

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

NAMES: list[str] = ["disc", "ring", "cross", "bar"]  # none is another one's mirror image, so flips keep the class
VERSION = "1"  # to be raised with any change to the pictures
SPLITS = {"train": 512, "val": 128}
SEED = 2024

# What makes the set hard; grey levels where nothing else is said.
IMAGE_SIDE = (256, 320)  # pixels
MARK_SIZE = (9.0, 45.0)  # diameter of disc, ring and cross; a bar is longer by BAR_LENGTH
SMALL_BIAS = 1.3  # 1 draws sizes uniformly in their logarithm, more favours small marks
MAX_MARKS = 14
EMPTY_EVERY = 12  # one image in so many has no mark
TOUCHING_SHARE = 0.12  # of the marks, put against the one before
STRETCH = (0.85, 1.0)  # of a mark across, before it is rotated
CONTRAST = (26.0, 92.0)  # between a mark and the ground under it
COLOUR_CAST = 0.35  # of the contrast, how far a mark's hue strays
FLATNESS = 0.5  # share of the ground's texture that a mark covers
BLUR = (0.3, 1.2)  # sigma, pixels
TEXTURE = (4.0, 13.0)  # standard deviation of the smooth noise
HUE_TEXTURE = 0.4  # of the texture, how far hues stray
PERSISTENCE = (0.45, 0.7)  # amplitude of an octave over that of the next coarser one
GRADIENT = 45.0  # from one end of an image to the other, at most
STROKES = (2, 7)  # long thin curves in an image
STROKE_CONTRAST = (10.0, 34.0)
PANELS = 2  # straight edges in the ground, at most
PANEL_CONTRAST = 16.0
GRAIN = (2.0, 7.0)  # standard deviation of the white noise

BAR_LENGTH, BAR_WIDTH = 1.2, 0.4
RING_HOLE = 0.56
CROSS_ARM = 0.3
JPEG_QUALITY = 92

_OCTAVES = (128, 64, 32, 16, 8)  # pixels
_SUPERSAMPLING = 4
_SUBPIXEL_BITS = 4  # of OpenCV's fixed-point corners
_MARGIN = 4  # pixels around a mark that its blur may reach
_GAP = 3  # pixels that stay free between marks which do not touch
_TRIES = 30
_MARKER = "glyphs.version"


@dataclass(frozen=True)
class Mark:
    """One mark in a patch of its own: `coverage` (h, w) in 0..1 and the tight box x1, y1, x2, y2 in the patch."""

    coverage: Floats
    box: Floats

    @property
    def footprint(self) -> Pixels:
        """Ones (h, w) where the mark is, the hole of a ring included."""
        drawn = (self.coverage >= 0.5).astype(np.uint8)
        outer, _ = cv2.findContours(drawn, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return np.asarray(cv2.drawContours(drawn, outer, -1, 1, cv2.FILLED), np.uint8)


def generate(root: Path) -> None:
    """Write the data set to `root`, unless it is there complete; it appears at once or, when interrupted, not at all.

    Raises:
        InputError: `root` holds something else.
    """
    if _complete(root):
        return
    if root.exists() and not (root / _MARKER).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: expected the data set glyphs or nothing, found something else")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        fresh = Path(folder, "new")
        for split in SPLITS:
            _write_split(fresh, split)
        (fresh / _MARKER).write_text(VERSION)
        _put_in_place(fresh, root)


def render(split: str, index: int) -> tuple[Pixels, npt.NDArray[np.int64], Floats]:
    """Draw one image of a split.

    Returns:
        Image (H, W, 3) BGR, classes (n), tight boxes (n, 4) as x1, y1, x2, y2 in pixels.
    """
    rng = np.random.default_rng([SEED, list(SPLITS).index(split), index])
    height, width = (int(side) for side in rng.integers(IMAGE_SIDE[0], IMAGE_SIDE[1], size=2, endpoint=True))
    image = _ground(rng, height, width)
    occupied = np.zeros((height, width), np.uint8)
    classes: list[int] = []
    boxes: list[Floats] = []
    count = int(rng.integers(1, MAX_MARKS, endpoint=True))
    for _ in range(0 if (index + 1) % EMPTY_EVERY == 0 else count):
        kind = int(rng.integers(len(NAMES)))
        mark = _random_mark(rng, kind)
        corner = _place(rng, mark, occupied, boxes[-1] if boxes else None)
        if corner is None:
            continue
        _paint(rng, mark, image, corner)
        classes.append(kind)
        boxes.append(mark.box + np.tile(np.array(corner, np.float32), 2))
    image += rng.uniform(*GRAIN) * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    return pixels, np.array(classes, np.int64), np.array(boxes, np.float32).reshape(-1, 4)


def draw_mark(kind: int, size: float, *, angle: float = 0.0, stretch: float = 1.0, blur: float = 0.0) -> Mark:
    """Draw a mark of class `kind`, `size` pixels across, rotated by `angle` (radians) in the middle of a patch.

    Its box encloses the pixels drawn at four times the resolution, before the blur.
    """
    side = math.ceil(size * max(1.0, BAR_LENGTH)) + 2 * _MARGIN
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([1.0, stretch]) * size
    outlines = [(outline @ turn.T + side / 2) * _SUPERSAMPLING - 0.5 for outline in _outlines(NAMES[kind])]
    fine = np.zeros((side * _SUPERSAMPLING,) * 2, np.uint8)
    corners = [np.rint(outline * 2**_SUBPIXEL_BITS).astype(np.int32) for outline in outlines]
    cv2.fillPoly(fine, corners, 255, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)  # even-odd: an inner outline is a hole
    x, y, width, height = cv2.boundingRect(fine)
    box: Floats = np.array([x, y, x + width, y + height], np.float32) / np.float32(_SUPERSAMPLING)
    coverage = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA) / np.float32(255)
    blurred = cv2.GaussianBlur(coverage, (0, 0), blur) if blur > 0 else coverage
    return Mark(np.asarray(blurred, np.float32), box)


def _outlines(name: str) -> list[npt.NDArray[np.float64]]:
    """List the closed outlines (k, 2) of a mark of size 1 around the origin."""
    if name == "bar":
        x, y = BAR_LENGTH / 2, BAR_WIDTH / 2
        return [np.array([[-x, -y], [x, -y], [x, y], [-x, y]])]
    if name == "cross":
        right = np.array([[CROSS_ARM, -CROSS_ARM], [1.0, -CROSS_ARM], [1.0, CROSS_ARM]]) / 2
        quarter_turn = np.array([[0.0, -1.0], [1.0, 0.0]])
        return [np.concatenate([right @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)])]
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1) / 2
    return [circle] if name == "disc" else [circle, circle * RING_HOLE]


def _random_mark(rng: np.random.Generator, kind: int) -> Mark:
    low, high = MARK_SIZE
    size = low * (high / low) ** (rng.random() ** SMALL_BIAS)
    blur = min(rng.uniform(*BLUR), size / 16)  # what is blurred beyond that has no shape left
    return draw_mark(kind, size, angle=rng.uniform(0, 2 * np.pi), stretch=rng.uniform(*STRETCH), blur=blur)


def _place(rng: np.random.Generator, mark: Mark, occupied: Pixels, neighbour: Floats | None) -> tuple[int, int] | None:
    """Find and occupy a free place: the patch's top-left corner x, y, or None if there is no room."""
    solid = mark.footprint
    if neighbour is not None and rng.random() < TOUCHING_SHARE:
        corners, needed = _outwards(rng, mark, neighbour), solid
    else:
        wider = np.ones((2 * _GAP + 1,) * 2, np.uint8)
        corners, needed = _anywhere(rng, mark, occupied), np.asarray(cv2.dilate(solid, wider), np.uint8)
    height, width = solid.shape
    for x, y in corners:
        there = occupied[max(y, 0) : y + height, max(x, 0) : x + width]
        if there.shape == solid.shape and not np.any(there & needed):
            there |= solid
            return x, y
    return None


def _anywhere(rng: np.random.Generator, mark: Mark, occupied: Pixels) -> Iterator[tuple[int, int]]:
    room = np.subtract(occupied.shape, mark.coverage.shape)
    for y, x in rng.integers(room, size=(_TRIES, 2), endpoint=True):
        yield int(x), int(y)


def _outwards(rng: np.random.Generator, mark: Mark, neighbour: Floats) -> Iterator[tuple[int, int]]:
    """Yield corners on a ray that leaves the middle of `neighbour`: the first free one touches it."""
    angle = rng.uniform(0, 2 * np.pi)
    middle = (neighbour[:2] + neighbour[2:] - np.array(mark.coverage.shape)) / 2
    for distance in range(int(MARK_SIZE[1] * 2)):
        yield round(middle[0] + distance * math.cos(angle)), round(middle[1] + distance * math.sin(angle))


def _paint(rng: np.random.Generator, mark: Mark, image: Floats, corner: tuple[int, int]) -> None:
    """Blend a mark into the image (H, W, 3), lighter or darker than the ground under it."""
    height, width = mark.coverage.shape
    region = image[corner[1] : corner[1] + height, corner[0] : corner[0] + width]
    alpha = mark.coverage[..., None]
    ground = (region * alpha).sum(axis=(0, 1)) / alpha.sum()
    contrast = rng.uniform(*CONTRAST)
    lighter = rng.random() < 0.5
    if not contrast <= ground.mean() <= 255 - contrast:  # one of the two would be clipped
        lighter = bool(ground.mean() < 127.5)
    cast = rng.uniform(-COLOUR_CAST, COLOUR_CAST, size=3)
    offset = (contrast if lighter else -contrast) * (1 + cast - cast.mean())
    region += alpha * (offset + FLATNESS * (ground - region)).astype(np.float32)


def _ground(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Draw the ground (H, W, 3): tone, gradient, smooth noise, panels, strokes; nothing in it looks like a mark."""
    tone = rng.uniform(75, 180) + rng.uniform(-18, 18, size=3)
    light = rng.uniform(0, GRADIENT) * _ramp(rng, height, width)
    light += rng.uniform(*TEXTURE) * _smooth_noise(rng, height, width)
    for _ in range(rng.integers(PANELS, endpoint=True)):
        light += rng.uniform(-PANEL_CONTRAST, PANEL_CONTRAST) * (_ramp(rng, height, width) > rng.uniform(-0.3, 0.3))
    hue = HUE_TEXTURE * rng.uniform(*TEXTURE) * _smooth_noise(rng, height, width)
    shades = [base + light + hue * weight for base, weight in zip(tone, rng.uniform(-1, 1, size=3), strict=True)]
    pixels: Pixels = cv2.merge([np.clip(shade, 0, 255).astype(np.uint8) for shade in shades])
    _draw_strokes(rng, pixels)
    return np.asarray(pixels, np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Draw a slope (H, W) in a random direction, about -0.5 to 0.5."""
    angle = rng.uniform(0, 2 * np.pi)
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(math.cos(angle))
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(math.sin(angle))
    return np.asarray(columns + rows[:, None], np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Sum octaves of interpolated noise to (H, W), mean 0 and standard deviation 1."""
    persistence = rng.uniform(*PERSISTENCE)
    total = np.zeros((height, width), np.float32)
    for octave, cell in enumerate(_OCTAVES):
        grid = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
        total += np.float32(persistence**octave) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def _draw_strokes(rng: np.random.Generator, pixels: Pixels) -> None:
    """Draw thin curves across the whole image: many times as long as a bar and a fraction of its width."""
    height, width = pixels.shape[:2]
    reach = math.hypot(height, width)
    steps = np.linspace(-reach, reach, 40)
    for _ in range(rng.integers(*STROKES, endpoint=True)):
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4) / reach
        along = np.array([math.cos(angle), math.sin(angle)])
        normal = np.array([-along[1], along[0]])
        through = rng.uniform(0, 1, size=2) * (width, height)
        curve = through + steps[:, None] * along + bend * steps[:, None] ** 2 * normal
        step = rng.choice([-1, 1]) * rng.uniform(*STROKE_CONTRAST)
        x, y = np.clip(through.astype(int), 0, (width - 1, height - 1))
        colour = [float(value) for value in np.clip(pixels[y, x] + step, 0, 255)]
        corners = np.rint(curve * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(pixels, [corners], False, colour, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _complete(root: Path) -> bool:
    marker = root / _MARKER
    if not marker.is_file() or marker.read_text() != VERSION:
        return False
    return all(
        len(list(root.glob(f"{kind}/{split}/*.{suffix}"))) == count
        for split, count in SPLITS.items()
        for kind, suffix in (("images", "jpg"), ("labels", "txt"))
    )


def _write_split(root: Path, split: str) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(SPLITS[split]):
        image, classes, boxes = render(split, index)
        done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        (images / f"{index:04d}.jpg").write_bytes(jpeg.tobytes())
        (labels / f"{index:04d}.txt").write_text(_label_rows(classes, boxes, image.shape[:2]))


def _label_rows(classes: npt.NDArray[np.int64], boxes: Floats, shape: tuple[int, ...]) -> str:
    """Format YOLO rows: class, then centre x, y, width, height as fractions of the image."""
    scale = np.array([shape[1], shape[0]] * 2)
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate([middles, sides], axis=1) / scale
    return "".join(
        f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for kind, (x, y, w, h) in zip(classes, rows, strict=True)
    )


def _put_in_place(fresh: Path, root: Path) -> None:
    """Rename `fresh` to `root`; what was there goes beside `fresh`, to be deleted with it."""
    if _complete(root):  # another process was faster
        return
    if root.exists():
        shutil.move(root, fresh.with_name("old"))
    fresh.rename(root)

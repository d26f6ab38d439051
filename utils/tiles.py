"""Detection in tiles: large images are cut into windows, looked at in batches, and what is found comes together again.

An object that a tile's edge cuts is found in parts, by several tiles; merging makes them one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.augment import Image
from data.dataset import Item, unlabelled_item
from data.loader import Batch, collate
from models.yolo import Model
from utils.boxes import MAX_CANDIDATES, Letterbox, apart, fit_window, suppress, to_letterbox
from utils.checkpoint import training_scale
from utils.engine import Detector, NmsSettings, Prediction, Predictor
from utils.options import InputError, Ranged, option

MERGES = ("nms", "nmm")
MERGE_IOS = 0.5  # share of the smaller of two boxes in the other, above which they are one object
LEAST_TILE = 32  # pixels
LEAST_SHARE = 0.5  # of a box's confidence, from which another may make it grow: junk must not
EDGE = 4  # pixels the model sees; a box that comes so near to a tile's edge is taken to be cut by it
PAIRS_AT_ONCE = 2_000_000  # of boxes that are compared, for the memory's sake

Window = tuple[int, int, int, int]  # x, y, width, height in pixels of the image


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles, and how what is found in them comes together."""

    tile: int  # pixels of the image along a side
    overlap: float = 0.2  # least share of a tile that the next one shows again
    full: bool = True  # look at the whole image, too
    merge: str = "nmm"  # one of MERGES
    batch_size: int = 16  # tiles in a forward pass


@dataclass
class DetectorOptions(Ranged):
    """Flags of the scripts that use a trained detector; a field is a flag."""

    weights: str = option("", "checkpoint to use", aliases=("--weight",))
    batch_size: int = option(32, "images in a batch, or tiles", aliases=("--batch",), least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    augment: bool = option(False, "test-time augmentation: scaled and mirrored views")
    tile: str = option("", "look at large images in tiles of so many pixels; 'auto' keeps the scale of training")
    overlap: float = option(0.2, "least share of a tile that the next one shows again", least=0, most=0.9)
    full: bool = option(True, "with tiles, look at the whole image, too")
    merge: str = option("nmm", "what makes tiles' detections of one object one: suppression or merging", choices=MERGES)
    save_txt: bool = option(False, "write the detections as YOLO txt")
    save_conf: bool = option(False, "put the confidence into the txt files")
    project: str = option("runs/detect", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")
    half: bool = option(False, "float16 on CUDA, bfloat16 on CPUs")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")
    compile: bool = option(False, "let torch.compile make kernels, anew for each shape of image; then saves time")


def make_detector(
    model: Model, device: torch.device, settings: NmsSettings, options: DetectorOptions, size: int
) -> Detector:
    """A predictor as the options say, or one that looks at tiles, fitted into `size` pixels.

    Raises:
        InputError: `--tile` is neither a number of pixels nor `auto`, or the checkpoint leaves `auto` open.
    """
    predictor = Predictor(
        model,
        device,
        settings=settings,
        half=options.half,
        augment=options.augment,
        folded=options.fold,
        compiled=options.compile,
    )
    if not options.tile:
        return predictor
    tile = tile_side(options.tile, size, Path(options.weights))
    tiling = Tiling(tile, options.overlap, options.full, options.merge, options.batch_size)
    return TiledPredictor(predictor, tiling, size)


def tile_side(text: str, size: int, weights: Path) -> int:
    """Pixels of a tile's side, from what `--tile` says.

    `auto` is the side that, fitted into `size`, shows objects at the scale that the checkpoint was trained at: an image
    that was as wide as the training images would be seen as one tile. The images must show the world at the same
    pixels per metre as the training images for this to be right.

    Raises:
        InputError: it is neither a sensible number nor `auto`, or the checkpoint does not tell its scale.
    """
    if text == "auto":
        return max(round(size / training_scale(weights)), LEAST_TILE)
    if not text.isdecimal() or int(text) < LEAST_TILE:
        raise InputError(f"--tile {text}: expected pixels, {LEAST_TILE} or more, or 'auto'")
    return int(text)


def windows(image_wh: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """Cover an image with tiles, row by row: all of one size, evenly spread, the outer ones flush with the edges.

    Each tile overlaps the next by `overlap` of its side or more; a side no longer than a tile has just one.
    """
    width, height = (min(side, tile) for side in image_wh)
    columns, rows = (_starts(side, tile, overlap) for side in image_wh)
    return [(x, y, width, height) for y in rows for x in columns]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    gaps = math.ceil((side - tile) / max(int(tile * (1 - overlap)), 1))
    return [round(number * (side - tile) / gaps) for number in range(gaps + 1)]


def merge_parts(found: Tensor, cut: Tensor, *, iou: float, agnostic: bool) -> Tensor:
    """Make detections (n, 6) of one object one, by greedy non-maximum merging.

    The most confident box takes in the others of its class (of any if `agnostic`) that match it, then the most
    confident that is left does so, and so on. Two boxes match if they overlap by more than `iou`; but if one of them
    is `cut` (n), so that its extent is unknown, if they have more than MERGE_IOS of the smaller one in common. A cut
    box grows to enclose what it takes in, as far as that is nearly as sure; this is repeated while there are matches,
    since an object may be in more than two parts. The most confident come first.
    """
    before = len(found) + 1
    while len(found) < before:
        before = len(found)
        found, cut = merge_once(found, cut, iou=iou, agnostic=agnostic)
    return found


def merge_once(
    found: Tensor, cut: Tensor, *, iou: float, agnostic: bool, least_share: float = LEAST_SHARE
) -> tuple[Tensor, Tensor]:
    """One round of `merge_parts`: the boxes that are left, and which of them are cut still.

    A cut box grows by those that have `least_share` of its confidence or more; with a whole one it becomes whole.
    """
    order = found[:, 4].argsort(descending=True, stable=True)
    found, cut = found[order], cut[order]
    taker = _takers(
        *_matches(apart(found[:, :4], torch.zeros_like(found[:, 5]) if agnostic else found[:, 5]), cut, iou), len(found)
    )
    rows = torch.arange(len(found), device=found.device)
    counts = cut[taker] & (found[:, 4] >= least_share * found[taker, 4]) | (taker == rows)
    target, part = taker[counts], found[counts]
    columns = target[:, None].expand(-1, 2)
    low = found[:, :2].scatter_reduce(0, columns, part[:, :2], "amin")
    high = found[:, 2:4].scatter_reduce(0, columns, part[:, 2:4], "amax")
    still_cut = cut.int().scatter_reduce(0, target, cut[counts].int(), "amin").bool()
    kept = taker == rows
    return torch.cat((low, high, found[:, 4:]), 1)[kept], still_cut[kept]


def _takers(first: Tensor, second: Tensor, count: int) -> Tensor:
    """For each of `count` boxes the box that takes it in, itself if none does, from all matches first < second.

    One box after the other would be slow; here, all boxes whose more confident matches are decided are decided at once.
    """
    rows = torch.arange(count, device=first.device)
    kept, undecided = torch.zeros_like(rows, dtype=torch.bool), torch.ones_like(rows, dtype=torch.bool)
    a, b = first, second  # the matches of undecided boxes
    while undecided.any():
        waiting = torch.zeros_like(kept)
        waiting[b] = True
        kept |= undecided & ~waiting
        undecided[kept] = False
        undecided[b[kept[a]]] = False  # taken in
        still = undecided[a] & undecided[b]
        a, b = a[still], b[still]
    by_kept = kept[first]
    return rows.scatter_reduce(0, second[by_kept], first[by_kept], "amin")


def _matches(boxes: Tensor, cut: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """Pairs (m), (m) of boxes (n, 4) that match as `merge_parts` says, the lower number first."""
    left = boxes[:, 0].sort(stable=True)
    ordered, cut = boxes[left.indices], cut[left.indices]
    rows = torch.arange(len(boxes), device=boxes.device)
    # only boxes that begin before another ends can meet it
    counts = (torch.searchsorted(left.values, ordered[:, 2].contiguous()) - rows - 1).clamp(min=0)
    parts = torch.split(rows, torch.bincount(counts.cumsum(0) // PAIRS_AT_ONCE).tolist())
    pairs = [_match(ordered, cut, part, counts[part], iou) for part in parts]
    found = left.indices[torch.cat(pairs, 1)] if pairs else rows.new_zeros(2, 0)
    return found.amin(0), found.amax(0)


def _match(boxes: Tensor, cut: Tensor, rows: Tensor, counts: Tensor, iou: float) -> Tensor:
    """Of each box in `rows` and the next so many, as `counts` says, the pairs (2, m) that match."""
    first = rows.repeat_interleave(counts)
    begin = (counts.cumsum(0) - counts).repeat_interleave(counts)
    second = first + 1 + torch.arange(len(first), device=rows.device) - begin
    a, b = boxes[first], boxes[second]
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    area_a, area_b = ((corners[:, 2:] - corners[:, :2]).prod(1) for corners in (a, b))
    in_parts = common > MERGE_IOS * torch.minimum(area_a, area_b)
    whole = common > iou * (area_a + area_b - common)
    return torch.stack((first, second))[:, torch.where(cut[first] | cut[second], in_parts, whole)]


class TiledPredictor:
    """A predictor that looks at an image tile by tile, and gives what it would give for the whole image."""

    def __init__(self, predictor: Predictor, tiling: Tiling, size: int) -> None:
        """Fit each tile into `size` pixels, all at one scale: smaller images are not enlarged to a tile."""
        assert tiling.merge in MERGES
        self.predictor = predictor
        self.tiling = tiling
        self.scale = size / tiling.tile
        self.device, self.settings, self.watch = predictor.device, predictor.settings, predictor.watch
        self.on_tiles: Callable[[int, int], None] | None = None  # told of the tiles of an image done, and of all

    def __call__(self, batch: Batch) -> Prediction:
        """Detect in a batch whose items carry their whole images."""
        seen = self.predictor(batch).original if self.tiling.full else [None] * len(batch)
        original = [self._detect(whole, rows) for whole, rows in zip(batch.wholes, seen, strict=True)]
        padded = [_to_padded(rows, fitted) for rows, fitted in zip(original, batch.geometries, strict=True)]
        return Prediction(padded, original, [])

    def warm_up(self, batch: Batch) -> None:
        """Detect once untimed."""
        self(batch)
        self.watch.seconds.clear()

    def windows(self, image_wh: tuple[int, int]) -> list[Window]:
        """The tiles of an image; none if the only one would show what the pass over the whole image shows."""
        if self.tiling.full and max(image_wh) == self.tiling.tile:
            return []
        return windows(image_wh, self.tiling.tile, self.tiling.overlap)

    def _detect(self, whole: Tensor | None, seen: Tensor | None) -> Tensor:
        """Detections (n, 6) of an image: what its tiles show, and what was seen of it as a whole."""
        assert whole is not None, "tiles are cut from whole images, which this batch lacks"
        image = whole.numpy()
        parts = [] if seen is None else [seen]
        cut = [torch.zeros_like(rows[:, 0], dtype=torch.bool) for rows in parts]
        for tiles in self._tiles(image):
            for rows, fitted in zip(self.predictor(tiles).original, tiles.geometries, strict=True):
                assert fitted is not None
                parts.append(rows)
                cut.append(_cut(rows, fitted, (image.shape[1], image.shape[0])))
        with self.watch.measure("merge"):
            return self._merged(torch.cat(parts), torch.cat(cut))

    def _tiles(self, image: Image) -> Iterator[Batch]:
        """Batches of an image's tiles, each made when it is needed: all together are larger than the image."""
        chosen, count = self.windows((image.shape[1], image.shape[0])), self.tiling.batch_size
        for start in range(0, len(chosen), count):
            with self.watch.measure("preprocess"):
                tiles = collate([self._tile(image, window) for window in chosen[start : start + count]])
            yield tiles
            if self.on_tiles is not None:
                self.on_tiles(min(start + count, len(chosen)), len(chosen))

    def _tile(self, image: Image, window: Window) -> Item:
        x, y, width, height = window
        fitted = fit_window((x, y), (width, height), self.scale, self.predictor.model.max_stride)
        return unlabelled_item(image[y : y + height, x : x + width], fitted)

    def _merged(self, rows: Tensor, cut: Tensor) -> Tensor:
        order = rows[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]
        rows, cut = rows[order], cut[order]
        if self.tiling.merge == "nms":
            return suppress(rows, iou=self.settings.iou, agnostic=self.settings.agnostic, max_det=self.settings.max_det)
        return merge_parts(rows, cut, iou=self.settings.iou, agnostic=self.settings.agnostic)[: self.settings.max_det]


def _cut(rows: Tensor, fitted: Letterbox, image_wh: tuple[int, int]) -> Tensor:
    """Which boxes (n, 6) of a tile end at an edge of it that is not the image's: there may be more of the object."""
    size = rows.new_tensor(image_wh)
    low = rows.new_tensor(fitted.corner_xy)
    high = low + rows.new_tensor(fitted.original_wh)
    margin = EDGE / rows.new_tensor(fitted.scale_wh)
    begins = (rows[:, :2] < low + margin) & (low > 0)
    ends = (rows[:, 2:4] > high - margin) & (high < size)
    return (begins | ends).any(1)


def _to_padded(rows: Tensor, geometry: Letterbox | None) -> Tensor:
    assert geometry is not None, "a batch to predict on is letterboxed, not augmented"
    return torch.cat((to_letterbox(rows[:, :4], geometry), rows[:, 4:]), 1)

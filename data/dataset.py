"""The images of a split with their boxes: letterboxed, augmented.

What an item looks like depends on its draw (image and seed) alone, not on the worker that makes it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.annotations import Annotations
from data.augment import (
    Augmentation,
    Image,
    Sample,
    Tile,
    copy_paste,
    flip_left_right,
    flip_up_down,
    hsv,
    mixup,
    mosaic,
    random_perspective,
)
from data.files import Progress
from data.image_cache import CacheKind, ImageFiles, Letterboxes, cached
from data.images import swap_red_and_blue
from data.polygons import Polygons
from utils.boxes import Letterbox, fit, fit_rectangle, letterbox

Read = Callable[[int], Image]  # from an image's number to its pixels at the training size


class Draw(NamedTuple):
    """One image to be fetched, the seed of all that is random about it, and its padded size if not its own.

    `partners` are the images that it may be combined with, all if there are none.
    """

    image: int
    seed: int | tuple[int, ...] = 0
    padded_wh: tuple[int, int] | None = None
    partners: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """One image ready for a batch: uint8 RGB (3, H, W), channels last, and its labels.

    `labels` (n, 5) are class, x, y, w, h, in shares of W and H; `geometry` says how the image was letterboxed, and is
    None when it was augmented; `whole` is the image as decoded, BGR (H, W, 3), where tiles are to be cut from it.
    """

    image: Tensor
    labels: Tensor
    index: int
    geometry: Letterbox | None
    whole: Tensor | None = None


def letterboxed_item(image: Image, size: int, stride: int) -> Item:
    """Letterbox an image (H, W, 3) that belongs to no data set, as validation does, without labels."""
    item = unlabelled_item(image, fit_rectangle((image.shape[1], image.shape[0]), size, stride))
    return replace(item, whole=torch.from_numpy(image))


def unlabelled_item(image: Image, geometry: Letterbox) -> Item:
    """Scale and pad an image (H, W, 3), or a window of one, that belongs to no data set as `geometry` says."""
    nothing = Sample(letterbox(image, geometry), np.empty((0, 4), np.float32), np.empty(0, np.int64))
    return _item(nothing, 0, geometry)


class DetectionDataset(Dataset[Item]):
    """Items of a split, for training when there is an `augmentation`, else for validation.

    Args:
        annotations: images and boxes; crowd regions are left out of the items.
        size: pixels of the longer side.
        stride: the model's largest; padded sides are multiples of it.
        augmentation: strengths; None gives letterboxed images as they are.
        rect: pad each image to its own smallest rectangle instead of a square; excludes mosaic, mixup and warps.
        cache: keep the resized images in memory ("ram") or as files in `cache_folder` ("disk").
        cache_folder: where "disk" writes; files are found again by the image's path, size, time and resized size.
        progress: told of the images read into memory.
    """

    def __init__(
        self,
        annotations: Annotations,
        size: int,
        *,
        stride: int = 32,
        augmentation: Augmentation | None = None,
        rect: bool = False,
        cache: CacheKind | None = None,
        cache_folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        assert size % stride == 0, f"size {size} is not a multiple of the stride {stride}"
        self.annotations = annotations
        self.size = size
        self.augmentation = augmentation
        self.rect = rect
        self._stride = stride
        self._letterboxes = Letterboxes(annotations.sizes_wh, self._fit)
        self._files = ImageFiles(annotations.paths, self._letterboxes, exact=augmentation is None)
        self._images = cached(self._files, cache, cache_folder, progress) if cache else self._files

    def _fit(self, original_wh: tuple[int, int]) -> Letterbox:
        """How images of a size are scaled and padded."""
        if self.rect:
            return fit_rectangle(original_wh, self.size, self._stride)
        return fit(original_wh, (self.size, self.size))

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def shapes_wh(self) -> npt.NDArray[np.int64]:
        """Padded width and height of every image, (N, 2)."""
        return self._letterboxes.sides_wh(lambda geometry: geometry.padded_wh)

    @property
    def aspect_ratios(self) -> npt.NDArray[np.float64]:
        """Height over width of every image, (N)."""
        return self.annotations.sizes_wh[:, 1] / self.annotations.sizes_wh[:, 0]

    def __getitem__(self, draw: Draw) -> Item:
        """Make the item of a draw; the same draw gives the same item."""
        return self._make(draw, self._images.read)

    def __getitems__(self, draws: list[Draw]) -> list[Item]:
        """Make the items of a batch, reading each image once, whatever the number of mosaics it is part of."""
        read = functools.cache(self._images.read)
        return [self._make(draw, read) for draw in draws]

    def _make(self, draw: Draw, read: Read) -> Item:
        index, seed, padded_wh, _ = draw
        geometry = self._geometry(index)
        if padded_wh is not None:
            geometry = geometry.padded_to(padded_wh)
        if self.augmentation is None:
            return _item(self._letterboxed(index, geometry, read), index, geometry)
        rng = np.random.default_rng(seed)
        if self.rect:
            sample = self._letterboxed(index, geometry, read)
        else:
            sample = self._composed(draw, rng, self.augmentation, read)
        return _item(_recoloured_and_flipped(sample, rng, self.augmentation), index, None)

    def _geometry(self, index: int) -> Letterbox:
        return self._letterboxes[index]

    def _letterboxed(self, index: int, geometry: Letterbox, read: Read) -> Sample:
        """One image with its boxes, scaled and padded as `geometry` says."""
        return self._labelled(letterbox(read(index), geometry), index, geometry)

    def _labelled(self, image: Image, index: int, geometry: Letterbox) -> Sample:
        """Put the image's boxes, scaled and padded as `geometry` says, to its pixels, which are so already."""
        table = self.annotations
        span = table.rows(index)
        kept = np.flatnonzero(~table.crowd[span])
        boxes = table.boxes[span][kept]
        scale, pad = np.array(geometry.scale_wh), np.array(geometry.pad_wh)
        low = boxes[:, :2] * scale + pad
        high = low + boxes[:, 2:] * scale
        polygons = None
        if table.has_polygons:
            polygons = self._outlines(index).take(kept)
            polygons = replace(polygons, points=(polygons.points * scale + pad).astype(np.float32))
        return Sample(
            image,
            np.concatenate((low, high), 1).astype(np.float32),
            table.classes[span][kept],
            polygons,
        )

    def _outlines(self, index: int) -> Polygons:
        """The outlines of an image's instances in original pixels, crowd regions included."""
        span = self.annotations.rows(index)
        starts = self.annotations.polygon_starts[span.start : span.stop + 1]
        return Polygons(self.annotations.polygons[starts[0] : starts[-1]], np.diff(starts))

    def _composed(self, draw: Draw, rng: np.random.Generator, strength: Augmentation, read: Read) -> Sample:
        """An image warped alone or in a mosaic, perhaps blended with another such."""
        partners = draw.partners or range(len(self))
        sample = self._warped(draw.image, partners, rng, strength, read)
        if rng.random() < strength.mixup:
            other = partners[rng.integers(len(partners))]
            sample = mixup(sample, self._warped(other, partners, rng, strength, read), rng)
        return sample

    def _warped(
        self, index: int, partners: Sequence[int], rng: np.random.Generator, strength: Augmentation, read: Read
    ) -> Sample:
        geometry = self._geometry(index)
        if rng.random() < strength.mosaic:
            images = rng.permutation([index, *(partners[i] for i in rng.integers(len(partners), size=3))])
            samples = [self._pasted(image, rng, strength, read) for image in images.tolist()]
            tiles, canvas_wh = mosaic(samples, self.size, rng, strength.min_visible), (2 * self.size, 2 * self.size)
        else:
            tiles = [Tile(self._pasted(index, rng, strength, read), geometry.pad_wh)]
            canvas_wh = geometry.padded_wh
        return random_perspective(tiles, canvas_wh, rng, self.size, strength)

    def _pasted(self, index: int, rng: np.random.Generator, strength: Augmentation, read: Read) -> Sample:
        """One image without padding, some of its instances pasted again."""
        geometry = self._geometry(index)
        sample = self._letterboxed(index, geometry.padded_to(geometry.scaled_wh), read)
        return copy_paste(sample, rng, strength.copy_paste)


def _recoloured_and_flipped(sample: Sample, rng: np.random.Generator, strength: Augmentation) -> Sample:
    sample = hsv(sample, rng, strength)
    if rng.random() < strength.flipud:
        sample = flip_up_down(sample)
    if rng.random() < strength.fliplr:
        sample = flip_left_right(sample)
    return sample


def _item(sample: Sample, index: int, geometry: Letterbox | None) -> Item:
    """Turn BGR (H, W, 3) into RGB (3, H, W) in the same memory order, and boxes into shares of the image."""
    image = torch.from_numpy(swap_red_and_blue(sample.image)).permute(2, 0, 1)
    size = np.array(sample.size_wh, np.float32)
    low, high = np.clip(sample.boxes[:, :2] / size, 0, 1), np.clip(sample.boxes[:, 2:] / size, 0, 1)
    labels = np.concatenate((sample.classes[:, None], (low + high) / 2, high - low), 1).astype(np.float32)
    return Item(image, torch.from_numpy(labels), index, geometry)

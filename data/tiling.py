"""Data sets of large images: whole, for a validation in tiles, and as tiles drawn at random, for training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data.annotations import Annotations
from data.augment import Sample, crop
from data.dataset import DetectionDataset, Draw, Item, Read
from data.rows import Ints, offsets
from utils.boxes import Letterbox, fit_window

CANDIDATES = 8  # places tried for a tile without objects


def typical_scale(table: Annotations, size: int, tile: int | None) -> float:
    """The scale at which a model sees most objects; most images, where there are no objects."""
    counts = table.counts
    return float(np.median(np.repeat(table.scales(size, tile), counts if counts.any() else 1)))


def dataset_kind(tile: int | None, *, visible: float, empty: float, train: bool) -> Callable[..., DetectionDataset]:
    """What makes the data sets of a training: images as they are, or tiles, which a validation cuts by itself."""
    if tile is None:
        return DetectionDataset
    return partial(TrainingTiles, tile=tile, visible=visible, empty=empty) if train else WholeImages


class WholeImages(DetectionDataset):
    """Validation items that carry their whole images, for tiles to be cut from; `settings` are DetectionDataset's."""

    def __init__(self, annotations: Annotations, size: int, **settings: Any) -> None:
        super().__init__(annotations, size, **settings | {"cache": None})  # which would keep small images only

    def _make(self, draw: Draw, read: Read) -> Item:  # noqa: ARG002 (what is read is larger than the cache's)
        image = self._files.decode(draw.image)
        return replace(super()._make(draw, lambda _: image), whole=torch.from_numpy(image))


class TrainingTiles(DetectionDataset):
    """Training items that are made of tiles of large images, drawn anew each time.

    Images are divided into cells of a tile's size. Each cell with the centre of an object in it gives one tile an
    epoch, placed at random around one of its objects; further tiles, a share of all, come from random cells without.
    An item is drawn by its number among these tiles, and augmentations join tiles as they join images elsewhere.
    """

    def __init__(
        self,
        annotations: Annotations,
        size: int,
        *,
        tile: int,
        visible: float = 0.3,
        empty: float = 0.2,
        **settings: Any,
    ) -> None:
        """Take the tile's side in pixels of the images, to become `size`; `settings` are DetectionDataset's.

        `visible` is the least share of a box that makes it a label; `empty` the share of tiles without an object's
        centre.
        """
        self.scale = size / tile
        super().__init__(annotations, size, **settings)
        assert not self.rect, "tiles are of one size"
        self.visible = visible
        self.cells = _Cells(annotations, tile)
        occupied, vacant = self.cells.occupied, len(self.cells) - self.cells.occupied
        wanted = round(occupied * empty / (1 - empty)) if occupied else vacant
        self._length = occupied + min(wanted, vacant)
        self._rng = np.random.default_rng()  # that of the item being made

    def __len__(self) -> int:
        return self._length

    @property
    def shapes_wh(self) -> npt.NDArray[np.int64]:
        """Padded width and height of every tile, (N, 2)."""
        return np.full((len(self), 2), self.size)

    @property
    def aspect_ratios(self) -> npt.NDArray[np.float64]:
        """Height over width of every tile, (N)."""
        return np.ones(len(self))

    def _make(self, draw: Draw, read: Read) -> Item:
        seed = draw.seed if isinstance(draw.seed, tuple) else (draw.seed,)
        self._rng = np.random.default_rng((*seed, draw.image))
        cell = draw.image
        if cell >= self.cells.occupied:
            cell = int(self._rng.integers(self.cells.occupied, len(self.cells)))
        item = super()._make(draw._replace(image=cell), read)
        return replace(item, index=int(self.cells.images[cell]))

    def _fit(self, original_wh: tuple[int, int]) -> Letterbox:
        whole = fit_window((0, 0), original_wh, self.scale, self._stride)
        return whole.padded_to(whole.scaled_wh)

    def _geometry(self, index: int) -> Letterbox:
        """How the tile of a cell lies in its square; tiles of images smaller than a tile are padded."""
        width, height = super()._geometry(int(self.cells.images[index])).scaled_wh
        seen_wh = min(width, self.size), min(height, self.size)
        return Letterbox(seen_wh, seen_wh, (0, 0), seen_wh).padded_to((self.size, self.size))

    def _letterboxed(self, index: int, geometry: Letterbox, read: Read) -> Sample:
        """A tile of the cell `index`, with what is seen of the image's objects."""
        assert geometry.padded_wh == geometry.scaled_wh, "padding is the warp's"
        number, tile_wh = int(self.cells.images[index]), geometry.scaled_wh
        whole = super()._geometry(number)
        x, y = self._place(index, np.array(whole.scaled_wh), np.array(tile_wh))
        sample = self._labelled(read(number), number, whole)
        return crop(sample, (x, y), (x + tile_wh[0], y + tile_wh[1]), self.visible, strict=True)

    def _place(self, cell: int, image_wh: Ints, tile_wh: Ints) -> tuple[int, int]:
        """Choose where a tile begins, in pixels of the scaled image."""
        room = image_wh - tile_wh
        if cell < self.cells.occupied:
            row = self._rng.choice(self.cells.objects(cell))
            low, wh = np.split(self.annotations.boxes[row] * self.scale, 2)
            # within these limits an object is seen whole, or fills the tile
            first, last = np.sort((low + wh - tile_wh, low), axis=0).astype(np.int64)
            x, y = np.clip(self._rng.integers(first, last, endpoint=True), 0, room)
            return int(x), int(y)
        half = self.size // 2
        near = self.cells.places[cell] * self.size + self._rng.integers(-half, half, (CANDIDATES, 2), endpoint=True)
        corners = np.clip(near, 0, room)
        boxes = self.annotations.boxes[self.annotations.rows(int(self.cells.images[cell]))] * self.scale
        begins, ends = corners[:, None], (corners + tile_wh)[:, None]
        seen = ((boxes[:, :2] < ends) & (boxes[:, :2] + boxes[:, 2:] > begins)).all(2)
        x, y = corners[seen.sum(1).argmin()]
        return int(x), int(y)


class _Cells:
    """A grid over all images; cells with the centre of an object come first, then the others in random order.

    Attributes:
        images: (C,) each cell's image.
        places: (C, 2) its column and row there.
        occupied: how many have a centre in them.
    """

    def __init__(self, table: Annotations, tile: int) -> None:
        grids_wh = -(-table.sizes_wh.astype(np.int64) // tile)
        firsts = offsets(grids_wh.prod(1))
        rows = np.flatnonzero(~table.crowd)
        owners = np.repeat(np.arange(len(table)), table.counts)[rows]
        centres = table.boxes[rows, :2] + table.boxes[rows, 2:] / 2
        column, row = np.clip(centres // tile, 0, grids_wh[owners] - 1).astype(np.int64).T
        cells = firsts[owners] + row * grids_wh[owners, 0] + column
        order = cells.argsort(kind="stable")
        taken, starts = np.unique(cells[order], return_index=True)
        vacant = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(firsts[-1]), taken))
        everything = np.concatenate((taken, vacant))
        self.occupied = len(taken)
        self.images = np.searchsorted(firsts, everything, side="right") - 1
        within = everything - firsts[self.images]
        columns = grids_wh[self.images, 0]
        self.places = np.stack((within % columns, within // columns), 1)
        self._rows, self._starts = rows[order], np.append(starts, len(rows))

    def __len__(self) -> int:
        return len(self.images)

    def objects(self, cell: int) -> Ints:
        """The rows of the objects whose centre is in an occupied cell."""
        return self._rows[self._starts[cell] : self._starts[cell + 1]]

"""Batches: which images come together, in which order, from how many workers.

Order and augmentation depend on (seed, epoch, place in the epoch) only: any number of workers gives the same batches.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from data.dataset import DetectionDataset, Draw, Item
from data.rows import Floats, Ints
from utils.boxes import Letterbox
from utils.options import InputError


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) RGB, uint8 as loaded and float 0..1 after `to`; boxes (M, 6) of all of them.

    A box is image in batch, class, x, y, w, h, in shares of W and H. `indices` are the images' places in the
    annotations; `geometries` say how they were letterboxed, None for augmented ones; `wholes` are the images as they
    are, uint8 BGR (H, W, 3), for those that carry them.
    """

    images: Tensor
    boxes: Tensor
    indices: list[int]
    geometries: list[Letterbox | None]
    wholes: list[Tensor | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format) -> "Batch":
        """Move to a device and scale the images to float32 in 0..1: the only place that does."""
        assert self.images.dtype == torch.uint8, "this batch was scaled already"
        moved = self.images.to(device, non_blocking=True)  # a quarter of the bytes: becomes float over there
        images = moved.to(torch.float32, memory_format=memory_format).div_(255)
        return replace(self, images=images, boxes=self.boxes.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy the tensors to page-locked memory; the DataLoader calls this where there is CUDA."""
        return replace(self, images=self.images.pin_memory(), boxes=self.boxes.pin_memory())


def collate(items: list[Item]) -> Batch:
    """Stack items of one shape into a batch."""
    counts = torch.tensor([len(item.labels) for item in items])
    owners = torch.repeat_interleave(torch.arange(len(items), dtype=torch.float32), counts)
    return Batch(
        images=torch.stack([item.image for item in items]),
        boxes=torch.cat((owners[:, None], torch.cat([item.labels for item in items])), 1),
        indices=[item.index for item in items],
        geometries=[item.geometry for item in items],
        wholes=[item.whole for item in items],
    )


class ShapeSampler(Sampler[list[Draw]]):
    """Batches of draws in which all images are padded to one size, the smallest that holds them.

    Images of different shapes are sorted by aspect ratio first, so that batches waste little; YOLOv5 forms its batches
    so, too, and a validation pads images as there. With `shuffle`, images of like shape and the batches are in random
    order, anew each epoch; if there are `weights` (N), an epoch is N images drawn with replacement in proportion to
    them.
    """

    def __init__(
        self, shapes_wh: Ints, aspect_ratios: Floats, batch_size: int, *, seed: int = 0, shuffle: bool = False
    ) -> None:
        """Take each image's own padded size (N, 2), and the ratio of height to width (N) of what is in it."""
        self.shapes_wh = shapes_wh
        self.aspect_ratios = aspect_ratios if len(np.unique(shapes_wh, axis=0)) > 1 else np.zeros(len(shapes_wh))
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.weights: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.shapes_wh) / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self._order(rng)
        order = order[self.aspect_ratios[order].argsort(kind="stable")]
        batches = np.arange(len(self))
        for batch in rng.permutation(batches) if self.shuffle else batches:
            places = range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(order)))
            width, height = self.shapes_wh[order[places.start : places.stop]].max(0).tolist()
            yield [Draw(int(order[place]), (self.seed, self.epoch, place), (width, height)) for place in places]

    def _order(self, rng: np.random.Generator) -> Ints:
        """This epoch's image indices (N)."""
        total = len(self.shapes_wh)
        if not self.shuffle:
            return np.arange(total)
        if self.weights is None:
            return rng.permutation(total)
        return rng.choice(total, total, p=self.weights / self.weights.sum())


class Loader(DataLoader[Item]):
    """A DataLoader of batches whose order and augmentation follow the epoch."""

    def __init__(self, dataset: DetectionDataset, sampler: ShapeSampler, workers: int) -> None:
        self.batches = sampler
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_single_threaded,
            persistent_workers=workers > 0,
            # a fork shares the memory cache and starts at once; elsewhere a fork is unsafe or unknown
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def set_epoch(self, epoch: int, weights: npt.NDArray[np.float64] | None = None) -> None:
        """Choose the epoch to be iterated next and, for sampling with replacement, the images' weights (N)."""
        self.batches.epoch = epoch
        self.batches.weights = weights

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Give the epoch's batches; a user's mistake met in a worker is told in its own line, without a traceback."""
        try:
            yield from super().__iter__()
        except InputError as error:
            line = str(error).strip().splitlines()[-1]
            raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error


def make_loader(dataset: DetectionDataset, *, batch_size: int, workers: int, seed: int = 0, train: bool) -> Loader:
    """Build a loader: shuffled by (seed, epoch) if `train`, else in order; the last batch may be smaller.

    Of the `workers` asked for, no more are started than there are cores or batches; 0 loads in this process.
    """
    sampler = ShapeSampler(dataset.shapes_wh, dataset.aspect_ratios, batch_size, seed=seed, shuffle=train)
    return Loader(dataset, sampler, min(workers, _cores(), len(sampler)))


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _single_threaded(_worker: Any) -> None:
    """Keep each worker to one thread: they share the cores with one another."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

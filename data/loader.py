"""Batches: which images come together, in which order, from how many workers.

Order and augmentation depend on (seed, epoch, place in the epoch) only: any number of workers gives the same batches.
"""

import contextlib
import gc
import itertools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from data.dataset import DetectionDataset, Draw, Item
from data.rows import Floats, Ints
from utils.boxes import Letterbox
from utils.options import InputError

PARTNERS = 16  # images, at least, that one of a training batch may meet in a mosaic
B = TypeVar("B", bound="ImageBatch")


class LoaderError(InputError):
    """An image cannot be read, or a worker is gone."""


@dataclass(frozen=True)
class ImageBatch:
    """Images (B, 3, H, W) RGB, uint8, channels last as loaded, and float 0..1 after `to`; their places in the data."""

    images: Tensor
    indices: list[int]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> Tensor:
        """What the loss compares the outputs with."""
        raise NotImplementedError

    def to(self: B, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format) -> B:
        """Move the images to a device and scale them to float32 in 0..1: the only place that does.

        The targets stay: what needs them, the loss, takes them where it works.
        """
        assert self.images.dtype == torch.uint8, "this batch was scaled already"
        moved = self.images.to(device, non_blocking=True)  # a quarter of the bytes: becomes float over there
        images = moved.to(torch.float32, memory_format=memory_format).div_(255)
        return replace(self, images=images)

    def pin_memory(self: B) -> B:
        """Copy the images to page-locked memory; the DataLoader calls this where there is CUDA."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class Batch(ImageBatch):
    """Images with the boxes (M, 6) of all of them: image in batch, class, x, y, w, h, in shares of W and H.

    `geometries` say how the images were letterboxed, None for augmented ones; `wholes` are the images as they are,
    uint8 BGR (H, W, 3), for those that carry them.
    """

    boxes: Tensor
    geometries: list[Letterbox | None]
    wholes: list[Tensor | None] = field(default_factory=list)

    @property
    def targets(self) -> Tensor:
        """The boxes."""
        return self.boxes


def collate(items: list[Item]) -> Batch:
    """Stack items of one shape into a batch."""
    counts = torch.tensor([len(item.labels) for item in items])
    owners = torch.repeat_interleave(torch.arange(len(items), dtype=torch.float32), counts)
    return Batch(
        images=default_collate([item.image.permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2),  # in shared memory
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
        self.first = 0  # batches of the epoch that are left out
        self.weights: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.shapes_wh) / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self.all(), self.first, None)

    def all(self) -> Iterator[list[Draw]]:
        """Give the epoch's batches from the first on."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self._order(rng)
        order = order[self.aspect_ratios[order].argsort(kind="stable")]
        batches = np.arange(len(self))
        for batch in rng.permutation(batches) if self.shuffle else batches:
            first = batch * self.batch_size
            images = order[first : first + self.batch_size]
            width, height = self.shapes_wh[images].max(0).tolist()
            partners = self._partners(images, rng)
            yield [
                Draw(image, (self.seed, self.epoch, place), (width, height), partners)
                for place, image in enumerate(images.tolist(), first)
            ]

    def _order(self, rng: np.random.Generator) -> Ints:
        """This epoch's image indices (N)."""
        total = len(self.shapes_wh)
        if not self.shuffle:
            return np.arange(total)
        return rng.permutation(total) if self.weights is None else self._draw(total, rng)

    def _draw(self, count: int, rng: np.random.Generator) -> Ints:
        """Image indices (count), with replacement and in proportion to the weights, if there are any."""
        share = None if self.weights is None else self.weights / self.weights.sum()
        return rng.choice(len(self.shapes_wh), count, p=share)

    def _partners(self, images: Ints, rng: np.random.Generator) -> tuple[int, ...]:
        """The images that those of a batch may be combined with: one another, and a few more if the batch is small.

        So a batch of mosaics reads little more than its own images, not four times as many.
        """
        further = min(PARTNERS, 4 * len(images)) - len(images) if self.shuffle else 0
        return (*images.tolist(), *(self._draw(further, rng).tolist() if further > 0 else ()))


class DrawnDataset(Protocol):
    """A dataset that makes the items of a batch from their draws."""

    def __getitems__(self, draws: list[Draw]) -> list[Any]:
        """Make the items of a batch."""


class Loader(DataLoader[Any], Generic[B]):
    """A DataLoader of batches whose order and augmentation follow the epoch."""

    def __init__(
        self, dataset: DrawnDataset, sampler: ShapeSampler, workers: int, collate: Callable[[list[Any]], B]
    ) -> None:
        """Start, of the `workers` asked for, no more than there are cores or batches; 0 loads in this process."""
        self.batches = sampler
        workers = min(workers, _cores(), len(sampler))
        super().__init__(
            dataset,  # type: ignore[arg-type]  # all that is asked of it is `__getitems__`
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else each pass over it would draw from the run's own
            persistent_workers=workers > 0,
            # a fork shares the memory cache and starts at once; elsewhere a fork is unsafe or unknown
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def set_epoch(self, epoch: int, weights: npt.NDArray[np.float64] | None = None, *, first: int = 0) -> None:
        """Choose the epoch to be iterated next, from its batch number `first`.

        For sampling with replacement there are `weights`, one for each image.
        """
        self.batches.epoch = epoch
        self.batches.weights = weights
        self.batches.first = first

    def batch(self, number: int) -> B:
        """Make one batch of the epoch once more."""
        draws = next(itertools.islice(self.batches.all(), number, None))
        made: B = self.collate_fn(self.dataset.__getitems__(draws))  # type: ignore[attr-defined]
        return made

    def __iter__(self) -> Iterator[B]:  # type: ignore[override]
        """Give the epoch's batches; what goes wrong in a worker is told in one line, without a traceback.

        Raises:
            LoaderError: an image cannot be read, or a worker is gone.
        """
        try:
            with _child_signal_kept():
                batches = super().__iter__()
            yield from batches
        except InputError as error:
            line = str(error).strip().splitlines()[-1]
            raise LoaderError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).partition(" It is possible")[0]
            raise LoaderError(f"{reason} Fewer --workers, or none, need less memory.") from error


@contextlib.contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Take back torch's handler for a dead worker, which raises in the middle of anything, an optimizer's step too.

    A loader that waits for a batch finds a dead worker by itself within seconds.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def make_loader(
    dataset: DetectionDataset, *, batch_size: int, workers: int, seed: int = 0, train: bool
) -> Loader[Batch]:
    """Build a detector's loader: shuffled by (seed, epoch) if `train`, else in order; the last batch may be smaller."""
    sampler = ShapeSampler(dataset.shapes_wh, dataset.aspect_ratios, batch_size, seed=seed, shuffle=train)
    return Loader(dataset, sampler, workers, collate)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _start_worker(_worker: Any) -> None:
    """Keep each worker to one thread, since they share the cores, and Ctrl-C to the main process, which ends them.

    What it has in common with the main process is kept from the garbage collector, which would copy it by its marks.
    """
    gc.freeze()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

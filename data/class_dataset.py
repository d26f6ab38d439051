"""Classified images made ready: shrunk if asked, scaled, cut to a square, augmented; and their batches."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from data.class_images import ClassSplit, Image
from data.dataset import Draw
from data.files import Progress
from data.images import swap_red_and_blue
from data.loader import ImageBatch, Loader, ShapeSampler
from utils.boxes import resize

STATISTICS_IMAGES = 5000  # that mean and deviation are measured on


@dataclass(frozen=True)
class ClassAugmentation:
    """How training images are varied: the recipe's keys of these names, in `utils.class_hyp`."""

    crop_padding: float
    fliplr: float
    flipud: float
    degrees: float

    def transforms(self, size: int) -> Callable[[Tensor], Tensor]:
        """Make the transform of uint8 images (3, size, size)."""
        steps: list[torch.nn.Module] = []
        if self.crop_padding:
            steps.append(v2.RandomCrop(size, padding=round(self.crop_padding * size)))
        if self.fliplr:
            steps.append(v2.RandomHorizontalFlip(self.fliplr))
        if self.flipud:
            steps.append(v2.RandomVerticalFlip(self.flipud))
        if self.degrees:
            steps.append(v2.RandomRotation(self.degrees, v2.InterpolationMode.BILINEAR))
        return v2.Compose(steps) if steps else lambda image: image


@dataclass(frozen=True)
class ClassItem:
    """One image ready for a batch: uint8 RGB (3, H, W), channels last, its class and its place."""

    image: Tensor
    label: int
    index: int


@dataclass(frozen=True)
class ClassBatch(ImageBatch):
    """Images with their classes (B)."""

    labels: Tensor

    @property
    def targets(self) -> Tensor:
        """The classes."""
        return self.labels


def collate(items: list[ClassItem]) -> ClassBatch:
    """Stack items into a batch."""
    return ClassBatch(
        images=default_collate([item.image.permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2),
        indices=[item.index for item in items],
        labels=torch.tensor([item.label for item in items]),
    )


def square(image: Image, size: int, shrink: int = 1) -> Image:
    """Cut the middle square out of an image (H, W, 3), and scale it to `size` pixels a side.

    With `shrink`, only so many pixels as `size` divided by it are kept before: the image gets no smaller, but poorer.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if shrink > 1:
        image = resize(image, (size // shrink, size // shrink))
    return resize(image, (size, size))


def to_item(image: Image, size: int, shrink: int = 1, label: int = -1, index: int = 0) -> ClassItem:
    """Make the item of an image (H, W, 3) BGR without augmentation."""
    pixels = swap_red_and_blue(np.ascontiguousarray(square(image, size, shrink)))
    return ClassItem(torch.from_numpy(pixels).permute(2, 0, 1), label, index)


class ClassDataset(Dataset[ClassItem]):
    """Items of a split, for training when there is an `augmentation`, else for validation."""

    def __init__(
        self, split: ClassSplit, size: int, *, shrink: int = 1, augmentation: ClassAugmentation | None = None
    ) -> None:
        """Take the side in pixels that the images get, and how many times fewer pixels they are to show."""
        self.split = split
        self.size = size
        self.shrink = shrink
        self.augmented = augmentation.transforms(size) if augmentation is not None else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> ClassItem:
        """Make the item of a draw; the same draw gives the same item."""
        index = draw.image
        # as predict.py sees it, or in training from what pixels it needs
        image = self.split.read(index, None if self.augmented is None else self.size)
        item = to_item(image, self.size, self.shrink, int(self.split.labels[index]), index)
        if self.augmented is None:
            return item
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's generator, others do too
            torch.manual_seed(int(np.random.default_rng(draw.seed).integers(2**63)))
            return ClassItem(self.augmented(item.image), item.label, index)

    def __getitems__(self, draws: list[Draw]) -> list[ClassItem]:
        """Make the items of a batch."""
        return [self[draw] for draw in draws]


def make_class_loader(
    dataset: ClassDataset, *, batch_size: int, workers: int, seed: int = 0, train: bool
) -> Loader[ClassBatch]:
    """Build a loader: shuffled by (seed, epoch) if `train`, else in order; the last batch may be smaller."""
    shapes = np.full((len(dataset), 2), dataset.size)
    sampler = ShapeSampler(shapes, np.ones(len(dataset)), batch_size, seed=seed, shuffle=train)
    return Loader(dataset, sampler, workers, collate)


def colour_statistics(
    split: ClassSplit, size: int, shrink: int = 1, progress: Progress | None = None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green and blue in 0..1, over evenly chosen images at a `size` in pixels."""
    chosen = np.linspace(0, len(split) - 1, min(len(split), STATISTICS_IMAGES)).astype(int).tolist()

    def moments(index: int) -> npt.NDArray[np.float64]:
        pixels = square(split.read(index, size), size, shrink)[..., ::-1].reshape(-1, 3) / 255
        return np.stack((pixels.mean(0), np.square(pixels).mean(0)))

    sums: npt.NDArray[np.float64] = np.zeros((2, 3))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(moments, chosen), 1):
            sums += found
            if progress:
                progress(done, len(chosen))
    mean, square_mean = sums / len(chosen)
    return mean.round(4).tolist(), np.sqrt(square_mean - mean**2).clip(1e-3).round(4).tolist()

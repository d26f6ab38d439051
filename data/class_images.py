"""Images with a class each: a split of a classification set, its folders on disk, and how it is divided."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data.files import walk
from data.images import SUFFIXES, is_image, read_image
from data.path_list import PathList
from data.rows import Ints
from utils.options import InputError

Image = npt.NDArray[np.uint8]
SPLITS = ("train", "val", "test")
SPLIT_SEED = 0  # of what is set aside: the same images in every run, whatever its own seed


class Pixels(Protocol):
    """Where images come from."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Image:
        """Give an image (H, W, 3) BGR.

        Raises:
            InputError: it cannot be read.
        """

    def name(self, index: int) -> str:
        """What to call an image."""

    def identity(self) -> bytes:
        """Bytes that are others when the images are others."""


@dataclass(frozen=True)
class ImageFiles:
    """Images in files."""

    paths: PathList

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image:
        """Decode one."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """Its file's name, with its folder's."""
        path = self.paths[index]
        return f"{path.parent.name}/{path.name}"

    def identity(self) -> bytes:
        """The files' names, wherever they lie."""
        return "\n".join(self.name(index) for index in range(len(self))).encode()


@dataclass(frozen=True)
class PixelArray:
    """Small images of one size in memory, which workers started by a fork share: (N, H, W, 3) BGR."""

    pixels: Image
    prefix: str

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Image:
        """Give one."""
        return self.pixels[index]

    def name(self, index: int) -> str:
        """The array's name and the image's number."""
        return f"{self.prefix} {index}"

    def identity(self) -> bytes:
        """All of the pixels."""
        return self.pixels.tobytes()


@dataclass(frozen=True)
class ClassSplit:
    """Images with a class each.

    Attributes:
        names: the class names.
        labels: (N,) the class of each image.
        images: all images of the set that it is a part of.
        places: (N,) where in those its own are.
    """

    names: list[str]
    labels: Ints
    images: Pixels
    places: Ints

    @classmethod
    def of_all(cls, names: Sequence[str], labels: Ints, images: Pixels) -> "ClassSplit":
        """Take all of the images."""
        assert len(labels) == len(images), "a label for each image"
        return cls(list(names), labels, images, np.arange(len(images)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> Ints:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.names))

    def read(self, index: int) -> Image:
        """Give an image (H, W, 3) BGR."""
        return self.images.read(int(self.places[index]))

    def name(self, index: int) -> str:
        """What to call an image."""
        return self.images.name(int(self.places[index]))

    def take(self, indices: Ints) -> "ClassSplit":
        """Some of the images."""
        return ClassSplit(self.names, self.labels[indices], self.images, self.places[indices])

    def divided(self, share: float) -> tuple["ClassSplit", "ClassSplit"]:
        """What is left, and a share of each class set aside, one image at least; the same ones each time.

        Raises:
            InputError: a class has too few images to be divided.
        """
        rng = np.random.default_rng(SPLIT_SEED)
        aside = np.zeros(len(self), bool)
        for label, name in enumerate(self.names):
            own = np.flatnonzero(self.labels == label)
            if len(own) < 2:
                raise InputError(f"class '{name}' has {len(own)} training images; 2 are needed to set one aside")
            count = min(max(round(len(own) * share), 1), len(own) - 1)
            aside[rng.choice(own, count, replace=False)] = True
        return self.take(np.flatnonzero(~aside)), self.take(np.flatnonzero(aside))


def read_folder(folder: Path, names: Sequence[str] | None = None) -> ClassSplit:
    """Read a folder that has a folder of images for each class.

    Args:
        folder: such as `train/`.
        names: the classes in their order; by default those of the folder, sorted.

    Raises:
        InputError: it has no such folders, a class that `names` does not have, or a class without an image.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: expected a folder of images for each class, found none")
    if names is None:
        names = found
    for name in found:
        if name not in names:
            raise InputError(
                f"{folder / name}: no such class in the training folder, which has {', '.join(names[:10])}"
            )
    files, labels = [], []
    for label, name in enumerate(names):
        own = sorted(walk(str(folder / name), is_image)) if name in found else []
        files += own
        labels += [label] * len(own)
    if not files:
        raise InputError(f"{folder}: no images ({' '.join(sorted(SUFFIXES))}) in its {len(found)} folders")
    return ClassSplit.of_all(names, np.array(labels, np.int64), ImageFiles(PathList(files)))


def read_folders(root: Path) -> dict[str, ClassSplit]:
    """Read `train/` and, as far as they are there, `val/` and `test/` below a folder.

    Raises:
        InputError: there is no `train/`, or one of them is not as `read_folder` expects it.
    """
    if not (root / "train").is_dir():
        raise InputError(f"{root}: expected train/, and perhaps val/ and test/, with a folder of images for each class")
    train = read_folder(root / "train")
    others = {name: root / name for name in SPLITS[1:] if (root / name).is_dir()}
    return {"train": train} | {name: read_folder(folder, train.names) for name, folder in others.items()}

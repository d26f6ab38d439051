"""Images with a class each: a split of a classification set, its folders on disk, and how it is divided."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data.config import SPLITS
from data.files import Progress, image_sizes, map_chunks, walk
from data.images import SUFFIXES, is_image, read_image, reduction
from data.path_list import PathList
from data.problems import Problem
from data.rows import Ints
from utils.options import InputError

Image = npt.NDArray[np.uint8]
SPLIT_SEED = 0  # of what is set aside: the same images in every run, whatever its own seed


class Pixels(Protocol):
    """Where images come from."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int, side: int | None = None) -> Image:
        """Give an image (H, W, 3) BGR, perhaps with fewer pixels than it has if it is to be scaled to `side`.

        Raises:
            InputError: it cannot be read.
        """

    def name(self, index: int) -> str:
        """What to call an image."""

    def identity(self) -> bytes:
        """Bytes that are others when the images are others."""


@dataclass(frozen=True)
class ImageFiles:
    """Images in files below a folder, with their sizes (N, 2)."""

    folder: Path
    paths: PathList
    sizes_wh: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, side: int | None = None) -> Image:
        """Decode one; with a `side`, a JPEG that is much larger at reduced scale."""
        width, height = self.sizes_wh[index].tolist()
        try:
            return read_image(self.paths[index], reduction((width, height), (side, side)) if side else 1)
        except InputError as error:  # though its header was sound
            raise InputError(f"{error}; put a sound copy of the same size in its place") from error

    def name(self, index: int) -> str:
        """Its path below the folder, with what is no Unicode in it made readable."""
        return self._below(index).encode(errors="surrogateescape").decode(errors="replace")

    def _below(self, index: int) -> str:
        return self.paths[index].relative_to(self.folder).as_posix()

    def identity(self) -> bytes:
        """The files' paths, wherever the folder lies, and their sizes."""
        names = "\n".join(self._below(index) for index in range(len(self)))
        return names.encode(errors="surrogateescape") + self.sizes_wh.tobytes()


@dataclass(frozen=True)
class PixelArray:
    """Small images of one size in memory, which workers started by a fork share: (N, H, W, 3) BGR."""

    pixels: Image
    prefix: str

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int, side: int | None = None) -> Image:  # noqa: ARG002 (they are small)
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
        problems: what was wrong with files.
    """

    names: list[str]
    labels: Ints
    images: Pixels
    places: Ints
    problems: list[Problem] = field(default_factory=list)

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

    def read(self, index: int, side: int | None = None) -> Image:
        """Give an image (H, W, 3) BGR, perhaps with fewer pixels than it has if it is to be scaled to `side`."""
        return self.images.read(int(self.places[index]), side)

    def name(self, index: int) -> str:
        """What to call an image."""
        return self.images.name(int(self.places[index]))

    def take(self, indices: Ints) -> "ClassSplit":
        """Some of the images."""
        return replace(self, labels=self.labels[indices], places=self.places[indices])

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
        return self.take(np.flatnonzero(~aside)), replace(self.take(np.flatnonzero(aside)), problems=[])


def open_files(
    folder: Path, files: Sequence[str], labels: Ints, names: Sequence[str], progress: Progress | None = None
) -> ClassSplit:
    """Make a split of image files below a folder; those whose headers cannot be read are left out, with a problem.

    Raises:
        InputError: none is left.
    """
    paths = PathList(files)
    parts = map_chunks(image_sizes, paths, progress)
    sizes = np.concatenate([np.zeros((0, 2), np.int32), *(part for part, _ in parts)])
    readable = np.flatnonzero(sizes.min(1) > 0)
    if not len(readable):
        raise InputError(f"{folder}: no images ({' '.join(sorted(SUFFIXES))}) that can be read")
    images = ImageFiles(folder, paths.take(readable.tolist()), sizes[readable])
    problems = [problem for _, found in parts for problem in found]
    return replace(ClassSplit.of_all(names, labels[readable], images), problems=problems)


def read_folder(folder: Path, names: Sequence[str] | None = None, progress: Progress | None = None) -> ClassSplit:
    """Read a folder that has a folder of images for each class.

    Args:
        folder: such as `train/`.
        names: the classes in their order; by default those of the folder, sorted.
        progress: told of the images looked at.

    Raises:
        InputError: it has no such folders, or a class that `names` does not have.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: expected a folder of images for each class, found none")
    if names is None:
        names = found
    for name in found:
        if not name.isprintable():  # no Unicode, or a control character
            raise InputError(f"{os.fsencode(folder / name)!r}: expected a class name of printable characters")
        if name not in names:
            raise InputError(
                f"{folder / name}: no such class in the training folder, which has {', '.join(names[:10])}"
            )
    files, labels = [], []
    for label, name in enumerate(names):
        own = sorted(walk(str(folder / name), is_image)) if name in found else []
        files += own
        labels += [label] * len(own)
    return open_files(folder, files, np.array(labels, np.int64), names, progress)


def read_folders(root: Path, progress: Progress | None = None) -> dict[str, ClassSplit]:
    """Read `train/` and, as far as they are there, `val/` and `test/` below a folder.

    Raises:
        InputError: there is no `train/`, it has not two classes with images, or a folder is not as `read_folder`
            expects it.
    """
    if not (root / "train").is_dir():
        raise InputError(f"{root}: expected train/, and perhaps val/ and test/, with a folder of images for each class")
    train = read_folder(root / "train", progress=progress)
    if len(train.names) < 2:
        raise InputError(f"{root / 'train'}: expected folders of two classes or more, found {train.names[0]} alone")
    for name, count in zip(train.names, train.counts, strict=True):
        if not count:
            raise InputError(f"{root / 'train' / name}: no images that can be read")
    others = {name: root / name for name in SPLITS[1:] if (root / name).is_dir()}
    return {"train": train} | {name: read_folder(folder, train.names, progress) for name, folder in others.items()}

"""Classification sets by name, or in folders: CIFAR-10 and CIFAR-100, Tiny ImageNet, and the embedded glyphs, cut out.

What is downloaded is plain bytes and images, compared with published hashes; nothing in it is executed. Each set comes
as training, validation and perhaps test images: where one has no validation images of its own, a share of the training
images is set aside, so that nothing is ever chosen by the test images.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.annotations import read_annotations
from data.class_images import ClassSplit, ImageFiles, PixelArray, read_folder, read_folders
from data.config import DATASETS_DIR, Archive, load_data_config, prepare
from data.download import get
from data.images import read_image
from data.path_list import PathList
from utils.boxes import resize
from utils.options import ROOT, InputError

Splits = dict[str, ClassSplit]
CIFAR_SIDE = 32
GLYPH_SIDE = 32  # pixels of a cut-out mark
GLYPH_CONTEXT = 1.3  # its side over the mark's longer one


def read_set(data: str, val_share: float) -> Splits:
    """Read a set given by its name or as a folder; one of SETS is downloaded or drawn when it is not there yet.

    Args:
        data: a name of SETS, or a folder with train/ and perhaps val/ and test/.
        val_share: share of each class's training images set aside for validation where there are none for it.

    Raises:
        InputError: there is no such set, or its files are not what they should be.
    """
    if data in SETS:
        splits = SETS[data].read(SETS[data].get(data))
    elif Path(data).is_dir():
        splits = read_folders(Path(data))
    else:
        raise InputError(f"--data {data}: neither a folder nor one of {', '.join(SETS)}")
    if "val" not in splits:
        splits["train"], splits["val"] = splits["train"].divided(val_share)
    return splits


@dataclass(frozen=True)
class NamedSet:
    """A set that is known by its name: where its archive is, and what reads the folder that it is unpacked into."""

    read: Callable[[Path], Splits]
    archive: Archive | None = None

    def get(self, name: str) -> Path:
        """Download what is not there yet; returns the set's folder."""
        shared = os.environ.get(DATASETS_DIR)
        root = (Path(shared).expanduser() if shared else ROOT / "datasets") / name
        if self.archive is not None:
            get(self.archive, root)
        return root


def _read_cifar(root: Path, train: list[str], test: str, names: str, labels: int) -> Splits:
    """Read CIFAR's binary files: records of `labels` bytes, the last of them the class, and 3 x 32 x 32 of RGB."""
    classes = [line for line in (root / names).read_text(encoding="ascii").split("\n") if line]
    splits = {}
    for split, files in (("train", train), ("test", [test])):
        content = np.concatenate([np.fromfile(root / file, np.uint8) for file in files])
        length = labels + 3 * CIFAR_SIDE**2
        if content.size % length:
            raise InputError(f"{root / files[0]}: expected records of {length} bytes, found {content.size} bytes")
        records = content.reshape(-1, length)
        found = records[:, labels - 1].astype(np.int64)
        if found.max(initial=0) >= len(classes):
            raise InputError(f"{root / files[0]}: expected classes under {len(classes)}, found {found.max()}")
        planes = records[:, labels:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
        pixels = np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 3, 1))  # BGR
        splits[split] = ClassSplit.of_all(classes, found, PixelArray(pixels, split))
    return splits


def _read_cifar10(root: Path) -> Splits:
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _read_cifar(root, batches, "test_batch.bin", "batches.meta.txt", 1)


def _read_cifar100(root: Path) -> Splits:
    return _read_cifar(root, ["train.bin"], "test.bin", "fine_label_names.txt", 2)


def _read_tiny_imagenet(root: Path) -> Splits:
    """Read Tiny ImageNet; its labelled `val` is the test set here, as its own test images have no labels."""
    train = read_folder(root / "train")
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text(encoding="utf-8").splitlines())
    names = [words.get(name, name).split(",")[0] for name in train.names]
    rows = [line.split("\t")[:2] for line in (root / "val/val_annotations.txt").read_text("utf-8").splitlines()]
    unknown = sorted({name for _, name in rows} - set(train.names))
    if unknown:
        raise InputError(f"{root / 'val/val_annotations.txt'}: no such class: {unknown[0]}")
    labels = np.array([train.names.index(name) for _, name in rows], np.int64)
    files = ImageFiles(PathList([str(root / "val/images" / file) for file, _ in rows]))
    return {
        "train": ClassSplit.of_all(names, train.labels, train.images),
        "test": ClassSplit.of_all(names, labels, files),
    }


def _read_glyphs(_: Path) -> Splits:
    """Cut the marks of the embedded detection set out of its images, each in a square around it."""
    config = load_data_config("glyphs.yaml")
    prepare(config)
    splits = {}
    for split, source in (("train", "train"), ("test", "val")):
        table = read_annotations(config, source)
        pixels = np.empty((len(table.classes), GLYPH_SIDE, GLYPH_SIDE, 3), np.uint8)
        for index, path in enumerate(table.paths):
            image, rows = read_image(path), table.rows(index)
            for row, (x, y, width, height) in zip(range(rows.start, rows.stop), table.boxes[rows], strict=True):
                side = round(GLYPH_CONTEXT * max(width, height))
                square = cv2.getRectSubPix(image, (side, side), ((2 * x + width - 1) / 2, (2 * y + height - 1) / 2))
                pixels[row] = resize(np.asarray(square, np.uint8), (GLYPH_SIDE, GLYPH_SIDE))
        splits[split] = ClassSplit.of_all(table.names, table.classes, PixelArray(pixels, f"mark of {source}"))
    return splits


SETS = {
    "glyphs": NamedSet(_read_glyphs),
    "cifar10": NamedSet(
        _read_cifar10,
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            strip=1,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            size=170_052_171,
        ),
    ),
    "cifar100": NamedSet(
        _read_cifar100,
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            strip=1,
            sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            size=168_513_733,
        ),
    ),
    "tiny-imagenet": NamedSet(
        _read_tiny_imagenet,
        Archive(
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            strip=1,
            sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            size=248_100_043,
        ),
    ),
}

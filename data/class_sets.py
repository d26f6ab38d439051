"""Classification sets by name, or in folders: CIFAR-10 and CIFAR-100, Tiny ImageNet, and the embedded glyphs, cut out.

What is downloaded is plain bytes and images, compared with published hashes; nothing in it is executed. Each set comes
as training, validation and perhaps test images: where one has no validation images of its own, a share of the training
images is set aside, so that nothing is ever chosen by the test images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from data.annotations import read_annotations
from data.class_images import ClassSplit, PixelArray, open_files, read_folder, read_folders
from data.config import Archive, load_data_config, prepare, shared_folder
from data.download import get
from data.files import Progress
from data.images import read_image
from utils.boxes import resize
from utils.options import ROOT, InputError

Splits = dict[str, ClassSplit]
FOLDERS_RECIPE = "classes.yaml"  # of sets that have none of their own
CIFAR_SIDE = 32
GLYPH_SIDE = 32  # pixels of a cut-out mark
GLYPH_CONTEXT = 1.3  # its side over the mark's longer one


def read_set(data: str, progress: Progress | None = None) -> Splits:
    """Read a set given by its name or as a folder; one of SETS is downloaded or drawn when it is not there yet.

    Args:
        data: a name of SETS, or a folder with train/ and perhaps val/ and test/.
        progress: told of the image files looked at.

    Returns:
        Training images, and perhaps validation and test images.

    Raises:
        InputError: there is no such set, or its files are not what they should be.
    """
    if data in SETS:
        return SETS[data].read(SETS[data].get(data), progress)
    if Path(data).is_dir():
        return read_folders(Path(data), progress)
    raise InputError(f"--data {data}: neither a folder nor one of {', '.join(SETS)}")


@dataclass(frozen=True)
class NamedSet:
    """A set that is known by its name.

    Attributes:
        read: reads the folder that its archive is unpacked into.
        imgsz: side of its images in pixels.
        recipe: what it is trained by when no other is chosen.
        archive: what is downloaded, if anything.
    """

    read: Callable[[Path, Progress | None], Splits]
    imgsz: int
    recipe: str
    archive: Archive | None = None

    def get(self, name: str) -> Path:
        """Download what is not there yet; returns the set's folder."""
        root = (shared_folder() or ROOT / "datasets") / name
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


def _read_cifar10(root: Path, _: Progress | None = None) -> Splits:
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _read_cifar(root, batches, "test_batch.bin", "batches.meta.txt", 1)


def _read_cifar100(root: Path, _: Progress | None = None) -> Splits:
    return _read_cifar(root, ["train.bin"], "test.bin", "fine_label_names.txt", 2)


def _read_tiny_imagenet(root: Path, progress: Progress | None = None) -> Splits:
    """Read Tiny ImageNet; its labelled `val` is the test set here, as its own test images have no labels.

    The classes are in the order of its wnids.txt, by which the SPD-Conv authors number them.
    """
    wnids = (root / "wnids.txt").read_text(encoding="utf-8").split()
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text(encoding="utf-8").splitlines())
    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    train = read_folder(root / "train", wnids, progress)
    table = root / "val/val_annotations.txt"
    rows = [line.split("\t")[:2] for line in table.read_text(encoding="utf-8").splitlines()]
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    unknown = sorted({wnid for _, wnid in rows} - set(wnids))
    if unknown:
        raise InputError(f"{table}: no such class: {unknown[0]}")
    labels = np.array([numbers[wnid] for _, wnid in rows], np.int64)
    folder = root / "val/images"
    test = open_files(folder, [str(folder / file) for file, _ in rows], labels, names, progress)
    return {"train": replace(train, names=names), "test": test}


def _read_glyphs(_root: Path, _: Progress | None = None) -> Splits:
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
    "glyphs": NamedSet(_read_glyphs, GLYPH_SIDE, "glyph-crops.yaml"),
    "cifar10": NamedSet(
        _read_cifar10,
        CIFAR_SIDE,
        "resnet50-cifar10.yaml",
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            strip=1,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            size=170_052_171,
        ),
    ),
    "cifar100": NamedSet(
        _read_cifar100,
        CIFAR_SIDE,
        FOLDERS_RECIPE,
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            strip=1,
            sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            size=168_513_733,
        ),
    ),
    "tiny-imagenet": NamedSet(
        _read_tiny_imagenet,
        64,
        "resnet18-tinyimagenet.yaml",
        Archive(
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            strip=1,
            sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            size=248_100_043,
        ),
    ),
}

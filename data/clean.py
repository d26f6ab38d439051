"""A cleaned copy of a data set's labels, as YOLO's text files, beside links to the images where they are.

Labels are found from an image's path, so a copy that can be trained on needs images of its own: they are symbolic
links, and no file of the original is written, moved or copied.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from data.config import DataConfig
from data.files import label_path
from data.findings import Examination
from data.polygons import without_area
from data.problems import KINDS
from data.rows import offsets, repeated
from utils.options import InputError
from utils.report import write_text_atomically, write_yaml


def check_target(folder: Path, image_folders: Iterable[Path]) -> None:
    """Refuse a folder that is in use, or lies below folders of images or of their labels.

    Raises:
        InputError: as said.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--write {folder}: expected a folder that is new or empty")
    for images in image_folders:
        for home in (images, label_path(images / "any.jpg").parent):
            if folder.resolve().is_relative_to(home.resolve()):
                raise InputError(f"--write {folder}: lies in {home}, which belongs to the data; give a folder outside")


def write_clean(config: DataConfig, examination: Examination, folder: Path) -> list[str]:
    """Write FOLDER/labels, links in FOLDER/images, a data.yaml, and in changes.txt what is not as it was.

    Everything is there in the end or, when something fails, nothing.

    Returns:
        The lines of changes.txt.

    Raises:
        InputError: the folder is in use or belongs to the data, or it or links cannot be made.
    """
    check_target(folder, {path.parent for table in examination.tables.values() for path in table.paths})
    changes = [
        f"{problem}: {KINDS[problem.kind].solution}" for problem in examination.problems if KINDS[problem.kind].solution
    ]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            fresh = Path(temporary, "new")
            fresh.mkdir()
            for split, table in examination.tables.items():
                changes += _write_split(table, examination.left_out[split], fresh, split)
            content = {split: f"images/{split}" for split in examination.tables} | {"names": config.names}
            write_yaml(fresh / "data.yaml", content, comment=f"cleaned labels of {config.source}")
            write_text_atomically(fresh / "changes.txt", "".join(f"{line}\n" for line in changes))
            if folder.exists():
                folder.rmdir()
            fresh.replace(folder)
    except OSError as error:
        raise InputError(f"--write {folder}: cannot be written: {error}") from error
    return changes


def _write_split(table: Annotations, left_out: set[Path], folder: Path, split: str) -> Iterator[str]:
    """Write a split's links and labels; gives the changes that no problem tells of."""
    kept = [index for index, path in enumerate(table.paths) if path not in left_out]
    if not kept:
        raise InputError(f"--write: no image of {split} would be left")
    rows = _rows(table.subset(kept))
    if table.crowd.any():
        yield f"{split}: {int(table.crowd.sum())} crowd regions: left out, text files cannot tell them"
    paths = [Path(os.path.normpath(table.paths[index])) for index in kept]
    top = os.path.commonpath([path.parent for path in paths])
    for index, path, lines in zip(kept, paths, rows, strict=True):
        own, text = folder / "images" / split / path.relative_to(top), "".join(lines)
        link = _free_name(own, text)
        label = label_path(link)
        if link != own:
            yield f"{path}: is {link.name} in the copy, since the label file {label_path(own).name} is another image's"
        for file in (link, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(table.paths[index].absolute())
        label.write_text(text, encoding="utf-8")


def _free_name(link: Path, text: str) -> Path:
    """The link, numbered where it is there already, or its label file with another text: x.jpg and x.png share one."""

    def is_free(link: Path) -> bool:
        label = label_path(link)
        return not link.is_symlink() and (not label.exists() or label.read_text(encoding="utf-8") == text)

    numbered = (link.with_stem(f"{link.stem}_{number}") for number in itertools.count(2))
    return next(filter(is_free, itertools.chain([link], numbered)))


def _rows(table: Annotations) -> Iterator[list[str]]:
    """The lines of each image's label file."""
    owners = np.repeat(np.arange(len(table)), table.counts)
    sizes = table.sizes_wh[owners].astype(np.float64)
    low = table.boxes[:, :2].clip(0, sizes) / sizes
    high = (table.boxes[:, :2] + table.boxes[:, 2:]).clip(0, sizes) / sizes
    sound = ~table.crowd & (high > low).all(1)
    sound &= ~repeated(np.column_stack([owners, table.classes, low, high]), sound)
    xywhn = np.hstack(((low + high) / 2, high - low))

    lengths = np.diff(table.polygon_starts)
    scales = sizes.repeat(lengths, axis=0)
    points = table.polygons.clip(0, scales) / scales
    outlined = (lengths >= 3) & ~without_area(points, lengths)
    starts = offsets(2 * lengths)
    numbers = points.reshape(-1)
    for image in range(len(table)):
        yield [
            _row(table.classes[row], numbers[starts[row] : starts[row + 1]] if outlined[row] else xywhn[row])
            for row in range(table.starts[image], table.starts[image + 1])
            if sound[row]
        ]


def _row(label: int, numbers: npt.NDArray[np.float64]) -> str:
    return " ".join([str(label), *(f"{number:.8g}" for number in numbers.tolist())]) + "\n"

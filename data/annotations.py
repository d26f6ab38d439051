"""All the boxes of a split in one table of flat arrays, read from YOLO's text files or from a COCO json.

Flat arrays are shared by the loader's workers without being copied, and are kept between runs in a cache without
pickles that is found stale when any file it was made from has another size or time.
"""

import hashlib
import itertools
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data import coco_json
from data.coco_file import load_coco
from data.config import DataConfig
from data.files import Progress, find_images, image_sizes, label_text, map_chunks
from data.path_list import PathList
from data.problems import Problem
from data.rows import Floats, Ints, Rows, concatenate, gather, offsets, ranges
from data.yolo_labels import read_labels
from utils.options import InputError

LOGGER = logging.getLogger(__name__)

_CACHE_FORMAT = "3"  # to be raised when reading gives other results
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of a cache's file
_TEXTS = ("names", "paths", "problems")  # the fields that are no arrays


@dataclass(frozen=True)
class Annotations:
    """The images of a split and their boxes; image i has the boxes `starts[i] : starts[i + 1]`.

    Attributes:
        names: class names.
        paths: N image files, sorted.
        sizes_wh: (N, 2) int32, pixels, after EXIF's rotation.
        image_ids: (N,) of the json, else 0 to N - 1.
        category_ids: (nc,) the json's id of each class, else 0 to nc - 1.
        starts: (N + 1,).
        classes: (M,) index of the name.
        boxes: (M, 4) top-left x, y, width, height in the original's pixels.
        areas: (M,) square pixels: the json's area (that of the mask), else that of the box.
        crowd: (M,) true for a region of many objects, which evaluation ignores.
        polygons: (P, 2) float32 points in the original's pixels.
        polygon_starts: (M + 1,); box j has the points `polygon_starts[j] : polygon_starts[j + 1]`, maybe none.
        problems: of the rows and images left out or in doubt.
    """

    names: list[str]
    paths: Sequence[Path]
    sizes_wh: npt.NDArray[np.int32]
    image_ids: Ints
    category_ids: Ints
    starts: Ints
    classes: Ints
    boxes: Floats
    areas: Floats
    crowd: npt.NDArray[np.bool_]
    polygons: npt.NDArray[np.float32]
    polygon_starts: Ints
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def counts(self) -> Ints:
        """Boxes of each image, (N,)."""
        return np.diff(self.starts)

    @property
    def has_polygons(self) -> bool:
        """Whether any box has a polygon."""
        return len(self.polygons) > 0

    def rows(self, image: int) -> slice:
        """Where an image's boxes are in the arrays of boxes."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def polygon(self, row: int) -> npt.NDArray[np.float32]:
        """The points (k, 2) of a box's polygon, none if it has none."""
        return self.polygons[self.polygon_starts[row] : self.polygon_starts[row + 1]]

    def scales(self, size: int, tile: int | None = None) -> Floats:
        """Pixels made of one of each image's, (N,), when its longer side, or that of a tile, becomes `size`."""
        return np.full(len(self), size / tile) if tile else size / self.sizes_wh.max(1)

    def wh_at(self, size: int, tile: int | None = None) -> Floats:
        """Width and height (M, 2) of the boxes that are no crowd regions, at the images' `scales`."""
        return (self.boxes[:, 2:] * np.repeat(self.scales(size, tile), self.counts)[:, None])[~self.crowd]

    def as_single_class(self) -> "Annotations":
        """The same boxes, all of one class called `object`."""
        return replace(self, names=["object"], classes=np.zeros_like(self.classes), category_ids=self.category_ids[:1])

    def subset(self, images: Sequence[int] | Ints) -> "Annotations":
        """The table of some of the images, in the order given; the problems stay those of the whole split."""
        chosen = np.asarray(images, np.int64)
        counts = self.counts[chosen]
        rows = ranges(self.starts[chosen], counts)
        point_counts = np.diff(self.polygon_starts)[rows]
        return Annotations(
            names=self.names,
            paths=PathList(self.paths).take(chosen.tolist()),
            sizes_wh=self.sizes_wh[chosen],
            image_ids=self.image_ids[chosen],
            category_ids=self.category_ids,
            starts=offsets(counts),
            classes=self.classes[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            polygons=gather(self.polygons, self.polygon_starts[rows], point_counts),
            polygon_starts=offsets(point_counts),
            problems=self.problems,
        )


def read_annotations(
    config: DataConfig,
    split: str,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    refuse_nameless: bool = True,
) -> Annotations:
    """Read a split's table, from the COCO json if the YAML names one for it, else from YOLO's label files.

    Args:
        config: the data YAML.
        split: train, val or test.
        cache: the folder that keeps the table for the next time.
        progress: called with the number of images read and of all images, from time to time.
        refuse_nameless: raise for a class without a name, rather than leave its objects out; needed for a cache.

    Raises:
        InputError: the split or a file of it is missing, no image is readable, or a class has no name.
    """
    assert refuse_nameless or cache is None, "the cache is for tables without such objects"
    images, strangers = find_images(config, split)
    json_file = config.annotations.get(split)
    key, file = "", None
    if cache is not None:
        texts = images.texts()
        sources = [str(json_file)] if json_file else map(label_text, texts)
        key = _fingerprint([*config.names, str(config.root), *map(str, strangers)], itertools.chain(texts, sources))
        file = cache / f"{split}-{_digest([str(config.source.resolve()), str(config.root)])[:16]}.npz"
        if (table := _load(file, key)) is not None:
            return table
    if json_file:
        table = _read_coco(config, split, images, strangers, progress)
    else:
        table = _read_yolo(config, split, images, strangers, progress, refuse_nameless=refuse_nameless)
    if file is not None:
        _save(table, file, key)
    return table


def _read_yolo(
    config: DataConfig,
    split: str,
    images: PathList,
    problems: list[Problem],
    progress: Progress | None,
    *,
    refuse_nameless: bool,
) -> Annotations:
    def read(chunk: Sequence[Path]) -> tuple[npt.NDArray[np.int32], list[Problem], Rows]:
        sizes, damaged = image_sizes(chunk)
        readable = sizes.min(1) > 0
        paths = [path for path, kept in zip(chunk, readable, strict=True) if kept]
        return sizes, damaged, read_labels(paths, sizes[readable], config.names, refuse_nameless=refuse_nameless)

    parts, damaged, rows = zip(*map_chunks(read, images, progress), strict=True)
    sizes = np.concatenate(parts)
    readable = sizes.min(1) > 0
    return _table(
        config,
        split,
        paths=images.take(readable.nonzero()[0].tolist()),
        sizes_wh=sizes[readable],
        ids=(np.arange(readable.sum()), np.arange(config.nc)),
        rows=concatenate(rows, [int((part.min(1) > 0).sum()) for part in parts]),
        problems=[*problems, *(problem for chunk in damaged for problem in chunk)],
    )


def _read_coco(
    config: DataConfig, split: str, images: PathList, problems: list[Problem], progress: Progress | None
) -> Annotations:
    coco = load_coco(config.annotations[split])
    category_ids, unmatched = coco_json.match_categories(coco, config.names)
    found = coco_json.match_images(coco, images, [*config.splits[split], config.root])
    chunks = map_chunks(image_sizes, found.paths, progress)
    sizes = np.concatenate([np.zeros((0, 2), np.int32), *(chunk for chunk, _ in chunks)])
    readable = sizes.min(1) > 0
    rows = coco_json.read_boxes(
        coco, image_ids=found.ids[readable], sizes_wh=sizes[readable], category_ids=category_ids
    )
    damaged = [problem for _, problems_of_chunk in chunks for problem in problems_of_chunk]
    return _table(
        config,
        split,
        paths=found.paths.take(readable.nonzero()[0].tolist()),
        sizes_wh=sizes[readable],
        ids=(found.ids[readable], category_ids),
        rows=rows,
        problems=[*problems, *found.problems, *damaged, *unmatched, *coco_json.size_problems(found, sizes, coco.path)],
    )


def _table(
    config: DataConfig,
    split: str,
    *,
    paths: PathList,
    sizes_wh: npt.NDArray[np.int32],
    ids: tuple[Ints, Ints],
    rows: Rows,
    problems: list[Problem],
) -> Annotations:
    if not paths:
        reasons = f"; {problems[0]}" if problems else ""
        raise InputError(f"{config.source}: {split}: none of the images found can be used{reasons}")
    return Annotations(
        names=config.names,
        paths=paths,
        sizes_wh=sizes_wh,
        image_ids=ids[0],
        category_ids=ids[1],
        starts=offsets(np.bincount(rows.images, minlength=len(paths))),
        classes=rows.classes,
        boxes=rows.boxes,
        areas=rows.areas,
        crowd=rows.crowd,
        polygons=rows.points,
        polygon_starts=offsets(rows.point_counts),
        problems=[*problems, *rows.problems],
    )


def _fingerprint(texts: Iterable[str], files: Iterable[str]) -> str:
    """A digest that changes with the texts and with any file's path, size or time."""
    return _digest(itertools.chain([_CACHE_FORMAT], texts, map(_state, files)))


def _state(file: str) -> str:
    try:
        status = os.stat(file)  # noqa: PTH116 - a Path for each would double the time of a start with the cache
    except OSError:  # labels that are not there are part of the state
        return file
    return f"{file}\0{status.st_size}\0{status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _save(table: Annotations, file: Path, key: str) -> None:
    """Write the cache beside its place and rename it, so that no reader meets half a file."""
    arrays = {field.name: getattr(table, field.name) for field in fields(table)}
    texts = {
        "names": json.dumps(table.names).encode(),
        "paths": PathList(table.paths).buffer,
        "problems": json.dumps(table.problems).encode(),
    }
    arrays |= {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            fresh = Path(folder, file.name)
            np.savez(fresh, key=np.array(key), **arrays)
            fresh.replace(file)
    except OSError as error:
        LOGGER.warning("%s: the label cache could not be written: %s", file, error)


def _load(file: Path, key: str) -> Annotations | None:
    """The cached table, or None if there is none, or it is stale or damaged."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            values = {field.name: arrays[field.name] for field in fields(Annotations)}
        texts = {name: values[name].tobytes() for name in _TEXTS}
        values["names"] = json.loads(texts["names"])
        values["paths"] = PathList.from_buffer(texts["paths"])
        values["problems"] = [Problem(*parts) for parts in json.loads(texts["problems"])]
    except _DAMAGE as error:
        LOGGER.warning("%s: the label cache is damaged and is made anew: %s", file, error)
        return None
    return Annotations(**values)

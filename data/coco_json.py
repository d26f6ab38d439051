"""A COCO json against a data set: which of its images and categories are those of the split, and their boxes.

Images are known by their file names, categories by their names; ids are kept, since COCO's results are told by them.
"""

import functools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.coco_file import CocoFile
from data.path_list import PathList
from data.polygons import without_area
from data.problems import Problem
from data.rows import Ints, Rows, gather, offsets, repeated
from utils.options import InputError

_OVERHANG = 1.0  # pixels that rounding puts over an image's edge


@dataclass(frozen=True)
class MatchedImages:
    """The json's images that are in the split, sorted by path; `declared_wh` (N, 2) is what the json says, else 0."""

    paths: PathList
    ids: Ints
    declared_wh: Ints
    problems: list[Problem]


def match_images(coco: CocoFile, images: PathList, folders: Sequence[Path]) -> MatchedImages:
    """Find the json's images among those of the split.

    A file name is relative to one of `folders`, or is the end of the path of exactly one image. Images that the json
    does not list have unknown objects and are left out.
    """
    index = _FileIndex(images.texts(), folders)
    ids = coco.images.ids.tolist()
    found: dict[str, int] = {}
    lines = []
    for number, name in enumerate(coco.images.file_names):
        match = index.find(name)
        if match is None:
            lines.append(f"image {ids[number]}: {name} is not among the images of the split")
        elif match in found:
            lines.append(f"image {ids[number]}: {name} is listed before as {ids[found[match]]}")
        else:
            found[match] = number
    problems = [Problem("json-image", str(coco.path), line) for line in lines]
    unlisted = [text for text in index.paths if text not in found]
    if unlisted:
        what = f"{len(unlisted)} images of the split are not listed and left out, first {unlisted[0]}"
        problems.append(Problem("json-unlisted", str(coco.path), what))
    paths = sorted(found)
    numbers = np.array([found[path] for path in paths], np.int64)
    return MatchedImages(PathList(paths), coco.images.ids[numbers], coco.images.declared_wh[numbers], problems)


class _FileIndex:
    """Finds the image that a json means by a file name."""

    def __init__(self, paths: list[str], folders: Sequence[Path]) -> None:
        self.folders = folders
        self.paths = dict.fromkeys(paths)

    @functools.cached_property
    def by_name(self) -> Mapping[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            names[path.rpartition(os.sep)[2]].append(path)
        return names

    def find(self, file_name: str) -> str | None:
        for folder in self.folders:
            if (candidate := str(folder / file_name)) in self.paths:
                return candidate
        end = Path("/", file_name).as_posix()
        matches = [path for path in self.by_name.get(Path(file_name).name, ()) if Path(path).as_posix().endswith(end)]
        return matches[0] if len(matches) == 1 else None


def match_categories(coco: CocoFile, names: Sequence[str]) -> tuple[Ints, list[Problem]]:
    """Match categories and class names.

    Returns:
        The category id of each class (nc,), with new ids for classes the json lacks; and the names on one side only.
        Annotations of a category without a class are left out.

    Raises:
        InputError: no category has a class, or a name stands for two.
    """
    path = coco.path
    ids: dict[str, int] = {}
    for number, name in coco.categories.items():
        if ids.setdefault(name, number) != number:
            raise InputError(f"{path}: categories: the name '{name}' is given twice")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: its categories are matched by name, but the data YAML gives a name twice")
    if not set(names) & set(ids):
        raise InputError(
            f"{path}: no category has one of the data YAML's names; it has {', '.join(ids)[:200] or 'none'}"
        )
    lines = [f"category '{name}' is not in the data YAML: left out" for name in ids if name not in names]
    lines += [f"class '{name}' of the data YAML is not in the json" for name in names if name not in ids]
    free = max(ids.values()) + 1
    for name in names:
        if name not in ids:
            ids[name], free = free, free + 1
    problems = [Problem("category", str(path), line) for line in lines]
    return np.array([ids[name] for name in names], np.int64), problems


def read_boxes(coco: CocoFile, *, image_ids: Ints, sizes_wh: npt.NDArray[np.int32], category_ids: Ints) -> Rows:
    """Turn annotations into rows, those of an image together.

    Args:
        coco: the json.
        image_ids: (N,) of the images in use, in their order; annotations of the others are left out.
        sizes_wh: (N, 2) their sizes.
        category_ids: (nc,) of each class; annotations of other categories are left out.
    """
    columns = coco.annotations
    owners = np.asarray(columns.image_ids)
    images, labels = _find(owners, image_ids), _find(np.asarray(columns.category_ids), category_ids)
    used = (images >= 0) & (labels >= 0)
    lost = ~used & (_find(owners, coco.images.ids) < 0)
    faulty = np.zeros(len(owners), np.bool_)
    faulty[list(columns.faults)] = True
    taken = (used & ~faulty).nonzero()[0]
    taken = taken[images[taken].argsort(kind="stable")]
    counts = np.asarray(columns.point_counts)
    points = np.asarray(columns.points).reshape(-1, 2)
    rows = Rows(
        images=images[taken],
        classes=labels[taken],
        boxes=np.asarray(columns.boxes).reshape(-1, 4)[taken],
        areas=np.asarray(columns.areas)[taken],
        crowd=np.asarray(columns.crowd, np.bool_)[taken],
        points=gather(points, offsets(counts)[taken], counts[taken]),
        point_counts=counts[taken],
        problems=[],
    )
    found = [(place, *columns.faults[place]) for place in (used & faulty).nonzero()[0].tolist()]
    found += [(place, "row", f"there is no image {owners[place]}") for place in lost.nonzero()[0].tolist()]
    found += _doubts(rows, taken, sizes_wh)
    rows.problems.extend(
        Problem(kind, str(coco.path), f"annotations[{place}]: {what}") for place, kind, what in sorted(found)
    )
    return rows


def _find(values: Ints, keys: Ints) -> Ints:
    """Where each value (M,) is among unique keys (N,), -1 if it is not."""
    if not len(keys):
        return np.full(len(values), -1)
    order = keys.argsort()
    candidates = order[np.searchsorted(keys, values, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[candidates] == values, candidates, -1)


def _doubts(rows: Rows, places: Ints, sizes_wh: npt.NDArray[np.int32]) -> Iterator[tuple[int, str, str]]:
    """What is odd about annotations that are taken all the same, as COCO's own evaluation takes them."""
    sizes = sizes_wh[rows.images]
    low, high = rows.boxes[:, :2], rows.boxes[:, :2] + rows.boxes[:, 2:]
    outside = ((high <= 0) | (low >= sizes)).any(1)
    over = ((low < -_OVERHANG) | (high > sizes + _OVERHANG)).any(1) & ~outside
    keys = np.column_stack([rows.images, rows.boxes, rows.classes])
    again = repeated(keys, ~rows.crowd)
    second = repeated(keys[:, :-1], ~rows.crowd & ~again)
    doubts = (
        ("box-outside", "a box outside the image", outside),
        ("box-over-edge", "the box hangs over the image's edge", over),
        ("box-duplicate", "the same as an annotation before", again),
        ("box-two-classes", "the same box as before with another class", second),
        ("polygon-flat", "a polygon without area", without_area(rows.points, rows.point_counts)),
    )
    for kind, what, rows_in_doubt in doubts:
        yield from ((place, kind, what) for place in places[rows_in_doubt].tolist())


def size_problems(images: MatchedImages, sizes_wh: npt.NDArray[np.int32], path: Path) -> list[Problem]:
    """The images whose size the json states otherwise: their boxes may be meant for other pixels."""
    differ = ((images.declared_wh != sizes_wh) & (images.declared_wh > 0) & (sizes_wh > 0)).any(1).nonzero()[0]
    return [
        Problem(
            "image-size",
            str(path),
            f"image {images.ids[i]}: said to be {images.declared_wh[i, 0]}x{images.declared_wh[i, 1]}, "
            f"but {images.paths[i]} is {sizes_wh[i, 0]}x{sizes_wh[i, 1]}",
        )
        for i in differ.tolist()
    ]

"""COCO's json: images, categories and annotations in one file, boxes in pixels.

Images are known by their file names, categories by their names; ids are kept, since COCO's results are told by them.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from data.polygons import flat
from data.problems import Problem
from data.rows import Ints, Rows, repeated
from utils.options import InputError

_LIMIT = 1e12  # of a number that can be pixels
_OVERHANG = 1.0  # pixels that rounding puts over an image's edge
_NUMBERS = {int, float}  # a truth value is none


@dataclass(frozen=True)
class CocoImages:
    """The json's images that are in the split, sorted by path; `declared_wh` (N, 2) is what the json says, else 0."""

    paths: list[Path]
    ids: Ints
    declared_wh: npt.NDArray[np.int64]
    problems: list[Problem]


def load_coco(path: Path) -> dict[str, list[Any]]:
    """Read the three lists of a COCO json; the annotations may be absent, as in COCO's test sets.

    Raises:
        InputError: the file is no COCO json, or ids in it are missing, no integers, or not unique.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a valid json: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected the keys images, categories and annotations, found a {type(content).__name__}"
        )
    content.setdefault("annotations", [])
    for key, needed in (("images", ("id", "file_name")), ("categories", ("id", "name")), ("annotations", ())):
        _check_entries(f"{path}: {key}", content.get(key), needed)
    for index, entry in enumerate(content["annotations"]):
        if type(entry.get("image_id")) is not int or type(entry.get("category_id")) is not int:
            raise InputError(f"{path}: annotations[{index}]: expected image_id and category_id, two integers")
    return content


def match_images(
    path: Path, entries: Sequence[Mapping[str, Any]], images: Sequence[Path], folders: Iterable[Path]
) -> CocoImages:
    """Find the json's images among those of the split.

    A file name is relative to one of `folders`, or is the end of the path of exactly one image. Images that the json
    does not list have unknown objects and are left out.
    """
    index = _FileIndex(images, list(folders))
    found: dict[str, Mapping[str, Any]] = {}
    problems = []
    for entry in entries:
        match = index.find(entry["file_name"])
        if match is None:
            what = f"image {entry['id']}: {entry['file_name']} is not among the images of the split"
            problems.append(Problem("json-image", str(path), what))
        elif match in found:
            what = f"image {entry['id']}: {entry['file_name']} is listed before as {found[match]['id']}"
            problems.append(Problem("json-image", str(path), what))
        else:
            found[match] = entry
    unlisted = [image for image in images if str(image) not in found]
    if unlisted:
        what = f"{len(unlisted)} images of the split are not listed and left out, first {unlisted[0]}"
        problems.append(Problem("json-unlisted", str(path), what))
    ordered = sorted(found.items())
    return CocoImages(
        paths=[Path(name) for name, _ in ordered],
        ids=np.array([entry["id"] for _, entry in ordered], np.int64),
        declared_wh=np.array([_declared_size(entry) for _, entry in ordered], np.int64).reshape(-1, 2),
        problems=problems,
    )


def match_categories(
    path: Path, entries: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[Ints, dict[int, int], list[Problem]]:
    """Match categories and class names.

    Returns:
        The category id of each class (nc,), with new ids for classes the json lacks; the class of each category id;
        and the names on one side only. Annotations of a category without a class are left out.

    Raises:
        InputError: no category has a class, or a name stands for two.
    """
    ids: dict[str, int] = {}
    for entry in entries:
        if ids.setdefault(str(entry["name"]), entry["id"]) != entry["id"]:
            raise InputError(f"{path}: categories: the name '{entry['name']}' is given twice")
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
    category_ids = [ids[name] for name in names]
    problems = [Problem("category", str(path), line) for line in lines]
    return np.array(category_ids, np.int64), {category: index for index, category in enumerate(category_ids)}, problems


def read_boxes(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    *,
    listed: Iterable[int],
    kept: Ints,
    sizes_wh: npt.NDArray[np.int32],
    classes: Mapping[int, int],
) -> Rows:
    """Read annotations into rows.

    Args:
        path: the json, for the messages.
        entries: its annotations.
        listed: ids of all the json's images.
        kept: ids of the images in use, in their order; annotations of the others are left out.
        sizes_wh: (N, 2) their sizes.
        classes: the class of each category id; annotations of other categories are left out.
    """
    order = {image: index for index, image in enumerate(kept.tolist())}
    known = set(listed)
    columns = _Columns()
    places: list[int] = []  # of the annotations that are taken
    faults: list[tuple[int, str, str]] = []
    for index, entry in enumerate(entries):
        image = order.get(entry["image_id"])
        if image is not None and entry["category_id"] in classes:
            fault = columns.add(image, classes[entry["category_id"]], entry)
            if fault is None:
                places.append(index)
        else:
            fault = None if entry["image_id"] in known else ("row", f"there is no image {entry['image_id']}")
        if fault:
            faults.append((index, *fault))
    rows = columns.rows()
    faults += _doubts(rows, places, sizes_wh)
    problems = [Problem(kind, str(path), f"annotations[{index}]: {what}") for index, kind, what in faults]
    return replace(rows, problems=problems).by_image()


def _doubts(rows: Rows, places: list[int], sizes_wh: npt.NDArray[np.int32]) -> Iterator[tuple[int, str, str]]:
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
        ("polygon-flat", "a polygon without area", flat(rows.points, rows.point_counts)),
    )
    for kind, what, rows_in_doubt in doubts:
        yield from ((places[row], kind, what) for row in rows_in_doubt.nonzero()[0].tolist())


def size_problems(images: CocoImages, sizes_wh: npt.NDArray[np.int32], path: Path) -> list[Problem]:
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


class _FileIndex:
    """Finds the image that a json means by a file name."""

    def __init__(self, images: Sequence[Path], folders: Sequence[Path]) -> None:
        self.folders = folders
        self.paths = {str(image) for image in images}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for image in images:
            self.by_name[image.name].append(str(image))

    def find(self, file_name: str) -> str | None:
        for folder in self.folders:
            if (candidate := str(folder / file_name)) in self.paths:
                return candidate
        end = Path("/", file_name).as_posix()
        matches = [path for path in self.by_name.get(Path(file_name).name, ()) if Path(path).as_posix().endswith(end)]
        return matches[0] if len(matches) == 1 else None


@dataclass
class _Columns:
    """Boxes collected one by one in flat arrays."""

    images: "array[int]" = field(default_factory=lambda: array("q"))
    classes: "array[int]" = field(default_factory=lambda: array("q"))
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    areas: "array[float]" = field(default_factory=lambda: array("d"))
    crowd: "array[int]" = field(default_factory=lambda: array("b"))
    points: "array[float]" = field(default_factory=lambda: array("f"))
    point_counts: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, image: int, label: int, entry: Mapping[str, Any]) -> tuple[str, str] | None:
        """Append an annotation; if it cannot be used, append nothing and return the kind of problem and what it is."""
        box = entry.get("bbox")
        if not _numbers(box) or len(box) != 4:
            return "row", f"bbox: expected 4 numbers, found {box!r}"[:120]
        if not (box[2] > 0 and box[3] > 0):
            return "box-empty", f"bbox: a box of no size: {box}"
        area, crowd = entry.get("area", box[2] * box[3]), entry.get("iscrowd", 0)
        if not _numbers([area]) or crowd not in (0, 1):
            return "row", f"expected a number as area and 0 or 1 as iscrowd, found {area!r} and {crowd!r}"[:120]
        outline = _outline(entry.get("segmentation"))
        if outline is None:
            return "row", "segmentation: expected polygons, each a list of x, y, or a run-length mask"
        self.images.append(image)
        self.classes.append(label)
        self.boxes.fromlist(box)
        self.areas.append(area)
        self.crowd.append(int(crowd))
        self.points.fromlist(outline)
        self.point_counts.append(len(outline) // 2)
        return None

    def rows(self) -> Rows:
        return Rows(
            images=np.array(self.images, np.int64),
            classes=np.array(self.classes, np.int64),
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4),
            areas=np.array(self.areas, np.float64),
            crowd=np.array(self.crowd, np.bool_),
            points=np.array(self.points, np.float32).reshape(-1, 2),
            point_counts=np.array(self.point_counts, np.int64),
            problems=[],
        )


def _outline(segmentation: Any) -> list[float] | None:
    """One closed line x, y, x, y, ... around all the parts of an object; empty for a mask; None if ill-formed.

    The line runs to each next part and at last back by the same way, so that the ways enclose nothing.
    """
    if segmentation is None or isinstance(segmentation, dict):
        return []
    if not isinstance(segmentation, list):
        return None
    for part in segmentation:
        if not _numbers(part) or len(part) % 2:
            return None
    parts = [part for part in segmentation if len(part) >= 6]
    if len(parts) <= 1:
        return parts[0] if parts else []
    there = [number for part in parts for number in (*part, *part[:2])]
    back = [number for part in parts[-2:0:-1] for number in part[:2]]
    return there + back


def _numbers(values: Any) -> TypeGuard[list[float]]:
    """Whether this is a list of finite numbers; without a Python loop, since polygons have millions of them."""
    if not isinstance(values, list) or not _NUMBERS.issuperset(map(type, values)):
        return False
    return all(map(_LIMIT.__gt__, map(abs, values)))  # false for NaN


def _declared_size(entry: Mapping[str, Any]) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if type(width) is int and type(height) is int else (0, 0)


def _check_entries(place: str, entries: Any, needed: Sequence[str]) -> None:
    """Hold that `entries` is a list of mappings with the `needed` keys, whose ids are integers and unique."""
    if not isinstance(entries, list):
        raise InputError(f"{place}: expected a list")
    seen = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(key not in entry for key in needed):
            raise InputError(f"{place}[{index}]: expected a mapping with {' and '.join(needed) or 'bbox'}")
        if "id" not in needed:
            continue
        if not isinstance(entry.get("file_name", ""), str):
            raise InputError(f"{place}[{index}]: file_name: expected text, found {entry['file_name']!r}")
        if type(entry["id"]) is not int or abs(entry["id"]) >= 2**63:
            raise InputError(f"{place}[{index}]: id: expected an integer, found {entry['id']!r}")
        if entry["id"] in seen:
            raise InputError(f"{place}[{index}]: id: {entry['id']} is given twice")
        seen.add(entry["id"])

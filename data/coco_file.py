"""What stands in a COCO json, in flat arrays: the file is read entry by entry, since COCO's own has half a gigabyte."""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from data.json_stream import read_members
from data.rows import Ints
from utils.options import InputError

_LIMIT = 1e12  # of a number that can be pixels
_PIXEL = [0.0, 0.0, 1.0, 1.0]
_NUMBERS = {int, float}  # a truth value is none


class CocoImages(NamedTuple):
    """Images of a json; `declared_wh` (N, 2) is what it says of their sizes, else 0."""

    ids: Ints
    file_names: list[str]
    declared_wh: Ints


class CocoObject(NamedTuple):
    """An annotation's object: x, y, width, height, its area, 1 for a crowd, and its outline x, y, x, y, ..."""

    box: list[float]
    area: float
    crowd: int
    outline: list[float]


@dataclass
class CocoAnnotations:
    """Annotations in flat arrays; in place of one that cannot be used is a box of one pixel, and its fault is kept.

    `faults` has, by the annotation's place, the kind of problem and what it is.
    """

    image_ids: "array[int]" = field(default_factory=lambda: array("q"))
    category_ids: "array[int]" = field(default_factory=lambda: array("q"))
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    areas: "array[float]" = field(default_factory=lambda: array("d"))
    crowd: "array[int]" = field(default_factory=lambda: array("b"))
    points: "array[float]" = field(default_factory=lambda: array("f"))
    point_counts: "array[int]" = field(default_factory=lambda: array("q"))
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)

    def extend(self, place: str, entries: Any) -> None:
        """Append a json's annotations."""
        for index, entry in enumerate(_listed(place, entries)):
            if not isinstance(entry, dict):
                raise InputError(f"{place}[{index}]: expected a mapping with bbox")
            image, category = entry.get("image_id"), entry.get("category_id")
            if not (_is_integer(image) and _is_integer(category)):
                raise InputError(f"{place}[{index}]: expected image_id and category_id, two integers")
            self.image_ids.append(image)
            self.category_ids.append(category)
            fault = self._append(entry)
            if fault:
                self.faults[index] = fault
                self._append({"bbox": _PIXEL})

    def _append(self, entry: Mapping[str, Any]) -> tuple[str, str] | None:
        """Append an object; if it cannot be used, append nothing and return the kind of problem and what it is."""
        found = read_object(entry)
        if not isinstance(found, CocoObject):
            return found
        self.boxes.fromlist(found.box)
        self.areas.append(found.area)
        self.crowd.append(found.crowd)
        self.points.fromlist(found.outline)
        self.point_counts.append(len(found.outline) // 2)
        return None


def read_object(entry: Mapping[str, Any]) -> CocoObject | tuple[str, str]:
    """Read an annotation, which need not have area and iscrowd; of one of no use the kind of problem and what it is."""
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
    return CocoObject(box, area, int(crowd), outline)


@dataclass(frozen=True)
class CocoFile:
    """What stands in a COCO json."""

    path: Path
    images: CocoImages
    categories: dict[int, str]
    annotations: CocoAnnotations


def load_coco(path: Path) -> CocoFile:
    """Read a COCO json entry by entry; the annotations may be absent, as in COCO's test sets.

    Raises:
        InputError: the file is no COCO json, or ids in it are missing, no integers, or not unique.
    """
    images: CocoImages | None = None
    categories: dict[int, str] | None = None
    columns = CocoAnnotations()
    for key, value in read_members(path, expected="the keys images, categories and annotations"):
        place = f"{path}: {key}"
        if key == "images":
            images = _read_images(place, value)
        elif key == "categories":
            categories = {entry["id"]: str(entry["name"]) for entry in _identified(place, value, "name")}
        elif key == "annotations":
            columns.extend(place, value)
    if images is None:
        raise InputError(f"{path}: images: expected a list")
    if categories is None:
        raise InputError(f"{path}: categories: expected a list")
    return CocoFile(path, images, categories, columns)


def _read_images(place: str, entries: Any) -> CocoImages:
    ids, sizes = array("q"), array("q")
    names: list[str] = []
    for index, entry in enumerate(_identified(place, entries, "file_name")):
        if not isinstance(entry["file_name"], str):
            raise InputError(f"{place}[{index}]: file_name: expected text, found {entry['file_name']!r}")
        ids.append(entry["id"])
        names.append(entry["file_name"])
        sizes.extend(_declared_size(entry))
    return CocoImages(np.asarray(ids), names, np.asarray(sizes).reshape(-1, 2))


def _declared_size(entry: Mapping[str, Any]) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if _is_integer(width) and _is_integer(height) else (0, 0)


def _identified(place: str, entries: Any, needed: str) -> Iterator[dict[str, Any]]:
    """Give entries, holding that each has `needed` and an id, an integer of its own."""
    seen: set[int] = set()
    for index, entry in enumerate(_listed(place, entries)):
        if not isinstance(entry, dict) or "id" not in entry or needed not in entry:
            raise InputError(f"{place}[{index}]: expected a mapping with id and {needed}")
        if not _is_integer(entry["id"]):
            raise InputError(f"{place}[{index}]: id: expected an integer, found {entry['id']!r}")
        if entry["id"] in seen:
            raise InputError(f"{place}[{index}]: id: {entry['id']} is given twice")
        seen.add(entry["id"])
        yield entry


def _listed(place: str, entries: Any) -> Iterator[Any]:
    if not isinstance(entries, Iterator):
        raise InputError(f"{place}: expected a list")
    return entries


def _is_integer(value: Any) -> TypeGuard[int]:
    """Whether this is an integer that an array can hold; a truth value is none."""
    return type(value) is int and abs(value) < 2**63


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

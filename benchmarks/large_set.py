"""A made-up data set as large as COCO's train2017, as YOLO's text files and, with polygons, as a COCO json."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = 80
SIZES_WH = [(640, 480), (480, 640), (640, 427), (640, 426), (427, 640), (500, 375), (640, 640), (612, 612)]
EMPTY_SHARE = 0.0086  # of the images that have no box
CROWD_SHARE = 0.012  # of the boxes; they have a run-length mask in place of a polygon
MASK_RUNS = 700  # numbers in such a mask
TWO_PARTS_SHARE = 0.1  # of the polygons
LINKS = 20_000  # names for one file, of which a file system allows only so many


@dataclass(frozen=True)
class LargeSet:
    """Boxes of many images, image by image.

    Attributes:
        names: N file names, like COCO's the image's id in 12 digits.
        sizes_wh: (N, 2) pixels.
        owners: (M,) index of the image of a box.
        classes: (M,).
        boxes: (M, 4) top-left x, y, width, height in pixels.
    """

    names: list[str]
    sizes_wh: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


def generate(folder: Path, images: int, boxes: int, points: int) -> None:
    """Write images, label files, a json with polygons of `points` points on average, and text.yaml and json.yaml."""
    rng = np.random.default_rng(0)
    made = draw(images, boxes, rng)
    write_images(folder / "images" / "train2017", made.names)
    write_texts(folder / "labels" / "train2017", made)
    write_json(folder / "instances.json", made, points, rng)
    yaml = f"names: [{', '.join(f'class {index}' for index in range(CLASSES))}]\ntrain: images/train2017\n"
    (folder / "text.yaml").write_text(yaml)
    (folder / "json.yaml").write_text(f"{yaml}annotations: {{train: instances.json}}\n")


def draw(images: int, boxes: int, rng: np.random.Generator) -> LargeSet:
    """Draw ids, sizes and boxes."""
    ids = np.sort(rng.choice(10 * images, images, replace=False))
    sizes_wh = np.array(SIZES_WH)[np.arange(images) % len(SIZES_WH)]
    owners = np.sort(rng.choice(max(round(images * (1 - EMPTY_SHARE)), 1), boxes))
    wh = sizes_wh[owners] * rng.uniform(0.01, 0.5, (boxes, 2))
    low = (sizes_wh[owners] - wh) * rng.random((boxes, 2))
    return LargeSet(
        names=[f"{number:012}.jpg" for number in ids.tolist()],
        sizes_wh=sizes_wh,
        owners=owners,
        classes=rng.integers(0, CLASSES, boxes),
        boxes=np.concatenate((low, wh), 1),
    )


def write_images(folder: Path, names: list[str]) -> None:
    """Give the names to a few files, in turn of the sizes."""
    folder.mkdir(parents=True)
    for kind, size in enumerate(SIZES_WH):
        source = folder
        for number, name in enumerate(names[kind :: len(SIZES_WH)]):
            if number % LINKS == 0:
                source = folder / name
                Image.new("RGB", size, (90, 120, 30)).save(source)
            else:
                (folder / name).hardlink_to(source)


def write_texts(folder: Path, made: LargeSet) -> None:
    """Write YOLO's label files, none for an image without boxes."""
    folder.mkdir(parents=True)
    sizes = made.sizes_wh[made.owners]
    xywhn = np.concatenate(((made.boxes[:, :2] + made.boxes[:, 2:] / 2) / sizes, made.boxes[:, 2:] / sizes), 1)
    lines = [
        f"{label} {x:.6g} {y:.6g} {w:.6g} {h:.6g}\n"
        for label, (x, y, w, h) in zip(made.classes.tolist(), xywhn.tolist(), strict=True)
    ]
    bounds = np.searchsorted(made.owners, np.arange(len(made.names) + 1)).tolist()
    for name, (start, end) in zip(made.names, itertools.pairwise(bounds), strict=True):
        if end > start:
            (folder / name).with_suffix(".txt").write_text("".join(lines[start:end]))


def write_json(file: Path, made: LargeSet, points: int, rng: np.random.Generator) -> None:
    """Write a COCO json in the order of COCO's own: annotations in no order, categories at the end."""
    images = [
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.example.org/train2017/{name}",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.example.org/8186/{index:010}_8113778d09_z.jpg",
            "id": int(name[:12]),
        }
        for index, (name, (width, height)) in enumerate(zip(made.names, made.sizes_wh.tolist(), strict=True))
    ]
    categories = [{"supercategory": "thing", "id": index + 1, "name": f"class {index}"} for index in range(CLASSES)]
    with file.open("w", encoding="utf-8") as out:
        out.write('{"info": {"description": "a set of the size of COCO"},"images": ')
        out.write(json.dumps(images, separators=(",", ": ")))
        out.write(',"annotations": [')
        out.writelines(annotation_texts(made, points, rng))
        out.write(f'],"categories": {json.dumps(categories)}}}')


def annotation_texts(made: LargeSet, points: int, rng: np.random.Generator) -> Iterator[str]:
    """The json's annotations in random order, commas between them."""
    count = len(made.boxes)
    lengths = np.maximum(rng.gamma(1.5, points / 1.5, count).round().astype(int), 3)
    is_crowd, in_parts = rng.random(count) < CROWD_SHARE, rng.random(count) < TWO_PARTS_SHARE
    mask = f'{{"counts": {rng.integers(1, 400, MASK_RUNS).tolist()},"size": [480,640]}}'
    for number, index in enumerate(rng.permutation(count).tolist()):
        x, y, w, h = made.boxes[index].round(2).tolist()
        outline = made.boxes[index, :2] + made.boxes[index, 2:] * rng.random((lengths[index], 2))
        parts = np.array_split(outline, 2) if in_parts[index] and len(outline) >= 6 else [outline]
        polygons = json.dumps([part.round(2).ravel().tolist() for part in parts], separators=(",", ":"))
        yield (
            f'{"," if number else ""}{{"segmentation": {mask if is_crowd[index] else polygons},"area": {w * h * 0.6},'
            f'"iscrowd": {int(is_crowd[index])},"image_id": {int(made.names[made.owners[index]][:12])},'
            f'"bbox": [{x},{y},{w},{h}],"category_id": {made.classes[index] + 1},"id": {index}}}'
        )

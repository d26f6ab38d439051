"""Small data sets of three images, with labels in YOLO's text files or in a COCO json."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image

from data.annotations import Annotations, read_annotations
from data.config import load_data_config

SIZES = {"a.jpg": (100, 50), "b.png": (64, 64), "c.jpg": (30, 40)}
NOT_ARRAYS = ("names", "paths", "problems")


def save(path: Path, size, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path, **options)


def label(root: Path, name: str, text: str):
    (root / "labels/train" / name).write_text(text)


def read(root: Path, split="train", **options) -> Annotations:
    return read_annotations(load_data_config(root / "data.yaml"), split, **options)


def lines(table: Annotations) -> list[str]:
    """The problems as they are told."""
    return [str(problem) for problem in table.problems]


def write_coco(root: Path, annotations, *, images=None, categories=None) -> Path:
    """A json whose ids are not indices, and a YAML that names it."""
    images = images or [
        {"id": 10 * i + 7, "file_name": name, "width": w, "height": h} for i, (name, (w, h)) in enumerate(SIZES.items())
    ]
    categories = categories or [{"id": 5, "name": "cow"}, {"id": 90, "name": "cat"}, {"id": 13, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "train.json"
    path.write_text(json.dumps(content))
    (root / "data.yaml").write_text("train: images/train\nannotations: {train: train.json}\nnames: [cat, dog, cow]\n")
    return path


def box(image_id, category_id, bbox, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def assert_equal(a: Annotations, b: Annotations):
    for field in fields(Annotations):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in NOT_ARRAYS:
            assert x == y, field.name
        else:
            np.testing.assert_array_equal(x, y, field.name)
            assert x.dtype == y.dtype, field.name

"""One table from YOLO's text files and from COCO's json: what is kept, what is reported, and when the cache is used."""

import itertools
import json
import logging
import os
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.annotations import Annotations, read_annotations
from data.config import load_data_config
from data.files import find_images, label_path
from data.images import read_header
from utils.options import InputError

NAMES = ["cat", "dog", "cow"]
SIZES = {"a.jpg": (100, 50), "b.png": (64, 64), "c.jpg": (30, 40)}


@pytest.fixture
def root(tmp_path):
    """A data set of three images without labels."""
    for name, size in SIZES.items():
        save(tmp_path / "images/train" / name, size)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog, cow]\n")
    return tmp_path


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


# YOLO's text files


def test_boxes_in_pixels(root):
    label(root, "a.txt", "1 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1\n")
    label(root, "c.txt", "\ufeff2 0.5 0.25 0.1 0.5\r\n")
    table = read(root)
    assert [path.name for path in table.paths] == ["a.jpg", "b.png", "c.jpg"]
    np.testing.assert_array_equal(table.sizes_wh, list(SIZES.values()))
    np.testing.assert_array_equal(table.starts, [0, 2, 2, 3])
    np.testing.assert_array_equal(table.counts, [2, 0, 1])
    np.testing.assert_array_equal(table.classes, [1, 0, 2])
    np.testing.assert_allclose(table.boxes, [[40, 15, 20, 20], [0, 0, 50, 50], [13.5, 0, 3, 20]], atol=1e-12)
    np.testing.assert_allclose(table.areas, [400, 2500, 60])
    np.testing.assert_array_equal(table.image_ids, [0, 1, 2])
    np.testing.assert_array_equal(table.category_ids, [0, 1, 2])
    assert not table.crowd.any()
    assert not table.has_polygons
    assert table.problems == []
    np.testing.assert_array_equal(table.classes[table.rows(2)], [2])
    kinds = {field.name: getattr(table, field.name).dtype for field in fields(table) if field.name not in NOT_ARRAYS}
    assert kinds == DTYPES


NOT_ARRAYS = ("names", "paths", "problems")
DTYPES = {
    "sizes_wh": np.int32,
    "image_ids": np.int64,
    "category_ids": np.int64,
    "starts": np.int64,
    "classes": np.int64,
    "boxes": np.float64,
    "areas": np.float64,
    "crowd": np.bool_,
    "polygons": np.float32,
    "polygon_starts": np.int64,
}


def test_polygons_and_boxes_in_one_file(root):
    label(root, "a.txt", "0 0.1 0.2 0.5 0.2 0.3 0.8\n1 0.5 0.5 0.2 0.4\n2 0 0 1 0 1 1 0 1\n")
    table = read(root)
    np.testing.assert_allclose(table.boxes, [[10, 10, 40, 30], [40, 15, 20, 20], [0, 0, 100, 50]], atol=1e-5)
    np.testing.assert_array_equal(table.polygon_starts, [0, 3, 3, 7])
    np.testing.assert_allclose(table.polygon(0), [[10, 10], [50, 10], [30, 40]], atol=1e-5)
    assert len(table.polygon(1)) == 0
    np.testing.assert_allclose(table.polygon(2), [[0, 0], [100, 0], [100, 50], [0, 50]])


BAD_ROWS = {
    "0 0.5 0.5 x 0.1": "expected numbers",
    "0 0.5 0.5 0.1": "expected 'class x y w h'",
    "0": "expected 'class x y w h'",
    "0 0.5 0.5 0.1 0.1 0.9": "expected 'class x y w h'",
    "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "expected 'class x y w h'",
    "0.5 0.5 0.5 0.1 0.1": "the class is not a whole number",
    "-1 0.5 0.5 0.1 0.1": "the class is not a whole number",
    "nan 0.5 0.5 0.1 0.1": "the class is not a whole number",
    "1e300 0.5 0.5 0.1 0.1": "the class is not a whole number",
    "0 1.5 0.5 0.1 0.1": "coordinates outside 0..1",
    "0 0.5 -0.1 0.1 0.1": "coordinates outside 0..1",
    "0 nan 0.5 0.1 0.1": "coordinates outside 0..1",
    "0 inf 0.5 0.1 0.1": "coordinates outside 0..1",
    "0 50 20 10 10": "coordinates outside 0..1",
    "0 0.1 0.1 0.9 0.1 0.5 1.2": "coordinates outside 0..1",
    "0 0.5 0.5 0 0.1": "a box of no size",
    "0 0.5 0.5 0.1 0": "a box of no size",
    "0 0.1 0.1 0.1 0.2 0.1 0.5": "a box of no size",
    "1 0.5 0.5 0.2 0.4": "the same as a row before",
}


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS.items())
def test_a_bad_row_is_reported_and_the_good_ones_stay(root, row, complaint):
    label(root, "a.txt", f"1 0.5 0.5 0.2 0.4\n{row}\n2 0.5 0.5 0.2 0.3\n")
    label(root, "b.txt", "0 0.1 0.1 0.2 0.2 0.1 0.3\n1 0.5 0.5 0.2 0.4\n")
    table = read(root)
    np.testing.assert_array_equal(table.classes, [1, 2, 0, 1])
    np.testing.assert_array_equal(table.counts, [2, 2, 0])
    assert len(table.polygon(2)) == 3
    assert len(table.problems) == 1
    assert lines(table)[0].startswith(f"{root}/labels/train/a.txt:2: {complaint}")
    assert row.split()[1:2] == [] or row.split()[1] in lines(table)[0]


def test_all_bad_rows_together(root):
    label(root, "a.txt", "1 0.5 0.5 0.2 0.4\n" + "\n".join(BAD_ROWS))
    table = read(root)
    np.testing.assert_array_equal(table.classes, [1])
    assert sorted(problem.line for problem in table.problems) == list(range(2, len(BAD_ROWS) + 2))


def test_what_lies_outside_is_clipped_and_told_unless_rounding_puts_it_there(root):
    label(root, "a.txt", "0 0.5 0.5 1.0005 1\n1 0.9 0.5 0.4 0.5\n2 -0.0005 0 0.5 0 0.5 1\n")
    table = read(root)
    assert [(problem.kind, problem.line) for problem in table.problems] == [("box-over-edge", 2)]
    np.testing.assert_allclose(table.boxes, [[0, 0, 100, 50], [70, 12.5, 30, 25], [0, 0, 50, 50]], atol=1e-9)
    assert table.polygons.min() == 0


@pytest.mark.parametrize("row", ["3 0.5 0.5 0.1 0.1", "7 0.1 0.1 0.2 0.2 0.1 0.3"])
def test_a_class_beyond_the_names_is_refused(root, row):
    label(root, "b.txt", f"0 0.5 0.5 0.1 0.1\n{row}\n")
    with pytest.raises(InputError) as caught:
        read(root)
    assert str(caught.value).startswith(f"{root}/labels/train/b.txt:2: class {row[0]} has no name")
    assert "\n" not in str(caught.value)


def test_doubtful_rows_are_taken_and_reported(root):
    rows = ("0 0.5 0.5 0.2 0.4", "1 0.5 0.5 0.2 0.4", "2 0.1 0.1 0.5 0.5 0.3 0.3", "0 0.9 0.9 0.99 0.9 0.99 0.95")
    label(root, "a.txt", "\n".join(rows))
    label(root, "b.txt", "1 0.5 0.5 0.2 0.4\n")
    table = read(root)
    np.testing.assert_array_equal(table.counts, [4, 1, 0])
    assert [(problem.kind, problem.line) for problem in table.problems] == [("polygon-flat", 3), ("box-two-classes", 2)]
    assert not any(problem.is_error for problem in table.problems)


def test_a_class_without_a_name_is_left_out_where_that_is_wished(root):
    label(root, "a.txt", "0 0.5 0.5 0.2 0.4\n3 0.5 0.5 0.1 0.1\n")
    table = read(root, refuse_nameless=False)
    np.testing.assert_array_equal(table.classes, [0])
    assert [(problem.kind, problem.line) for problem in table.problems] == [("class-range", 2)]


def test_unreadable_files_are_reported_and_left_out(root):
    (root / "images/train/b.png").write_bytes(b"no image")
    (root / "images/train/d.jpg").touch()
    (root / "images/train/e.jpg").symlink_to(root / "nowhere.jpg")
    for name in "abcd":
        label(root, f"{name}.txt", "1 0.5 0.5 0.2 0.4\n")
    (root / "labels/train/c.txt").write_bytes(b"0 0.5 \xff\xfe")
    table = read(root)
    assert [path.name for path in table.paths] == ["a.jpg", "c.jpg"]
    np.testing.assert_array_equal(table.counts, [1, 0])
    assert len(table.problems) == 4
    for name in (
        "b.png: not a readable image",
        "d.jpg: not a readable",
        "e.jpg: no such file",
        "c.txt: not a readable",
    ):
        assert any(name in line for line in lines(table))
    assert not any("\n" in line for line in lines(table))


@pytest.mark.parametrize(
    ("suffix", "orientation"), [(s, o) for s in ("jpg", "png", "webp", "tif") for o in (1, 3, 6, 8)]
)
def test_sizes_are_those_of_the_decoder(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{suffix}"
    save(path, (40, 20), exif=exif)
    height, width = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert read_header(path) == (width, height, True)
    assert (width > height) == (orientation < 5)


def test_damaged_exif_says_nothing(tmp_path):
    save(tmp_path / "x.jpg", (40, 20), exif=b"Exif\0\0garbage")
    assert read_header(tmp_path / "x.jpg") == (40, 20, True)


def test_names_beyond_ascii(tmp_path):
    folder = tmp_path / "Bilder äß 图"
    save(folder / "images/train/été 图.jpg", (100, 50))
    (folder / "labels/train").mkdir(parents=True)
    label(folder, "été 图.txt", "1 0.5 0.5 0.2 0.4\n0 2 0 0 0\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [кот, 狗]\n", encoding="utf-8")
    tables = [read(folder, cache=tmp_path / "cache") for _ in range(2)]
    assert tables[0].names == ["кот", "狗"]
    assert tables[0].paths == [folder / "images/train/été 图.jpg"]
    np.testing.assert_array_equal(tables[0].classes, [1])
    assert "été 图.txt:2" in lines(tables[0])[0]
    assert_equal(*tables)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/d/images/train/x.y.JPG", "/d/labels/train/x.y.txt"),
        ("/images/images/a/x.png", "/images/labels/a/x.txt"),
        ("/d/pictures/x.png", "/d/pictures/x.txt"),
        ("/d/images.old/x.png", "/d/images.old/x.txt"),
    ],
)
def test_label_path(image, expected):
    assert label_path(Path(image)) == Path(expected)


def test_lists_folders_and_links(root):
    save(root / "far/images/deep/er/x.JPG", (10, 10))
    (root / "far/images/deep/loop").symlink_to(root / "far")
    save(root / "far/images/deep/._x.jpg", (10, 10))
    (root / "linked").symlink_to(root / "far/images/deep")
    (root / "lists").mkdir()
    save(root / "lists/images/near.png", (10, 10))
    (root / "lists/l.txt").write_text(
        f"./images/near.png\n\nimages/train/a.jpg\r\n  {root}/images/train/c.jpg \nnotes.doc\nimages/train/a.jpg\n"
    )
    (root / "data.yaml").write_text("train: [lists/l.txt, linked]\nnames: [a]\n")
    images, problems = find_images(load_data_config(root / "data.yaml"), "train")
    expected = ["images/train/a.jpg", "images/train/c.jpg", "linked/er/x.JPG", "lists/images/near.png"]
    assert images == [root / path for path in expected]
    assert list(map(str, problems)) == [f"{root}/lists/l.txt:5: not the name of an image: notes.doc"]
    assert read(root).problems == problems


@pytest.mark.parametrize("kind", ["folder", "list", "unreadable"])
def test_no_images_is_told_with_the_place(tmp_path, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/notes.doc").touch()
    (tmp_path / "list.txt").write_text("gone.jpg\n" if kind == "unreadable" else "\n")
    entry = "images" if kind == "folder" else "list.txt"
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [a]\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(tmp_path / ("gone.jpg" if kind == "unreadable" else entry)) in str(caught.value)


# COCO's json


def test_json_and_text_give_the_same_boxes(root):
    rng = np.random.default_rng(0)
    annotations = []
    categories = {0: 90, 1: 13, 2: 5}
    for index, (name, (width, height)) in enumerate(SIZES.items()):
        sides = rng.uniform(0.05, 0.4, (6, 2))
        centres = rng.uniform(sides / 2, 1 - sides / 2)
        classes = rng.integers(0, 3, 6)
        rows = np.column_stack([classes, centres, sides])
        label(root, Path(name).with_suffix(".txt").name, "\n".join(" ".join(map(repr, row.tolist())) for row in rows))
        scale = np.array([width, height])
        pixels = np.concatenate([(centres - sides / 2) * scale, sides * scale], 1)
        annotations += [
            box(10 * index + 7, categories[kind], bbox)
            for kind, bbox in zip(classes.tolist(), pixels.tolist(), strict=True)
        ]
    text = read(root)
    write_coco(root, annotations)
    table = read(root)
    np.testing.assert_array_equal(table.image_ids, [7, 17, 27])
    np.testing.assert_array_equal(table.category_ids, [90, 13, 5])
    assert len(text.classes) == 18
    for name in ("paths", "sizes_wh", "starts", "classes", "crowd", "polygons", "polygon_starts", "problems"):
        np.testing.assert_array_equal(getattr(table, name), getattr(text, name))
    np.testing.assert_allclose(table.boxes, text.boxes, atol=1e-12)
    np.testing.assert_allclose(table.areas, text.areas, rtol=1e-12)


def test_json_agrees_with_pycocotools(root, capsys):
    annotations = [
        box(27, 13, [1, 2, 10, 20], area=55.5, iscrowd=0, segmentation=[[1, 2, 11, 2, 11, 22]]),
        box(7, 5, [0.5, 0.5, 30, 8], area=9, iscrowd=1, segmentation={"counts": [3, 4], "size": [50, 100]}),
        box(7, 90, [10, 10, 5, 5], area=25, iscrowd=0, segmentation=[[10, 10, 15, 10, 15, 15, 10, 15]]),
    ]
    for index, entry in enumerate(annotations):
        entry["id"] = index + 1
    path = write_coco(root, annotations)
    table, oracle = read(root), COCO(str(path))
    for i, image in enumerate(table.image_ids.tolist()):
        expected = oracle.loadAnns(oracle.getAnnIds(imgIds=image))
        rows = table.rows(i)
        assert table.paths[i].name == oracle.loadImgs(image)[0]["file_name"]
        assert table.boxes[rows].tolist() == [entry["bbox"] for entry in expected]
        assert table.areas[rows].tolist() == [entry["area"] for entry in expected]
        assert table.crowd[rows].tolist() == [bool(entry["iscrowd"]) for entry in expected]
        assert table.category_ids[table.classes[rows]].tolist() == [entry["category_id"] for entry in expected]
    np.testing.assert_array_equal(np.diff(table.polygon_starts), [0, 4, 3])
    np.testing.assert_array_equal(table.polygon(2), [[1, 2], [11, 2], [11, 22]])


def test_the_parts_of_a_polygon_become_one_outline(root):
    parts = [[2, 2, 20, 2, 20, 12, 2, 12], [40, 20, 60, 20, 50, 40], [70, 5, 90, 5, 90, 30, 70, 30]]
    write_coco(root, [box(7, 5, [2, 2, 88, 38], segmentation=parts)])
    outline = read(root).polygon(0)
    expected, drawn = np.zeros((50, 100), np.uint8), np.zeros((50, 100), np.uint8)
    for part in parts:
        cv2.fillPoly(expected, [np.array(part, np.int32).reshape(-1, 2)], 1)
    cv2.fillPoly(drawn, [outline.astype(np.int32)], 1)
    x, y = outline.T.astype(np.float64)
    shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert shoelace == 18 * 10 + 20 * 20 / 2 + 20 * 25  # the ways between the parts enclose nothing
    assert (drawn >= expected).all()
    assert (drawn > expected).sum() < 80  # lines a pixel wide


@pytest.mark.parametrize("file_name", ["a.jpg", "images/train/a.jpg", "train/a.jpg", "{root}/images/train/a.jpg"])
def test_file_names_of_the_json(root, file_name):
    write_coco(root, [box(3, 90, [1, 1, 5, 5])], images=[{"id": 3, "file_name": file_name.format(root=root)}])
    table = read(root)
    assert table.paths == [root / "images/train/a.jpg"]
    np.testing.assert_array_equal(table.image_ids, [3])
    assert len(table.problems) == 1
    assert "2 images of the split are not listed and left out, first" in lines(table)[0]


def test_doubtful_entries_of_the_json_are_reported(root):
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 50, "height": 100},
        {"id": 2, "file_name": "b.png"},
        {"id": 3, "file_name": "c.jpg"},
        {"id": 4, "file_name": "gone.jpg"},
        {"id": 5, "file_name": "b.png"},
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "horse"}, {"id": 4, "name": "dog"}]
    good = [1, 1, 5, 5]
    annotations = [
        box(1, 1, good),
        box(9, 1, good),  # no such image
        box(4, 1, good),  # an image not there: reported with the image
        box(1, 2, good),  # a category without a class: reported once, with the category
        box(1, 1, [1, 1, 0, 5]),
        box(1, 1, [1, 1, 5]),
        box(1, 1, ["1", 1, 5, 5]),
        box(1, 1, [1, 1, 5, float("nan")]),
        box(1, 1, [1, 1, 10**400, 5]),
        box(1, 1, good, area="big"),
        box(1, 1, good, iscrowd=2),
        box(1, 1, good, segmentation=[[1, 2, 3]]),
        box(1, 1, good, segmentation="x"),
        {"image_id": 1, "category_id": 1},
        box(2, 4, good),
    ]
    path = write_coco(root, annotations, images=images, categories=categories)
    (root / "images/train/c.jpg").write_bytes(b"")
    table = read(root)
    assert [image.name for image in table.paths] == ["a.jpg", "b.png"]
    np.testing.assert_array_equal(table.counts, [1, 1])
    np.testing.assert_array_equal(table.classes, [0, 1])
    np.testing.assert_array_equal(table.category_ids, [1, 4, 5])  # cow has a new id
    starts = [
        "category 'horse' is not in the data YAML",
        "class 'cow' of the data YAML is not in the json",
        "image 4: gone.jpg is not among",
        "image 5: b.png is listed before as 2",
        "image 1: said to be 50x100, but",
        "annotations[1]: there is no image 9",
        *(f"annotations[{i}]: bbox: " for i in range(4, 9)),
        "annotations[9]: expected a number as area",
        "annotations[10]: expected a number as area",
        "annotations[11]: segmentation",
        "annotations[12]: segmentation",
        "annotations[13]: bbox: expected 4 numbers, found None",
    ]
    found = [line.removeprefix(f"{path}: ") for line in lines(table) if line.startswith(str(path))]
    assert len(found) == len(starts)
    assert all(any(problem.startswith(start) for problem in found) for start in starts)
    others = [line for line in lines(table) if not line.startswith(str(path))]
    assert len(others) == 1
    assert "c.jpg: not a readable image" in others[0]


IMAGE = {"id": 1, "file_name": "a.jpg"}
CAT = {"id": 1, "name": "cat"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a valid json"),
        ("[" * 100_000, "not a valid json"),
        ("[]", "expected the keys images, categories and annotations"),
        ({"images": [IMAGE]}, "categories: expected a list"),
        ({"categories": [CAT]}, "images: expected a list"),
        ({"images": [{"id": "1", "file_name": "a.jpg"}], "categories": [CAT]}, "images[0]: id: expected an integer"),
        ({"images": [{"id": True, "file_name": "a.jpg"}], "categories": [CAT]}, "images[0]: id: expected an integer"),
        ({"images": [{"id": 2**64, "file_name": "a.jpg"}], "categories": [CAT]}, "images[0]: id: expected an integer"),
        ({"images": [{"id": 1, "file_name": 3}], "categories": [CAT]}, "images[0]: file_name: expected text"),
        ({"images": [IMAGE, IMAGE], "categories": [CAT]}, "images[1]: id: 1 is given twice"),
        ({"images": [{"id": 1}], "categories": [CAT]}, "images[0]: expected a mapping with id and file_name"),
        ({"images": [IMAGE], "categories": ["cat"]}, "categories[0]: expected a mapping with id and name"),
        ({"images": [IMAGE], "categories": [{"id": 1, "name": "bus"}]}, "no category has one of the data YAML's names"),
        ({"images": [IMAGE], "categories": [CAT, {"id": 2, "name": "cat"}]}, "the name 'cat' is given twice"),
        (
            {"images": [IMAGE], "categories": [CAT], "annotations": [{"image_id": "1"}]},
            "annotations[0]: expected image_id",
        ),
        (
            {"images": [IMAGE], "categories": [CAT], "annotations": [{"image_id": 2**64, "category_id": 1}]},
            "annotations[0]: expected image_id",
        ),
        ({"images": [IMAGE], "categories": [CAT], "annotations": [3]}, "annotations[0]: expected a mapping"),
        ({"images": [IMAGE], "categories": [CAT], "annotations": {}}, "annotations: expected a list"),
        ({"images": {"1": IMAGE}, "categories": [CAT]}, "images: expected a list"),
        ({"images": [{"id": 1, "file_name": "x.jpg"}], "categories": [CAT]}, "x.jpg is not among the images"),
    ],
)
def test_a_json_that_is_none_is_refused_in_one_line(root, content, message):
    path = write_coco(root, [])
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read(root)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doubtful_annotations_are_taken_and_reported(root):
    annotations = [
        box(7, 5, [1, 1, 5, 5]),
        box(17, 5, [1, 1, 5, 5]),
        box(7, 90, [1, 1, 5, 5]),
        box(7, 5, [1, 1, 5, 5]),
        box(7, 5, [1, 1, 5, 5], iscrowd=1),
        box(7, 13, [200, 1, 5, 5]),
        box(7, 13, [90, 1, 10.9, 5]),
        box(7, 13, [90, 1, 12, 5], segmentation=[[90, 1, 95, 6, 102, 13]]),
    ]
    write_coco(root, annotations)
    table = read(root)
    assert len(table.classes) == len(annotations)
    found = {int(problem.what.split("[")[1].split("]")[0]): problem.kind for problem in table.problems[:-1]}
    assert found == {2: "box-two-classes", 3: "box-duplicate", 5: "box-outside", 7: "box-over-edge"}
    assert (table.problems[-1].kind, table.problems[-1].what[:14]) == ("polygon-flat", "annotations[7]")


def test_keys_in_any_order_and_sizes_that_are_none(root):
    annotations = [box(i, 2, [1, 1, 5, i]) for i in (3, 1, 3)]
    images = [
        {"id": i, "file_name": name, "width": size}
        for i, name, size in zip((1, 2, 3), SIZES, ("5", 10**30, True), strict=False)
    ]
    path = write_coco(root, annotations, images=images, categories=[{"id": 2, "name": "dog"}])
    tables = []
    for keys in itertools.permutations(("images", "annotations", "categories")):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({"info": [3], **{key: content[key] for key in keys}, "licenses": [{}]}))
        tables.append(read(root))
    np.testing.assert_array_equal(tables[0].boxes[:, 3], [1, 3, 3])
    assert [problem.kind for problem in tables[0].problems] == ["category", "category", "box-duplicate"]
    for table in tables[1:]:
        assert_equal(table, tables[0])


def test_a_json_without_annotations_has_images_without_boxes(root):
    path = write_coco(root, [])
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    table = read(root)
    np.testing.assert_array_equal(table.counts, [0, 0, 0])
    assert table.boxes.shape == (0, 4)


# The table


def test_subset(root):
    label(root, "a.txt", "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.3 0.8\n")
    label(root, "c.txt", "2 0.1 0.2 0.5 0.2 0.3 0.8 0.2 0.9\n")
    table = read(root)
    part = table.subset([2, 1, 0])
    assert part.paths == table.paths[::-1]
    np.testing.assert_array_equal(part.counts, [1, 0, 2])
    np.testing.assert_array_equal(part.classes, [2, 1, 0])
    np.testing.assert_array_equal(part.image_ids, [2, 1, 0])
    np.testing.assert_array_equal(part.boxes, table.boxes[[2, 0, 1]])
    for new, old in enumerate([2, 0, 1]):
        np.testing.assert_array_equal(part.polygon(new), table.polygon(old))
    assert_equal(table.subset(range(3)), table)
    assert len(table.subset([]).boxes) == len(table.subset([])) == 0


def test_progress_ends_at_the_total(root):
    seen = []
    read(root, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)


# The cache


@pytest.fixture(params=["text", "json"])
def cached(root, request):
    """A data set, and a way to read it that fails when the cache is not used."""
    label(root, "a.txt", "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.3 0.8\nbad\n")
    if request.param == "json":
        write_coco(root, [box(7, 90, [1, 1, 5, 5], segmentation=[[1, 1, 6, 1, 6, 6]]), box(8, 90, [1, 1, 5, 5])])
    return root


def is_cached(root: Path, table: Annotations) -> bool:
    """Whether the table comes from the cache: then no image header is read."""
    calls = []
    again = read(root, cache=root / "cache", progress=lambda *counts: calls.append(counts))
    if not calls:
        assert_equal(again, table)
    return not calls


def test_cache_gives_the_same_table(cached):
    before = {path: path.stat().st_mtime_ns for path in cached.rglob("*")}
    table = read(cached, cache=cached / "cache")
    assert len(table.problems) > 0
    assert is_cached(cached, table)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path != cached)
    assert [path.suffix for path in (cached / "cache").iterdir()] == [".npz"]


@pytest.mark.parametrize("change", ["touch image", "new image", "no image", "source", "names", "same size"])
def test_cache_is_found_stale(cached, change):
    is_json = (cached / "train.json").exists()
    source = cached / "train.json" if is_json else cached / "labels/train/a.txt"
    table = read(cached, cache=cached / "cache")
    if change == "touch image":
        os.utime(cached / "images/train/b.png", (1, 1))
    elif change == "new image":
        save(cached / "images/train/d.jpg", (9, 9))
    elif change == "no image":
        (cached / "images/train/b.png").unlink()
    elif change == "source":
        source.write_text(source.read_text() + "\n")
    elif change == "names":
        yaml = cached / "data.yaml"
        yaml.write_text(yaml.read_text().replace("cow", "horse"))
    elif change == "same size":
        text = source.read_text()
        source.write_text(
            text.replace("[1, 1, 5, 5]", "[1, 1, 5, 6]") if is_json else text.replace("0.2 0.4", "0.2 0.3")
        )
    assert not is_cached(cached, table)
    assert_equal(read(cached, cache=cached / "cache"), read(cached))


def test_cache_sees_a_new_label_file(root):
    table = read(root, cache=root / "cache")
    label(root, "b.txt", "1 0.5 0.5 0.2 0.4\n")
    assert not is_cached(root, table)
    assert len(read(root, cache=root / "cache").classes) == 1


# Bits of an entry in a zip's directory: its place in the entry, and the bit
FLAGS = {"version": (6, 128), "encrypted": (8, 1), "patched": (8, 32), "deflated": (10, 8), "unknown method": (10, 32)}


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped", "pickle", *FLAGS])
def test_a_damaged_cache_is_made_anew(cached, damage, caplog):
    table = read(cached, cache=cached / "cache")
    (file,) = (cached / "cache").iterdir()
    content = file.read_bytes()
    if damage == "pickle":
        np.savez(file, key=np.array([object()]))
    elif damage in FLAGS:
        place, bit = FLAGS[damage]
        place += content.rindex(b"PK\1\2")
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
    else:
        middle = content.index(b"boxes.npy") + 170
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        file.write_bytes({"cut": content[:-200], "empty": b"", "garbage": b"x" * 500, "flipped": flipped}[damage])
    with caplog.at_level(logging.WARNING):
        assert not is_cached(cached, table)
    assert "damaged" in caplog.text
    assert is_cached(cached, table)


def test_each_split_has_a_cache_of_its_own(root):
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog, cow]\n")
    for split in ("train", "val"):
        read(root, split, cache=root / "cache")
    assert {path.name.split("-")[0] for path in (root / "cache").iterdir()} == {"train", "val"}


def test_a_cache_that_cannot_be_written_costs_only_a_warning(root, caplog):
    (root / "cache").touch()
    assert len(read(root, cache=root / "cache")) == 3
    assert "could not be written" in caplog.text

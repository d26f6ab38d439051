"""A COCO json gives the boxes that YOLO's text files and pycocotools give; doubtful entries are reported."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.data.annotation_sets import SIZES, assert_equal, box, label, lines, read, write_coco
from utils.options import InputError


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

"""YOLO's text files become boxes in pixels; bad rows are reported, and the good ones stay."""

from dataclasses import fields

import numpy as np
import pytest

from tests.data.annotation_sets import NOT_ARRAYS, SIZES, label, lines, read
from utils.options import InputError

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

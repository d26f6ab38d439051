import hashlib
import math

import cv2
import numpy as np
import pytest

from data import glyphs
from utils.options import InputError

QUIET = {"TEXTURE": (0.0, 0.0), "GRADIENT": 0.0, "STROKES": (0, 0), "PANELS": 0, "GRAIN": (0.0, 0.0)}
SMALL_AREA = 32**2


@pytest.fixture(scope="module")
def sample():
    return [glyphs.render(split, index) for split in glyphs.SPLITS for index in range(60)]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(glyphs, "SPLITS", {"train": 3, "val": 2})


def files(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_names_and_counts():
    assert glyphs.NAMES == ["disc", "ring", "cross", "bar"]
    assert glyphs.SPLITS == {"train": 512, "val": 128}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_render_does_not_depend_on_order_or_threads(threads):
    reference = {key: glyphs.render(*key) for key in [("train", 3), ("val", 3), ("train", 4)]}
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(threads)
        for key in reversed(reference):
            for got, expected in zip(glyphs.render(*key), reference[key], strict=True):
                assert np.array_equal(got, expected)
    finally:
        cv2.setNumThreads(before)


def test_splits_and_indices_differ():
    digests = {glyphs.render(split, index)[0].tobytes() for split in glyphs.SPLITS for index in range(4)}
    assert len(digests) == 8


def test_images_and_boxes_have_their_form(sample):
    for image, classes, boxes in sample:
        height, width = image.shape[:2]
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert 256 <= min(height, width) <= max(height, width) <= 320
        assert classes.dtype == np.int64
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(classes), 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (width, height)).all()


def test_most_marks_are_small_and_sizes_spread(sample):
    boxes = np.concatenate([boxes for *_, boxes in sample])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides.prod(axis=1) < SMALL_AREA).mean() >= 0.8
    longest = sides.max(axis=1)
    assert longest.min() < 10
    assert 45 <= longest.max() <= glyphs.MARK_SIZE[1] * math.hypot(glyphs.BAR_LENGTH, glyphs.BAR_WIDTH) + 1
    assert np.quantile(longest, 0.9) > 2.5 * np.quantile(longest, 0.1)


def test_counts_classes_and_empty_images(sample):
    counts = np.array([len(classes) for _, classes, _ in sample])
    per_class = np.bincount(np.concatenate([classes for _, classes, _ in sample]), minlength=4)
    assert (counts == 0).mean() == pytest.approx(1 / 12)
    assert 6 <= counts.mean() <= 8
    assert counts.max() <= glyphs.MAX_MARKS
    assert len(per_class) == 4
    assert per_class.min() > 0.2 * per_class.sum()


def test_some_marks_touch(sample):
    touching = 0
    for _, _, boxes in sample:
        meet = (boxes[:, None, :2] < boxes[None, :, 2:]).all(axis=2)  # (n, n): i begins before j ends
        touching += int(np.triu(meet & meet.T, k=1).sum())
    marks = sum(len(boxes) for *_, boxes in sample)
    assert 0.03 * marks < touching < 0.3 * marks


@pytest.mark.parametrize("kind", range(4), ids=glyphs.NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, 2.0])
@pytest.mark.parametrize("size", [9.0, 17.3, 45.0])
def test_box_of_a_mark_is_what_geometry_says(kind, angle, size):
    """Support function of each shape, in closed form."""
    turned = np.abs([math.cos(angle), math.sin(angle)])
    rectangle = {"bar": (glyphs.BAR_LENGTH, glyphs.BAR_WIDTH), "cross": (1, glyphs.CROSS_ARM)}.get(glyphs.NAMES[kind])
    extent = np.array([1.0, 1.0])
    if rectangle:
        extent = np.array([np.dot(rectangle, turned), np.dot(rectangle[::-1], turned)])
    if glyphs.NAMES[kind] == "cross":
        extent = np.maximum(extent, extent[::-1])
    mark = glyphs.draw_mark(kind, size, angle=angle)
    assert mark.box[2:] - mark.box[:2] == pytest.approx(size * extent, abs=0.76)
    assert (mark.box[:2] + mark.box[2:]) / 2 == pytest.approx(np.array(mark.coverage.shape) / 2, abs=0.26)


@pytest.mark.parametrize("kind", range(4), ids=glyphs.NAMES)
def test_box_is_tight_around_the_coverage(kind):
    for step in range(12):
        mark = glyphs.draw_mark(kind, 9 + 3 * step, angle=0.5 * step, stretch=0.9)
        rows, columns = np.nonzero(mark.coverage)
        assert mark.box[:2] == pytest.approx([columns.min(), rows.min()], abs=1)
        assert mark.box[2:] == pytest.approx([columns.max() + 1, rows.max() + 1], abs=1)
        assert (mark.box[:2] >= [columns.min(), rows.min()]).all()
        assert (mark.box[2:] <= [columns.max() + 1, rows.max() + 1]).all()


def test_boxes_of_an_image_are_tight_around_what_is_painted(monkeypatch):
    for name, value in QUIET.items():
        monkeypatch.setattr(glyphs, name, value)
    monkeypatch.setattr(glyphs, "BLUR", (0.0, 0.0))
    monkeypatch.setattr(glyphs, "TOUCHING_SHARE", 0.0)
    found = 0
    for index in range(20):
        image, _, boxes = glyphs.render("train", index)
        painted = (np.abs(image.astype(int) - np.median(image, axis=(0, 1))) > 6).any(axis=2)
        hidden = painted.copy()
        for box in boxes:
            left, top, right, bottom = (int(v) for v in np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]))
            hidden[top:bottom, left:right] = False
            inside = painted[top:bottom, left:right]
            others = (boxes[:, :2] < box[2:] + 1).all(axis=1) & (boxes[:, 2:] > box[:2] - 1).all(axis=1)
            if others.sum() > 1:  # a neighbour's corner may reach into this box
                continue
            found += 1
            rows, columns = np.nonzero(inside)
            assert max(rows.min(), columns.min()) <= 1
            assert min(rows.max() - inside.shape[0], columns.max() - inside.shape[1]) >= -2
        assert not hidden.any()  # nothing is drawn outside the boxes
    assert found > 50


def test_marks_stand_out_from_their_ground(sample):
    """The mean of a disc differs from the frame around its box by about the contrast asked for."""
    differences = []
    for image, classes, boxes in sample:
        grey = image.mean(axis=2)
        for x1, y1, x2, y2 in boxes[classes == glyphs.NAMES.index("disc")].round().astype(int):
            core = grey[y1 + (y2 - y1) // 3 : y2 - (y2 - y1) // 3, x1 + (x2 - x1) // 3 : x2 - (x2 - x1) // 3]
            frame = grey[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3]
            frame_sum = frame.sum() - grey[y1:y2, x1:x2].sum()
            differences.append(core.mean() - frame_sum / (frame.size - (y2 - y1) * (x2 - x1)))
    strength = np.abs(differences)
    assert np.quantile(strength, 0.05) > 15
    assert glyphs.CONTRAST[0] < np.median(strength) < glyphs.CONTRAST[1]
    assert 0.3 < np.mean(np.array(differences) > 0) < 0.7  # darker and lighter ones


def test_generate_twice_gives_the_same_files(tmp_path, few):
    glyphs.generate(tmp_path / "a")
    glyphs.generate(tmp_path / "deep" / "b")
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "deep" / "b")
    assert {name for name in first if name.startswith("images")} == {
        *(f"images/train/{index:04d}.jpg" for index in range(3)),
        *(f"images/val/{index:04d}.jpg" for index in range(2)),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep"]


def test_labels_say_what_render_says(tmp_path, few):
    glyphs.generate(tmp_path / "set")
    for index in range(3):
        image, classes, boxes = glyphs.render("train", index)
        height, width = image.shape[:2]
        stored = cv2.imread(str(tmp_path / f"set/images/train/{index:04d}.jpg"))
        assert np.abs(stored.astype(int) - image).mean() < 6
        rows = np.loadtxt(tmp_path / f"set/labels/train/{index:04d}.txt", ndmin=2).reshape(-1, 5)
        assert rows[:, 0].tolist() == classes.tolist()
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], axis=1)
        assert corners * (width, height, width, height) == pytest.approx(boxes, abs=1e-3)


def test_image_without_marks_has_an_empty_label_file(tmp_path, few, monkeypatch):
    monkeypatch.setattr(glyphs, "EMPTY_EVERY", 1)
    glyphs.generate(tmp_path / "set")
    assert [path.read_text() for path in (tmp_path / "set/labels").glob("*/*.txt")] == [""] * 5


def test_complete_set_is_left_untouched(tmp_path, few, monkeypatch):
    root = tmp_path / "set"
    glyphs.generate(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(glyphs, "render", lambda *_: pytest.fail("rendered again"))
    glyphs.generate(root)
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("damage", ["a lost image", "an older version"])
def test_incomplete_set_is_made_anew(tmp_path, few, damage):
    root = tmp_path / "set"
    glyphs.generate(root)
    expected = files(root)
    if damage == "a lost image":
        (root / "images/train/0001.jpg").unlink()
    else:
        (root / "glyphs.version").write_text("0")
    glyphs.generate(root)
    assert files(root) == expected
    assert list(tmp_path.iterdir()) == [root]


def test_interrupted_generation_leaves_nothing_and_is_redone(tmp_path, few, monkeypatch):
    root = tmp_path / "set"
    render = glyphs.render

    def stop(split, index):
        if (split, index) == ("val", 1):
            raise KeyboardInterrupt
        return render(split, index)

    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "render", stop)
        with pytest.raises(KeyboardInterrupt):
            glyphs.generate(root)
    assert list(tmp_path.iterdir()) == []
    glyphs.generate(root)
    assert len(files(root)) == 11


def test_foreign_folder_is_refused_and_kept(tmp_path, few):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"expected the data set glyphs or nothing"):
        glyphs.generate(tmp_path)
    assert files(tmp_path).keys() == {"photo.jpg"}
    glyphs_in_empty = tmp_path / "empty"
    glyphs_in_empty.mkdir()
    glyphs.generate(glyphs_in_empty)
    assert (glyphs_in_empty / "images/val/0001.jpg").is_file()

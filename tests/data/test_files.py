"""The files of a split: folders, lists and links, names beyond ASCII, and where an image's labels lie."""

from pathlib import Path

import numpy as np
import pytest

from data.config import load_data_config
from data.files import find_images, label_path
from tests.data.annotation_sets import assert_equal, label, lines, read, save
from utils.options import InputError


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

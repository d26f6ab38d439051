"""The table of a split: parts of it, what is left out of it, and when its cache is used."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from data.annotations import Annotations
from tests.data.annotation_sets import assert_equal, box, label, lines, read, save, write_coco


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

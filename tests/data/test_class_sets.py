"""Classification sets: folders, CIFAR's bytes, Tiny ImageNet's layout, the marks of glyphs, and what is set aside."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import class_sets
from data.class_dataset import ClassAugmentation, ClassDataset, colour_statistics, make_class_loader, square
from data.class_images import ClassSplit, PixelArray, read_folders
from data.dataset import Draw
from utils.options import InputError

RNG = np.random.default_rng(0)


def images(count: int, side: int = 8) -> np.ndarray:
    return RNG.integers(0, 255, (count, side, side, 3), np.uint8)


def split(counts: list[int], side: int = 8) -> ClassSplit:
    labels = np.repeat(np.arange(len(counts)), counts)
    return ClassSplit.of_all([f"c{n}" for n in range(len(counts))], labels, PixelArray(images(len(labels), side), "x"))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(**files: list[str]) -> Path:
        for part, names in files.items():
            for name in names:
                path = tmp_path / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".txt":
                    path.write_text("no image")
                else:
                    cv2.imwrite(str(path), images(1)[0])
        return tmp_path

    return make


def test_a_class_is_a_folder_in_the_order_of_the_training_folders(folder: Callable[..., Path]) -> None:
    root = folder(train=["b/1.png", "a/2.png", "a/deep/1.png"], val=["b/1.png"])
    splits = read_folders(root)
    assert splits.keys() == {"train", "val"}
    train, val = splits["train"], splits["val"]
    assert train.names == val.names == ["a", "b"]
    assert [(train.name(n), train.labels[n]) for n in range(3)] == [("a/2.png", 0), ("a/deep/1.png", 0), ("b/1.png", 1)]
    assert val.labels.tolist() == [1]


def test_files_that_are_no_images_are_named_and_left_out(folder: Callable[..., Path]) -> None:
    root = folder(train=["a/1.png", "a/2.png", "a/3.png", "b/1.png"])
    (root / "train/a/2.png").write_bytes(b"no image")
    (root / "train/a/.hidden.png").write_bytes(b"nor this")
    train = read_folders(root)["train"]
    assert [train.name(n) for n in range(len(train))] == ["a/1.png", "a/3.png", "b/1.png"]
    assert train.labels.tolist() == [0, 0, 1]
    (problem,) = train.problems
    assert str(problem).startswith(f"{root / 'train/a/2.png'}: ")
    cv2.imwrite(str(root / "train/b/1.png"), images(1, 9)[0])
    assert read_folders(root)["train"].images.identity() != train.images.identity()


def test_file_names_that_are_no_unicode_can_be_shown(folder: Callable[..., Path]) -> None:
    root = folder(train=["a/1.png", "b/1.png"])
    (root / "train/a/1.png").rename(os.fsdecode(os.fsencode(root) + b"/train/a/\xe9.png"))
    train = read_folders(root)["train"]
    assert train.name(0) == "a/\ufffd.png"
    assert train.read(0).shape == (8, 8, 3)
    assert b"a/\xe9.png" in train.images.identity()
    (root / "train/b").rename(os.fsdecode(os.fsencode(root) + b"/train/\xe9"))
    with pytest.raises(InputError, match="expected a class name of printable characters"):
        read_folders(root)


def test_large_jpegs_are_decoded_no_larger_than_training_needs(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "train" / name / "1.jpg"), np.full((160, 320, 3), 90, np.uint8))
    train = read_folders(tmp_path)["train"]
    assert train.read(0).shape == (160, 320, 3)
    assert train.read(0, side=32).shape == (40, 80, 3)
    assert train.read(0, side=100).shape == (160, 320, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"val": ["a/1.png"]}, "expected train/"),
        ({"train": ["a/1.png"]}, "train: expected folders of two classes or more, found a alone"),
        ({"train": ["a/1.png", "b/x.txt"]}, "train/b: no images that can be read"),
        ({"train": ["a/x.txt", "b/x.txt"]}, "train: no images .* that can be read"),
        ({"train": ["1.png"]}, "train: expected a folder of images for each class, found none"),
        (
            {"train": ["a/1.png", "b/1.png"], "test": ["z/1.png"]},
            "test/z: no such class in the training folder, .* a, b",
        ),
    ],
)
def test_other_folders_are_refused(files: dict[str, list[str]], message: str, folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=message):
        read_folders(folder(**files))


def test_the_same_share_of_each_class_is_set_aside_each_time() -> None:
    whole = split([10, 20, 2])
    (train, val), (_, again) = whole.divided(0.2), whole.divided(0.2)
    assert val.counts.tolist() == [2, 4, 1]
    assert train.counts.tolist() == [8, 16, 1]
    assert sorted([*train.places, *val.places]) == list(range(32))
    assert val.places.tolist() == again.places.tolist()
    with pytest.raises(InputError, match="class 'c1' has 1 training images"):
        split([3, 1]).divided(0.1)


@pytest.mark.parametrize(("reader", "labels"), [(class_sets._read_cifar10, 1), (class_sets._read_cifar100, 2)])
def test_cifars_records_become_images(reader: Callable[[Path], class_sets.Splits], labels: int, tmp_path: Path) -> None:
    pixels, classes = RNG.integers(0, 255, (12, 3, 32, 32), np.uint8), np.arange(12, dtype=np.uint8) % 3
    heads = np.stack([np.full(12, 9, np.uint8)] * (labels - 1) + [classes], 1)
    records = np.concatenate((heads, pixels.reshape(12, -1)), 1)
    (tmp_path / ("batches.meta.txt" if labels == 1 else "fine_label_names.txt")).write_text("cat\ndog\nfrog\n\n")
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] if labels == 1 else ["train.bin"]
    for name, part in zip(names, np.array_split(records[:10], len(names)), strict=True):
        part.tofile(tmp_path / name)
    records[10:].tofile(tmp_path / ("test_batch.bin" if labels == 1 else "test.bin"))
    splits = reader(tmp_path)
    assert splits["train"].names == ["cat", "dog", "frog"]
    assert [*splits["train"].labels, *splits["test"].labels] == classes.tolist()
    np.testing.assert_array_equal(splits["test"].read(1), pixels[11].transpose(1, 2, 0)[..., ::-1])  # RGB planes to BGR
    with (tmp_path / names[0]).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"expected records of 307\d bytes"):
        reader(tmp_path)


def test_tiny_imagenets_official_validation_images_are_the_test_images(folder: Callable[..., Path]) -> None:
    root = folder(train=["n1/images/n1_0.JPEG", "n2/images/n2_0.JPEG"], val=["images/val_0.JPEG", "images/val_1.JPEG"])
    (root / "wnids.txt").write_text("n2\nn1\n")  # not sorted, as the real one
    (root / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\tbullfrog\nn3\tother\n")
    (root / "val/val_annotations.txt").write_text("val_1.JPEG\tn1\t0\t0\t9\t9\nval_0.JPEG\tn2\t0\t0\t9\t9\n")
    splits = class_sets._read_tiny_imagenet(root)
    assert splits.keys() == {"train", "test"}
    assert splits["train"].names == splits["test"].names == ["bullfrog", "goldfish"]
    assert [splits["train"].name(n) for n in range(2)] == ["n2/images/n2_0.JPEG", "n1/images/n1_0.JPEG"]
    assert splits["train"].labels.tolist() == [0, 1]
    assert [splits["test"].name(n) for n in range(2)] == ["val_1.JPEG", "val_0.JPEG"]
    assert splits["test"].labels.tolist() == [1, 0]


def test_sets_lie_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(class_sets, "get", lambda _archive, _root: None)
    for name in ("YOLOv5_DATASETS_DIR", "YOLOV5_DATASETS_DIR"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(tmp_path))
            assert class_sets.SETS["cifar10"].get("cifar10") == tmp_path / "cifar10"


def test_the_square_is_the_middle_at_the_size_asked_for() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    assert (square(image, 20) == 255).all()
    assert square(image, 32).shape == (32, 32, 3)
    assert square(np.zeros((2, 30_000, 3), np.uint8), 224).shape == (224, 224, 3)  # never 224 x 3,360,000
    fine = np.indices((32, 32)).sum(0) % 2 * np.uint8(255)
    assert np.ptp(square(np.repeat(fine[..., None], 3, 2).astype(np.uint8), 32, shrink=2)) <= 1  # the pattern is gone


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_seed_epoch_and_place_alone(workers: int) -> None:
    augmentation = ClassAugmentation(crop_padding=0.25, fliplr=0.5, flipud=0.5, degrees=15)
    dataset = ClassDataset(split([6, 6], 16), 16, augmentation=augmentation)

    def epoch(number: int, workers: int) -> list[np.ndarray]:
        loader = make_class_loader(dataset, batch_size=4, workers=workers, seed=3, train=True)
        loader.set_epoch(number)
        return [np.concatenate((batch.images.numpy().ravel(), batch.labels)) for batch in loader]

    np.testing.assert_array_equal(epoch(1, workers), epoch(1, 0))
    assert (np.concatenate(epoch(1, workers)) != np.concatenate(epoch(2, 0))).any()


def test_what_is_not_augmented_is_the_image_itself() -> None:
    whole = split([2], 16)
    item = ClassDataset(whole, 16)[Draw(1)]
    np.testing.assert_array_equal(item.image.permute(1, 2, 0), whole.read(1)[..., ::-1])


def test_colour_statistics_are_numpys() -> None:
    whole = split([9], 16)
    mean, std = colour_statistics(whole, 16)
    rgb = whole.images.pixels[..., ::-1].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, rgb.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, rgb.std(0), atol=1e-4)

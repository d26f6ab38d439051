"""The data check: each fault is found in its file and line, sound data has none, and a clean copy reads as sound."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import check
from data.config import load_data_config
from data.figures import read_anchors
from data.findings import examine
from data.problems import KINDS
from tests.data.annotation_sets import label, save, write_coco
from utils.options import InputError, run_script
from utils.runs import scan_progress

RNG = np.random.default_rng(0)
# kind, file below the root, line
FAULTS = {
    ("list-entry", "extra.txt", 2),
    ("image-unreadable", "images/train/broken.png", None),
    ("image-unreadable", "images/train/undecodable.bmp", None),
    ("image-unreadable", "images/far/gone.png", None),
    ("image-truncated", "images/train/cut.jpg", None),
    ("label-unreadable", "labels/train/binary.txt", None),
    ("row", "labels/train/rows.txt", 2),
    ("row", "labels/train/rows.txt", 3),
    ("row", "labels/train/rows.txt", 4),
    ("class-range", "labels/train/rows.txt", 5),
    ("box-outside", "labels/train/rows.txt", 6),
    ("box-empty", "labels/train/rows.txt", 7),
    ("box-over-edge", "labels/train/rows.txt", 8),
    ("box-duplicate", "labels/train/rows.txt", 9),
    ("box-two-classes", "labels/train/rows.txt", 10),
    ("polygon-flat", "labels/train/rows.txt", 11),
    ("image-unlabelled", "images/train/unlabelled.png", None),
    ("label-without-image", "labels/train/deep/stray.txt", None),
    ("label-shared", "images/train/shared.png", None),
    ("image-copy", "images/train/twice.png", None),
    ("leakage", "images/train/leaked.png", None),
    ("leakage", "images/far/both.png", None),
    ("class-unused", "data.yaml", None),
    ("split", "data.yaml", None),
}
ROWS = (
    "0 0.5 0.5 0.2 0.2",
    "0 0.5 0.5 0.2",
    "0 0.5 0.5 0.2 wide",
    "-1 0.5 0.5 0.2 0.2",
    "3 0.5 0.5 0.2 0.2",
    "0 0.5 1.5 0.2 0.2",
    "0 0.5 0.5 0 0.2",
    "0 0.9 0.5 0.4 0.2",
    "0 0.5 0.5 0.2 0.2",
    "1 0.5 0.5 0.2 0.2",
    "1 0.1 0.1 0.3 0.3 0.2 0.2",
    "1 0.1 0.1 0.4 0.1 0.4 0.5",
)


def paint(path: Path) -> None:
    """An image unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), RNG.integers(0, 255, (40, 60, 3), np.uint8))


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A data set with one fault of each kind that text labels can have."""
    root = tmp_path / "faulty"
    names = "rows binary unlabelled shared twice first leaked broken good".split()
    for path in (*(f"train/{name}.png" for name in names), "val/held.png", "far/both.png", "train/shared.jpg"):
        paint(root / "images" / path)
        text = root / "labels" / Path(path).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("1 0.25 0.25 0.2 0.2\n")
    label(root, "rows.txt", "\n".join(ROWS))
    (root / "labels/train/binary.txt").write_bytes(b"\xff\xfe")
    (root / "labels/train/unlabelled.txt").unlink()
    (root / "labels/train/deep").mkdir()
    label(root, "deep/stray.txt", "")
    label(root, "classes.txt", "cat")
    images = root / "images"
    (images / "train/twice.png").write_bytes((images / "train/first.png").read_bytes())
    (images / "train/leaked.png").write_bytes((images / "val/held.png").read_bytes())
    (images / "train/broken.png").write_bytes(b"no image")
    save(images / "train/cut.jpg", (60, 40))
    (images / "train/cut.jpg").write_bytes((images / "train/cut.jpg").read_bytes()[:-20])
    label(root, "cut.txt", "0 0.5 0.5 0.2 0.2\n")
    save(images / "train/undecodable.bmp", (60, 40))
    (images / "train/undecodable.bmp").write_bytes((images / "train/undecodable.bmp").read_bytes()[:60])
    label(root, "undecodable.txt", "0 0.5 0.5 0.2 0.2\n")
    (root / "extra.txt").write_text("images/far/both.png\nnotes.doc\nimages/far/gone.png\n")
    (root / "more.txt").write_text("images/far/both.png\n")
    (root / "data.yaml").write_text(
        "train: [images/train, extra.txt]\nval: [images/val, more.txt]\ntest: images/none\nnames: [cat, dog, cow]\n"
    )
    return root


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    root = tmp_path / "sound"
    for split in ("train", "val"):
        for number in range(2):
            paint(root / f"images/{split}/{number}.png")
            (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            (root / f"labels/{split}/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.2 0.3 0.02 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def run(root: Path, name: str = "run", **options) -> check.Report:
    settings = {"project": str(root.parent / "runs"), "name": name, "noplots": True}
    return check.run(data=str(root / "data.yaml"), **settings | options)


def found_in(root: Path, report: check.Report) -> set[tuple[str, str, int | None]]:
    return {(problem.kind, str(Path(problem.file).relative_to(root)), problem.line) for problem in report.problems}


def state(root: Path) -> dict[str, tuple[str, int]]:
    """The content and the time of everything below a folder."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "", path.stat().st_mtime_ns)
        for path in [root, *root.rglob("*")]
    }


def test_each_fault_is_found_in_its_file_and_line(faulty: Path):
    before = state(faulty)
    report = run(faulty)
    assert found_in(faulty, report) == FAULTS
    assert len(report.problems) == len(FAULTS)
    assert state(faulty) == before
    content = json.loads((faulty.parent / "runs/run/check.json").read_text())
    assert [(entry["kind"], entry["line"]) for entry in content["problems"]] == [
        (problem.kind, problem.line) for problem in report.problems
    ]
    assert content["counts"]["row"] == 3
    assert content["errors"] == sum(entry["severity"] == "error" for entry in content["problems"]) == report.errors
    text = (faulty.parent / "runs/run/check.txt").read_text()
    assert all(str(problem) in text for problem in report.problems)
    assert text.splitlines()[-1] == f"errors: {report.errors}, warnings: {len(FAULTS) - report.errors}"


def test_a_fast_pass_reads_headers_alone(faulty: Path, monkeypatch: pytest.MonkeyPatch):
    (faulty / "images/train/cut.jpg").unlink()  # of a file without its end the decoder is asked
    (faulty / "labels/train/cut.txt").unlink()
    monkeypatch.setattr(cv2, "imdecode", None)
    expected = {fault for fault in FAULTS if "cut.jpg" not in fault[1] and "undecodable" not in fault[1]}
    assert found_in(faulty, run(faulty, decode=False)) == expected


def test_sound_data_has_no_problems(sound: Path):
    report = run(sound, noplots=False, imgsz=60)
    assert report.problems == []
    assert report.errors == 0
    for name in ("labels.jpg", "labels_val.jpg"):
        assert cv2.imread(str(sound.parent / "runs/run" / name)).shape[0] == 900
    train = report.splits["train"]
    assert (train.images, train.empty, train.boxes, train.most) == (2, 0, 4, 2)
    assert train.classes == {"cat": 2, "dog": 2}
    assert train.image_sizes == {"60x40": 2}
    np.testing.assert_allclose(train.shorter_sides, [1.2, 10.6, 20])
    assert train.tiny == 0.5  # 1.2 px wide
    assert train.bands == {"small": 1, "medium": 0, "large": 0}
    assert run(sound, imgsz=600).splits["train"].tiny == 0
    assert run(sound, imgsz=600).splits["train"].bands_at_size == {"small": 0, "medium": 0.5, "large": 0.5}


@pytest.mark.parametrize(("ratio", "recall"), [(3.9, 1.0), (4.1, 0.5)])
def test_recall_of_the_anchors(sound: Path, ratio: float, recall: float):
    cfg = sound / "cfg.yaml"
    side = 20 * ratio  # the large box is 30 x 20 pixels, the small one 1.2 x 20
    cfg.write_text(f"anchors: [[1.2, 20], [30, {side}]]\n")
    assert run(sound, cfg=str(cfg), imgsz=60).splits["val"].recall == recall


@pytest.mark.parametrize("anchors", ["[[1, 2, 3]]", "[[1, x]]", "[[1, -2]]", "[]", "yes please", "{a: 1}"])
def test_ill_formed_anchors_are_refused(tmp_path: Path, anchors: str):
    (tmp_path / "cfg.yaml").write_text(f"anchors: {anchors}\n")
    with pytest.raises(InputError, match="anchors: expected"):
        read_anchors(str(tmp_path / "cfg.yaml"))
    (tmp_path / "cfg.yaml").write_text("anchors: 3\n")
    assert read_anchors(str(tmp_path / "cfg.yaml")) is None


def test_a_clean_copy_reads_as_sound(faulty: Path, tmp_path: Path):
    before = state(faulty)
    report = run(faulty, write=str(tmp_path / "clean"))
    assert state(faulty) == before
    clean = tmp_path / "clean"
    again = run(clean, "again")
    assert {problem.kind for problem in again.problems} == {kind for kind, *_ in FAULTS if not KINDS[kind].solution}
    assert (clean / "labels/train/rows.txt").read_text().splitlines() == [
        "0 0.5 0.5 0.2 0.2",
        "0 0.85 0.5 0.3 0.2",  # cut at the edge
        "1 0.5 0.5 0.2 0.2",
        "1 0.2 0.2 0.2 0.2",  # the box of the flat polygon
        "1 0.1 0.1 0.4 0.1 0.4 0.5",
    ]
    assert (clean / "labels/train/unlabelled.txt").read_text() == ""
    left = {path.name for path in (clean / "images").rglob("*.*")}
    assert left == {f"{name}.png" for name in "rows binary unlabelled shared first good held both".split()} | {
        "shared.jpg"
    }
    changes = (clean / "changes.txt").read_text().splitlines()
    solved = [problem for problem in report.problems if KINDS[problem.kind].solution]
    assert changes == [f"{problem}: {KINDS[problem.kind].solution}" for problem in solved]


def test_a_clean_copy_has_the_same_boxes(sound: Path, tmp_path: Path):
    run(sound, write=str(tmp_path / "clean"))
    tables = [
        examine(load_data_config(root / "data.yaml"), decode=False, bars=scan_progress).tables
        for root in (sound, tmp_path / "clean")
    ]
    for split in ("train", "val"):
        old, new = (table[split] for table in tables)
        assert [path.resolve() for path in new.paths] == [path.resolve() for path in old.paths]
        np.testing.assert_array_equal(old.classes, new.classes)
        np.testing.assert_allclose(old.boxes, new.boxes, atol=1e-6)


def test_a_json_is_cleaned_into_text(tmp_path: Path):
    root = tmp_path / "json"
    for name in ("a.jpg", "b.png", "c.jpg"):
        paint(root / "images/train" / name)
    images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(("a.jpg", "b.png"))]
    triangle = [[10, 10, 30, 10, 30, 30]]
    boxes = [[10, 10, 20, 20], [10, 10, 20, 20], [50, 30, 20, 5], [90, 5, 5, 5], [1, 1, 9, 9], [2, 2, 0, 3]]
    annotations = [{"image_id": 0, "category_id": 90, "bbox": box} for box in boxes]
    annotations[4]["iscrowd"] = 1
    annotations.append({"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "segmentation": triangle})
    path = write_coco(root, annotations, images=images)
    report = run(root, write=str(tmp_path / "clean"))
    found = [(problem.kind, problem.what.partition(":")[0]) for problem in report.problems if problem.file == str(path)]
    assert found == [
        ("box-outside", "annotations[3]"),
        ("box-empty", "annotations[5]"),
        ("box-over-edge", "annotations[2]"),
        ("box-duplicate", "annotations[1]"),
        ("json-unlisted", f"1 images of the split are not listed and left out, first {root}/images/train/c.jpg"),
    ]
    again = run(tmp_path / "clean", "again")
    assert {problem.kind for problem in again.problems} == {"class-unused"}
    texts = {file.name: file.read_text() for file in (tmp_path / "clean/labels/train").iterdir()}
    assert texts == {
        "a.txt": "0 0.33333333 0.5 0.33333333 0.5\n0 0.91666667 0.8125 0.16666667 0.125\n",
        "b.txt": "2 0.16666667 0.25 0.5 0.25 0.5 0.75\n",
    }
    assert "1 crowd regions" in (tmp_path / "clean/changes.txt").read_text()


def test_images_of_a_json_that_differ_in_suffix_keep_their_own_objects(tmp_path: Path):
    root, names = tmp_path / "json", ("x.jpg", "x.png", "x_2.png", "same.jpg", "same.png")
    for name in names:
        paint(root / "images/train" / name)
    images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names)]
    places = (5, 10, 15, 20, 20)
    annotations = [{"image_id": i, "category_id": 90, "bbox": [x, 10, 20, 20]} for i, x in enumerate(places)]
    write_coco(root, annotations, images=images)
    clean = tmp_path / "clean"
    run(root, write=str(clean))
    table = examine(load_data_config(clean / "data.yaml"), decode=False, bars=scan_progress).tables["train"]
    found = {path.resolve().name: box[0] for path, box in zip(table.paths, table.boxes, strict=True)}
    assert found == pytest.approx(dict(zip(names, places, strict=True)), abs=1e-4)
    changes = (clean / "changes.txt").read_text().splitlines()
    assert [line.partition(",")[0] for line in changes] == [
        f"{root}/images/train/x.png: is x_2.png in the copy",
        f"{root}/images/train/x_2.png: is x_2_2.png in the copy",
    ]


@pytest.mark.parametrize("target", ["used", "file.txt", "images/train/new", "labels/val/new"])
def test_data_is_not_written_over(sound: Path, target: str):
    (sound / "used").mkdir()
    (sound / "used/work.txt").write_text("precious")
    (sound / "file.txt").write_text("precious")
    before = state(sound)
    with pytest.raises(InputError, match=f"--write .*{target}: (expected a folder that is new|lies in)"):
        run(sound, write=str(sound / target))
    assert state(sound) == before


def test_splits_of_the_same_files_are_told_once(sound: Path, tmp_path: Path):
    (sound / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    (problem,) = run(sound, write=str(tmp_path / "clean")).problems
    assert (problem.kind, problem.what) == ("same-split", "train and val share 2 images")
    (problem,) = run(tmp_path / "clean", "again").problems  # other paths, the same contents
    assert (problem.kind, problem.what) == ("same-split", "train and val share 2 images")


def test_labels_in_a_wrong_place_are_one_problem(sound: Path):
    (sound / "labels/val").rename(sound / "labels/validation")
    (problem,) = run(sound).problems
    assert problem.kind == "no-labels"
    assert f"looked for as {sound}/labels/val/0.txt" in problem.what


def test_a_class_of_another_split_alone(sound: Path):
    for number in range(2):
        (sound / f"labels/train/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (problem,) = run(sound).problems
    assert (problem.kind, problem.what) == ("class-unused", "class 1 'dog' has no object in train")


def test_problems_beyond_the_limit_are_counted(sound: Path):
    (sound / "labels/val/0.txt").write_text("no row\n" * 7)
    run(sound, limit=3)
    text = (sound.parent / "runs/run/check.txt").read_text()
    assert text.count("labels/val/0.txt:") == 3
    assert "... and 4 more in check.json" in text


@pytest.mark.parametrize(("fault", "strict", "status"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_exit_status(sound: Path, monkeypatch: pytest.MonkeyPatch, fault: bool, strict: bool, status: int):
    if fault:
        (sound / "labels/val/0.txt").write_text("no row\n")
    words = ["check", str(sound / "data.yaml"), "--project", str(sound.parent / "runs"), "--noplots", "--no-decode"]
    monkeypatch.setattr("sys.argv", words + ["--strict"] * strict)
    if status:
        with pytest.raises(SystemExit) as stop:
            run_script(check.command_line, check.Options, "")
        assert stop.value.code == status
    else:
        run_script(check.command_line, check.Options, "")


def test_data_of_which_nothing_can_be_read_is_refused(sound: Path):
    (sound / "data.yaml").write_text("train: images/none\nval: nowhere\nnames: [cat]\n")
    with pytest.raises(InputError, match=r"data.yaml: train: not found: .*images/none"):
        run(sound)
    assert not (sound.parent / "runs").exists()

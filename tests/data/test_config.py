"""Data YAMLs: what they may say, where their paths lead, and how a mistake in them is told."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import glyphs
from data.annotations import read_annotations
from data.config import CONVERTERS, Archive, load_data_config, prepare, require_split
from utils.options import ROOT, InputError, find_yaml, read_yaml

SHIPPED = sorted((ROOT / "data").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_shared_folder(monkeypatch):
    for name in ("YOLOv5_DATASETS_DIR", "YOLOV5_DATASETS_DIR"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_absent_is_the_yaml_folder(tmp_path):
    config = load_data_config(write(tmp_path, "train: images/train\nval:\nnames: [a, b]\n"))
    assert config.root == tmp_path
    assert config.splits == {"train": [tmp_path / "images/train"]}
    assert (config.nc, config.names, config.annotations, config.download, config.converter) == (
        2,
        ["a", "b"],
        {},
        [],
        None,
    )


def test_all_keys(tmp_path):
    config = load_data_config(
        write(
            tmp_path / "yamls",
            """
path: ../set
train: [images/a, /elsewhere/list.txt]
val: images/b
names: {1: dog, 0: 7}
nc: 2
annotations: {val: annotations/b.json}
without_json: {val: [b.txt]}
download:
  - https://example.org/a.zip
  - {url: "https://example.org/b.zip", to: images, strip: 1, splits: [val], size: 12,
     sha256: 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f}
""",
        )
    )
    root = tmp_path / "set"
    assert config.root == root
    assert config.names == ["7", "dog"]
    assert config.splits == {"train": [root / "images/a", Path("/elsewhere/list.txt")], "val": [root / "images/b"]}
    assert config.annotations == {"val": root / "annotations/b.json"}
    assert config.download == [
        Archive("https://example.org/a.zip"),
        Archive("https://example.org/b.zip", to="images", strip=1, splits=["val"], sha256="0f" * 32, size=12),
    ]


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (["set", "shared/set"], "set"),  # beside the YAML comes first
        (["shared/deep/set", "shared/set"], "shared/deep/set"),
        (["shared/set"], "shared/set"),
        ([], "shared/set"),
    ],
)
@pytest.mark.parametrize("variable", ["YOLOv5_DATASETS_DIR", "YOLOV5_DATASETS_DIR"])
def test_datasets_dir(tmp_path, monkeypatch, existing, expected, variable):
    monkeypatch.setenv(variable, str(tmp_path / "shared"))
    given = "deep/set"
    own = tmp_path / "yamls/deep/set"
    for folder in existing:
        (own if folder == "set" else tmp_path / folder).mkdir(parents=True)
    config = load_data_config(write(tmp_path / "yamls", f"path: {given}\ntrain: images\nnames: [a]\n"))
    assert config.root == (own if expected == "set" else tmp_path / expected)


def test_datasets_dir_leaves_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path / "shared"))
    config = load_data_config(write(tmp_path, f"path: {tmp_path}/x\ntrain: images\nnames: [a]\n"))
    assert config.root == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: x\n", "names: missing"),
        ("names: []\n", "names: expected a list"),
        ("names: a\n", "names: expected a list of class names, found 'a'"),
        ("names: {0: a, 2: b}\n", "names: expected the keys 0 to 1, found [0, 2]"),
        ("names: {0: a, x: b}\n", "names: expected the keys 0 to 1"),
        ("names: [yes]\n", "names: 0: expected text, found True; put quotes around it"),
        ("names: [a, [b]]\n", "names: 1: expected text"),
        ("names: [a]\nnc: 3\n", "nc: expected the number of names, 1, found 3"),
        ("names: [a]\ntrian: x\n", "unknown key 'trian'; did you mean train?"),
        ("names: [a]\npath: 3\n", "path: expected a folder, found 3"),
        ("names: [a]\ntrain: 3\n", "train: expected a folder, a .txt list, or a list of those, found 3"),
        ("names: [a]\ntrain: [x, 3]\n", "train: expected a folder"),
        ("names: [a]\nannotations: x.json\n", "annotations: expected a COCO json for each split, found 'x.json'"),
        ("names: [a]\nannotations: {tran: x.json}\n", "annotations: unknown key 'tran'; did you mean train?"),
        ("names: [a]\nannotations: {train: 3}\n", "annotations: train: expected a COCO json file, found 3"),
        ("names: [a]\ndownload: |\n  import os\n  os.remove('x')\n", "no script"),
        ("names: [a]\ndownload: http://example.org/a.zip\n", "download: expected https:// addresses"),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', sha: 1}]\n", "download: unknown key 'sha'"),
        ("names: [a]\ndownload: [{sha256: x}]\n", "download: expected https:// addresses"),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', size: big}]\n", "download: size: expected int"),
        ("names: [a]\ndownload: 'https://a.b/c d.zip'\n", "download: expected https:// addresses"),
        ("names: [a]\ndownload: 'https://[a/c.zip'\n", "download: expected https:// addresses"),
        ("names: [a]\ndownload: 'https:///c.zip'\n", "download: expected https:// addresses"),
        *(
            (f"names: [a]\ndownload: 'https://a.b/{path}'\n", f"https://a.b/{path}: expected the address of a file")
            for path in (r"a\..\..\Users\me\x.zip", "C:x.zip", "a/x.zip:stream", "..", ".x", "a/", "?x.zip", "x*.zip")
        ),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', sha256: abc}]\n", "sha256: expected 64 hexadecimal digits"),
        (
            "names: [a]\ndownload: [{url: 'https://a.b/c.zip', to: /etc}]\n",
            "to: expected a folder below the data set's",
        ),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', to: a/../..}]\n", "to: expected a folder below"),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', size: 0}]\n", "expected strip from 0 and size from 1"),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', strip: -1}]\n", "expected strip from 0 and size from 1"),
        ("names: [a]\ndownload: [{url: 'https://a.b/c.zip', splits: [vla]}]\n", "unknown key 'vla'; did you mean val?"),
        ("names: [a]\nwithout_json: x\n", "without_json: expected what to read for each split"),
        ("names: [a]\nwithout_json: {val: x}\n", "without_json: unknown key 'val'"),
        ("names: [a]\nannotations: {val: a.json}\nwithout_json: {val: 3}\n", "without_json: val: expected a folder"),
        ("- a\n", "expected a mapping"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_data_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


BOMB = "&e [&d [&c [&b [&a [x, x, x, x, x, x, x, x, x, x]" + "".join(
    f", {', '.join(f'*{letter}' for _ in range(12))}]" for letter in "abcd"
)


@pytest.mark.parametrize(
    "text",
    [
        "path: BOMB", "train: BOMB", "train: [a, BOMB]", "names: BOMB", "names: {0: [BOMB]}", "names: [[BOMB]]",
        "nc: BOMB", "annotations: [BOMB]", "annotations: {train: BOMB}", "without_json: [BOMB]", "download: BOMB",
        "download: [BOMB]", "download: {url: BOMB}", "download: {url: 'https://a.b/c.zip', to: BOMB}",
        "download: {url: 'https://a.b/c.zip', splits: [BOMB]}",
    ],
)  # fmt: skip
def test_messages_stay_short_when_aliases_multiply(tmp_path, text):
    path = write(tmp_path, text.replace("BOMB", BOMB) + ("" if text.startswith("names") else "\nnames: [a]") + "\n")
    with pytest.raises(InputError) as caught:
        load_data_config(path)
    assert len(str(caught.value)) < len(str(path)) + 600


def test_missing_split_says_what_and_how(tmp_path):
    path = write(
        tmp_path,
        "val: images/val\nannotations: {val: a.json}\nnames: [a]\n"
        "download: [{url: 'https://example.org/v.zip', to: images}]\n",
    )
    config = load_data_config(path)
    with pytest.raises(InputError) as caught:
        require_split(config, "val")
    text = str(caught.value)
    for part in (path, tmp_path / "images/val", tmp_path / "a.json", f"get it with: python -m data.download {path};"):
        assert str(part) in text
    assert "YOLOv5_DATASETS_DIR" in text
    assert "\n" not in text
    with pytest.raises(InputError, match="no split 'test'; it has val"):
        require_split(config, "test")
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "a.json").touch()
    assert require_split(config, "val") == [tmp_path / "images/val"]


@pytest.mark.parametrize("name", ["a.zip", "VOC_06-Nov-2007.tar.gz", "my%20a+b.zip"])
def test_names_of_archives(tmp_path, name):
    config = load_data_config(write(tmp_path, f"names: [a]\ndownload: 'https://a.b/c/{name}?key=/x#y'\n"))
    assert [archive.name for archive in config.download] == [name]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_yamls_load(path):
    config = load_data_config(path.name)
    assert config.source == path
    assert {"train", "val"} <= set(config.splits)
    assert len(set(config.names)) == config.nc
    assert config.root.parent == ROOT / "datasets"
    assert set(config.annotations) <= set(config.splits)


def test_shipped_class_counts():
    expected = {"coco": 80, "coco128": 80, "glyphs": 4, "VisDrone": 10, "SKU-110K": 1, "xView": 60, "Argoverse": 8}
    expected |= {"GlobalWheat2020": 1, "VOC": 20}
    assert {path.stem: load_data_config(path).nc for path in SHIPPED if path.stem in expected} == expected


@pytest.mark.parametrize(
    ("split", "missing", "flags"),
    [
        ("train", "annotations/instances_train2017.json", ""),
        ("val", "annotations/instances_val2017.json", " --splits val"),
        ("test", "annotations/image_info_test-dev2017.json", " --splits test"),
    ],
)
def test_missing_coco_says_how(tmp_path, monkeypatch, split, missing, flags):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path))
    with pytest.raises(InputError) as caught:
        require_split(load_data_config("data/coco.yaml"), split)
    for part in (f"coco/images/{split}2017", f"coco/{missing}"):
        assert str(tmp_path / part) in str(caught.value)
    assert f"get it with: python -m data.download coco{flags}; " in str(caught.value)


def coco_folder(root: Path, *, jsons: tuple[str, ...], lists: bool) -> Path:
    """Two images of each split in COCO's folders, with jsons, or labels and lists as YOLOv5 has them."""
    for split in ("train", "val", "test"):
        for kind in ("images", "labels") if lists else ("images",):
            (root / kind / f"{split}2017").mkdir(parents=True)
        for number in (1, 2):
            assert cv2.imwrite(str(root / f"images/{split}2017/{number}.jpg"), np.zeros((20, 20, 3), np.uint8))
        if lists:
            (root / f"labels/{split}2017/1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
            name = "test-dev" if split == "test" else split
            (root / f"{name}2017.txt").write_text(f"./images/{split}2017/1.jpg\n")
    content = {"images": [{"id": 7, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "person"}]}
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1}]
    (root / "annotations").mkdir()
    for name in jsons:
        (root / f"annotations/{name}2017.json").write_text(json.dumps(content))
    return root


OFFICIAL = ("instances_train", "instances_val", "image_info_test-dev")


@pytest.mark.parametrize(
    ("jsons", "lists", "from_json"),
    [
        (OFFICIAL, False, {"train", "val", "test"}),
        ((), True, set()),
        (("instances_val",), True, {"val"}),  # as YOLOv5's archive of labels has it
        (OFFICIAL, True, {"train", "val", "test"}),
    ],
    ids=["official", "lists", "lists and val's json", "both"],
)
def test_coco_in_the_layouts_that_people_have(tmp_path, monkeypatch, jsons, lists, from_json):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path))
    root = coco_folder(tmp_path / "coco", jsons=jsons, lists=lists)
    config = load_data_config("coco.yaml")
    assert set(config.annotations) == from_json
    assert set(config.notes) == {"train", "val", "test"} - from_json
    for split in ("train", "val", "test"):
        table = read_annotations(config, split)
        assert table.paths == [root / f"images/{split}2017/1.jpg"]
        assert table.image_ids.tolist() == ([7] if split in from_json else [0])
        assert table.crowd.tolist() == [split in from_json]
        warned = any(
            problem.kind == "no-json" and "YOLO's labels are read" in problem.what for problem in table.problems
        )
        assert warned == (split not in from_json)


def test_glyphs_are_generated_where_the_yaml_says(tmp_path, monkeypatch):
    assert load_data_config("glyphs.yaml").names == glyphs.NAMES
    made = []
    monkeypatch.setitem(CONVERTERS, "glyphs", made.append)
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path))
    text = read_yaml(find_yaml("glyphs.yaml", "data"))
    config = load_data_config(
        write(tmp_path / "yamls", f"path: {text['path']}\ndownload: glyphs\ntrain: t\nnames: [a]\n")
    )
    prepare(config)
    assert made == [tmp_path / "glyphs"]
    with pytest.raises(InputError, match="this set is generated by"):
        require_split(config, "train")
    prepare(load_data_config(write(tmp_path, "train: t\nnames: [a]\n")))
    assert len(made) == 1

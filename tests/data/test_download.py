"""`python -m data.download` on a site of its own: what it gets, skips, and says."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from data import download
from data.config import load_data_config, require_split
from data.download import FOLDER, Options, main
from utils.options import InputError

FILES = {"val2017/1.jpg": b"one", "val2017/2.jpg": b"two" * 1000}
LABELS = {"annotations/val.json": b"{}", "annotations/train.json": b"[]"}


def zipped(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def data(site, tmp_path):
    """A data YAML in COCO's form: val's images, labels of train and val in one archive, train's images."""
    site.pages.clear()
    entries = [
        {"name": "/labels.zip", "files": LABELS, "splits": ["train", "val"]},
        {"name": "/val2017.zip", "files": FILES, "splits": ["val"], "to": "images"},
        {"name": "/train2017.zip", "files": {"train2017/3.jpg": b"3"}, "splits": ["train"], "to": "images"},
    ]
    for entry in entries:
        content = zipped(entry.pop("files"))
        entry["url"], _ = site.put(entry.pop("name"), content)
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = {
        "path": "set",
        "train": "images/train2017",
        "val": "images/val2017",
        "annotations": {"train": "annotations/train.json", "val": "annotations/val.json"},
        "names": ["a"],
        "download": entries,
    }
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    return path


def requests(site) -> dict[str, int]:
    return {path: len(page.seen) for path, page in site.pages.items()}


def tree(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(FOLDER)}


def test_one_split_then_the_rest(site, data, capsys):
    main(Options(str(data), splits="val"))
    root = data.parent / "set"
    assert tree(root) == LABELS | {f"images/{name}": content for name, content in FILES.items()}
    assert require_split(load_data_config(data), "val") == [root / "images/val2017"]
    assert requests(site) == {"/labels.zip": 1, "/val2017.zip": 1, "/train2017.zip": 0}
    assert all(file.suffix == ".json" for file in (root / FOLDER).iterdir()), "no archive is kept"
    assert "val2017.zip: 2 files in" in capsys.readouterr().out
    main(Options(str(data)))
    assert requests(site) == {"/labels.zip": 1, "/val2017.zip": 1, "/train2017.zip": 1}
    assert "images/train2017/3.jpg" in tree(root)
    assert capsys.readouterr().out.splitlines()[-2:] == ["train: complete", "val: complete"]


def test_again_after_a_file_was_lost(site, data):
    main(Options(str(data), splits="val"))
    lost = data.parent / "set/images/val2017/2.jpg"
    lost.unlink()
    main(Options(str(data), splits="val"))
    assert lost.read_bytes() == FILES["val2017/2.jpg"]
    assert requests(site)["/val2017.zip"] == 2


def test_nothing_of_the_users_is_replaced(site, data):
    own = data.parent / "set/images/val2017/1.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(InputError, match=r"val2017/1\.jpg: is there already and differs"):
            main(Options(str(data), splits="val"))
    assert own.read_bytes() == b"mine"
    assert requests(site)["/val2017.zip"] == 1, "the archive was kept for the second run"
    own.unlink()
    main(Options(str(data), splits="val"))
    assert own.read_bytes() == b"one"
    assert requests(site)["/val2017.zip"] == 1


def test_archives_that_the_user_has(site, data, capsys):
    root = data.parent / "set"
    root.mkdir()
    (root / "val2017.zip").write_bytes(site.pages["/val2017.zip"].content)
    (root / "labels.zip").write_bytes(site.pages["/labels.zip"].content[:-1])
    main(Options(str(data), splits="val"))
    assert requests(site) == {"/labels.zip": 1, "/val2017.zip": 0, "/train2017.zip": 0}
    assert (root / "val2017.zip").read_bytes() == site.pages["/val2017.zip"].content
    assert "labels.zip: not used: " in capsys.readouterr().out


def test_a_damaged_archive_is_downloaded_anew(site, data):
    """Without a hash the damage is found by unpacking."""
    content = json.loads(data.read_text())
    content["download"] = [{"url": content["download"][1]["url"], "to": "images"}]
    data.write_text(json.dumps(content))
    page = site.pages["/val2017.zip"]
    good, page.content = page.content, page.content.replace(b"one", b"eno")
    with pytest.raises(InputError, match="damaged: Bad CRC-32"):
        main(Options(str(data)))
    page.content = good
    main(Options(str(data)))
    assert (data.parent / "set/images/val2017/1.jpg").read_bytes() == b"one"


def test_what_is_left_to_do_by_hand(site, tmp_path, capsys):
    url, _ = site.put("/a.zip", zipped({"odd/1.jpg": b"1"}))
    path = tmp_path / "odd.yaml"
    path.write_text(f"train: images\nval: odd\nnames: [a]\ndownload: {url}\n")
    main(Options(str(path)))
    train, val = capsys.readouterr().out.splitlines()[-2:]
    assert train == f"train: its files have to be put in order by hand: see the notes in {path}"
    assert val == "val: complete"


def test_a_set_that_is_generated(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(download, "prepare", made.append)
    main(Options("glyphs"))
    assert [config.converter for config in made] == ["glyphs"]


@pytest.mark.parametrize(
    ("text", "splits", "message"),
    [
        ("names: [a]\n", "train", "download: missing"),
        ("names: [a]\ndownload: https://127.0.0.1:1/\n", "train", "expected https:// addresses"),
        ("names: [a]\ndownload: https://127.0.0.1:1/a/\n", "train", "with its name at the end"),
        ("names: [a]\ndownload: https://127.0.0.1:1/..\n", "train", "with its name at the end"),
        ("names: [a]\ndownload: https://127.0.0.1:1/a.zip\n", "tain", "--splits: unknown key 'tain'; did you mean"),
        ("names: [a]\npath: /proc/none\ndownload: https://127.0.0.1:1/a.zip\n", "train", "cannot be written"),
    ],
)
def test_mistakes(tmp_path, text, splits, message):
    path = tmp_path / "set.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        main(Options(str(path), splits=splits))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(site, data, monkeypatch, capsys):
    """By the name of a shipped YAML without its suffix, and its errors in one line."""
    from utils.options import run_script

    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(data.parent))
    asked = []
    monkeypatch.setattr(download, "get", lambda archive, root: asked.append((archive.url.rpartition("/")[2], root)))
    monkeypatch.setattr("sys.argv", ["download.py", "coco", "--splits", "test"])
    run_script(main, Options, "")
    assert asked == [(name, data.parent / "coco") for name in ("image_info_test2017.zip", "test2017.zip")]
    monkeypatch.setattr("sys.argv", ["download.py", "none"])
    with pytest.raises(SystemExit) as caught:
        run_script(main, Options, "")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: none.yaml: no such file")

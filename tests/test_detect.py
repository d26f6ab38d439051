"""Detection from end to end: batches, streams and damaged sources, and what is written of them."""

import csv
import functools
import json
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import detect
import val
from data import streams
from data.images import read_image
from data.loader import Batch
from tests.data.camera_site import serve
from tests.helpers import command, read_txt
from utils.detection import Detection
from utils.engine import Predictor
from utils.upstream import Progress


@pytest.fixture
def options(trained: Path, tmp_path: Path) -> dict[str, Any]:
    return {"weights": str(trained / "weights/best.pt"), "imgsz": 128, "project": str(tmp_path / "runs")}


@pytest.fixture
def untrained(random_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Options where it does not matter what is found; there is much of it."""
    return {"weights": str(random_checkpoint), "imgsz": 128, "project": str(tmp_path / "runs")}


def arguments(options: dict[str, Any], *more: Any) -> list[str]:
    return ["--weights", options["weights"], "--img", "128", "--project", options["project"], *map(str, more)]


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "predictions.csv").open()))


def length(video: Path) -> int:
    capture, frames = cv2.VideoCapture(str(video)), 0
    while capture.read()[0]:
        frames += 1
    return frames


@pytest.mark.parametrize("tile", ["", "48"])
def test_batches_and_overlap_give_what_frame_by_frame_gives(
    film: Path, squares: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: str
) -> None:
    mixed = tmp_path / "mixed"  # images of four shapes and a video
    shutil.copytree(squares.parent / "images/all", mixed)
    shutil.copy(film, mixed / "4b.avi")
    wanted = {"source": str(mixed), "save_txt": True, "save_conf": True, "save_csv": True, "tile": tile}
    with monkeypatch.context() as patch:
        patch.setattr(detect, "Detection", functools.partial(Detection, overlap=False))
        alone = detect.run(**options, **wanted, batch_size=1)
    for batch_size in (3,) if tile else (1, 3, 8):
        together = detect.run(**options, **wanted, batch_size=batch_size)
        texts, expected = read_txt(together / "labels"), read_txt(alone / "labels")
        assert texts.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_allclose(texts[name], rows, rtol=0, atol=2e-5, err_msg=name)
        order = [(row["image"], row["frame"]) for row in rows_of(together)]
        assert order == [(row["image"], row["frame"]) for row in rows_of(alone)]
        assert length(together / "4b.mp4") == 20
        assert {file.name for file in together.glob("*.png")} == {f"{number}.png" for number in range(8)}


def test_json_tells_what_csv_tells_and_coco_reads_it(film: Path, options: dict[str, Any]) -> None:
    folder = detect.run(**options, source=str(film), save_json=True, save_csv=True, nosave=True)
    entries = json.loads((folder / "predictions.json").read_text())
    table = rows_of(folder)
    assert len(entries) == len(table) > 20
    for entry, row in zip(entries, table, strict=True):
        assert list(entry) == ["file", "frame", "class", "name", "confidence", "box"]
        assert (entry["file"], str(entry["frame"]), str(entry["class"])) == (row["image"], row["frame"], row["class"])
        assert entry["box"] == pytest.approx([float(row[key]) for key in ("x1", "y1", "x2", "y2")], abs=0.006)
    results = json.loads((folder / "predictions_coco.json").read_text())
    assert [set(result) for result in results] == [{"image_id", "category_id", "bbox", "score"}] * len(entries)
    assert results[0]["image_id"] == "film_1"
    x, y, width, height = results[0]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(entries[0]["box"], abs=0.002)
    nothing = detect.run(**options, source=str(film), save_json=True, nosave=True, conf_thres=1.0)
    assert json.loads((nothing / "predictions.json").read_text()) == []


def test_classes_have_confidences_of_their_own(film: Path, options: dict[str, Any]) -> None:
    common = {"source": str(film), "save_csv": True, "nosave": True}
    usual = rows_of(detect.run(**options, **common, conf_thres=0.1))
    ranked = sorted(float(row["confidence"]) for row in usual if row["name"] == "disc")
    middle = (ranked[4] + ranked[5]) / 2
    own = rows_of(detect.run(**options, **common, conf_thres=0.9, class_conf=[f"disc={middle:.7f}", "0=0.1"]))
    expected = [row for row in usual if row["name"] == "square" or float(row["confidence"]) > middle]
    assert [row["confidence"] for row in own] == [row["confidence"] for row in expected]
    discs = rows_of(detect.run(**options, **common, conf_thres=0.1, classes=["disc"]))
    assert discs == [row for row in usual if row["name"] == "disc"]


def test_corners_in_the_txt_files(film: Path, options: dict[str, Any]) -> None:
    centres, corners = (
        read_txt(detect.run(**options, source=str(film), save_txt=True, nosave=True, save_format=form) / "labels")
        for form in (0, 1)
    )
    for name, rows in centres.items():
        half = rows[:, 3:5] / 2
        expected = np.hstack((rows[:, 1:3] - half, rows[:, 1:3] + half))
        np.testing.assert_allclose(corners[name][:, 1:], expected, atol=2e-6)


def test_damaged_sources_do_not_keep_the_rest_from_being_done(
    film: Path, squares: Path, options: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "in"
    folder.mkdir()
    content = film.read_bytes()
    (folder / "cut.avi").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "a.png").write_bytes(b"no image")
    shutil.copy(squares.parent / "images/all/0.png", folder / "z.png")
    assert command(detect, monkeypatch, *arguments(options, "--source", folder)) == 1
    told = capsys.readouterr()
    assert "2 of 4 files could not be read, 1 of 4 files ended too early" in told.err
    assert "cut.avi: ends after" in told.out
    assert "empty.mp4: not a video" in told.out
    results = Path(options["project"]) / "exp"
    assert 5 < length(results / "cut.mp4") < 15
    assert {file.name for file in results.iterdir()} == {"cut.mp4", "z.png"}
    assert command(detect, monkeypatch, *arguments(options, "--source", film)) == 0


def test_a_signal_ends_a_large_image_between_its_tiles(
    squares: Path, untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Batch] = []
    detect_tiles = Predictor.__call__

    def interrupted(predictor: Predictor, batch: Batch) -> Any:
        calls.append(batch)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return detect_tiles(predictor, batch)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    image = squares.parent / "images/all/0.png"
    more = ("--source", image, "--tile", 32, "--overlap", 0.8, "--batch-size", 1)
    assert command(detect, monkeypatch, *arguments(untrained, *more)) == 128 + signal.SIGINT
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"
    assert len(calls) < 10  # of more than a hundred


def test_progress_counts_the_frames_that_are_looked_at(
    film: Path, squares: Path, untrained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(film, folder / "a.avi")
    shutil.copy(film, folder / "b.avi")
    shutil.copy(squares.parent / "images/all/0.png", folder)
    texts: list[str] = []
    monkeypatch.setattr(Progress, "describe", lambda _, text: texts.append(text.partition(":")[0]))
    detect.run(**untrained, source=str(folder), vid_stride=6, nosave=True)
    assert texts == ["0"] + [f"{name} {number}/4" for name in "ab" for number in range(1, 5)]


@pytest.mark.parametrize("tile", ["", "48"])
def test_no_image_is_kept_while_the_next_is_read(
    squares: Path, untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tile: str
) -> None:
    read: list[weakref.ref[np.ndarray]] = []

    def counted(path: Path) -> np.ndarray:
        assert [known() for known in read] == [None] * len(read)
        image = read_image(path)
        read.append(weakref.ref(image))
        return image

    monkeypatch.setattr("data.sources.read_image", counted)
    monkeypatch.setattr(detect, "Detection", functools.partial(Detection, overlap=False))
    detect.run(**untrained, source=str(squares.parent / "images/all"), tile=tile, batch_size=1)
    assert len(read) == 8


@pytest.fixture
def cameras(squares: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(streams, "PAUSE", 0.1)
    with serve() as site:
        picture = cv2.imencode(".jpg", cv2.imread(str(squares.parent / "images/all/0.png")))[1].tobytes()
        for path in ("/a", "/b"):
            site.put(path, 0, fps=20.0)[1].picture = lambda: picture
        yield site


def play(camera: Any) -> None:
    """Let a camera go dark once it has been seen, come back once that was noticed, and the user end it all."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)

    wait(lambda: camera.sent > 20)
    camera.dark = True
    wait(lambda: camera.refused > 0)
    camera.dark = False
    seen = camera.sent
    wait(lambda: camera.sent > seen + 20)
    os.kill(os.getpid(), signal.SIGINT)


def test_two_streams_until_the_user_ends_it(
    cameras: Any, options: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One of them dies and comes back; what was found until Ctrl-C is all there."""
    listed = tmp_path / "two.streams"
    listed.write_text("# cameras\n" + "\n".join(cameras.address + path for path in cameras.cameras) + "\n")
    director = threading.Thread(target=play, args=(cameras.cameras["/b"],))
    director.start()
    before = threading.active_count() - 1
    status = command(detect, monkeypatch, *arguments(options, "--source", listed, "--save-csv", "--save-json"))
    director.join()
    assert status == 128 + signal.SIGINT
    told = capsys.readouterr()
    assert "/b: no frames" in told.out
    assert "/b: is back" in told.out
    assert "results in" in told.out
    assert told.err.strip().splitlines()[-1] == "interrupted"
    folder = Path(options["project"]) / "exp"
    table = rows_of(folder)
    assert len(json.loads((folder / "predictions.json").read_text())) == len(table)
    for path in cameras.cameras:
        numbers = [int(row["frame"]) for row in table if row["image"] == cameras.address + path]
        assert len(set(numbers)) > 3
        assert numbers == sorted(numbers)
        (video,) = folder.glob(f"*_{path[1:]}.mp4")
        assert length(video) >= len(set(numbers))
    cameras.closing = True
    assert threading.active_count() <= before + 4  # the site's own


def test_an_error_while_writing_ends_all_in_one_line(
    film: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.video.CODECS", ("none",))
    assert command(detect, monkeypatch, *arguments(options, "--source", film)) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("script", [detect, val])
def test_no_text_of_an_earlier_run_is_left_where_nothing_is_found(
    script: Any, squares: Path, untrained: dict[str, Any]
) -> None:
    source = {"source": str(squares.parent / "images/all")} if script is detect else {"data": str(squares)}
    more = {"workers": 0, "single_cls": True} if script is val else {"nosave": True, "save_conf": False}
    labels = Path(untrained["project"]) / "exp/labels"
    for least, count in ((0.001, 8), (1.0, 0)):
        script.run(**untrained, **source, **more, save_txt=True, exist_ok=True, conf_thres=least)
        assert len(list(labels.iterdir())) == count


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--overlap", "0.3"), "--overlap: has no effect without --tile"),
        (("--save-conf",), "--save-conf: has no effect without --save-txt or --save-hybrid"),
    ],
)
def test_val_refuses_flags_without_effect(
    more: tuple[str, ...], told: str, squares: Path, untrained: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(val, monkeypatch, *arguments(untrained, "--data", squares, *more)) == 2
    assert told in capsys.readouterr().err
    assert not Path(untrained["project"]).exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--class-conf", "disk=0.4"), "--class-conf: unknown key 'disk'; did you mean disc?"),
        (("--class-conf", "disc"), "--class-conf disc: expected NAME=CONFIDENCE"),
        (("--class-conf", "disc=1.5"), "expected NAME=CONFIDENCE"),
        (("--class-conf", "2=0.5"), "--class-conf 2: the model has classes 0 to 1"),
        (("--classes", "-1"), "--classes -1: the model has classes 0 to 1"),
        (("--source", "http://127.0.0.1:9/video"), "http://127.0.0.1:9/video: cannot be opened"),
        (("--source", "99"), "camera 99: cannot be opened"),
        (("--source", "none.streams"), "none.streams: no such file"),
        (("--overlap", "0.2"), "--overlap: has no effect without --tile"),
        (("--no-full",), "--no-full: has no effect without --tile"),
        (("--merge", "nms"), "--merge: has no effect without --tile"),
        (("--save-conf",), "--save-conf: has no effect without --save-txt"),
        (("--save-format", "1"), "--save-format: has no effect without --save-txt"),
        (("--line-thickness", "0"), "--line-thickness 0: expected 1 to 100"),
        (("--line-thickness", "40000"), "--line-thickness 40000: expected 1 to 100"),
        (("--source", ""), "--source: give the image, video, folder, list or stream"),
        (("--view-img",), "--view-img: no window opens"),
    ],
)
def test_detect_refuses(
    more: tuple[str, ...], told: str, film: Path, options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert command(detect, monkeypatch, *arguments(options, "--source", film, *more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert told in lines[0]
    assert not Path(options["project"]).exists()

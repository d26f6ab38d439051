"""Images and videos are found however they are named, and one that is broken does not hide the others."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sources import open_source
from data.streams import StreamSettings
from data.video import VideoWriter
from tests.data.https_site import serve
from utils.options import InputError


def write_image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), level, np.uint8))
    return path


def write_video(path: Path, frames: int = 12, fps: float = 10.0) -> Path:
    """A video whose frames can be told by their grey, ten levels a frame."""
    with VideoWriter(path, fps=fps, size_wh=(64, 48)) as writer:
        for number in range(frames):
            writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.PNG", "c [1].png", "below/d.png")):
        write_image(tmp_path / "in" / name, 50 * number)
    (tmp_path / "in" / "notes.md").write_text("no image")
    (tmp_path / "in" / "folder.png").mkdir()
    for name in ("._a.PNG", "._v.mp4"):  # macOS's notes on other files
        (tmp_path / "in" / name).write_bytes(b"no image and no video")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("b.png", ["b.png"]),
        ("", ["a.PNG", "b.png", "c [1].png"]),
        ("[ab].*", ["a.PNG", "b.png"]),
        ("c [1].png", ["c [1].png"]),
        ("**/*.png", ["b.png", "below/d.png", "c [1].png"]),
    ],
)
def test_an_image_a_folder_and_a_pattern(folder: Path, text: str, names: list[str]):
    source = open_source(str(folder / text))
    frames = list(source)
    assert [frame.path for frame in frames] == [folder / name for name in names]
    assert all(frame.image.shape == (24, 32, 3) and not frame.is_video and frame.index == 0 for frame in frames)
    assert source.failures == source.notes == []


def test_a_list_is_read_in_its_order_from_its_folder_or_here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    (folder / "list.txt").write_text(
        f"\ufeffin/below/d.png\n\n  ./b.png  \n{folder / 'a.PNG'}\ngone.png\nb.png\n", "utf-8"
    )
    source = open_source("in/list.txt")
    assert [frame.path.name for frame in source] == ["d.png", "b.png", "a.PNG"]
    assert len(source.files) == 4, "a file that is named twice is looked at once"
    assert len(source.failures) == 1
    assert "gone.png" in source.failures[0]


def test_a_broken_image_is_skipped_logged_and_remembered(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "aa.jpg").write_bytes(b"no image at all")
    (folder / "ab.jpg").write_bytes(b"")
    (folder / "z.mp4").write_bytes(b"no video at all")
    source = open_source(str(folder))
    with caplog.at_level(logging.WARNING):
        assert [frame.path.name for frame in source] == ["a.PNG", "b.png", "c [1].png"]
    assert [Path(line.split(":")[0]).name for line in source.failures] == ["aa.jpg", "ab.jpg", "z.mp4"]
    assert [record.getMessage() for record in caplog.records] == [f"skipped: {line}" for line in source.failures]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gone.png", "no such source"),
        ("gone/", "no such source"),
        ("0", "no such source"),
        ("*.bmp", "fits this pattern"),
        ("empty", "no image"),
        ("empty.txt", "no image"),
        ("latin.txt", "UTF-8"),
    ],
)
def test_a_source_without_images_is_told_in_one_line(tmp_path: Path, text: str, told: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("schöne.png".encode("latin-1"))
    with pytest.raises(InputError, match=told) as error:
        open_source(str(tmp_path / text))
    assert str(error.value).startswith(str(tmp_path / text))
    assert "\n" not in str(error.value)


def test_frames_of_one_size_come_in_groups(tmp_path: Path):
    for name, shape in zip("abcdefg", [(24, 32)] * 4 + [(32, 24)] + [(24, 32)] * 2, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((*shape, 3), np.uint8))
    groups = [[frame.path.stem for frame in group] for group in open_source(str(tmp_path)).groups(3)]
    assert groups == [["a", "b", "c"], ["d"], ["e"], ["f", "g"]]


def test_large_frames_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.frames.GROUP_BYTES", 5 * 64 * 48 * 3)
    groups = list(open_source(str(write_video(tmp_path / "v.mp4"))).groups(8))
    assert [len(group) for group in groups] == [5, 5, 2]


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_file_on_the_network_is_fetched_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str):
    video = write_video(tmp_path / "v.mp4")
    with serve(monkeypatch, scheme=scheme) as site:
        url, _ = site.put("/clips/v.mp4?key=1", video.read_bytes())
        with open_source(url) as source:
            seen = list(source)
            (file,) = source.files
            assert file.is_file()
        assert not file.parent.exists()
        assert [frame.index for frame in seen] == list(range(12))
        assert {frame.name for frame in seen} == {site.address + "/clips/v.mp4"}
        with pytest.raises(InputError, match="404"):
            open_source(site.address + "/gone.png")
        for tells_length in (True, False):
            monkeypatch.setattr("data.sources.LARGEST", 100)
            url, _ = site.put("/large.png", bytes(101), tells_length=tells_length)
            with pytest.raises(InputError, match=r"large\.png: has more than the 100 bytes"):
                open_source(url)


def test_what_goes_wrong_with_a_file_on_the_network_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("data.fetch.PAUSE", 0.0)
    for user, told in (("", "no connection"), ("me:secret@", "without a name and password")):
        with pytest.raises(InputError) as error:
            open_source(f"https://{user}127.0.0.1:9/a.jpg?token=abc")
        assert str(error.value).startswith("https://127.0.0.1:9/a.jpg: ")
        assert told in str(error.value)
    with serve(monkeypatch) as site:
        url, _ = site.put("/a.jpg?token=abc", location="ftp://me:secret@host/a.jpg?token=abc")
        with pytest.raises(InputError, match=r"redirected to ftp://host/a\.jpg, which"):
            open_source(url)
    assert "tried again" in caplog.text
    assert "secret" not in caplog.text
    assert "token" not in caplog.text


def test_a_recording_in_a_list_of_streams_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video, listed = write_video(tmp_path / "v.mp4"), tmp_path / "one.streams"
    with serve(monkeypatch, scheme="http") as site:
        url, _ = site.put("/v.mp4", video.read_bytes())
        listed.write_text(url)
        with open_source(str(listed), streams=StreamSettings(keep_all=True)) as source:
            indices = [frame.index for frame, _ in zip(source, range(13), strict=False)]
    assert indices == list(range(12))
    assert source.failures == source.notes == []


@pytest.mark.parametrize("text", ["rtsp://127.0.0.1:9/vod/mp4:bunny.mp4", "RTMP://127.0.0.1:9/live/x.mp4"])
def test_a_stream_whose_address_ends_like_a_file_s_is_a_stream(text: str):
    with pytest.raises(InputError, match="cannot be opened as a camera or a stream"):
        open_source(text)


@pytest.mark.parametrize(
    ("text", "told"), [("", "no stream in it"), ("# 0\nfilm.mp4\n", "'film.mp4' is neither a camera's number nor")]
)
def test_a_list_without_streams_is_told(tmp_path: Path, text: str, told: str):
    path = tmp_path / "two.streams"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        open_source(str(path))


@pytest.mark.parametrize("stride", [1, 3, 20])
def test_a_video_gives_every_nth_of_its_frames(tmp_path: Path, stride: int):
    path = write_video(tmp_path / "v.mp4")
    frames = list(open_source(str(path), vid_stride=stride))
    assert [frame.index for frame in frames] == list(range(0, 12, stride))
    assert {frame.count for frame in frames} == {len(frames)}
    assert all(frame.is_video and frame.fps == pytest.approx(10 / stride) for frame in frames)
    assert [frame.image.mean() for frame in frames] == pytest.approx([10 * frame.index for frame in frames], abs=4)
    assert frames[0].image.shape == (48, 64, 3)


def test_what_looks_like_an_address_and_is_none_is_refused():
    with pytest.raises(InputError, match=r"http://\[x/a\.jpg: not an address"):
        open_source("http://[x/a.jpg")


def test_a_stride_below_one_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--vid-stride 0"):
        open_source(str(write_image(tmp_path / "a.png")), vid_stride=0)


def test_a_video_that_ends_early_is_noted(tmp_path: Path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(12):
        writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = open_source(str(path))
    frames = list(source)
    assert 0 < len(frames) < 12
    assert source.failures == []
    assert source.notes == [f"{path}: ends after {len(frames)} of 12 frames"]


def test_a_video_that_cannot_be_written_is_told(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone.v\.mp4: the video cannot be written"):
        VideoWriter(tmp_path / "gone" / "v.mp4", fps=10, size_wh=(64, 48))


def test_a_video_takes_frames_of_its_size_only(tmp_path: Path):
    with VideoWriter(tmp_path / "v.mp4", fps=10, size_wh=(64, 48)) as writer, pytest.raises(AssertionError):
        writer.write(np.zeros((64, 48, 3), np.uint8))


def test_a_hidden_file_that_is_named_is_read(tmp_path: Path):
    cv2.imwrite(str(tmp_path / ".a.png"), np.zeros((24, 32, 3), np.uint8))
    assert [frame.path.name for frame in open_source(str(tmp_path / ".a.png"))] == [".a.png"]

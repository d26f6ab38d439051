"""Streams are read side by side: one that is slow, silent or gone keeps no other waiting, and is got back."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from data import streams as module
from data.addresses import shown
from data.frames import Frame
from data.streams import Streams, StreamSettings, is_stream
from tests.data.camera_site import Cameras, serve
from utils.options import InputError


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cameras]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAUSE", 0.1)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(module, "SILENCE", 400)
    monkeypatch.setattr(module, "OPENING", 1000)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("127_0_0_1")] == []


class Watcher:
    """Takes groups of frames, until something is the case."""

    def __init__(self, source: Streams) -> None:
        self.groups = source.groups(1)
        self.seen: list[list[Frame]] = []

    def until(self, condition: Callable[[list[Frame]], object], seconds: float = 10.0) -> list[list[Frame]]:
        """The groups up to the one for which the condition holds."""
        first, end = len(self.seen), time.monotonic() + seconds
        for group in self.groups:
            self.seen.append(group)
            if condition(group):
                return self.seen[first:]
            assert time.monotonic() < end, "it did not come to pass"
        raise AssertionError("the streams ended")


def levels(group: list[Frame]) -> set[int]:
    return {int(frame.image[:, -1].mean().round(-1)) for frame in group}


def test_two_streams_come_together_and_one_dies_and_comes_back(site: Cameras, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    (one, _), (other, camera) = site.put("/a/video", 50), site.put("/b", 150)
    with Streams([one, other]) as source:
        assert [path.name for path in source.files] == [
            f"127_0_0_1_{site.address.rpartition(':')[2]}_{name}" for name in ("a_video", "b")
        ]
        watcher = Watcher(source)
        time.sleep(0.1)  # both have a frame waiting
        watcher.until(lambda group: levels(group) == {50, 150})
        camera.dark = True
        watcher.until(lambda _: "no frames" in caplog.text)
        alone = watcher.until(lambda _: len(watcher.seen) % 10 == 0)
        assert all(levels(group) == {50} for group in alone[-5:])
        camera.dark = False
        watcher.until(lambda group: 150 in levels(group))
        assert f"{other}: is back" in caplog.text
        for path in source.files:
            numbers = [frame.index for group in watcher.seen for frame in group if frame.path == path]
            assert numbers == sorted(set(numbers)), "each frame once, in order"
    assert source.failures == []


def test_a_silent_stream_is_connected_to_again(site: Cameras, caplog: pytest.LogCaptureFixture):
    url, camera = site.put("/a", 50)
    with Streams([url]) as source:
        watcher = Watcher(source)
        watcher.until(lambda group: group)
        camera.silent = True
        timer = threading.Timer(0.8, setattr, (camera, "silent", False))
        timer.start()
        watcher.until(lambda _: "is back" in caplog.text)
        timer.join()
    assert camera.connections >= 2


def test_a_stream_lost_for_good_is_a_failure_and_the_others_go_on(site: Cameras, caplog: pytest.LogCaptureFixture):
    (one, camera), (other, _) = site.put("/a", 50), site.put("/b", 150)
    with Streams([one, other], StreamSettings(reconnect=2)) as source:
        watcher = Watcher(source)
        watcher.until(lambda group: 50 in levels(group))
        camera.dark = True
        watcher.until(lambda _: caplog.text.count("no frames") == 2)
        watcher.until(lambda _: len(watcher.seen) % 20 == 0)
    assert source.failures == [f"{one}: the stream was lost"]


class Failing:
    """A stand-in for OpenCV's capture, whose fourth frame raises."""

    def __init__(self, error: Exception) -> None:
        self.error, self.frames, self.is_open = error, 0, True

    def get(self, _property: int) -> float:
        return 0.0

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        self.frames += 1
        if self.frames == 4:
            raise self.error
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self) -> None:
        self.is_open = False


def test_an_error_of_opencv_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    captures = [Failing(cv2.error("bad frame")), Failing(cv2.error("bad frame"))]
    left = iter(captures)
    monkeypatch.setattr(module, "_connect", lambda _: next(left, None))
    with Streams(["rtsp://host/a"], StreamSettings(keep_all=True, reconnect=2)) as source:
        assert [frame.index for frame in source] == list(range(6))
    assert source.failures == ["rtsp://host/a: the stream was lost"]
    assert not any(capture.is_open for capture in captures)
    assert caplog.text.count("rtsp://host/a: OpenCV failed") == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_a_thread_ends_its_stream_as_a_failure(site: Cameras, monkeypatch: pytest.MonkeyPatch):
    failing, (url, camera), connect = Failing(MemoryError()), site.put("/a", 50), module._connect
    monkeypatch.setattr(module, "_connect", lambda address: connect(address) if address == url else failing)
    with Streams(["rtsp://host/a", url], StreamSettings(keep_all=True, reconnect=0)) as source:
        for frame in source:
            camera.dark = camera.dark or (frame.name == url and frame.index > 20)
    assert source.failures == ["rtsp://host/a: the stream was lost", f"{url}: the stream was lost"]
    assert not failing.is_open


def test_the_iteration_ends_when_all_are_lost(site: Cameras):
    url, camera = site.put("/a", 50)
    with Streams([url], StreamSettings(reconnect=0)) as source:
        for frame in source:
            assert frame.live
            camera.dark = True
    assert len(source.failures) == 1


def test_frames_are_dropped_to_stay_live_unless_all_are_wanted(site: Cameras):
    url, camera = site.put("/a", 50)
    for keep_all in (False, True):
        start = camera.sent
        with Streams([url], StreamSettings(keep_all=keep_all)) as source:
            frames = []
            for frame in source:
                frames.append(frame)
                behind = camera.sent - start - frame.index
                time.sleep(0.1)  # five times as long as a frame
                if len(frames) == 8:
                    break
        steps = [later.index - frame.index for frame, later in itertools.pairwise(frames)]
        assert [frame.dropped + 1 for frame in frames[1:]] == steps
        assert all(step == 1 for step in steps) if keep_all else max(steps) > 2
        assert behind > 15 if keep_all else behind < 15


def test_a_stride_leaves_frames_out(site: Cameras):
    url, _ = site.put("/a", 50)
    with Streams([url], StreamSettings(stride=3, keep_all=True)) as source:
        indices = [frame.index for frame, _ in zip(source, range(4), strict=False)]
    assert indices == [0, 3, 6, 9]


def test_streams_of_different_sizes_come_in_groups_of_one_size(site: Cameras):
    urls = [site.put(f"/{width}", 50, size_wh=(width, 48))[0] for width in (64, 96)]
    with Streams(urls) as source:
        watcher = Watcher(source)
        watcher.until(lambda _: len(watcher.seen) == 10)
    assert {frame.image.shape for group in watcher.seen for frame in group} == {(48, 64, 3), (48, 96, 3)}
    assert all(len({frame.image.shape for frame in group}) == 1 for group in watcher.seen)


def test_streams_that_cannot_be_opened_are_refused_without_their_password(site: Cameras):
    address = site.address.replace("http://", "http://me:secret@") + "/gone?token=x"
    with pytest.raises(InputError, match="cannot be opened as a camera or a stream") as error:
        Streams([address, "99"])
    assert str(error.value).startswith(f"{site.address}/gone, camera 99:")


@pytest.mark.parametrize(
    ("text", "is_one", "told"),
    [
        ("0", True, "camera 0"),
        ("rtsp://me:pass@10.0.0.1:554/live?key=1", True, "rtsp://10.0.0.1:554/live"),
        ("HTTP://host/video", True, "http://host/video"),
        ("concat:a.mp4|b.mp4", False, None),
        ("file:///etc/passwd", False, None),
        ("C:\\video", False, None),
        ("folder", False, None),
    ],
)
def test_addresses(text: str, is_one: bool, told: str | None):
    assert is_stream(text) == is_one
    if told:
        assert shown(text) == told

"""Videos are written in the best codec there is, and it is said when that is not what browsers play."""

import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import video
from data.video import VideoWriter
from utils.options import ROOT


class Encoder:
    """A stand-in for OpenCV's, on a machine that has the codecs in `there`."""

    there: tuple[str, ...] = ()
    asked: list[str] = []  # noqa: RUF012

    def __init__(self, _path: str, code: int, *_: object) -> None:
        self.codec = code.to_bytes(4, "little").decode()
        self.asked.append(self.codec)

    fourcc = staticmethod(cv2.VideoWriter.fourcc)

    def isOpened(self) -> bool:  # noqa: N802
        return self.codec in self.there

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("there", "asked", "notes"),
    [(("avc1", "mp4v"), ["avc1", "avc1"], 0), (("mp4v",), ["avc1", "mp4v", "avc1", "mp4v"], 1)],
)
def test_h264_is_preferred_and_its_lack_told_once(
    there: tuple[str, ...], asked: list[str], notes: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(Encoder, "there", there)
    monkeypatch.setattr(Encoder, "asked", [])
    monkeypatch.setattr(cv2, "VideoWriter", Encoder)
    video._tell_codec.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("a.mp4", "b.mp4"):
            VideoWriter(tmp_path / name, fps=10, size_wh=(64, 48)).close()
    assert Encoder.asked == asked
    assert caplog.text.count("browsers do not play") == notes


@pytest.mark.parametrize(
    ("fps", "written"),
    [
        (0.001, 0.01), (23.976, 23.976), (59.94006, 59.94), (65.5341, 65.534), (119.88, 119.88), (120.0034, 120.0),
        (239.987, 239.99), (655.341, 655.34), (1000, 1000), (90_000, 1000),
    ],
)  # fmt: skip
def test_any_rate_is_written_as_the_nearest_there_is(fps: float, written: float, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, fps=fps, size_wh=(64, 48)) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert [frame.fps for frame in video.read_video(path, stride=1, notes=[])] == pytest.approx([written] * 3, rel=1e-6)


ENCODE_AND_MISREAD = """
import logging, sys
import numpy as np
from pathlib import Path
from data.video import InputError, VideoWriter, read_video
logging.disable()
folder = Path(sys.argv[1])
with VideoWriter(folder / "v.mp4", fps=10, size_wh=(64, 48)) as writer:
    writer.write(np.zeros((48, 64, 3), np.uint8))
(folder / "w.mp4").write_bytes(b"no video")
try:
    list(read_video(folder / "w.mp4", stride=1, notes=[]))
except InputError as error:
    print(error)
"""


def test_opencv_prints_nothing_of_its_own(tmp_path: Path) -> None:
    # in a process of its own: FFmpeg asks once how much to print, at the first video, which another test may have had
    command = [sys.executable, "-c", ENCODE_AND_MISREAD, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "not a video" in done.stdout

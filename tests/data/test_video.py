"""Videos are written in the best codec there is, and it is said when that is not what browsers play."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import video
from data.video import VideoWriter


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


def test_opencv_prints_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with VideoWriter(tmp_path / "v.mp4", fps=10, size_wh=(64, 48)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "w.mp4").write_bytes(b"no video")
    with pytest.raises(video.InputError, match="not a video"):
        list(video.read_video(tmp_path / "w.mp4", stride=1, notes=[]))
    assert capfd.readouterr().err == ""

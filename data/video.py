"""Video files read and written with OpenCV."""

import functools
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from data.frames import Frame
from data.images import has_suffix, silent_opencv
from utils.options import InputError

LOGGER = logging.getLogger(__name__)
SUFFIXES = frozenset({".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
USUAL_FPS = 30.0  # for a video that does not say
CODECS = ("avc1", "mp4v")  # H.264, which browsers play; MPEG-4 part 2, which every wheel of OpenCV can encode
LOWEST_FPS, HIGHEST_FPS = 0.01, 1000.0  # of videos that are written; some files claim 90000
TIME_BASE = 65535  # MPEG-4's most: the rate and it are a fraction of two whole numbers up to this
SHORTFALL = 0.02  # share of a video's frames that may be missing: some files only estimate their number

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own words; OpenCV looks at it once, at the first video


def is_video(name: str) -> bool:
    """Whether a file name has a video's suffix."""
    return has_suffix(name, SUFFIXES)


def rate(capture: cv2.VideoCapture) -> float:
    """Frames per second."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and fps > 0 else USUAL_FPS


def read_video(path: Path, *, stride: int, notes: list[str]) -> Iterator[Frame]:
    """Give every `stride`-th frame; the others are skipped without being made images.

    Args:
        path: the file.
        stride: 1 or more.
        notes: takes a line if the video ends before its time.

    Raises:
        InputError: there is no frame in it.
    """
    with silent_opencv():
        capture = cv2.VideoCapture(str(path))
    try:
        fps, claimed = rate(capture), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        count = math.ceil(claimed / stride) if claimed > 0 else None
        index = 0
        while capture.grab():
            if index % stride == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                yield Frame(path, image, index, True, fps / stride, count)  # type: ignore[arg-type]
            index += 1
    finally:
        capture.release()
    if index == 0:
        raise InputError(f"{path}: not a video that OpenCV can decode" if path.is_file() else f"{path}: no such file")
    if index < claimed * (1 - SHORTFALL):
        notes.append(f"{path}: ends after {index} of {claimed} frames")
        LOGGER.warning(notes[-1])


def _encodable(fps: float) -> float:
    """The nearest rate that an mp4 can have: of as many decimals, 3 at most, as its time base allows."""
    fps = min(max(fps, LOWEST_FPS), HIGHEST_FPS)
    return round(fps, min(int(math.log10(TIME_BASE / fps)), 3))


@functools.cache
def _tell_codec() -> None:
    """Say it once in a program."""
    LOGGER.warning("this OpenCV cannot encode H.264: videos are written as MPEG-4 (mp4v), which browsers do not play")


class VideoWriter:
    """Writes frames into an mp4, of the first of CODECS that this machine has; a context manager.

    The codecs halve the colours' resolution: of an odd width or height the last column or row is left out.
    """

    def __init__(self, path: Path, *, fps: float, size_wh: tuple[int, int]) -> None:
        """Open the file.

        Raises:
            InputError: the file cannot be written.
        """
        assert path.suffix == ".mp4", "the container goes with the codec"
        self.path, self.size_wh = path, size_wh
        fps = _encodable(fps)
        self._frames = 0
        for codec in CODECS:
            with silent_opencv():
                self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size_wh)
            if self._writer.isOpened():
                break
        else:
            raise InputError(f"{path}: the video cannot be written ({size_wh[0]} x {size_wh[1]}, {fps:g} fps)")
        if codec != CODECS[0]:
            _tell_codec()

    def write(self, image: npt.NDArray[np.uint8]) -> None:
        """Add a BGR frame of the video's size."""
        assert image.shape[1::-1] == self.size_wh, "OpenCV drops frames of another size without a word"
        self._writer.write(image)
        self._frames += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            InputError: it is not whole, of which OpenCV says nothing; the disk may be full.
        """
        self._writer.release()
        if not self._frames:
            return
        with silent_opencv():
            capture = cv2.VideoCapture(str(self.path))
            kept = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)  # below 0 where it is no video
            capture.release()
        if kept != self._frames:
            raise InputError(f"{self.path}: could not be written: {kept} of {self._frames} frames are in the file")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

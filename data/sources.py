"""What detection looks at, images and videos named in any of YOLOv5's ways, and the video that it writes.

A file that cannot be read does not stop the others: it is logged, and remembered in `Source.failures`.
"""

import glob
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from data.images import SUFFIXES, read_image
from utils.options import InputError

LOGGER = logging.getLogger(__name__)
VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
USUAL_FPS = 30.0  # for a video that does not say


@dataclass(frozen=True)
class Frame:
    """An image to look at.

    Attributes:
        path: the file it is from.
        image: (H, W, 3) BGR.
        index: its number in the video, from 0; 0 for an image.
        is_video: whether the file is a video.
        fps: frames per second of those given, the video's own divided by the stride; 0 for an image.
        count: frames of the video that will be given, as the file claims; None if it does not say; 1 for an image.
    """

    path: Path
    image: npt.NDArray[np.uint8]
    index: int = 0
    is_video: bool = False
    fps: float = 0.0
    count: int | None = 1


@dataclass
class Source:
    """Frames of `files`, in their order; `failures` and `notes` are filled while they are read."""

    files: list[Path]
    vid_stride: int = 1
    failures: list[str] = field(default_factory=list)  # files that could not be read, a line each
    notes: list[str] = field(default_factory=list)  # files that were read, but not as they claim

    def __iter__(self) -> Iterator[Frame]:
        for path in self.files:
            if _is_video(path):
                yield from self._video(path)
                continue
            try:
                image = read_image(path)
            except InputError as error:
                self._fail(str(error))
            else:
                yield Frame(path, image)

    def _video(self, path: Path) -> Iterator[Frame]:
        """Every `vid_stride`-th frame; the others are skipped without being decoded into an image."""
        capture = cv2.VideoCapture(str(path))
        try:
            fps, claimed = _rate(capture), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            count = math.ceil(claimed / self.vid_stride) if claimed > 0 else None
            index = 0
            while capture.grab():
                if index % self.vid_stride == 0:
                    decoded, image = capture.retrieve()
                    if not decoded:
                        break
                    yield Frame(path, image, index, True, fps / self.vid_stride, count)  # type: ignore[arg-type]
                index += 1
        finally:
            capture.release()
        if index == 0:
            self._fail(f"{path}: not a video that OpenCV can decode" if path.is_file() else f"{path}: no such file")
        elif index < claimed:
            self.notes.append(f"{path}: ends after {index} of {claimed} frames")
            LOGGER.warning(self.notes[-1])

    def _fail(self, line: str) -> None:
        self.failures.append(line)
        LOGGER.warning("skipped: %s", line)


def _rate(capture: cv2.VideoCapture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and fps > 0 else USUAL_FPS


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_known(path: Path) -> bool:
    return _is_video(path) or path.suffix.lower() in SUFFIXES


def open_source(text: str, *, vid_stride: int = 1) -> Source:
    """Find the images and videos that `text` names; none is opened yet.

    Args:
        text: an image, a video, a folder (its own files, sorted), a pattern (`images/*.jpg`, `**` for folders below),
            or a .txt list with a path a line, relative to the list's folder or to the current one.
        vid_stride: every how many frames of a video one is given.

    Raises:
        InputError: there is no such source, or it names no image and no video.
    """
    if vid_stride < 1:
        raise InputError(f"--vid-stride {vid_stride}: expected 1 or more")
    files = _find(text)
    if not files:
        raise InputError(f"{text}: no image ({_listing(SUFFIXES)}) and no video ({_listing(VIDEO_SUFFIXES)}) in it")
    return Source(files, vid_stride)


def _listing(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))


def _find(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _is_known(file) and file.is_file())
    if path.is_file():
        return _read_list(path) if path.suffix.lower() == ".txt" else [path]
    if glob.has_magic(text):
        found = (Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns too)
        files = sorted(file for file in found if _is_known(file) and file.is_file())
        if files:
            return files
        raise InputError(f"{text}: no image and no video fits this pattern")
    raise InputError(f"{text}: no such source; expected an image, a video, a folder, a pattern or a .txt list")


def _read_list(path: Path) -> list[Path]:
    """The files that a list names, in its order; whether they exist is seen when they are read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a UTF-8 text with the path of an image or video a line") from error
    names = [Path(line.strip()).expanduser() for line in lines if line.strip()]
    beside = [path.parent / name for name in names]  # an absolute name stays as it is
    return [near if near.exists() else name for near, name in zip(beside, names, strict=True)]


class VideoWriter:
    """Writes frames into an mp4 (MPEG-4 part 2, which every wheel of OpenCV can encode); a context manager.

    The codec halves the colours' resolution: of an odd width or height the last column or row is left out.
    """

    def __init__(self, path: Path, *, fps: float, size_wh: tuple[int, int]) -> None:
        """Open the file.

        Raises:
            InputError: the file cannot be written.
        """
        assert path.suffix == ".mp4", "the container goes with the codec"
        self.path, self.size_wh = path, size_wh
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_wh)
        if not self._writer.isOpened():
            raise InputError(f"{path}: the video cannot be written ({size_wh[0]} x {size_wh[1]}, {fps:g} fps)")

    def write(self, image: npt.NDArray[np.uint8]) -> None:
        """Add a BGR frame of the video's size."""
        assert image.shape[1::-1] == self.size_wh, "OpenCV drops frames of another size without a word"
        self._writer.write(image)

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

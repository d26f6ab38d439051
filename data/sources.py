"""What detection looks at, named in any of YOLOv5's ways: files, one on the network, cameras, streams, the screen."""

import glob
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from data.addresses import requestable, shown
from data.config import Archive
from data.fetch import fetch
from data.frames import Frame, Source, in_groups
from data.images import SUFFIXES, is_image, read_image
from data.screen import Screen
from data.streams import Streams, StreamSettings, is_stream
from data.video import SUFFIXES as VIDEO_SUFFIXES
from data.video import is_video, read_video
from utils.options import InputError

LOGGER = logging.getLogger(__name__)
LARGEST = 4 << 30  # bytes of a file from the network
EXPECTED = "an image, a video, a folder, a pattern, a .txt or .streams list, a camera's number, a URL or 'screen'"


@dataclass
class Files(Source):
    """Frames of image and video files, in their order."""

    vid_stride: int = 1

    def groups(self, most: int) -> Iterator[list[Frame]]:
        """Give runs of frames of one size, as long as `most` and memory allow."""
        return in_groups(self._frames(), most)

    def _frames(self) -> Iterator[Frame]:
        for path in self.files:
            try:
                if is_video(path.name):
                    yield from read_video(path, stride=self.vid_stride, notes=self.notes)
                else:
                    yield Frame(path, read_image(path))
            except InputError as error:
                self.failures.append(str(error))
                LOGGER.warning("skipped: %s", error)


class RemoteFile(Files):
    """Frames of an image or video on the network, which is on this machine as long as the source is open."""

    def __init__(self, url: str, *, vid_stride: int = 1) -> None:
        """Fetch it.

        Raises:
            InputError: the file cannot be had.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="yolov5-spd-")
        self._address = shown(url)
        file = Path(self._folder.name, Path(urlsplit(url).path).name)
        fetch(Archive(requestable(url)), file, largest=LARGEST, http=True)
        super().__init__([file], vid_stride=vid_stride)

    def _frames(self) -> Iterator[Frame]:
        for frame in super()._frames():
            yield replace(frame, address=self._address)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()


def open_source(text: str, *, vid_stride: int = 1, streams: StreamSettings | None = None) -> Source:
    """Find what `text` names; of files none is opened yet, streams are connected to, a file on the network is fetched.

    Args:
        text: an image, a video, a folder (its own files, sorted), a pattern (`images/*.jpg`, `**` for folders below),
            a .txt list with a path a line, relative to the list's folder or to the current one, a camera's number, the
            URL of a stream, a .streams list with a camera or URL a line, the http(s) address of an image or video (a
            stream whose address looks like that goes into a list), or `screen [monitor] [left top width height]`.
        vid_stride: every how many frames of a video or stream one is given.
        streams: how streams are read otherwise.

    Raises:
        InputError: there is no such source, or it names no image and no video.
    """
    if vid_stride < 1:
        raise InputError(f"--vid-stride {vid_stride}: expected 1 or more")
    settings = replace(streams or StreamSettings(), stride=vid_stride)
    if text.split()[:1] == ["screen"]:
        return Screen(text, stride=vid_stride)
    if text.lower().endswith(".streams"):
        return Streams(_read_addresses(Path(text).expanduser()), settings)
    if is_stream(text):
        return RemoteFile(text, vid_stride=vid_stride) if _is_remote_file(text) else Streams([text], settings)
    files = list(dict.fromkeys(_find(text)))  # a second look would only write the same results again
    if not files:
        raise InputError(f"{text}: no image ({_listing(SUFFIXES)}) and no video ({_listing(VIDEO_SUFFIXES)}) in it")
    return Files(files, vid_stride=vid_stride)


def _is_known(path: Path) -> bool:
    return is_image(path.name) or is_video(path.name)


def _is_remote_file(address: str) -> bool:
    """Whether it is the address of an image or a video; those of the streaming protocols may look like it."""
    parts = urlsplit(address)
    return parts.scheme.lower() in ("http", "https") and _is_known(Path(parts.path))


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
    raise InputError(f"{text}: no such source; expected {EXPECTED}")


def _read_list(path: Path) -> list[Path]:
    """The files that a list names, in its order; whether they exist is seen when they are read."""
    names = [Path(line).expanduser() for line in _lines(path)]
    beside = [path.parent / name for name in names]  # an absolute name stays as it is
    return [near if near.exists() else name for near, name in zip(beside, names, strict=True)]


def _read_addresses(path: Path) -> list[str]:
    """The cameras and URLs that a .streams list names; a line that begins with # is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    addresses = [line for line in _lines(path) if not line.startswith("#")]
    for address in addresses:
        if not is_stream(address):
            raise InputError(f"{path}: {address[:80]!r} is neither a camera's number nor the URL of a stream")
    if not addresses:
        raise InputError(f"{path}: no stream in it")
    return addresses


def _lines(path: Path) -> list[str]:
    """The lines of a list that hold anything."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a UTF-8 text with a path or URL a line") from error
    return [line.strip() for line in lines if line.strip()]

"""Cameras and network streams, each read in a thread of its own, so that none waits for another or for the model.

A stream that stalls or ends is connected to again, after pauses that grow, until it has failed too often in a row. A
recording, which tells how many frames it has, is read once.
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt

from data.addresses import shown
from data.frames import Frame, Source, in_groups
from data.images import silent_opencv
from data.video import SHORTFALL, rate
from utils.options import InputError
from utils.report import unique_stems

LOGGER = logging.getLogger(__name__)
SCHEMES = frozenset({"http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "tcp", "udp"})
OPENING, SILENCE = 10_000, 5_000  # milliseconds: for a connection to be made, and without a frame
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a lost stream is tried again, doubled each time
KEPT = 32  # frames of a stream that wait when none may be dropped; more wait on the way here


@dataclass(frozen=True)
class StreamSettings:
    """How streams are read."""

    stride: int = 1  # every how many frames one is given
    keep_all: bool = False  # let frames wait; else the newest alone does
    reconnect: int = 10  # attempts in a row to get a lost stream back


def is_stream(text: str) -> bool:
    """Whether a text is a camera's number, or a URL such as streams have.

    Raises:
        InputError: it looks like a URL and is none.
    """
    try:
        return text.isdecimal() or ("://" in text and urlsplit(text).scheme.lower() in SCHEMES)
    except ValueError as error:
        raise InputError(f"{text}: not an address: {error}") from error


def _stem(address: str) -> str:
    """A file name for a stream's results, without suffix."""
    return re.sub(r"\W+", "_", shown(address).rpartition("://")[2]).strip("_")[:100]


def _connect(address: str) -> cv2.VideoCapture | None:
    """Open a camera or a stream; None if that fails."""
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPENING, cv2.CAP_PROP_READ_TIMEOUT_MSEC, SILENCE]
    with silent_opencv():
        camera = address.isdecimal()
        capture = cv2.VideoCapture(int(address)) if camera else cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    return capture if capture.isOpened() else None


@dataclass
class _Desk:
    """What the threads of some streams share."""

    changed: threading.Condition = field(default_factory=threading.Condition)  # guards and tells of the frames waiting
    stopped: threading.Event = field(default_factory=threading.Event)


class _Reader:
    """Reads one stream and lets frames wait, the newest or all of them, until another thread takes them."""

    def __init__(self, address: str, path: Path, settings: StreamSettings, desk: _Desk) -> None:
        """Connect for the first time."""
        self.address, self.path, self.settings = address, path, settings
        self.waiting: deque[Frame] = deque()
        self.ended = self.given_up = False
        self.capture = _connect(address)
        self._desk = desk
        self._finished = False  # a recording has been read to its end
        self._index = 0  # of the frame to come
        self._dropped = 0  # frames since the last that was taken

    def run(self) -> None:
        """Read until stopped, or until the stream is lost for good; an error of ours loses it, and is printed."""
        self.given_up = True
        try:
            self.given_up = self._is_lost_for_good()
        finally:
            with self._desk.changed:
                self.ended = True
                self._desk.changed.notify_all()

    def take(self) -> Frame:
        """Remove the frame that has waited longest."""
        self._dropped = 0
        self._desk.changed.notify_all()
        return self.waiting.popleft()

    def _is_lost_for_good(self) -> bool:
        """Read until stopped or to a recording's end (False), or until it has failed too often in a row (True)."""
        lost = 0  # times in a row
        while not self._desk.stopped.is_set():
            lost = 1 if self._read(back=lost > 0) else lost + 1
            if self._finished:
                break
            if lost > self.settings.reconnect:
                return True
            self._reconnect(lost)
        return False

    def _reconnect(self, lost: int) -> None:
        seconds = min(PAUSE * 2 ** (lost - 1), LONGEST_PAUSE)
        if not self._desk.stopped.is_set():
            LOGGER.warning("%s: no frames; tried again in %g s", shown(self.address), seconds)
        if not self._desk.stopped.wait(seconds):
            self.capture = _connect(self.address)

    def _read(self, *, back: bool) -> bool:
        """Read to the end of a connection; returns whether there was a frame."""
        if self.capture is None:
            return False
        first = self._index
        try:
            self._read_frames(self.capture, back=back)
        except cv2.error as error:
            LOGGER.warning("%s: OpenCV failed: %s", shown(self.address), " ".join(str(error.err).split()))
        finally:
            self.capture.release()
            self.capture = None
        return self._index > first

    def _read_frames(self, capture: cv2.VideoCapture, *, back: bool) -> None:
        fps, first = rate(capture) / self.settings.stride, self._index
        while not self._desk.stopped.is_set() and capture.grab():
            if back:
                LOGGER.warning("%s: is back", shown(self.address))
                back = False
            if self._index % self.settings.stride == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                self._leave(image, fps)  # type: ignore[arg-type]
            self._index += 1
        claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # not positive if there is no telling
        self._finished = claimed > 0 and self._index - first >= claimed * (1 - SHORTFALL)

    def _leave(self, image: npt.NDArray[np.uint8], fps: float) -> None:
        """Let a frame wait, behind those that do, or in place of the one that does."""
        with self._desk.changed:
            if self.settings.keep_all:
                self._desk.changed.wait_for(lambda: len(self.waiting) < KEPT or self._desk.stopped.is_set())
            elif self.waiting:
                self.waiting.clear()
                self._dropped += 1
            frame = Frame(self.path, image, self._index, True, fps, None, True, self._dropped, shown(self.address))
            self.waiting.append(frame)
            self._desk.changed.notify_all()


class Streams(Source):
    """Frames of cameras and network streams as they come, those that wait at a time together."""

    live = True

    def __init__(self, addresses: Sequence[str], settings: StreamSettings | None = None) -> None:
        """Connect to all at once.

        Raises:
            InputError: none of them answers.
        """
        super().__init__([Path(stem) for stem in unique_stems(Path(_stem(address)) for address in addresses)])
        self._desk = _Desk()
        chosen = settings or StreamSettings()
        with ThreadPoolExecutor(len(addresses)) as pool:
            readers = pool.map(lambda address, path: _Reader(address, path, chosen, self._desk), addresses, self.files)
            self._readers = list(readers)
        if all(reader.capture is None for reader in self._readers):
            raise InputError(f"{', '.join(map(shown, addresses))}: cannot be opened as a camera or a stream")
        self._threads = [threading.Thread(target=reader.run, name=str(reader.path)) for reader in self._readers]

    def groups(self, most: int) -> Iterator[list[Frame]]:  # noqa: ARG002 (streams are few)
        """Give what waits, a frame of each stream, as soon as there is any."""
        for thread in self._threads:
            thread.start()
        while frames := self._take():
            yield from in_groups(sorted(frames, key=lambda frame: frame.image.shape), len(frames))

    def _take(self) -> list[Frame]:
        """A frame of each stream that has one waiting; none when there will be no more."""
        desk, readers = self._desk, self._readers
        with desk.changed:
            desk.changed.wait_for(
                lambda: (
                    desk.stopped.is_set()
                    or any(reader.waiting for reader in readers)
                    or all(reader.ended for reader in readers)
                )
            )
            if desk.stopped.is_set():
                return []
            return [reader.take() for reader in readers if reader.waiting]

    def stop(self) -> None:
        """End the iteration, and soon the threads."""
        self._desk.stopped.set()
        with self._desk.changed:
            self._desk.changed.notify_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait for the threads: one that waits for a frame does so for SILENCE at most."""
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        lost = [reader for reader in self._readers if reader.given_up]
        self.failures += [f"{shown(reader.address)}: the stream was lost" for reader in lost]

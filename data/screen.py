"""The screen, or a part of it, as a source of frames."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from data.frames import Frame, Source
from utils.options import InputError

FPS = 30.0  # at most
FORM = "screen [monitor, 0 for all together] [left top width height]"


class Screen(Source):
    """What a monitor shows, as often as somebody looks, FPS times a second at most."""

    live = True

    def __init__(self, text: str, *, stride: int = 1) -> None:
        """Read `screen [n] [left top width height]`; the pixels count from the monitor's corner.

        Args:
            text: as above.
            stride: every how many of FPS frames a second one is given.

        Raises:
            InputError: the text is not so, there is no such monitor, or the package mss is not installed.
        """
        super().__init__([Path("screen")])
        numbers = text.split()[1:]
        if len(numbers) not in (0, 1, 4, 5) or not all(number.isdecimal() for number in numbers):
            raise InputError(f"--source {text!r}: expected {FORM}")
        values = [int(number) for number in numbers]
        self._monitor = values.pop(0) if len(values) in (1, 5) else 0
        self._part = values
        self._stride = stride
        self._stopped = Event()
        self._mss = _import_mss()
        with self._open() as grabber:
            self._region = self._find_region(grabber.monitors)

    def _open(self) -> Any:
        try:
            return self._mss.mss()
        except self._mss.exception.ScreenShotError as error:
            raise InputError(f"--source screen: there is no screen to be seen: {error}") from error

    def _find_region(self, monitors: list[dict[str, int]]) -> dict[str, int]:
        """The part to grab, in the coordinates of all monitors together."""
        if self._monitor >= len(monitors):
            raise InputError(f"--source screen {self._monitor}: this machine has monitors 0 to {len(monitors) - 1}")
        monitor = monitors[self._monitor]
        left, top, width, height = self._part or (0, 0, monitor["width"], monitor["height"])
        if left + width > monitor["width"] or top + height > monitor["height"] or not width or not height:
            size = f"{monitor['width']} x {monitor['height']}"
            raise InputError(
                f"--source screen: {left} {top} {width} {height} is not within the {size} pixels there are"
            )
        return {"left": monitor["left"] + left, "top": monitor["top"] + top, "width": width, "height": height}

    def groups(self, most: int) -> Iterator[list[Frame]]:  # noqa: ARG002 (there is but one at a time)
        """Give the screen as it is now, until stopped."""
        fps = FPS / self._stride
        start, number = time.monotonic(), -1  # of the frames given
        with self._open() as grabber:  # of this thread: some systems do not let another use it
            while not self._stopped.wait(max(start + (number + 1) / fps - time.monotonic(), 0)):
                due = int((time.monotonic() - start) * fps)
                image = np.ascontiguousarray(np.asarray(grabber.grab(self._region))[..., :3])
                dropped = max(due - number - 1, 0)
                number = max(due, number + 1)
                index = number * self._stride
                yield [Frame(self.files[0], image, index, True, fps, None, True, dropped, "screen")]

    def stop(self) -> None:
        """End the iteration."""
        self._stopped.set()


def _import_mss() -> Any:
    try:
        import mss  # noqa: PLC0415 (optional)
    except ModuleNotFoundError:
        raise InputError("--source screen: needs the package mss: pip install mss") from None
    return mss

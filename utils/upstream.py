"""The one door to the ultralytics package: drawing, crops, run folders, progress bars and the choice of a device.

Importing that package changes torch, numpy, OpenCV, Pillow, the environment and the user's settings file. Here it is
imported after torch, with all of that undone, and without a word or a look at the network.
"""

import contextlib
import io
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import PIL.Image
import torch

from utils.options import InputError

T = TypeVar("T")
REDRAW_INTERVAL = 0.1  # seconds between two looks of a bar on a terminal
LOG_INTERVAL = 30.0  # seconds between two progress lines where the output is a file and not a terminal
_PATCHED = ((torch, "save"), (PIL.Image, "open"), (cv2, "imread"), (cv2, "imwrite"), (cv2, "imshow"))


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Run the block offline and silent, and undo what it did to the libraries' state."""
    os.environ.setdefault("YOLO_OFFLINE", "1")
    environment = dict(os.environ)
    functions = [getattr(module, name) for module, name in _PATCHED]
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), np.printoptions():
        # The package writes its settings on import; nothing here reads them, so they live as long as the import
        os.environ.update(YOLO_CONFIG_DIR=folder, YOLO_VERBOSE="false")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for (module, name), function in zip(_PATCHED, functions, strict=True):
                setattr(module, name, function)
            torch.set_num_threads(threads)
            torch.set_printoptions(profile="default")  # type: ignore[no-untyped-call]
            cv2.setNumThreads(cv2_threads)


with _undone():
    from ultralytics.utils import TQDM
    from ultralytics.utils.files import increment_path as _increment_path
    from ultralytics.utils.plotting import Annotator, colors, save_one_box
    from ultralytics.utils.torch_utils import select_device as _select_device

__all__ = [
    "Annotator",
    "Progress",
    "byte_progress",
    "colors",
    "increment_path",
    "progress",
    "save_one_box",
    "select_device",
]


def increment_path(path: str | Path, *, exist_ok: bool = False) -> Path:
    """Return `path`, or with a number behind it when it exists: exp, exp2, exp3; nothing is created."""
    return Path(_increment_path(path, exist_ok=exist_ok, sep=""))


def select_device(text: str = "") -> torch.device:
    """Turn `--device` ('', 'cpu', '0', '0,1', 'cuda:1', 'mps') into a device; '' is the first GPU, else the CPU.

    Raises:
        InputError: this machine has no such device.
    """
    threads = torch.get_num_threads()
    wanted_mps = text.strip().lower().startswith("mps")
    try:
        device = _select_device(text, verbose=False)
    except ValueError as error:
        raise InputError(f"--device {text}: no such device; {_devices()}") from error
    finally:
        torch.set_num_threads(threads)  # the package takes one thread less than there are cores
    if not isinstance(device, torch.device) or (wanted_mps and device.type != "mps"):
        raise InputError(f"--device {text}: no such device; {_devices()}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it, as cuDNN's convolutions use by default
    return device


def _devices() -> str:
    count = torch.cuda.device_count()
    return f"this machine has cpu and {count} CUDA GPU{'' if count == 1 else 's'}{' (0, ...)' if count else ''}"


class _LogLines(io.TextIOBase):
    """Turns the redrawn frames of a progress bar into lines of their own on stderr."""

    def write(self, frame: str) -> int:
        line = frame.replace("\r\033[K", "").strip()
        if line:
            sys.stderr.write(line + "\n")
        return len(frame)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress(Generic[T]):
    """A progress bar on stderr around an iterable; a log file gets a line every 30 seconds and one at the end."""

    def __init__(
        self, items: Iterable[T] | None = None, description: str = "", *, total: int | None = None, unit: str = "it"
    ) -> None:
        terminal = sys.stderr.isatty()
        self._items, self._described = items, 0.0 if terminal else math.inf
        self._bar: Any = TQDM(
            items,
            desc=description,
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            mininterval=REDRAW_INTERVAL if terminal else LOG_INTERVAL,
            file=sys.stderr if terminal else _LogLines(),
            disable=False,
        )

    def __iter__(self) -> Iterator[T]:
        assert self._items is not None, "a bar without an iterable is moved by update()"
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the bar where it is."""
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """Move on by `count` items (bytes when the unit is B)."""
        # smoothed from 0 on, the first rates would be a third of the true one
        self._bar.RATE_SMOOTHING_FACTOR = TQDM.RATE_SMOOTHING_FACTOR if self._bar.last_rate else 1.0
        self._bar.update(count)

    def count(self, total: int | None, unit: str) -> None:
        """Count something else from here on, of which there will be so many; None if nobody knows."""
        self._bar.total, self._bar.unit = total, unit

    def describe(self, text: str) -> None:
        """Change the text before the bar, losses for example: a terminal shows it soon, a log with the next step."""
        self._bar.desc = text
        now = time.monotonic()
        if now - self._described >= REDRAW_INTERVAL:
            self._described = now
            bar = self._bar
            bar.RATE_SMOOTHING_FACTOR = 0.0  # the rate is that of whole steps, and stays what it was
            measured = bar.last_print_n, bar.last_print_t
            bar.refresh()
            bar.last_print_n, bar.last_print_t = measured


def progress(
    items: Iterable[T] | None = None, description: str = "", *, total: int | None = None, unit: str = "it"
) -> Progress[T]:
    """Show progress while `items` are consumed; without items, as a context manager moved by `update`."""
    return Progress(items, description, total=total, unit=unit)


def byte_progress(description: str, total: int | None) -> Progress[bytes]:
    """Show progress in bytes, as a context manager moved by `update`."""
    return Progress(None, description, total=total, unit="B")

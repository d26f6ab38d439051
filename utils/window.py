"""A window that shows what is being detected."""

import subprocess
import sys

import cv2
import numpy as np
import numpy.typing as npt

from utils.options import InputError

TRY = "import cv2; cv2.namedWindow('?'); cv2.destroyAllWindows()"
ENDING_KEYS = frozenset({27, ord("q")})  # 27 is Esc


class Window:
    """Shows pictures, each source's in a window of its own; to be used by the main thread alone."""

    def __init__(self) -> None:
        """See whether a window can be had, in another process: where there is no display, Qt ends the one that asks.

        Raises:
            InputError: OpenCV was built without windows, or there is no display.
        """
        tried = subprocess.run([sys.executable, "-c", TRY], capture_output=True, check=False)  # noqa: S603
        if tried.returncode:
            raise InputError("--view-img: no window opens: there is no display, or this is the headless OpenCV")

    def show(self, title: str, picture: npt.NDArray[np.uint8]) -> bool:
        """Show a picture; returns whether to go on, which q and Esc deny."""
        cv2.imshow(title, picture)
        return cv2.waitKey(1) & 0xFF not in ENDING_KEYS

    def close(self) -> None:
        """Close all windows."""
        cv2.destroyAllWindows()

"""Image files: their size from the header, whether they are whole, and their pixels; the one decoder of the project."""

import contextlib
import operator
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from utils.options import InputError

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow reads no more than headers here
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})

_ORIENTATION = 274  # EXIF's and TIFF's tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TAIL = 64  # bytes at a file's end in which its format's last mark is looked for
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_DECODING = {  # OpenCV's mode for each reduction
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


def reduction(original_wh: tuple[int, int], needed_wh: tuple[int, int]) -> int:
    """How far a JPEG may be reduced in decoding and still has as many pixels as are needed: 1, 2, 4 or 8."""
    fitting = (reduce for reduce in (8, 4, 2) if all(map(operator.ge, reduced(original_wh, reduce), needed_wh)))
    return next(fitting, 1)


def reduced(original_wh: tuple[int, int], reduce: int) -> tuple[int, int]:
    """Size of a JPEG that is reduced in decoding."""
    return -(-original_wh[0] // reduce), -(-original_wh[1] // reduce)


def is_image(name: str) -> bool:
    """Whether a file name has an image's suffix."""
    return has_suffix(name, SUFFIXES)


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file name ends in one of these; macOS's `._` files, which go with others, are left out."""
    return name[name.rfind(".") :].lower() in suffixes and not name.startswith("._")


@dataclass
class _Silence:
    """How many blocks of all threads want OpenCV silent now, and the level of its log before the first of them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    wanted: int = 0
    before: int = 0


_SILENCE = _Silence()


@contextlib.contextmanager
def silent_opencv() -> Iterator[None]:
    """Keep OpenCV from printing, without a file's name, what is told in a line of ours; blocks may overlap."""
    logs = cv2.utils.logging
    with _SILENCE.lock:
        if _SILENCE.wanted == 0:
            _SILENCE.before = logs.setLogLevel(logs.LOG_LEVEL_SILENT)
        _SILENCE.wanted += 1
    try:
        yield
    finally:
        with _SILENCE.lock:
            _SILENCE.wanted -= 1
            if _SILENCE.wanted == 0:
                logs.setLogLevel(_SILENCE.before)


def read_image(path: Path, reduce: int = 1) -> npt.NDArray[np.uint8]:
    """Decode an image file into (H, W, 3) uint8 BGR, turned as its EXIF says; any file name will do.

    A JPEG that is cut off gives what there is of it. With `reduce` 2, 4 or 8, a JPEG is decoded at that part of its
    sides, rounded up, which is many times cheaper; other formats come whole.

    Raises:
        InputError: the file cannot be read or is no image.
    """
    try:
        encoded = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_image(encoded, str(path), reduce)


def decode_image(encoded: npt.NDArray[np.uint8], source: str, reduce: int = 1) -> npt.NDArray[np.uint8]:
    """Decode the bytes of an image file as `read_image` does; `source` is what messages call them.

    Raises:
        InputError: they are no image.
    """
    jpeg = encoded[:2].tobytes() == _JPEG_START
    mode = _DECODING[reduce if jpeg else 1]
    image = _decode(encoded, mode, source)
    if image is None and jpeg:
        image = _decode(np.append(encoded, np.frombuffer(_JPEG_END, np.uint8)), mode, source)
    if image is None:
        raise InputError(f"{source}: not an image that OpenCV can decode")
    return image


def _decode(encoded: npt.NDArray[np.uint8], mode: int, source: str) -> npt.NDArray[np.uint8] | None:
    if not encoded.size:
        return None
    try:
        return cv2.imdecode(encoded, mode)  # type: ignore[return-value]
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error.err):
            raise InputError(
                f"{source}: has more pixels than OpenCV decodes; set OPENCV_IO_MAX_IMAGE_PIXELS to allow more than 2^30"
            ) from error
        raise InputError(f"{source}: cannot be decoded: {' '.join(str(error.err).split())}") from error


def swap_red_and_blue(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turn BGR (H, W, 3), as OpenCV has it, into RGB or back."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


class Header(NamedTuple):
    """Pixels of an image as `read_image` gives it, and whether the file has its end."""

    width: int
    height: int
    is_whole: bool


def read_header(path: Path) -> Header:
    """Read an image's size from its header alone; only a file without its end is decoded.

    Raises:
        InputError: there is no such file, or it is no image.
    """
    try:
        with Image.open(path) as image:
            turned = 5 <= orientation(image) <= 8
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` is turned already, in new Pillows only
                width, height = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
            else:
                width, height = image.size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (Image.DecompressionBombError, ValueError):  # its pixels or texts are many, or a tag is wrong
        height, width = read_image(path).shape[:2]
        return Header(width, height, _is_whole(path))
    except OSError as error:
        raise InputError(f"{path}: not a readable image: {' '.join(str(error).split())}") from error
    is_whole = _is_whole(path)
    if not is_whole:
        read_image(path)
    return Header(height, width, is_whole) if turned else Header(width, height, is_whole)


def _is_whole(path: Path) -> bool:
    """Whether a JPEG or PNG has its last mark; other formats are taken at their word."""
    with path.open("rb") as file:
        start = file.read(4)
        end = {_JPEG_START: _JPEG_END, _PNG_START[:2]: _PNG_END}.get(start[:2])
        if end is None:
            return True
        file.seek(max(file.seek(0, 2) - _TAIL, 0))
        return end in file.read()


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 if there is none; what the header does not hold is not looked for."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(_ORIENTATION, 1))
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # a damaged block says nothing about the pixels
        return 1

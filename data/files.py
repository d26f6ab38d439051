"""The image files of a split, their sizes read from their headers alone, and where the labels of an image lie."""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from data.config import DataConfig, require_split
from utils.options import InputError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})
Progress = Callable[[int, int], object]  # called with the files done and their total
R = TypeVar("R")

_CHUNK = 256  # files a thread takes at a time
_THREADS = 2  # one waits for the disk while Python works in the other; more are slower
_ORIENTATION = 274  # EXIF's and TIFF's tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


def find_images(config: DataConfig, split: str) -> tuple[list[Path], list[str]]:
    """List a split's image files, sorted and each once, and the entries of its lists that are no images.

    Raises:
        InputError: the split's folders or lists are missing, or hold no image.
    """
    entries = require_split(config, split)
    found: set[str] = set()
    problems: list[str] = []
    for entry in entries:
        if entry.is_dir():
            found.update(_walk(str(entry)))
        else:
            images, strangers = _read_list(entry, config.root)
            found.update(images)
            problems.extend(strangers)
    if not found:
        looked = ", ".join(str(entry) for entry in entries)
        raise InputError(f"{config.source}: {split}: no images ({' '.join(sorted(SUFFIXES))}) found in {looked}")
    return [Path(image) for image in sorted(found)], problems


def label_path(image: Path) -> Path:
    """Where YOLO keeps an image's labels: below labels/ in place of the path's last images/, else beside the image."""
    head, images, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    stem = tail.rpartition(".")[0]
    return Path(f"{head}{os.sep}labels{os.sep}{stem}.txt" if images else f"{stem}.txt")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as a decoder that heeds the EXIF orientation gives them.

    Raises:
        OSError: there is no such file, or it is no image.
    """
    try:
        with Image.open(path) as image:
            orientation = _orientation(image)
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` is turned already, in new Pillows only
                width, height = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
            else:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    return (height, width) if 5 <= orientation <= 8 else (width, height)


def image_sizes(paths: Sequence[Path]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Sizes (N, 2) of image files, 0 for those that cannot be read, and a line about each of these."""
    problems: list[str] = []

    def size(path: Path) -> tuple[int, int]:
        try:
            return image_size(path)
        except FileNotFoundError:
            problems.append(f"{path}: no such file")
        except OSError as error:
            problems.append(f"{path}: not a readable image: {' '.join(str(error).split())}")
        return 0, 0

    return np.array([size(path) for path in paths], np.int32).reshape(-1, 2), problems


def map_chunks(
    function: Callable[[Sequence[Path]], R], paths: Sequence[Path], progress: Progress | None = None
) -> list[R]:
    """Call `function` on runs of `paths` in a few threads; results in order, the first error ends it."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    results: list[R] = []
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
            results.append(result)
            done += len(chunk)
            if progress:
                progress(done, len(paths))
    return results


def _walk(top: str) -> Iterator[str]:
    """Image files below a folder; links to folders are followed, hidden files are not images."""
    visited: set[str] = set()
    for folder, below, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back
            below.clear()
            continue
        visited.add(real)
        yield from (f"{folder}{os.sep}{name}" for name in files if _is_image(name))


def _read_list(file: Path, root: Path) -> tuple[list[str], list[str]]:
    """Images named in a .txt list, one a line, and a line about each entry that is none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a folder or a UTF-8 list of image files: {error}") from error
    images, problems = [], []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if _is_image(name):
            images.append(str((file.parent if name.startswith("./") else root) / name))
        elif name:
            problems.append(f"{file}:{number}: not the name of an image: {name[:80]}")
    return images, problems


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES and not name.startswith("._")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 if there is none; what the header does not hold is not looked for."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(_ORIENTATION, 1))
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # a damaged block says nothing about the pixels
        return 1

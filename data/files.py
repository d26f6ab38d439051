"""The image files of a split, their sizes read from their headers alone, and where the labels of an image lie."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data.config import DataConfig, require_split
from data.images import SUFFIXES, is_image, read_header
from data.path_list import PathList
from data.problems import Problem
from utils.options import InputError

Progress = Callable[[int, int], object]  # called with the files done and their total
R = TypeVar("R")

_CHUNK = 256  # files a thread takes at a time
_THREADS = 2  # one waits for the disk while Python works in the other; more are slower


def find_images(config: DataConfig, split: str) -> tuple[PathList, list[Problem]]:
    """List a split's image files, sorted and each once, and the entries of its lists that are no images.

    Raises:
        InputError: the split's folders or lists are missing, or hold no image.
    """
    entries = require_split(config, split)
    found: set[str] = set()
    problems = [Problem("no-json", str(config.source), config.notes[split])] if split in config.notes else []
    for entry in entries:
        if entry.is_dir():
            found.update(walk(str(entry), is_image))
        else:
            images, strangers = _read_list(entry, config.root)
            found.update(images)
            problems.extend(strangers)
    if not found:
        looked = ", ".join(str(entry) for entry in entries)
        raise InputError(f"{config.source}: {split}: no images ({' '.join(sorted(SUFFIXES))}) found in {looked}")
    return PathList(sorted(found)), problems


def label_path(image: Path) -> Path:
    """Where YOLO keeps an image's labels: below labels/ in place of the path's last images/, else beside the image."""
    return Path(label_text(str(image)))


def label_text(image: str) -> str:
    """`label_path` of a path's text, for many images at once."""
    head, images, tail = image.rpartition(f"{os.sep}images{os.sep}")
    stem = tail.rpartition(".")[0]
    return f"{head}{os.sep}labels{os.sep}{stem}.txt" if images else f"{stem}.txt"


def image_sizes(paths: Sequence[Path]) -> tuple[npt.NDArray[np.int32], list[Problem]]:
    """Sizes (N, 2) of image files, 0 for those that cannot be read, and what is wrong with files."""
    problems: list[Problem] = []

    def size(path: Path) -> tuple[int, int]:
        try:
            width, height, is_whole = read_header(path)
        except InputError as error:
            problems.append(unreadable(path, error))
            return 0, 0
        if not is_whole:
            what = "the end of the file is missing; what there is of the image is used"
            problems.append(Problem("image-truncated", str(path), what))
        return width, height

    return np.array([size(path) for path in paths], np.int32).reshape(-1, 2), problems


def unreadable(path: Path, error: InputError) -> Problem:
    """What the decoder says of an image that it cannot read."""
    return Problem("image-unreadable", str(path), str(error).removeprefix(f"{path}: "))


def map_chunks(
    function: Callable[[Sequence[Path]], R],
    paths: Sequence[Path],
    progress: Progress | None = None,
    *,
    threads: int = _THREADS,
    size: int = _CHUNK,
) -> list[R]:
    """Call `function` on runs of `size` paths in a few threads; results in order, the first error ends it."""
    chunks = [paths[start : start + size] for start in range(0, len(paths), size)]
    results: list[R] = []
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
            results.append(result)
            done += len(chunk)
            if progress:
                progress(done, len(paths))
    return results


def walk(top: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Files below a folder whose names are `wanted`, but for hidden ones; links to folders are followed."""
    visited: set[str] = set()
    for folder, below, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back
            below.clear()
            continue
        visited.add(real)
        yield from (f"{folder}{os.sep}{name}" for name in files if wanted(name) and not name.startswith("."))


def _read_list(file: Path, root: Path) -> tuple[list[str], list[Problem]]:
    """Images named in a .txt list, one a line, and the entries that are none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a folder or a UTF-8 list of image files: {error}") from error
    images, problems = [], []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if is_image(name):
            images.append(str((file.parent if name.startswith("./") else root) / name))
        elif name:
            problems.append(Problem("list-entry", str(file), f"not the name of an image: {name[:80]}", number))
    return images, problems

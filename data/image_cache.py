"""The images of a data set at the training size: read from their files, or from a cache in memory or on disk."""

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from data.augment import Image
from data.files import Progress
from data.images import read_header, read_image, reduced, reduction
from utils.boxes import Letterbox, resize
from utils.options import InputError

MEMORY_SHARE = 0.5  # of the machine's memory, at most, goes to cached images
LOGGER = logging.getLogger(__name__)
_ADVICE = "python -m data.check DATA finds all such images, with --write FOLDER it makes a copy without them"
CacheKind = Literal["ram", "disk"]


class Letterboxes:
    """How each image is letterboxed: worked out when asked, since objects for all images would burden each worker."""

    def __init__(self, sizes_wh: npt.NDArray[np.int32], of: Callable[[tuple[int, int]], Letterbox]) -> None:
        self.sizes_wh = sizes_wh
        self.of = of  # from an image's size to how it is letterboxed

    def __getitem__(self, index: int) -> Letterbox:
        width, height = self.sizes_wh[index].tolist()
        return self.of((width, height))

    def sides_wh(self, choose: Callable[[Letterbox], tuple[int, int]]) -> npt.NDArray[np.int64]:
        """A width and height of every image, (N, 2), of the pairs that a letterbox has."""
        sizes, ids = np.unique(self.sizes_wh, axis=0, return_inverse=True)
        sides = [choose(self.of((width, height))) for width, height in sizes.tolist()]
        return np.array(sides, np.int64).reshape(-1, 2)[ids]


class ImageFiles:
    """Images read from their files and resized, without padding.

    Unless they are to be `exact`, as `detect.py` sees them, JPEGs much larger than needed are decoded at reduced scale.
    """

    def __init__(self, paths: Sequence[Path], letterboxes: Letterboxes, *, exact: bool) -> None:
        self.paths = paths
        self.letterboxes = letterboxes
        self.exact = exact

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image:
        """Decode and resize an image."""
        geometry = self.letterboxes[index]
        reduce = 1 if self.exact else reduction(geometry.original_wh, geometry.scaled_wh)
        return resize(self.decode(index, reduce), geometry.scaled_wh)

    def decode(self, index: int, reduce: int = 1) -> Image:
        """An image as it is in its file, or a JPEG at that part of its sides.

        Raises:
            InputError: it cannot be decoded, though its header was sound, or has changed since.
        """
        path, expected = self.paths[index], self.letterboxes[index].original_wh
        try:
            image = read_image(path, reduce)
        except InputError as error:
            raise InputError(f"{error}; {_ADVICE}") from error
        if (image.shape[1], image.shape[0]) not in (expected, reduced(expected, reduce)):
            raise InputError(f"{path}: is {read_header(path)[:2]} pixels now, was {expected} when the labels were read")
        return image

    def bytes_resized(self) -> npt.NDArray[np.int64]:
        """Bytes of each image, (N)."""
        return 3 * self.letterboxes.sides_wh(lambda geometry: geometry.scaled_wh).prod(1)


class MemoryImages:
    """Resized images in one flat array, which workers started by a fork share."""

    def __init__(self, files: ImageFiles, progress: Progress | None) -> None:
        self.files = files
        self.starts = np.concatenate(([0], np.cumsum(files.bytes_resized())))
        self.pixels = np.empty(self.starts[-1], np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(self._fill, range(len(files))), 1):
                if progress:
                    progress(done, len(files))
        self.pixels.flags.writeable = False

    def _fill(self, index: int) -> None:
        self.pixels[self.starts[index] : self.starts[index + 1]] = self.files.read(index).reshape(-1)

    def read(self, index: int) -> Image:
        """Give an image, read-only."""
        width, height = self.files.letterboxes[index].scaled_wh
        return self.pixels[self.starts[index] : self.starts[index + 1]].reshape(height, width, 3)


class DiskImages:
    """Resized images as .npy files, written when first read, until the disk takes no more."""

    def __init__(self, files: ImageFiles, folder: Path) -> None:
        self.files = files
        self.folder = folder
        self._takes_more = True

    def read(self, index: int) -> Image:
        """Give an image from its .npy file, read-only, or else from its own."""
        target = self._file(index)
        if target.is_file():
            return np.load(target, mmap_mode="r", allow_pickle=False)  # of a large one a tile may be all that is read
        image = self.files.read(index)
        if self._takes_more:
            try:
                self._write(image, target)
            except OSError as error:  # of a full disk, numpy's own has no errno
                self._takes_more = False
                reason = error.strerror or error
                LOGGER.warning("--cache disk: %s cannot be written (%s); going on without more of it", target, reason)
        return image

    def bytes_missing(self) -> int:
        """Bytes of the images that have no .npy file yet; headers not counted."""
        sizes = self.files.bytes_resized().tolist()
        return sum(size for index, size in enumerate(sizes) if not self._file(index).is_file())

    def _write(self, image: Image, target: Path) -> None:
        """Write a file whole or not at all, also when two workers write the same image."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            part = Path(folder, target.name)
            np.save(part, image)
            part.replace(target)

    def _file(self, index: int) -> Path:
        path = self.files.paths[index]
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        scaled_wh, exact = self.files.letterboxes[index].scaled_wh, self.files.exact
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{scaled_wh}|{exact}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


Images = ImageFiles | MemoryImages | DiskImages
# What this process's data sets were granted, until they are gone: the disk's number (none for memory), and bytes
_GRANTED: "WeakKeyDictionary[Images, tuple[int | None, int]]" = WeakKeyDictionary()


def cached(files: ImageFiles, cache: CacheKind, folder: Path | None, progress: Progress | None) -> Images:
    """Put a cache before the files, unless it would not fit beside those of other data sets, which is told."""
    if cache == "ram":
        disk, place, room = None, "the memory it may use", int(MEMORY_SHARE * _memory_bytes())
    else:
        assert folder is not None, "a disk cache needs its folder"
        folder.mkdir(parents=True, exist_ok=True)
        disk, place, room = folder.stat().st_dev, str(folder), shutil.disk_usage(folder).free
    needed = int(files.bytes_resized().sum())
    others = sum(size for other, size in _GRANTED.values() if other == disk)
    if folder is not None and disk is not None and needed + others > room:  # else not worth a look at every file
        needed = DiskImages(files, folder).bytes_missing()
    if needed + others > room:
        LOGGER.warning(
            "--cache %s: %.1f GB of images%s do not fit in %s (%.1f GB); going on without a cache",
            *(cache, needed / 1e9, f", beside {others / 1e9:.1f} GB of other splits," if others else ""),
            *(place, room / 1e9),
        )
        return files
    images = MemoryImages(files, progress) if folder is None or cache == "ram" else DiskImages(files, folder)
    _GRANTED[images] = disk, needed
    return images


def _memory_bytes() -> int:
    """Memory of this machine, or of the container it runs in."""
    if sys.platform == "win32":
        return sys.maxsize  # Windows does not tell through os.sysconf
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    granted = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return memory if granted == "max" else min(memory, int(granted))

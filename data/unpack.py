"""zip and tar archives of strangers, unpacked without trusting them.

Everything an archive declares is checked before the first file is written. The files come to their places when all of
them are complete; one that is there already must be the same, or nothing is changed.
"""

import contextlib
import errno
import filecmp
import gzip
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

from utils.options import InputError
from utils.upstream import byte_progress

MAX_RATIO = 200  # bytes unpacked for each byte of the archive; images stay near 1, annotations near 20
SMALL = 1 << 24  # bytes unpacked that are never too many
BLOCK = 1 << 20
_JUNK = "__MACOSX"  # a folder that macOS adds
_DAMAGE = (  # what zipfile, tarfile and zlib raise on bytes that are not what they claim
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
)


class DamagedError(InputError):
    """The archive is not whole or not what it claims; another copy of it may be."""


@dataclass(frozen=True)
class _Entry:
    """What an archive says about a file or folder in it; `open` gives a file's content."""

    name: str
    size: int
    kind: str  # file, folder, or what else it is
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, strip: int = 0) -> dict[str, int]:
    """Unpack a zip, tar or tar.gz into `folder`, without the first `strip` folders of its names.

    Returns:
        The size of each file by its path below `folder`.

    Raises:
        DamagedError: the archive is damaged or of another kind.
        InputError: it holds something that is refused (a path that leads out, a link, a device, far more bytes than
            fit its size), needs more than is free, or would change a file that is there.
    """
    with _damage_told(archive), _entries(archive) as entries:
        members = _checked(archive, entries, strip)
        needed = sum(entry.size for entry in members.values())
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"{archive}: needs {needed:,} bytes in {folder}, but {free:,} are free")
        fresh = folder / f".unpacking-{archive.name}"
        if fresh.exists():  # of a run that was killed
            shutil.rmtree(fresh)
        fresh.mkdir()
        try:
            _extract(members, fresh, f"unpack {archive.name}", needed)
            if conflict := _conflict(fresh, folder):
                raise InputError(f"{conflict}: is there already and differs from that in {archive}: nothing is changed")
            _move(fresh, folder)
        finally:
            shutil.rmtree(fresh)
    return {str(path): entry.size for path, entry in members.items() if entry.kind == "file"}


@contextlib.contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    try:
        yield
    except InputError:  # a ValueError too
        raise
    except (*_DAMAGE, OSError) as error:
        if not isinstance(error, _DAMAGE) and error.errno != errno.EINVAL:  # a seek to before the beginning
            raise
        raise DamagedError(f"{archive}: damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


@contextlib.contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    with archive.open("rb") as stream:
        magic = stream.read(2)
        stream.seek(0)
        if magic == b"PK":
            with zipfile.ZipFile(stream) as opened:
                yield _zip_entries(opened)
            return
        content = _Bounded(gzip.GzipFile(fileobj=stream) if magic == b"\x1f\x8b" else stream)
        try:
            tar = tarfile.TarFile(fileobj=cast(IO[bytes], content))
        except tarfile.ReadError as error:
            raise DamagedError(f"{archive}: expected a zip, tar or tar.gz: {error}") from error
        yield _tar_entries(tar, content)


class _Bounded:
    """A stream that refuses reads as large as only the forged header of a tar asks for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= BLOCK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = "folder" if info.is_dir() else "file"
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "link or device"
        elif info.flag_bits & 1:
            kind = "encrypted file"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "file in an unusual compression"
        yield _Entry(info.filename, info.file_size, kind, partial(archive.open, info))


def _tar_entries(archive: tarfile.TarFile, stream: _Bounded) -> Iterator[_Entry]:
    for info in archive:
        kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
        yield _Entry(info.name, info.size, kind, partial(cast(Any, archive.extractfile), info))
    stream.seek(archive.offset)
    rest = stream.read(BLOCK)  # tarfile takes any nonsense for the end, and leaves gzip's checksum unread
    if not tarfile.BLOCKSIZE <= len(rest) < BLOCK or rest.strip(b"\0"):
        raise tarfile.ReadError("the zeros at its end are missing or not the end")


def _checked(archive: Path, entries: Iterable[_Entry], strip: int) -> dict[PurePosixPath, _Entry]:
    """What goes where, by its path below the folder; raises an InputError for what is refused."""
    room = max(SMALL, MAX_RATIO * archive.stat().st_size)
    members: dict[PurePosixPath, _Entry] = {}
    for entry in entries:
        parts = PurePosixPath(entry.name).parts
        place = PurePosixPath(*parts[strip:])
        fault = _fault(entry, room)
        if entry.kind == "file" and place in members:
            fault = fault or "a second one in the same place"
        if fault:
            raise InputError(f"{archive}: {entry.name[:200]!r}: {fault}: refused")
        room -= entry.size
        if place.parts and parts[0] != _JUNK:
            members[place] = entry
    files = {place for place, entry in members.items() if entry.kind == "file"}
    for place in members:
        if not files.isdisjoint(place.parents):
            raise InputError(f"{archive}: {str(place)[:200]!r}: a path through a file: refused")
    return members


def _fault(entry: _Entry, room: int) -> str:
    """Why an entry is refused whatever else there is, and however the system writes paths; empty if it is not."""
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or PureWindowsPath(entry.name).drive:
        return "a path that leads out of the folder"
    if entry.kind not in ("file", "folder"):
        return entry.kind
    if not 0 <= entry.size <= room:
        return f"{entry.size:,} bytes, far more than fit the archive's own size"
    return ""


def _extract(members: dict[PurePosixPath, _Entry], fresh: Path, description: str, total: int) -> None:
    with byte_progress(description, total) as bar:
        for place, entry in members.items():
            target = fresh / place
            if entry.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, target.open("xb") as out:
                shutil.copyfileobj(source, out, BLOCK)
            if target.stat().st_size != entry.size:
                raise EOFError(f"{place}: expected {entry.size:,} bytes, found {target.stat().st_size:,}")
            bar.update(entry.size)


def _conflict(fresh: Path, folder: Path) -> Path | None:
    """The first path in `folder` that is something else than in `fresh`."""
    for new in sorted(fresh.iterdir()):
        old = folder / new.name
        if not os.path.lexists(old):
            continue
        if new.is_dir() and old.is_dir():
            if found := _conflict(new, old):
                return found
        elif new.is_dir() or not old.is_file() or not filecmp.cmp(new, old, shallow=False):
            return old
    return None


def _move(fresh: Path, folder: Path) -> None:
    """Bring what `folder` lacks to its place, whole folders at once where they are new."""
    for new in fresh.iterdir():
        old = folder / new.name
        if not os.path.lexists(old):
            new.rename(old)
        elif new.is_dir():
            _move(new, old)

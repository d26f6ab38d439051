"""One file fetched from the network: resumed where it was cut off, and kept only if it is what was announced.

Until it is whole and checked a file is called NAME.part. Beside it NAME.part.validator keeps the server's word for this
version of it (ETag or date), so that the rest of another version is never appended.
"""

import contextlib
import hashlib
import http.client
import logging
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, Request

from data.addresses import shown, web_opener
from data.config import Archive
from utils.options import InputError
from utils.upstream import byte_progress

LOGGER = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that bring less than a block each
BLOCK = 1 << 18  # bytes
PAUSE = 1.0  # seconds before the second attempt, twice as long before each further one
TIMEOUT = 30.0  # seconds without a byte
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that another attempt may not meet


class _CutOffError(Exception):
    """The download failed in a way that another attempt may not meet."""


@dataclass(frozen=True)
class _Part:
    """The bytes of a file that are there so far, and the validator of the version that they are from."""

    path: Path
    largest: int | None = None  # bytes that it may grow to

    @property
    def _validator_file(self) -> Path:
        return self.path.with_name(self.path.name + ".validator")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """Empty if the server gave none: then nothing can be appended."""
        return self._validator_file.read_text(encoding="latin-1") if self._validator_file.exists() else ""

    def start(self, validator: str) -> None:
        self.discard()
        self._validator_file.write_text(validator, encoding="latin-1")

    def discard(self) -> None:
        for file in (self.path, self._validator_file):
            file.unlink(missing_ok=True)

    def finish(self, file: Path) -> None:
        self.path.replace(file)
        self._validator_file.unlink(missing_ok=True)


def fetch(archive: Archive, file: Path, *, largest: int | None = None, http: bool = False) -> None:
    """Download `archive.url` to `file`, which appears when it is whole and checked; over https alone unless `http`.

    Raises:
        InputError: the server does not give it, it is not what the data YAML says, it has more than `largest` bytes,
            or the disk has no room for it and as much again for what is in it.
    """
    part = _Part(file.with_name(file.name + ".part"), largest)
    if part.size != archive.size:  # else only the check and the renaming are missing
        _download(archive, part, web_opener(http=http))
    try:
        check(archive, part.path)
    except InputError:
        part.discard()
        raise
    part.finish(file)


def check(archive: Archive, file: Path) -> None:
    """Compare a file with the size and the hash in the data YAML, as far as it has them.

    Raises:
        InputError: it is another one.
    """
    _check_size(archive, file.stat().st_size)
    if archive.sha256 is None:
        return
    digest = hashlib.sha256()
    with file.open("rb") as stream, byte_progress(f"check {file.name}", file.stat().st_size) as bar:
        while block := stream.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != archive.sha256.lower():
        raise InputError(f"{shown(archive.url)}: expected sha256 {archive.sha256.lower()}, found {digest.hexdigest()}")


def _check_size(archive: Archive, size: int | None) -> None:
    if archive.size is not None and size is not None and size != archive.size:
        raise InputError(f"{shown(archive.url)}: expected {archive.size:,} bytes, found {size:,}")


def _download(archive: Archive, part: _Part, opener: OpenerDirector) -> None:
    """Go on until everything is there or nothing more comes."""
    failures = 0
    while True:
        before = part.size
        try:
            return _attempt(archive, part, opener)
        except _CutOffError as error:
            failures = 1 if part.size - before >= BLOCK else failures + 1
            if failures == ATTEMPTS:
                kept = f"; {part.size:,} bytes are kept, the same command goes on from there" if part.size else ""
                raise InputError(f"{shown(archive.url)}: {error}, {ATTEMPTS} times{kept}") from error
            LOGGER.warning("%s: %s; tried again", shown(archive.url), error)
            time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(archive: Archive, part: _Part, opener: OpenerDirector) -> None:
    have, validator = (part.size, part.validator) if part.validator else (0, "")
    headers = {"User-Agent": "yolov5-spd", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    request = Request(archive.url, headers=headers)  # noqa: S310 (the opener has no other schemes)
    with _explained(archive, part), opener.open(request, timeout=TIMEOUT) as response:
        start, total = _place(response, part)
        _check_size(archive, total)
        _check_largest(archive, part, total or 0)
        _check_room(archive, part.path.parent, start, total or archive.size)
        if start == 0:  # the server has another version than the part, or gives no ranges
            part.start(_validator(response))
        _copy(archive, response, part, start, total)


@contextlib.contextmanager
def _explained(archive: Archive, part: _Part) -> Iterator[None]:
    """Tell what may pass (`_CutOffError`) from what will not (`InputError`); errors of the disk stay what they are."""
    try:
        yield
    except HTTPError as error:
        answer = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.discard()
        elif error.code not in _PASSING:
            raise InputError(f"{shown(archive.url)}: {answer}") from error
        raise _CutOffError(answer) from error
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise InputError(f"{shown(archive.url)}: no valid certificate: {error.reason.verify_message}") from error
        raise _CutOffError(f"no connection ({error.reason})") from error
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise _CutOffError(f"the connection was lost ({error})") from error


def _place(response: http.client.HTTPResponse, part: _Part) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the whole file's size if the server tells it."""
    if response.status == http.client.PARTIAL_CONTENT:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if told and int(told[1]) == part.size and _validator(response) in ("", part.validator):
            return part.size, int(told[2])
        part.discard()
        raise _CutOffError("the file on the server has changed")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """The answer's ETag or, if that promises no equality of bytes, its date."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _check_largest(archive: Archive, part: _Part, size: int) -> None:
    if part.largest is not None and size > part.largest:
        raise InputError(f"{shown(archive.url)}: has more than the {part.largest:,} bytes that are allowed")


def _check_room(archive: Archive, folder: Path, have: int, total: int | None) -> None:
    free, needed = shutil.disk_usage(folder).free, 2 * (total or 0) - have
    if needed > free:
        raise InputError(
            f"{shown(archive.url)}: needs {needed:,} bytes in {folder} for itself and what is in it,"
            f" but {free:,} are free"
        )


def _copy(archive: Archive, response: http.client.HTTPResponse, part: _Part, start: int, total: int | None) -> None:
    name = Path(urlsplit(archive.url).path).name
    with part.path.open("ab") as out, byte_progress(name, total) as bar:
        bar.update(start)
        while block := response.read(BLOCK):
            out.write(block)
            bar.update(len(block))
            _check_largest(archive, part, out.tell())
            if archive.size and out.tell() > archive.size:
                break  # of an answer without a length
    if total is not None and part.size < total:
        raise _CutOffError(f"the connection was cut after {part.size:,} of {total:,} bytes")

"""Archives of friends and of attackers: what comes out, what is refused, and that nothing else is touched."""

import errno
import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest

from data import unpack as module
from data.unpack import DamagedError, unpack
from utils.options import InputError

FILES = {"images/val/a b.jpg": b"\xff" * 5000, "images/val/ü.jpg": b"2" * 100, "labels/empty.txt": b""}


def make_zip(path, files, modes=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = dict(modes).get(name, 0) << 16
            archive.writestr(info, content)
    return path


def make_tar(path, files, types=()):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type, info.linkname = dict(types).get(name, tarfile.REGTYPE), "/etc/hostname"
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS = [(make_zip, "a.zip"), (make_tar, "a.tar"), (make_tar, "a.tar.gz")]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker[1])
def make(request, tmp_path):
    maker, name = request.param
    return lambda files, *more: maker(tmp_path / name, files, *more)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set"


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive, folder, kind=InputError):
    """The message; the data set's folder, if there, has to stay as it is, and nothing may appear beside it."""
    before = tree(folder.parent)
    with pytest.raises(kind) as caught:
        unpack(archive, folder)
    assert tree(folder.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole(make, folder):
    files = unpack(make(FILES), folder)
    assert tree(folder) == FILES
    assert files == {name: len(content) for name, content in FILES.items()}


def test_strip_folders_and_junk(make, folder):
    archive = make({"./set/x/1.txt": b"1", "README": b"2", "__MACOSX/set/x/._1.txt": b"3", "set/4": b"4"})
    assert unpack(archive, folder, strip=1) == {"x/1.txt": 1, "4": 1}
    assert tree(folder) == {"x/1.txt": b"1", "4": b"4"}


def test_folders_of_the_archive(tmp_path, folder):
    archive = make_zip(tmp_path / "a.zip", {"empty/": b"", "images/": b"", "images/1.jpg": b"1"})
    assert unpack(archive, folder) == {"images/1.jpg": 1}
    assert (folder / "empty").is_dir()


def test_permissions_are_not_taken_over(tmp_path, folder):
    archive = make_zip(tmp_path / "a.zip", {"run": b"#!/bin/sh"}, {"run": stat.S_IFREG | 0o6777}.items())
    unpack(archive, folder)
    assert not (folder / "run").stat().st_mode & 0o7111


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "a/..", "..\\out", "C:out", "C:\\out", "\\out"])
def test_paths_that_lead_out(make, folder, name):
    message = refusal(make({"good.txt": b"1", name: b"2"}), folder)
    assert "a path that leads out of the folder: refused" in message
    assert "a.zip" in message or "a.tar" in message


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_special_members_of_a_zip(tmp_path, folder, kind):
    archive = make_zip(tmp_path / "a.zip", {"x": b"/etc/hostname"}, {"x": kind | 0o777}.items())
    assert "'x': link or device: refused" in refusal(archive, folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_special_members_of_a_tar(tmp_path, folder, kind):
    archive = make_tar(tmp_path / "a.tar", {"x": b"", "x/y": b"1"}, {"x": kind}.items())
    assert "'x': link or device: refused" in refusal(archive, folder)


def test_encrypted_and_unusual_members(tmp_path, folder):
    archive = make_zip(tmp_path / "a.zip", {"x": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    assert "encrypted file: refused" in refusal(archive, folder)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("x", b"1")
    assert "file in an unusual compression: refused" in refusal(archive, folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(make, folder):
    assert "a second one in the same place: refused" in refusal(make([("x", b"1"), ("./x", b"2")]), folder)


def test_a_file_that_is_a_folder_too(make, folder):
    assert "'x/y': a path through a file: refused" in refusal(make([("x/y", b"2"), ("x", b"1")]), folder)


def test_a_bomb(make, folder):
    archive = make({"zeros": bytes(1 << 25)})
    if archive.suffix == ".tar":
        unpack(archive, folder)  # not compressed: no bomb
    else:
        assert "33,554,432 bytes, far more than fit the archive's own size: refused" in refusal(archive, folder)


def test_a_bomb_of_many_files(make, folder, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 9999)
    monkeypatch.setattr(module, "MAX_RATIO", 1)
    archive = make({str(number): bytes(100) for number in range(100)})
    if archive.suffix != ".tar":
        assert "'99': 100 bytes, far more than fit" in refusal(archive, folder)


def test_a_zip_that_understates_its_sizes(tmp_path, folder):
    """The declared size is what passes the checks, so no more than that may be written."""
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(1 << 20)})
    content = bytearray(archive.read_bytes())
    place = content.rindex(b"PK\1\2") + 24
    content[place : place + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(content)
    assert "damaged" in refusal(archive, folder, DamagedError)


@pytest.mark.parametrize("kind", [b"x", b"L"], ids=["pax", "long name"])
@pytest.mark.parametrize("size", [1 << 33, -512])
def test_a_tar_with_a_forged_header(tmp_path, folder, kind, size):
    """It makes tarfile read gigabytes of a compressed stream at once, or go backwards."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 12)))
    assert "a.tar.gz" in refusal(archive, folder, DamagedError)


def test_sizes_below_nothing(tmp_path, folder):
    info = tarfile.TarInfo("x")
    info.size = -512
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "'x': -512 bytes" in refusal(archive, folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated(make, folder, share):
    archive = make({f"{number}.txt": f"{number}".encode() * 2000 for number in range(9)})
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    if archive.suffix == ".tar" and share > 0.5:
        return  # a good part of it is padding
    assert str(archive) in refusal(archive, folder, DamagedError)


@pytest.mark.parametrize("maker", [MAKERS[0], MAKERS[2]], ids=["zip", "tar.gz"])
def test_no_damaged_byte_changes_a_file(tmp_path, folder, maker):
    archive = maker[0](tmp_path / maker[1], FILES)
    content = archive.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        archive.write_bytes(damaged)
        try:
            unpack(archive, folder)
        except InputError:
            assert not folder.exists() or tree(folder) == {}
        else:
            assert set(tree(folder).values()) <= set(FILES.values()), "the checksums hold"
            shutil.rmtree(folder)


def test_a_tar_cut_between_two_members(tmp_path, folder):
    archive = make_tar(tmp_path / "a.tar", {"x": b"1", "y": b"2"})
    archive.write_bytes(archive.read_bytes()[:1024])
    assert "the zeros at its end are missing" in refusal(archive, folder, DamagedError)


def test_no_archive(tmp_path, folder):
    page = tmp_path / "a.zip"
    page.write_text("<html>not found</html>")
    assert "expected a zip, tar or tar.gz" in refusal(page, folder, DamagedError)


def test_existing_files_that_are_the_same_stay(make, folder):
    (folder / "images/val").mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    same = folder / "images/val/a b.jpg"
    same.write_bytes(FILES["images/val/a b.jpg"])
    before = same.stat()
    unpack(make(FILES), folder)
    assert tree(folder) == FILES | {"mine.txt": b"mine"}
    assert (same.stat().st_mtime_ns, same.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("existing", ["labels", "images/val/a b.jpg", "images/val/ü.jpg/x", "labels/empty.txt"])
def test_existing_files_that_differ_stop_everything(make, folder, existing):
    (folder / existing).parent.mkdir(parents=True)
    (folder / existing).write_bytes(b"mine")
    message = refusal(make(FILES), folder)
    assert "is there already and differs from that in" in message
    assert "nothing is changed" in message


def test_existing_links(make, folder, tmp_path):
    """A folder that leads to another disk is used as the user meant it; a link to nowhere is not written through."""
    (tmp_path / "big disk").mkdir()
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path / "big disk")
    unpack(make(FILES), folder)
    assert set(tree(tmp_path / "big disk")) == {"val/a b.jpg", "val/ü.jpg"}
    shutil.rmtree(folder / "labels")
    (folder / "labels").symlink_to(tmp_path / "nowhere")
    assert "labels: is there already" in refusal(make(FILES), folder)
    assert not (tmp_path / "nowhere").exists()


def test_leftovers_of_a_killed_run(make, folder):
    archive = make(FILES)
    left = folder / f".unpacking-{archive.name}"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    unpack(archive, folder)
    assert tree(folder) == FILES


def test_a_disk_that_is_too_small(make, folder, monkeypatch):
    usage = namedtuple("usage", "free")
    needed = sum(map(len, FILES.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed - 1))
    assert f"needs {needed:,} bytes in {folder}, but {needed - 1:,} are free" in refusal(make(FILES), folder)


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_while_it_unpacks(make, folder, monkeypatch, stop):
    copy, done = shutil.copyfileobj, []

    def write(*arguments):
        copy(*arguments)
        done.append(1)
        if len(done) == 2:
            raise stop

    monkeypatch.setattr(shutil, "copyfileobj", write)
    with pytest.raises(type(stop)):
        unpack(make(FILES), folder)
    assert list(folder.iterdir()) == []

"""Downloads from a site that cuts off, changes its files, gives others than announced, or sends elsewhere."""

import errno
import hashlib
import random
import shutil
from collections import namedtuple

import pytest

from data import fetch as module
from data.config import Archive
from data.fetch import BLOCK, fetch
from tests.data.https_site import serve
from utils.options import InputError

CONTENT = random.Random(0).randbytes(3 * BLOCK + 1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DATE = "Tue, 01 Sep 2015 10:00:00 GMT"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.zip"


def refusal(archive, file) -> str:
    with pytest.raises(InputError) as caught:
        fetch(archive, file)
    assert "\n" not in str(caught.value)
    assert archive.url in str(caught.value)
    assert not file.exists()
    return str(caught.value)


def interrupt(site, file, have=1000, **behaviour):
    """Leave the first `have` bytes of a download behind, as a run that was killed; returns the page."""
    url, page = site.put("/a.zip", CONTENT, cuts=[have], statuses=[], **behaviour)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "ATTEMPTS", 1)
        fetch_error = refusal(Archive(url), file)
    assert f"cut after {have:,} of {len(CONTENT):,} bytes" in fetch_error
    assert f"{have:,} bytes are kept" in fetch_error
    page.seen.clear()
    return url, page


@pytest.mark.parametrize(
    "archive",
    [{}, {"size": len(CONTENT)}, {"sha256": SHA256}, {"size": len(CONTENT), "sha256": SHA256.upper()}],
    ids=["nothing known", "size", "hash", "both"],
)
@pytest.mark.parametrize("tells_length", [True, False])
def test_whole(site, file, archive, tells_length):
    url, page = site.put("/a.zip", CONTENT, tells_length=tells_length)
    fetch(Archive(url, **archive), file)
    assert file.read_bytes() == CONTENT
    assert list(file.parent.iterdir()) == [file], "nothing else is left behind"
    assert page.seen == [(None, None)]


@pytest.mark.parametrize(("etag", "modified"), [('"one"', ""), ("", DATE), ('W/"one"', DATE), ('"one"', DATE)])
def test_goes_on_where_it_was_cut_off(site, file, etag, modified):
    url, page = site.put("/a.zip", CONTENT, etag=etag, modified=modified, cuts=[1000, 2000])
    fetch(Archive(url, sha256=SHA256), file)
    assert file.read_bytes() == CONTENT
    validator = etag if etag.startswith('"') else modified
    assert page.seen == [(None, None), ("bytes=1000-", validator), ("bytes=3000-", validator)]


def test_goes_on_in_another_run(site, file):
    url, page = interrupt(site, file)
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT
    assert page.seen == [("bytes=1000-", '"one"')]


@pytest.mark.parametrize("change", [{"etag": '"two"'}, {"ranges": False}])
def test_starts_again_where_it_cannot_go_on(site, file, change):
    """Another version of the file, or a server without ranges: both answer with the whole."""
    url, page = interrupt(site, file)
    for name, value in change.items():
        setattr(page, name, value)
    page.content = other = CONTENT[::-1]
    fetch(Archive(url), file)
    assert file.read_bytes() == other


@pytest.mark.parametrize("validator", [{"etag": ""}, {"etag": 'W/"one"'}])
def test_never_appends_to_what_has_no_version(site, file, validator):
    url, page = interrupt(site, file, **validator)
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT
    assert page.seen == [(None, None)]


def test_a_server_that_ignores_if_range_is_caught(site, file, monkeypatch):
    """It appends another version's bytes; the ETag of its answer tells."""
    url, page = interrupt(site, file)
    page.content, page.etag = CONTENT[::-1], '"two"'
    monkeypatch.setattr(type(page), "validator", '"one"')
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT[::-1]


def test_a_part_beyond_the_file_is_thrown_away(site, file):
    url, page = interrupt(site, file)
    page.statuses = [416]
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT


def test_only_attempts_in_vain_count(site, file):
    url, page = site.put("/a.zip", CONTENT, cuts=[BLOCK, 0, 0, 0, BLOCK, 0, 0, 0, BLOCK])
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT
    assert len(page.seen) == 10


def test_gives_up_and_keeps_what_came(site, file):
    url, page = site.put("/a.zip", CONTENT, cuts=[1000] + [0] * 20)
    assert "1,000 bytes are kept, the same command goes on from there" in refusal(Archive(url), file)
    assert len(page.seen) == module.ATTEMPTS


def test_passing_troubles_of_the_server(site, file):
    url, _ = site.put("/a.zip", CONTENT, statuses=[503, 429, 500])
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (403, "403 Forbidden"), (401, "401")])
def test_lasting_refusals_are_told_at_once(site, file, status, reason):
    url, page = site.put("/a.zip", CONTENT, statuses=[status])
    assert f"the server answers {reason}" in refusal(Archive(url), file)
    assert len(page.seen) == 1


@pytest.mark.parametrize("tells_length", [True, False])
@pytest.mark.parametrize("difference", [-1, 1, -2 * BLOCK])
def test_wrong_size(site, file, tells_length, difference):
    url, _ = site.put("/a.zip", CONTENT, tells_length=tells_length)
    expected = len(CONTENT) + difference
    message = refusal(Archive(url, size=expected), file)
    assert f"expected {expected:,} bytes, found" in message
    assert not list(file.parent.iterdir())


def test_a_page_of_another_size_does_not_cost_the_part(site, file):
    url, page = interrupt(site, file)
    page.content, page.etag = b"<html>try again later</html>", '"page"'
    archive = Archive(url, size=len(CONTENT))
    assert "found 28" in refusal(archive, file)
    page.content, page.etag = CONTENT, '"one"'
    page.seen.clear()
    fetch(archive, file)
    assert page.seen == [("bytes=1000-", '"one"')]


def test_wrong_hash_keeps_nothing(site, file):
    url, _ = site.put("/a.zip", CONTENT[::-1])
    assert f"expected sha256 {SHA256}, found" in refusal(Archive(url, size=len(CONTENT), sha256=SHA256), file)
    assert not list(file.parent.iterdir())


def test_whole_but_unchecked_is_only_checked(site, file):
    url, page = site.put("/a.zip")
    file.with_name("a.zip.part").write_bytes(CONTENT)
    fetch(Archive(url, size=len(CONTENT), sha256=SHA256), file)
    assert file.read_bytes() == CONTENT
    assert not page.seen


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://127.0.0.1/a.zip", "redirected to http://127.0.0.1/a.zip, which is not https: refused"),
        ("ftp://127.0.0.1/a.zip", "redirected to ftp://127.0.0.1/a.zip, which is not https: refused"),
        ("file:///etc/hostname", "'file:///etc/hostname' is not allowed"),
        ("/a.zip", "infinite loop"),
    ],
)
def test_redirects_that_are_refused(site, file, location, message):
    url, _ = site.put("/a.zip", location=location)
    assert message in refusal(Archive(url), file)
    assert not list(file.parent.iterdir())


def test_http_is_for_those_who_allow_it(file, monkeypatch):
    with serve(monkeypatch, scheme="http") as plain:
        url, page = plain.put("/a.zip", CONTENT)
        assert "unknown url type: http" in refusal(Archive(url), file)
        assert not page.seen
        moved, _ = plain.put("/moved.zip", location="/a.zip")
        fetch(Archive(moved), file, http=True)
    assert file.read_bytes() == CONTENT


def test_redirect_within_https_keeps_the_range(site, file):
    url, page = interrupt(site, file)
    page.location = "/b.zip"
    _, target = site.put("/b.zip", CONTENT)
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT
    assert target.seen == [("bytes=1000-", '"one"')]


def test_an_unknown_certificate(site, file, monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE")
    url, page = site.put("/a.zip", CONTENT)
    assert "no valid certificate: self-signed" in refusal(Archive(url), file).replace("self signed", "self-signed")
    assert not page.seen


def test_no_server(site, file):
    message = refusal(Archive("https://127.0.0.1:1/a.zip"), file)
    assert "no connection" in message
    assert "refused" in message


def test_a_silent_server(site, file, monkeypatch):
    """It accepts the connection and says nothing."""
    import socket

    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refusal(Archive(f"https://127.0.0.1:{silent.getsockname()[1]}/a.zip"), file)
    assert "timed out" in message


def test_room_for_the_archive_and_its_content(site, file, monkeypatch):
    url, page = interrupt(site, file)
    usage = namedtuple("usage", "free")
    needed = 2 * len(CONTENT) - 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed - 1))
    assert f"needs {needed:,} bytes" in refusal(Archive(url), file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed))
    fetch(Archive(url), file)
    assert file.read_bytes() == CONTENT
    assert len(page.seen) == 2


def test_errors_of_the_disk_are_not_taken_for_the_network_s(site, file, monkeypatch):
    url, page = site.put("/a.zip", CONTENT)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(Archive(url), file)
    assert len(page.seen) == 1

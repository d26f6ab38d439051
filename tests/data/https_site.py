"""A web site on this machine over https or http, whose pages misbehave as they are told."""

import contextlib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@dataclass
class Page:
    """What is behind an address; `seen` has the Range and If-Range of each request for it."""

    content: bytes = b""
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # after how many bytes the next answers end
    statuses: list[int] = field(default_factory=list)  # of the next answers
    location: str = ""
    pause: float = 0.0  # seconds before the answer, and again in the middle of its content
    tells_length: bool = True
    seen: list[tuple[str | None, str | None]] = field(default_factory=list)

    @property
    def validator(self) -> str:
        return self.etag if self.etag.startswith('"') else self.modified


class Site:
    """Pages by their paths, served at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.pages: dict[str, Page] = {}

    def put(self, path: str, content: bytes = b"", **behaviour) -> tuple[str, Page]:
        self.pages[path] = Page(content, **behaviour)
        return self.address + path, self.pages[path]


@contextlib.contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, *, scheme: str = "https") -> Iterator[Site]:
    """Run a site whose certificate this process trusts, as it would one that the system's administrator adds."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.site = Site(f"{scheme}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = self.server.site.pages.get(self.path, Page(statuses=[404]))
        page.seen.append((self.headers["Range"], self.headers["If-Range"]))
        time.sleep(page.pause)
        if page.location or page.statuses:
            self.send_response(302 if page.location else page.statuses.pop(0))
            self.send_header("Location", page.location)
            self.end_headers()
            return
        start = 0
        if page.ranges and self.headers["Range"] and self.headers["If-Range"] == page.validator:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        self._answer(page, start)

    def _answer(self, page: Page, start: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        if page.tells_length:
            self.send_header("Content-Length", str(len(page.content) - start))
        for name, value in (("ETag", page.etag), ("Last-Modified", page.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = start + page.cuts.pop(0) if page.cuts else len(page.content)
        middle = (start + end) // 2
        with contextlib.suppress(OSError):  # the client may hang up
            self.wfile.write(page.content[start:middle])
            time.sleep(page.pause)
            self.wfile.write(page.content[middle:end])

    def log_message(self, *_: object) -> None:
        pass

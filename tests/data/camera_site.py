"""Cameras on this machine: endless MJPEG over http, which goes dark, falls silent or comes back as it is told."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


@dataclass
class Camera:
    """A camera whose pictures are all of one grey level, a stripe apart that is 2 px wider in each next one."""

    level: int
    size_wh: tuple[int, int] = (64, 48)
    fps: float = 50.0
    dark: bool = False  # answers 503, and ends the connections there are
    silent: bool = False  # keeps connections, but sends nothing
    connections: int = 0
    refused: int = 0
    sent: int = 0

    def picture(self) -> bytes:
        width, height = self.size_wh
        image = np.full((height, width, 3), self.level, np.uint8)
        image[:, : 2 * self.sent % width] = 255 - self.level
        return cv2.imencode(".jpg", image)[1].tobytes()


@dataclass
class Cameras:
    """The cameras by their paths."""

    address: str
    cameras: dict[str, Camera] = field(default_factory=dict)
    closing: bool = False

    def put(self, path: str, level: int, **behaviour) -> tuple[str, Camera]:
        self.cameras[path] = Camera(level, **behaviour)
        return self.address + path, self.cameras[path]


@contextlib.contextmanager
def serve() -> Iterator[Cameras]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.site = Cameras(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.site
    finally:
        server.site.closing = True
        server.shutdown()
        thread.join()
        server.server_close()  # waits for the connections' threads


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site, camera = self.server.site, self.server.site.cameras.get(self.path)
        if camera is None:
            self.send_error(404)
            return
        if camera.dark:
            camera.refused += 1
            self.send_error(503)
            return
        camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may hang up
            while not (site.closing or camera.dark):
                if not camera.silent:
                    picture = camera.picture()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    camera.sent += 1
                time.sleep(1 / camera.fps)

    def log_message(self, *_: object) -> None:
        pass

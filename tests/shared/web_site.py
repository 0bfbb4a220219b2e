"""A small server of HTTP with the faults that servers have, for tests of data that lies elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Site:
    """What is served, and how.

    Attributes:
        files: By their paths, such as `/calib.npz`.
        gives_parts: Whether requests for a range are heard.
        tells_etag: Whether files have an ETag.
        tells_size: Whether answers have a Content-Length.
        statuses: What the next requests for content are answered with, instead of it.
        cuts: How many answers with content end in their middle.
        replaced_by: What a file becomes after the next request for content.
        requests: All requests so far: method, path, range.
        address: Where it is served.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gives_parts: bool = True
    tells_etag: bool = True
    tells_size: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: int = 0
    replaced_by: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def count(self, method: str) -> int:
        """Returns how many requests of a method there were."""
        return [request[0] for request in self.requests].count(method)


@contextmanager
def serve_site() -> Iterator[Site]:
    """Serves a site on this machine, at a port that is free."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range", "")
            site.requests.append((self.command, path, wanted))
            is_get = self.command == "GET"
            if is_get and site.statuses:
                self.send_error(site.statuses.pop(0))
            elif path not in site.files:
                self.send_error(404)
            else:
                self.send_content(path, wanted, is_get=is_get)
                if is_get and path in site.replaced_by:
                    site.files[path] = site.replaced_by.pop(path)

        def send_content(self, path: str, wanted: str, *, is_get: bool) -> None:
            content = site.files[path]
            bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if site.gives_parts else None
            part = content[int(bounds[1]) : int(bounds[2]) + 1] if bounds else content
            self.send_response(206 if bounds else 200)
            if site.tells_size:
                self.send_header("Content-Length", str(len(part)))
            if site.tells_etag:
                self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            if bounds:
                self.send_header("Content-Range", f"bytes {bounds[1]}-{bounds[2]}/{len(content)}")
            self.end_headers()
            if is_get and site.cuts:
                site.cuts -= 1
                part = part[: len(part) // 2]
            with suppress(ConnectionError):  # who asked has seen enough
                self.wfile.write(part if is_get else b"")

        def log_message(self, *_: object) -> None:
            """Keeps the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()

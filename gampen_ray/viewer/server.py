"""Serves the page and the images of a catalogue on 127.0.0.1, below a path that other users of the machine do not know."""

import http
import logging
import re
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gampen_ray.errors import StorageError, UserError
from gampen_ray.reports.figures import png
from gampen_ray.viewer.galaxies import Galaxies
from gampen_ray.viewer.page import VIEW_POLICY, Page

__all__ = ["Server"]

logger = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
# Whatever the port, which a tunnel may change: what a page from elsewhere cannot send is one of these names.
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
_ROW = re.compile(r"row=(\d{1,15})", re.ASCII)
_HEADERS = {
    "Content-Security-Policy": f"{VIEW_POLICY}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """A server of one catalogue; `serve_forever` runs it.

    Parameters
    ----------
    galaxies
        Of the catalogue.
    output
        Its folder, as it is shown.
    port
        To listen on; 0: a free one.

    Raises
    ------
    UserError
        If the port cannot be used.
    """

    def __init__(self, galaxies: Galaxies, output: str, port: int = 0) -> None:
        self.galaxies, self.page = galaxies, Page(galaxies, output)
        self.root = f"/{secrets.token_urlsafe(24)}/"
        # One request is answered at a time: browsers keep several connections open, and figures share settings.
        self.lock = threading.Lock()
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(f"port: {port} cannot be used, {error.strerror}; give another, or 0 for a free one") from None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that has gone."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.exception("a request failed")

    @property
    def url(self) -> str:
        """Address of the page, which alone is answered."""
        return f"http://{_ADDRESS}:{self.server_port}{self.root}"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET alone; what a request names is never a file."""

    server: Server  # type: ignore[assignment]
    protocol_version, server_version, sys_version = "HTTP/1.1", "gampen_ray", ""
    timeout = 60

    def do_GET(self) -> None:
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            self._answer(421, "text/plain", b"ask for 127.0.0.1 or localhost\n")
            return
        path, _, query = self.path.partition("?")
        root = self.server.root
        if not secrets.compare_digest(path[: len(root)].encode(), root.encode()):
            self._answer(404, "text/plain", b"not here\n")
            return
        path = path.removeprefix(root)
        try:
            with self.server.lock:
                status, kind, content = self._content(path, query)
        except Exception:
            logger.exception("GET %s failed", path or "page")
            status, kind, content = 500, "text/plain", b"this failed; the terminal says why\n"
        self._answer(status, kind, content)

    def _content(self, path: str, query: str) -> tuple[int, str, bytes]:
        if not path:
            status, text = self.server.page(query)
            return status, "text/html", text.encode()
        asked = _ROW.fullmatch(query)
        if path == "image" and asked and int(asked[1]) < len(self.server.galaxies.table):
            try:
                image_HW = self.server.galaxies.image(int(asked[1]))
            except (UserError, StorageError) as error:
                logger.warning("%s", error)
                image_HW = None
            if image_HW is not None:
                return 200, "image/png", png(image_HW)
        return 404, "text/plain", b"not here\n"

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(http.HTTPStatus(status))
        charset = "" if kind.startswith("image/") else "; charset=utf-8"
        for name, value in ({"Content-Type": kind + charset, "Content-Length": str(len(content))} | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)

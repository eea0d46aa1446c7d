"""Untrusted files are read in a process of their own, so that one that crashes, hangs or swells its reader costs itself alone.

Each process that reads has one such child (`gampen_ray.data.reader_child`), started at its first file: decoders in C may
overwrite memory, or follow a header without end, and only a process can be ended. The child answers with JSON and pixels,
nothing that its parent would execute.
"""

import atexit
import collections
import contextlib
import dataclasses
import functools
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import reader_child
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.reader_child import AHEAD, LINUX, MEBIBYTES, SECONDS, header_of, text_of
from gampen_ray.data.readers.fits_listing import FitsListing
from gampen_ray.errors import AGAIN, StartError, UserError
from gampen_ray.plugins import child_environment, plugin_modules

__all__ = ["File", "bytes_per_row", "close", "list_hdus", "map_header", "read_content", "read_file", "read_files"]

# A busy machine may give a child no time for long.
_WALL_SECONDS = 60


class File(NamedTuple):
    """Content of a file or why there is none, its name, and how it is read."""

    content: bytes | CutoutError
    name: str
    config: ReaderConfig


def read_files(files: Iterable[File], *, headers: bool = False) -> list[Cutout | CutoutError]:
    """Read images of files as `gampen_ray.data.readers.read_cutout` does, in the child.

    Parameters
    ----------
    files
        Taken one after the other while the child reads those before.
    headers
        Whether the cutouts have their headers, which cost time.

    Returns
    -------
    list
        For each file its image, or why there is none: also if it takes too much time or memory, or ends the child.
    """
    results: list[Cutout | CutoutError | None] = []

    def requests() -> Iterator[_Request]:
        for content, name, config in files:
            if isinstance(content, bytes) and len(content) > config.max_mebibytes << 20:
                content = too_large("the file", len(content), config)
            results.append(content if isinstance(content, CutoutError) else None)
            if isinstance(content, bytes):
                yield _Request({"verb": "read", "name": name, "headers": headers}, content, config)

    answers = iter(_READER.ask(requests()))
    return [_cutout(next(answers)) if result is None else result for result in results]


def read_file(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read the image of a file with its header, or raise the CutoutError; see `read_files`."""
    (found,) = read_files([File(data, name, config)], headers=True)
    if isinstance(found, CutoutError):
        raise found
    return found


def read_content(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read a file that lies in a container: its own format is found by its content; see `read_file`."""
    return read_file(data, name, dataclasses.replace(config, format="auto"))


def list_hdus(data: bytes, config: ReaderConfig) -> FitsListing:
    """Return what the HDUs of a FITS file hold; see `gampen_ray.data.readers.fits_listing.listing`."""
    (answer,) = _READER.ask([_Request({"verb": "list"}, data, config)])
    return FitsListing(**_good(answer)[0])


def map_header(header: fits.Header, matrix_22: np.ndarray, offset_2: np.ndarray) -> fits.Header:
    """Return the header of a resampled image; see `gampen_ray.data.wcs.mapped_header`."""
    fields: dict[str, Any] = {"verb": "map", "matrix": matrix_22.tolist(), "offset": offset_2.tolist()}
    (answer,) = _READER.ask([_Request(fields, text_of(header).encode(), ReaderConfig())])
    return header_of(_good(answer)[0]["header"])


def bytes_per_row(footer: bytes, column: str, config: ReaderConfig) -> list[float]:
    """Return sizes of a Parquet column's rows; see `gampen_ray.data.parquet_footers.bytes_per_row`."""
    if len(footer) > config.max_mebibytes << 20:
        raise too_large("the footer", len(footer), config)
    (answer,) = _READER.ask([_Request({"verb": "footer", "column": column}, footer, config)])
    return _good(answer)[0]["bytes"]


def close() -> None:
    """End the child; the next file starts another."""
    _READER.end(patience_s=5)


class _Request(NamedTuple):
    fields: dict[str, Any]
    data: bytes
    config: ReaderConfig


_Answer = tuple[dict[str, Any], np.ndarray] | CutoutError
"""Facts of a file with the pixels of its image and their noise, if asked for (C or 2C x H x W), or why there are none."""


class _Reader:
    """The child of this process, which is replaced once it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._mebibytes = self._num_sent = self._num_answered = 0
        self._plugins = ""
        self._socket: Any = None
        self._lines: Any = None
        self._memory: Any = None

    def ask(self, requests: Iterable[_Request]) -> list[_Answer]:
        """Return the child's answers; a UserError if it says that the settings of the reader are wrong."""
        answers: list[_Answer] = []
        # Sent, or to be sent again.
        waiting: collections.deque[_Request] = collections.deque()
        coming = iter(requests)
        with self._lock:
            try:
                while True:
                    while len(waiting) < AHEAD and (request := next(coming, None)):
                        waiting.append(request)
                        self._send(request)
                    if not waiting:
                        return answers
                    answers += self._received(waiting)
            except BaseException:
                # Answers may yet come, and be taken for those to other requests.
                self.end()
                raise

    def _send(self, request: _Request) -> None:
        fields, data, config = request
        mebibytes = max(config.max_mebibytes, MEBIBYTES)
        if self._child is None or (self._mebibytes, self._plugins) != (mebibytes, plugin_modules()):
            self.end()
            self._start(mebibytes)
        start = self._num_sent % AHEAD * (mebibytes << 20)
        self._num_sent += 1
        self._memory[start : start + len(data)] = data
        place = {"config": _encoded(config), "start": start, "size": len(data)}
        with contextlib.suppress(ConnectionError):
            # A child that has ended is found when its answer is read.
            self._socket.sendall(json.dumps(fields | place).encode() + b"\n")

    def _received(self, waiting: collections.deque[_Request]) -> list[_Answer]:
        """Return the answer to the first request, which is removed; nothing if that is sent again, with those after it."""
        fresh = self._num_answered == 0
        answer: dict[str, Any]
        try:
            line = self._lines.readline()
            answer = json.loads(line) if line.endswith(b"\n") else self._fault()
        except TimeoutError:
            answer = {"fault": f"reading it took longer than {self._socket.gettimeout():g} s", "again": False}
        except (ConnectionError, ValueError):
            # The end of the child, or a line that its damaged memory made.
            answer = self._fault()
        if "error" in answer and not answer["of_file"]:
            raise UserError(answer["error"])
        if "fault" not in answer:
            waiting.popleft()
            if "error" in answer:
                result: _Answer = CutoutError(answer["error"])
            else:
                shape = answer.pop("shape", (0,))
                start = self._num_answered % AHEAD * (self._mebibytes << 20)
                # A copy: another image takes its place.
                pixels = np.frombuffer(self._memory, np.float32, math.prod(shape), start).reshape(shape).copy()
                result = answer, pixels
            self._num_answered += 1
            return [result]
        self.end()
        # An earlier file may have damaged or filled the child's memory.
        again = answer["again"] and not fresh
        if not again:
            waiting.popleft()
        for request in waiting:
            self._send(request)
        return [] if again else [CutoutError(answer["fault"])]

    def _start(self, mebibytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        self._mebibytes, self._plugins, self._num_sent, self._num_answered = mebibytes, plugin_modules(), 0, 0
        environment = child_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        # A file without a name; in memory where the system has such.
        with theirs, os.fdopen(os.memfd_create("file"), "w+b") if LINUX else tempfile.TemporaryFile() as file:
            file.truncate(AHEAD * mebibytes << 20)
            self._memory = mmap.mmap(file.fileno(), 0)
            ends = theirs.fileno(), file.fileno()
            command = [sys.executable, "-P", "-m", reader_child.__name__, *map(str, ends)]
            self._child = subprocess.Popen(command, pass_fds=ends, env=environment, stdin=subprocess.DEVNULL)
        if not self._lines.readline():
            raise StartError(f"the process that reads files did not start: exit {self._child.wait()}; {AGAIN}")
        self._socket.settimeout(_WALL_SECONDS * mebibytes / MEBIBYTES)

    def end(self, patience_s: float = 0) -> int:
        """End the child, if there is one, and return its exit status; one that ends by itself has some time to."""
        child, self._child = self._child, None
        if child is None:
            return 0
        self._lines.close()
        self._socket.close()
        self._memory.close()
        try:
            return child.wait(patience_s)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _fault(self) -> dict[str, Any]:
        seconds, status = SECONDS * self._mebibytes / MEBIBYTES, self.end(patience_s=5)
        if status == -signal.SIGPROF:
            return {"fault": f"reading it took longer than {seconds:g} s of processor time", "again": False}
        how = f"signal {-status}" if status < 0 else f"exit {status}"
        return {"fault": f"reading it ended the process that read it ({how})", "again": True}


def _good(answer: _Answer) -> tuple[dict[str, Any], np.ndarray]:
    if isinstance(answer, CutoutError):
        raise answer
    return answer


def _cutout(answer: _Answer) -> Cutout | CutoutError:
    if isinstance(answer, CutoutError):
        return answer
    facts, planes = answer
    if "header" in facts:
        facts["header"] = header_of(facts["header"])
    num_bands = facts.pop("num_bands")
    return Cutout(planes[:num_bands], sigma_CHW=planes[num_bands:] if len(planes) > num_bands else None, **facts)


@functools.lru_cache(8)
def _encoded(config: ReaderConfig) -> str:
    return json.dumps(to_dict(config))


_READER = _Reader()
atexit.register(close)
# The child belongs to the process that started it.
os.register_at_fork(after_in_child=_READER.__init__)

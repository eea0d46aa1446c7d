"""Untrusted files are read in a process of their own, so that one that crashes, hangs or swells its reader costs itself alone.

Each process that reads has one such child, started at its first file: decoders in C may overwrite memory, or follow a header
without end, and only a process can be ended. The child bounds its processor time by a timer of the kernel, and its address
space. It answers with JSON and pixels, nothing that its parent would execute; files and pixels pass through shared memory.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import math
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import build, to_dict
from gampen_ray.data import readers
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.readers.fits_bands import stacked
from gampen_ray.data.readers.fits_listing import FitsListing, listing
from gampen_ray.data.wcs import mapped_header
from gampen_ray.errors import UserError
from gampen_ray.plugins import VARIABLE, load_plugins, plugin_modules

__all__ = ["list_hdus", "map_header", "read_bands", "read_content", "read_file"]

# For files of up to so many MiB; in proportion for larger ones (`ReaderConfig.max_mebibytes`).
_SECONDS, _BYTES, _MEBIBYTES = 2.0, 1_500_000_000, 64
# A busy machine may give a child no time for long.
_WALL_SECONDS = 60
# Headers of drizzled images have thousands.
_MAX_CARDS = 36_000
_LINUX = sys.platform == "linux"
_FACTS = tuple(field.name for field in dataclasses.fields(Cutout) if field.name not in ("image_CHW", "header"))


def read_file(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read the image of a file as `gampen_ray.data.readers.read_cutout` does, in the child.

    Raises
    ------
    CutoutError
        Also if the file takes too much time or memory, or ends the process that reads it.
    """
    answer, image_CHW = _READER.ask({"verb": "read", "name": name}, data, config)
    return Cutout(image_CHW, **(answer | {"header": fits.Header.fromstring(answer["header"])}))


def read_content(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read a file that lies in a container: its own format is found by its content; see `read_file`."""
    return read_file(data, name, dataclasses.replace(config, format="auto"))


def read_bands(files: Sequence[bytes | CutoutError], names: Sequence[str], config: ReaderConfig) -> Cutout:
    """Read an image from a file a band, or why it cannot be read, in the order of the bands.

    See `gampen_ray.data.readers.fits_bands.stacked`.

    Raises
    ------
    CutoutError
        As `read_file`, naming the band, or if the files contradict each other.
    """
    cutouts = []
    for band, data, name in zip(config.bands, files, names, strict=True):
        try:
            if isinstance(data, CutoutError):
                raise data
            cutouts.append(read_file(data, name, dataclasses.replace(config, bands=(band,))))
        except CutoutError as error:
            raise CutoutError(f"band {band}: {error}") from None
    return stacked(config.bands, cutouts)


def list_hdus(data: bytes, config: ReaderConfig) -> FitsListing:
    """Return what the HDUs of a FITS file hold; see `gampen_ray.data.readers.fits_listing.listing`."""
    return FitsListing(**_READER.ask({"verb": "list"}, data, config)[0])


def map_header(header: fits.Header, matrix_22: np.ndarray, offset_2: np.ndarray) -> fits.Header:
    """Return the header of a resampled image; see `gampen_ray.data.wcs.mapped_header`."""
    request: dict[str, Any] = {"verb": "map", "matrix": matrix_22.tolist(), "offset": offset_2.tolist()}
    return fits.Header.fromstring(_READER.ask(request, _text(header).encode(), ReaderConfig())[0]["header"])


class _Reader:
    """The child of this process, which is replaced once it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._mebibytes = 0
        self._socket: Any = None
        self._lines: Any = None
        self._memory: Any = None

    def ask(self, request: dict[str, Any], data: bytes, config: ReaderConfig) -> tuple[dict[str, Any], np.ndarray]:
        """Return the child's answer to a request about a file, and the pixels of an image (C x H x W); or raise its error."""
        if len(data) > config.max_mebibytes << 20:
            raise too_large(len(data), config)
        message = json.dumps(request | {"config": _encoded(config), "size": len(data)}).encode()
        with self._lock:
            answer, image_CHW = self._answer(message, data, max(config.max_mebibytes, _MEBIBYTES))
        if "error" in answer:
            raise (CutoutError if answer["of_file"] else UserError)(answer["error"])
        return answer, image_CHW

    def _answer(self, message: bytes, data: bytes, mebibytes: int) -> tuple[dict[str, Any], np.ndarray]:
        if self._mebibytes != mebibytes:
            self.end()
        fresh = self._child is None
        if fresh:
            self._start(mebibytes)
        try:
            answer, image_CHW = self._exchange(message, data)
        except (EOFError, ConnectionError):
            answer = _fault(self.end(patience_s=5), mebibytes)
        except TimeoutError:
            answer = {"fault": f"reading it took longer than {_WALL_SECONDS} s", "again": False}
        except BaseException:
            # The answer may yet come, and be taken for the next one.
            self.end()
            raise
        if "fault" not in answer:
            return answer, image_CHW
        self.end()
        if fresh or not answer["again"]:
            raise CutoutError(answer["fault"])
        # An earlier file may have damaged or filled the child's memory.
        return self._answer(message, data, mebibytes)

    def _start(self, mebibytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), VARIABLE: plugin_modules()}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # A file without a name; in memory where the system has such.
        with theirs, os.fdopen(os.memfd_create("file"), "w+b") if _LINUX else tempfile.TemporaryFile() as file:
            file.truncate(mebibytes << 20)
            self._memory, self._mebibytes = mmap.mmap(file.fileno(), mebibytes << 20), mebibytes
            ends = theirs.fileno(), file.fileno()
            command = [sys.executable, "-P", "-m", __name__, *map(str, ends)]
            self._child = subprocess.Popen(command, pass_fds=ends, env=environment, stdin=subprocess.DEVNULL)
        try:
            if not self._lines.readline():
                raise RuntimeError(f"the process that reads files did not start: exit {self._child.wait()}")
        except BaseException:
            self.end()
            raise
        self._socket.settimeout(_WALL_SECONDS * mebibytes / _MEBIBYTES)

    def _exchange(self, message: bytes, data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        self._memory[: len(data)] = data
        self._socket.sendall(message + b"\n")
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        shape = answer.pop("shape", (0,))
        # A copy: the next image takes its place.
        return answer, np.frombuffer(self._memory, np.float32, math.prod(shape)).reshape(shape).copy()

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


def _fault(status: int, mebibytes: int) -> dict[str, Any]:
    if status == -signal.SIGPROF:
        seconds = _SECONDS * mebibytes / _MEBIBYTES
        return {"fault": f"reading it took longer than {seconds:g} s of processor time", "again": False}
    how = f"signal {-status}" if status < 0 else f"exit {status}"
    return {"fault": f"reading it ended the process that read it ({how})", "again": True}


@functools.lru_cache(8)
def _encoded(config: ReaderConfig) -> str:
    return json.dumps(to_dict(config))


@functools.lru_cache(8)
def _decoded(text: str) -> ReaderConfig:
    return build(ReaderConfig, json.loads(text))


def _text(header: fits.Header) -> str:
    return header.tostring(sep="", endcard=False, padding=False)


def _serve(requests: socket.socket, memory: mmap.mmap) -> None:
    """Answer requests until the parent is gone: the life of a child."""
    # Ctrl-C in a terminal reaches it too; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(UserError):
        # Said when a reader is asked for.
        load_plugins()
    scale = len(memory) / (_MEBIBYTES << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _LINUX:
        at_start = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (at_start + int(_BYTES * scale), resource.RLIM_INFINITY))
    # Libraries in C remark on damaged files, and on their own end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    requests.sendall(b"ready\n")
    for line in requests.makefile("rb"):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS * scale)
        try:
            answer = json.dumps(_reply(request, memory), default=float)
        except MemoryError:
            answer = json.dumps({"fault": f"reading it took more than {_BYTES * scale / 1e9:g} GB of memory", "again": True})
        except UserError as error:
            answer = json.dumps({"error": str(error), "of_file": isinstance(error, CutoutError)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        requests.sendall(answer.encode() + b"\n")


def _reply(request: dict[str, Any], memory: mmap.mmap) -> dict[str, Any]:
    """Return the answer to a request, and write pixels into the memory."""
    data, config = memory[: request["size"]], _decoded(request["config"])
    if request["verb"] == "list":
        return dataclasses.asdict(listing(data, config))
    if request["verb"] == "map":
        header = fits.Header.fromstring(data.decode())
        return {"header": _text(mapped_header(header, np.array(request["matrix"]), np.array(request["offset"])))}
    cutout = readers.read_cutout(data, request["name"], config)
    image_CHW = np.ascontiguousarray(cutout.image_CHW, np.float32)
    if image_CHW.nbytes > len(memory):
        raise too_large(image_CHW.nbytes, config)
    if len(cutout.header) > _MAX_CARDS:
        raise CutoutError(f"the header has {len(cutout.header):,} cards, more than {_MAX_CARDS:,}")
    np.frombuffer(memory, np.float32, image_CHW.size)[:] = image_CHW.ravel()
    facts = {name: getattr(cutout, name) for name in _FACTS}
    return facts | {"header": _text(cutout.header), "shape": image_CHW.shape}


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), 0))
else:
    _READER = _Reader()
    atexit.register(_READER.end)
    # The child belongs to the process that started it.
    os.register_at_fork(after_in_child=_READER.__init__)

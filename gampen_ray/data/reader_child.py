"""The life of a child of `gampen_ray.data.reader_process`: it reads files one after the other, and may be ended by any of them.

It bounds its processor time by a timer of the kernel, and its address space. Requests and answers are lines of JSON on a
socket; files and pixels pass through shared memory with room for `AHEAD` files.
"""

import contextlib
import dataclasses
import functools
import json
import mmap
import os
import resource
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import build
from gampen_ray.data import readers
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.parquet_footers import bytes_per_row
from gampen_ray.data.readers.fits_listing import listing
from gampen_ray.data.wcs import mapped_header
from gampen_ray.errors import UserError
from gampen_ray.plugins import load_plugins

__all__ = ["AHEAD", "LINUX", "MEBIBYTES", "SECONDS", "header_of", "text_of"]

MEBIBYTES, SECONDS, _BYTES = 64, 2.0, 1_500_000_000
"""Processor time and memory of a file of up to so many MiB; in proportion for larger ones (`ReaderConfig.max_mebibytes`)."""
AHEAD = 2
"""Files that are sent before the first is answered, so that the child need not wait."""
LINUX = sys.platform == "linux"
# Headers of drizzled images have thousands.
_MAX_CARDS = 36_000
_JSON = json.JSONEncoder(default=float)
_FACTS = tuple(field.name for field in dataclasses.fields(Cutout) if field.name not in ("image_CHW", "sigma_CHW", "header"))


def text_of(header: fits.Header) -> str:
    """Return the cards of a header as text, without those that `header_of` could not read."""
    cards = []
    for card in header.cards:
        # Cards with characters that no header may have, and strings without an end, are left out.
        with contextlib.suppress(ValueError, fits.VerifyError):
            cards.append(str(card))
    return "".join(cards)


def header_of(text: str) -> fits.Header:
    """Return the header of a text."""
    with warnings.catch_warnings():
        # Non-standard headers are common and harmless.
        warnings.simplefilter("ignore")
        return fits.Header.fromstring(text)


def _serve(requests: socket.socket, memory: mmap.mmap) -> None:
    """Answer requests until the parent is gone: the life of a child."""
    # Ctrl-C in a terminal reaches it too; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(UserError):
        # Raised again when a reader is chosen.
        load_plugins()
    scale = len(memory) / (AHEAD * MEBIBYTES << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if LINUX:
        at_start = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (at_start + int(_BYTES * scale), resource.RLIM_INFINITY))
    # Libraries in C remark on damaged files, and on their own end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    requests.sendall(b"ready\n")
    for line in requests.makefile("rb"):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS * scale)
        try:
            answer = _JSON.encode(_reply(request, memory))
        except MemoryError:
            answer = json.dumps({"fault": f"reading it took more than {_BYTES * scale / 1e9:g} GB of memory", "again": True})
        except UserError as error:
            answer = json.dumps({"error": str(error), "of_file": isinstance(error, CutoutError)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        requests.sendall(answer.encode() + b"\n")


def _reply(request: dict[str, Any], memory: mmap.mmap) -> dict[str, Any]:
    """Return the answer to a request, and write pixels into the memory."""
    start, config = request["start"], _decoded(request["config"])
    data = memory[start : start + request["size"]]
    if request["verb"] == "list":
        return dataclasses.asdict(listing(data, config))
    if request["verb"] == "footer":
        return {"bytes": bytes_per_row(data, request["column"])}
    if request["verb"] == "map":
        header = header_of(data.decode())
        return {"header": text_of(mapped_header(header, np.array(request["matrix"]), np.array(request["offset"])))}
    cutout = readers.read_cutout(data, request["name"], config)
    planes = cutout.image_CHW if cutout.sigma_CHW is None else np.concatenate([cutout.image_CHW, cutout.sigma_CHW])
    planes = np.ascontiguousarray(planes, np.float32)
    if planes.nbytes > len(memory) // AHEAD:
        raise too_large("the image", planes.nbytes, config)
    if len(cutout.header) > _MAX_CARDS:
        raise CutoutError(f"the header has {len(cutout.header):,} cards, more than {_MAX_CARDS:,}")
    np.frombuffer(memory, np.float32, planes.size, start)[:] = planes.ravel()
    facts = {name: getattr(cutout, name) for name in _FACTS}
    if request["headers"]:
        facts["header"] = text_of(cutout.header)
    return facts | {"shape": planes.shape, "num_bands": len(cutout.image_CHW)}


@functools.lru_cache(8)
def _decoded(text: str) -> ReaderConfig:
    return build(ReaderConfig, json.loads(text))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), 0))

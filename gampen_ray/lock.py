"""The lock of an output folder: one process at a time writes there, on this machine or another.

``lock.json`` names its holder, counts heartbeats and says what the holder is doing. Every change is a compare-and-swap: under
``flock`` on local disks, by conditional requests (``If-Match``) on S3. A process that finds the lock watches it: it gives up
when the count rises, and takes the lock over if the holder's process is gone or the count stops. Clocks of different machines
are never compared to decide that.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import pydantic

from gampen_ray import documents, progress, storage
from gampen_ray.errors import StorageError, UserError
from gampen_ray.lock_files import lock_file
from gampen_ray.messages import redacted

__all__ = ["LOCK_FILE", "Held", "Lock", "held", "locked"]

LOCK_FILE = "lock.json"
HEARTBEAT_SECONDS = 5.0
"""Time between two heartbeats."""
EXPIRY_SECONDS = 25.0
"""A lock whose heartbeat stops for this long while it is watched is taken over."""
WATCH_SECONDS = 1.0
"""Time between two checks of another process's heartbeat."""
SETTLE_SECONDS = 2.0
"""On storage without conditional writes: time after which a new holder checks that no other wrote at the same moment."""

logger = logging.getLogger(__name__)
_held: set[str] = set()


@contextlib.contextmanager
def locked(output: str) -> Iterator["Lock"]:
    """Hold the lock of an output folder until the block ends.

    Raises
    ------
    UserError
        If another process, or another part of this one, holds it.
    """
    lock = Lock(output)
    if lock.uri in _held:
        raise UserError(f"output: {output} is already open in this process; give each run a folder of its own")
    _held.add(lock.uri)
    try:
        lock.acquire()
        yield lock
    finally:
        try:
            lock.release()
        finally:
            _held.discard(lock.uri)


@dataclasses.dataclass(frozen=True)
class Held:
    """A lock that was found in an output folder.

    Parameters
    ----------
    holder
        Process, host and since when.
    is_alive
        Whether the process is running; None: unknown on this machine.
    age_s
        Time since the last heartbeat: on S3 by the server's clock, else by this machine's.
    doing
        What the process was doing then; empty: unknown.
    """

    holder: str
    is_alive: bool | None
    age_s: float
    doing: str

    @property
    def is_running(self) -> bool:
        """Whether the process is running, or its last heartbeat is recent where that is unknown."""
        return self.age_s <= EXPIRY_SECONDS if self.is_alive is None else self.is_alive


def held(output: str) -> Held | None:
    """Return who holds the lock of an output folder, None if nobody does; nothing is written."""
    file = lock_file(storage.join(storage.absolute(output), LOCK_FILE))
    content, age_s = file.read(), file.age_s()
    if content is None or age_s is None:
        return None
    holder = _parsed(content)
    return Held(_named(holder), _is_alive(holder), age_s, holder.doing)


class Lock:
    """The lock of an output folder; see `locked`.

    Parameters
    ----------
    output
        Folder or s3:// URI.

    Attributes
    ----------
    lost
        Whether another process took over the lock, because this one did not renew it in time.
    """

    def __init__(self, output: str) -> None:
        self.output, self.uri, self.lost = output, storage.join(storage.absolute(output), LOCK_FILE), False
        self._file = lock_file(self.uri)
        self._me = {
            "host": socket.gethostname(),
            "namespace": _namespace(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "token": uuid.uuid4().hex,
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self._beats, self._content = 0, b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="gampen_ray lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock and start the heartbeat, or raise a `UserError` that names the holder."""
        watched, looks = None, 0
        while True:
            there = self._file.read()
            holder = _parsed(there or b"{}")
            alive = None if there is None else _is_alive(holder)
            if alive or (there is not None and watched not in (None, there)):
                raise UserError(
                    f"output: {self.output} is in use by {_named(holder)}; nothing was changed: wait until it ends, stop it, "
                    "or give another folder"
                )
            if there is None or alive is False or looks * WATCH_SECONDS >= EXPIRY_SECONDS:
                if self._take(there):
                    if there is not None:
                        reason = "is gone" if alive is False else f"was silent for {EXPIRY_SECONDS:g} s"
                        logger.warning("%s: took over the lock of %s, which %s", self.output, _named(holder), reason)
                    self._thread.start()
                    return
                watched, looks = None, 0
                continue
            if watched is None:
                logger.info("%s: locked by %s; waiting for its heartbeat", self.output, _named(holder))
            watched, looks = there, looks + 1
            time.sleep(WATCH_SECONDS)

    def check(self) -> None:
        """Raise a `StorageError` if the lock was lost: another process writes into the folder."""
        if self.lost:
            raise StorageError(f"{self.output}: another process took over the lock of this run; this one stops")

    def release(self) -> None:
        """Stop the heartbeat and delete the lock, if it is still held."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.lost or not self._content:
            return
        try:
            if not self._file.swap(self._content, None):
                logger.warning("%s: the lock was already deleted or taken over", self.output)
        except (StorageError, UserError) as error:
            # The work is done, and the lock of a process that is gone blocks nobody.
            logger.warning("%s: the lock could not be deleted: %s", self.output, error)

    def _take(self, there: bytes | None) -> bool:
        # Set before the file is written, so that an interrupted job deletes it.
        self._content = self._described(0)
        taken = self._file.swap(there, self._content)
        if taken and not self._file.swaps_atomically():
            time.sleep(SETTLE_SECONDS)
            taken = self._file.read() == self._content
        if not taken:
            self._content = b""
        return taken

    def _described(self, beats: int) -> bytes:
        doing = redacted(progress.current())
        return (json.dumps(self._me | {"heartbeat": beats, "doing": doing}, indent=2) + "\n").encode()

    def _renew(self) -> None:
        while not self.lost and not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self._beat()
            except Exception as error:
                # No error may stop the heartbeat: the next one may succeed.
                logger.warning("%s: no heartbeat: %s", self.output, error)

    def _beat(self) -> None:
        content = self._described(self._beats + 1)
        if self._file.swap(self._content, content):
            self._beats, self._content = self._beats + 1, content
            return
        self.lost = True
        there = self._file.read()
        by = _named(_parsed(there)) if there else "a process that deleted it"
        logger.error("%s: the lock of this run was taken over by %s", self.output, by)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Holder:
    """Who holds a lock."""

    __pydantic_config__: ClassVar = documents.LENIENT

    host: str = "?"
    pid: Annotated[int, pydantic.Field(gt=0, lt=1 << 31)] | None = None
    namespace: str = ""
    process_start: str = ""
    since: str = "?"
    doing: str = ""


def _parsed(content: bytes) -> _Holder:
    try:
        return documents.parsed(_Holder, content, "", "")
    except UserError:
        return _Holder()


def _named(holder: _Holder) -> str:
    return f"process {holder.pid or '?'} on {holder.host} (since {holder.since})"


def _is_alive(holder: _Holder) -> bool | None:
    """Return whether the holder's process is running; None if that is unknown here."""
    if holder.pid is None or holder.host != socket.gethostname() or holder.namespace != _namespace():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It runs under another user.
        pass
    start = _process_start(holder.pid)
    # Process identifiers are reused.
    return start == holder.process_start if start and holder.process_start else None


def _namespace() -> str:
    """Return the boot and the PID namespace, without which host name and process identifier are ambiguous."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return the start time of a process in clock ticks, ``"ended"`` for a zombie, empty if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]

"""Files that are changed by compare-and-swap, under ``flock`` on local disks and by conditional requests on S3: for `lock`."""

import contextlib
import email.utils
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gampen_ray import s3, storage

__all__ = ["LocalFile", "S3Object", "lock_file"]


class LocalFile:
    """A file on a local or network disk, changed by one process at a time."""

    def __init__(self, uri: str) -> None:
        self._uri, self._path = uri, Path(uri)

    def read(self) -> bytes | None:
        """Return the content, None if there is no file."""
        with storage.explained(self._uri):
            try:
                return self._path.read_bytes()
            except FileNotFoundError:
                return None

    def swap(self, expected: bytes | None, content: bytes | None) -> bool:
        """Replace the expected content (None: no file), and return whether the file now has the new content."""
        if expected is not None and self.read() is None:
            # The whole folder may be gone, and must not be created again.
            return content is None
        with storage.explained(self._uri):
            if expected is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
        with storage.explained(self._uri), self._guarded() as guard:
            there = self.read()
            if there != expected:
                return there == content
            if content is not None:
                storage.write_bytes_atomic(self._uri, content)
            else:
                self._path.unlink()
                guard.unlink()
        return True

    def age_s(self) -> float | None:
        """Return the time since the file was written, None if there is no file."""
        with storage.explained(self._uri):
            try:
                return max(0.0, time.time() - self._path.stat().st_mtime)
            except FileNotFoundError:
                return None

    def swaps_atomically(self) -> bool:
        """Return whether the disk can lock files (`flock`)."""
        with storage.explained(self._uri), self._guard().open("ab") as file:
            return _flock(file.fileno())

    def _guard(self) -> Path:
        # Hidden, so that no reader lists it.
        return self._path.with_name(f".{self._path.name}.guard")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[Path]:
        guard = self._guard()
        while True:
            with guard.open("ab") as file:
                _flock(file.fileno())
                # Its previous holder may have deleted it, and a third process created a new one.
                if guard.exists() and os.path.samestat(os.fstat(file.fileno()), guard.stat()):
                    yield guard
                    return


class S3Object:
    """An object on S3, changed by conditional requests; the methods are those of `LocalFile`."""

    def __init__(self, uri: str) -> None:
        bucket, _, key = storage.filesystem(uri)[1].partition("/")
        self._uri, self._at, self._client = uri, {"Bucket": bucket, "Key": key}, s3.client()

    def read(self) -> bytes | None:
        return self._read()[0]

    def swap(self, expected: bytes | None, content: bytes | None) -> bool:
        there, etag = self._read()
        if there != expected:
            return there == content
        if content is None:
            return self._requested(self._client.delete_object, IfMatch=etag) or self.read() is None
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": etag}
        # A repeated request fails if the first one arrived.
        return self._requested(self._client.put_object, Body=content, **condition) or self.read() == content

    def age_s(self) -> float | None:
        with s3.explained(self._uri):
            try:
                answer = self._client.head_object(**self._at)
            except self._client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") != 404:
                    raise
                return None
        now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return max(0.0, (now - answer["LastModified"]).total_seconds())

    def swaps_atomically(self) -> bool:
        """Return whether the server refuses to create the object, which exists."""
        there = self.read()
        return there is not None and not self._requested(self._client.put_object, Body=there, IfNoneMatch="*", probing=True)

    def _read(self) -> tuple[bytes | None, str]:
        with s3.explained(self._uri):
            try:
                answer = self._client.get_object(**self._at)
                return answer["Body"].read(), answer["ETag"]
            except self._client.exceptions.NoSuchKey:
                return None, ""

    def _requested(self, request: Any, probing: bool = False, **arguments: Any) -> bool:
        """Return whether a request succeeded; a server without conditional requests gets it unconditionally."""
        with s3.explained(self._uri):
            try:
                request(**self._at, **arguments)
            except self._client.exceptions.ClientError as error:
                status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                # Precondition failed, concurrent request, or no such object.
                if status in (412, 409, 404) and error.response["Error"].get("Code") != "NoSuchBucket":
                    return False
                if status != 501:
                    raise
                if not probing:
                    request(**self._at, **{name: arguments[name] for name in arguments.keys() & {"Body"}})
        return True


def lock_file(uri: str) -> LocalFile | S3Object:
    """Return the file at a URI."""
    return LocalFile(uri) if storage.is_local(uri) else S3Object(uri)


def _flock(file: int) -> bool:
    """Lock an open file until it is closed; return False where the disk cannot."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True

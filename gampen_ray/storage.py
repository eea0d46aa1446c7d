"""Files by URI: a local path or ``s3://bucket/prefix``.

A URI is a ``str``. The endpoint, region and credentials of S3 come from the usual ``AWS_*`` environment variables
(``AWS_ENDPOINT_URL`` for a server other than Amazon's).
"""

import contextlib
import functools
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from gampen_ray.errors import UserError

__all__ = [
    "absolute",
    "copy",
    "delete",
    "exists",
    "filesystem",
    "join",
    "list_files",
    "open_input",
    "open_output",
    "read_bytes",
    "read_json",
    "size",
    "write_bytes_atomic",
    "write_json",
]

_S3 = "s3://"


def join(uri: str, *parts: str) -> str:
    """Return ``uri`` with path components appended."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """Return ``uri`` such that it means the same in another working directory: Ray's workers have their own."""
    _, path = filesystem(uri)
    return _S3 + path if uri.startswith(_S3) else path


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return pyarrow's file system of a URI and the path in it.

    Raises
    ------
    UserError
        For an empty URI or a scheme other than ``s3``.
    """
    if uri.startswith(_S3):
        path = uri.removeprefix(_S3).rstrip("/")
        if not path:
            raise UserError(f"{uri}: names no bucket; write s3://bucket/prefix")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        return _s3_filesystem(endpoint, region, os.environ.get("AWS_ACCESS_KEY_ID", "")), path
    if not uri or "://" in uri:
        raise UserError(f"{uri!r} is neither a local path nor s3://bucket/prefix")
    # Symbolic links stay: they may lead elsewhere on another machine.
    return pafs.LocalFileSystem(), os.path.normpath(Path(uri).expanduser().absolute())


def exists(uri: str) -> bool:
    """Return whether a file or a folder is there."""
    fs, path = filesystem(uri)
    with _explained(uri):
        return fs.get_file_info(path).type != pafs.FileType.NotFound


def size(uri: str) -> int | None:
    """Return the size of a file, bytes; None if there is no such file."""
    fs, path = filesystem(uri)
    with _explained(uri):
        return fs.get_file_info(path).size


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the absolute URIs of all files below a folder whose names end in ``suffix``, sorted; hidden files are skipped.

    A folder that is not there has no files.
    """
    fs, path = filesystem(uri)
    with _explained(uri):
        found = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = _S3 if uri.startswith(_S3) else ""
    return sorted(
        prefix + info.path
        for info in found
        if info.type == pafs.FileType.File and info.base_name.endswith(suffix) and not info.base_name.startswith(".")
    )


def open_input(uri: str) -> pa.NativeFile:
    """Open a file for reading at any position."""
    fs, path = filesystem(uri)
    with _explained(uri):
        return fs.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """Return the content of a file."""
    with _explained(uri), open_input(uri) as file:
        return file.read()


def read_json(uri: str) -> Any:
    """Return the value of a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{uri}: not valid JSON: {error}") from None


def write_bytes_atomic(uri: str, data: bytes | memoryview | pa.Buffer) -> None:
    """Write a file whole or not at all, replacing the one that is there; parent folders are made."""
    with open_output(uri) as stream:
        stream.write(data)


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """Open a file for writing bytes from its start; it replaces the one that is there when the block ends without an error."""
    fs, path = filesystem(uri)
    with _explained(uri):
        if uri.startswith(_S3):
            stream = fs.open_output_stream(path)
            # An object appears when its upload is complete, which only closing the stream makes it.
            yield stream
            stream.close()
        else:
            with _replaced_local(Path(path)) as file:
                yield file


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, atomically; a value that JSON does not know, or NaN, is a ValueError."""
    write_bytes_atomic(uri, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def copy(source: str, destination: str) -> None:
    """Copy a file, or all files of a folder; each arrives whole or not at all."""
    fs, path = filesystem(source)
    with _explained(source):
        kind = fs.get_file_info(path).type
    if kind == pafs.FileType.NotFound:
        raise UserError(f"{source}: no such file or folder")
    if kind == pafs.FileType.File:
        write_bytes_atomic(destination, read_bytes(source))
        return
    root = absolute(source)
    for uri in list_files(source):
        write_bytes_atomic(join(destination, uri.removeprefix(root)), read_bytes(uri))


def delete(uri: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens where there is none."""
    fs, path = filesystem(uri)
    with _explained(uri):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.File:
            fs.delete_file(path)
        elif kind == pafs.FileType.Directory:
            fs.delete_dir(path)


@functools.lru_cache(maxsize=8)
def _s3_filesystem(endpoint: str, region: str, access_key: str) -> pafs.FileSystem:
    # The access key only tells cached connections apart: pyarrow reads the credentials itself.
    del access_key
    options: dict[str, Any] = {}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        # Servers other than Amazon's accept any region, but pyarrow would ask Amazon for the bucket's.
        options = {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https", "region": "us-east-1"}
    if region:
        options["region"] = region
    return pafs.S3FileSystem(**options)


@contextlib.contextmanager
def _replaced_local(path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic within one file system only; hidden, so that no reader lists it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file or folder") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{uri}: {error.strerror or error}") from None
    except OSError as error:
        if uri.startswith(_S3):
            hint = "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the AWS credentials"
            raise UserError(f"{uri}: {error}; {hint}") from None
        if error.errno is not None:
            raise
        # pyarrow's own complaints, such as a folder where a file is asked.
        raise UserError(f"{uri}: {error}") from None

"""Files by URI: a local path, ``s3://bucket/prefix``, or ``builtin:NAME`` for a bundle inside the package.

A URI is a ``str``. `gampen_ray.s3` makes the connections to S3.
"""

import contextlib
import errno
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from gampen_ray import s3
from gampen_ray.errors import AGAIN, StorageError, UserError
from gampen_ray.messages import redacted

__all__ = [
    "BUNDLES",
    "absolute",
    "builtin_names",
    "copy",
    "delete",
    "exists",
    "explained",
    "filesystem",
    "join",
    "list_files",
    "open_input",
    "open_output",
    "read_bytes",
    "read_each",
    "read_json",
    "size",
    "stamps",
    "write_bytes_atomic",
    "write_json",
]

BUNDLES = Path(__file__).parent / "bundles"
"""The built-in bundles, a folder each."""
_S3, _BUILTIN = "s3://", "builtin:"
_LISTED = 10_000
# Requests at once hide the latency of S3. A file costs 4 kB until it is read: no more than this many wait for a thread.
_THREADS, _FILES_AHEAD = 32, 256
T = TypeVar("T")


def join(uri: str, *parts: str) -> str:
    """Return ``uri`` with path components appended."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """Return ``uri`` without reference to the working directory: Ray's workers have their own.

    A built-in bundle keeps its name, as each worker has a package of its own.
    """
    _, path = filesystem(uri)
    if uri.startswith(_BUILTIN):
        return uri.rstrip("/")
    return _S3 + path if uri.startswith(_S3) else path


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return pyarrow's file system of a URI and the path in it.

    Raises
    ------
    UserError
        For an empty URI, a scheme other than ``s3``, a name that is no text, or a built-in bundle that does not exist.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise UserError(f"{uri!r} is no text that a name of a file can be") from None
    if uri.startswith(_BUILTIN):
        return pafs.LocalFileSystem(), _builtin_path(uri)
    if uri.startswith(_S3):
        path = uri.removeprefix(_S3).rstrip("/")
        if not {".", ".."}.isdisjoint(path.split("/")):
            path = posixpath.normpath(path)
        if not path or path.startswith("."):
            raise UserError(f"{uri}: names no bucket; write s3://bucket/prefix")
        return s3.filesystem(), path
    if not uri or "://" in uri or "\0" in uri:
        raise UserError(f"{uri!r} is neither a local path nor s3://bucket/prefix")
    # Symbolic links are kept: they may point elsewhere on another machine.
    return pafs.LocalFileSystem(), os.path.normpath(Path(uri).expanduser().absolute())


def is_local(uri: str) -> bool:
    """Return whether the URI is on this machine, as a path or inside the package."""
    return not uri.startswith(_S3)


def builtin_names() -> list[str]:
    """Return the names of the built-in bundles, sorted."""
    return sorted(path.parent.name for path in BUNDLES.glob("*/bundle.json"))


def _builtin_path(uri: str) -> str:
    name, _, rest = uri.removeprefix(_BUILTIN).partition("/")
    if name not in (there := builtin_names()):
        known = f"there are {', '.join(there)}" if there else "this package has none, `make models` makes them"
        raise UserError(f"{_BUILTIN}{name}: no such built-in bundle; {known}")
    return os.path.normpath(BUNDLES / name / rest)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).type != pafs.FileType.NotFound


def size(uri: str) -> int | None:
    """Return the size of a file, bytes; None if there is no such file."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).size


def list_files(uri: str, suffix: str = "", *, listed: Callable[[int], None] | None = None) -> list[str]:
    """Return the absolute URIs of all files below a folder whose names end in ``suffix``, sorted.

    Hidden files and folders are skipped, and with them objects of S3 whose names would lead out of the folder, as ``a/../../b``
    does. A missing folder has no files, and folders may appear and disappear meanwhile.
    ``listed`` is called with the number of further files, for progress.
    """
    fs, path = filesystem(uri)
    found: list[str] = []
    with explained(uri):
        if is_local(uri):
            for name in _walk(path):
                if name.endswith(suffix):
                    found.append(name)
                    if listed and len(found) % _LISTED == 0:
                        listed(_LISTED)
            return sorted(found)
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(
        _S3 + info.path
        for info in infos
        if info.type == pafs.FileType.File and info.path.endswith(suffix) and "/." not in info.path.removeprefix(path)
    )


def stamps(uris: Iterable[str]) -> dict[str, str]:
    """Return a text for each file that changes with its content: size and modification time, on S3 size and ETag.

    The text is empty for a missing file. S3 folders are listed, a thousand files per request.
    """
    found: dict[str, str] = {}
    folders: dict[str, list[str]] = {}
    for uri in uris:
        found[uri] = ""
        if is_local(uri):
            # A path object or a context would cost more than the call, and there may be 10^7 files.
            try:
                stat = os.stat(uri if uri.startswith("/") else filesystem(uri)[1])  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                with explained(uri):
                    raise
            found[uri] = f"{stat.st_size} {stat.st_mtime_ns}"
        else:
            folders.setdefault(uri.rpartition("/")[0], []).append(uri)
    for folder, below in folders.items():
        listed = _listed_etags(folder, below)
        found |= {uri: listed.get(filesystem(uri)[1], "") for uri in below}
    return found


def open_input(uri: str) -> pa.NativeFile:
    """Open a file for reading with random access."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """Return the content of a file."""
    with explained(uri), open_input(uri) as file:
        return file.read()


def read_each(read: Callable[[str], T], uris: Sequence[str]) -> Iterator[T]:
    """Yield what a function reads from each of many files, in their order; it is called from several threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(uris), _FILES_AHEAD):
            yield from pool.map(read, uris[start : start + _FILES_AHEAD])


def read_json(uri: str) -> Any:
    """Return the value of a JSON file."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not valid JSON: {error}") from None


def write_bytes_atomic(uri: str, data: bytes | memoryview | pa.Buffer) -> None:
    """Write a file whole or not at all, replacing an existing one; parent folders are created."""
    fs, path = filesystem(uri)
    with explained(uri):
        if uri.startswith(_S3):
            _put(fs, path, data)
        else:
            with _replaced_local(Path(path)) as file:
                file.write(data)


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """Open a file for writing bytes; it replaces an existing one when the block ends without an error.

    For S3, the bytes are in a temporary local file until then.
    """
    fs, path = filesystem(uri)
    with explained(uri):
        if uri.startswith(_S3):
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                with pa.memory_map(file.name) as content:
                    _put(fs, path, content.read_buffer())
        else:
            with _replaced_local(Path(path)) as file:
                yield file


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, atomically, without the credentials of URIs; NaN and infinity are a ValueError."""
    write_bytes_atomic(uri, (redacted(json.dumps(value, indent=2, allow_nan=False)) + "\n").encode())


def copy(source: str, destination: str) -> None:
    """Copy a file, or all files of a folder; each arrives whole or not at all."""
    fs, path = filesystem(source)
    with explained(source):
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
    """Delete a file, or a folder and its content, if it exists."""
    fs, path = filesystem(uri)
    with explained(uri):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.File:
            fs.delete_file(path)
        elif kind == pafs.FileType.Directory:
            fs.delete_dir(path)


@contextlib.contextmanager
def explained(uri: str, otherwise: str = "") -> Iterator[None]:
    """Turn the errors of a file system into a `UserError` or a `StorageError` that names the URI.

    Parameters
    ----------
    uri
        File or folder that is read or written.
    otherwise
        Prefix of an error that comes neither from the disk nor from the server, such as ``"damaged: "``.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file or folder") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{uri}: {error.strerror or error}") from None
    except OSError as error:
        text = " ".join(str(error).split())
        if "AWS Error" in text:
            raise s3.failure(uri, text) from None
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{uri}: {error.strerror}") from None
        if error.errno is not None:
            raise StorageError(f"{uri}: {os.strerror(error.errno)}; free space or repair the disk, and {AGAIN}") from None
        # Errors of pyarrow itself, such as a folder in place of a file.
        raise UserError(f"{uri}: {otherwise}{text}") from None


def _listed_etags(folder: str, uris: list[str]) -> dict[str, str]:
    """Return size and ETag by path of the files of an S3 folder, from the first to the last of those given."""
    bucket, _, _ = filesystem(folder)[1].partition("/")
    keys = sorted(filesystem(uri)[1].removeprefix(f"{bucket}/") for uri in uris)
    pages = (
        s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=posixpath.commonprefix(keys), Delimiter="/")
    )
    found: dict[str, str] = {}
    with s3.explained(folder):
        for page in pages:
            files = page.get("Contents", [])
            found |= {f"{bucket}/{file['Key']}": f"{file['Size']} {file['ETag']}" for file in files}
            if files and files[-1]["Key"] >= keys[-1]:
                break
    return found


def _walk(folder: str) -> Iterator[str]:
    """Yield the paths of the files below a local folder; those that vanish meanwhile are skipped."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir():
            yield from _walk(entry.path)
        elif entry.is_file():
            yield entry.path


def _put(fs: pafs.FileSystem, path: str, data: bytes | memoryview | pa.Buffer) -> None:
    # In one piece: the destructor of a stream left open by an exception would upload an incomplete object.
    content = pa.py_buffer(data)
    # By default pyarrow would compress what is named .gz, once more.
    stream = fs.open_output_stream(path, compression=None)
    stream.write(content)
    stream.close()


@contextlib.contextmanager
def _replaced_local(path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic within one file system only; hidden, so that no reader lists it.
    # Without the file's name, which may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            # Otherwise the name may outlive a crash of the machine, and the content not.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

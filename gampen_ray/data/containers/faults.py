"""Exceptions in files of many galaxies: a damaged row is quarantined, a damaged file refused; a failing server ends the job."""

import contextlib
from collections.abc import Iterator

from gampen_ray import storage
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.errors import StorageError, UserError

__all__ = ["file_faults", "row_faults"]


@contextlib.contextmanager
def row_faults(uri: str, row: int) -> Iterator[None]:
    """Turn any exception into a `CutoutError` that names the row; errors of the disk or server stay what they are.

    Parameters
    ----------
    uri
        The file.
    row
        Number of the row in it.

    Raises
    ------
    CutoutError
        If the row is damaged.
    UserError, StorageError
        If the storage fails, which must not quarantine the galaxy.
    """
    try:
        yield
    except (CutoutError, StorageError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            with storage.explained(uri):
                raise
        raise CutoutError(f"row {row} of the file is damaged: {_text(error)}") from None


@contextlib.contextmanager
def file_faults(uri: str, doing: str) -> Iterator[None]:
    """Turn any exception into a `UserError` that names the file; errors of the disk or server stay what they are.

    Parameters
    ----------
    uri
        The file.
    doing
        What cannot be done with it: ``"opened"``, ``"read"``.

    Raises
    ------
    UserError
        If the file is damaged.
    StorageError
        If the storage fails.
    """
    try:
        with storage.explained(uri, f"cannot be {doing}: "):
            yield
    except (UserError, StorageError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"images: {uri} cannot be {doing}: {type(error).__name__}: {_text(error)}") from None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

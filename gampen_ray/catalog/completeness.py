"""Check that a catalogue and its quarantine hold each galaxy of the input exactly once.

The check compares sums of hashed identifiers, modulo 2^64. A sum needs no memory and no order, and almost certainly differs if
a galaxy is missing, duplicated or wrong.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.util import hash_array

from gampen_ray import storage
from gampen_ray.catalog.parquet import CATALOG, QUARANTINE
from gampen_ray.errors import AGAIN, StorageError
from gampen_ray.inference.flags import FlagCounts

__all__ = ["Contents", "catalog_contents", "crop_scales", "id_sum", "stored_id_sum"]

_CROP_FILES = 100
# 0.8 GB of hashes.
_MOST_COMPARED = 10**8


def id_sum(ids: Any) -> int:
    """Return the sum of the hashes of integer or text identifiers, an Arrow or NumPy array."""
    return int(_hashes(ids).sum(dtype=np.uint64))


def _hashes(ids: Any) -> np.ndarray:
    values = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([pa.array(ids)])
    kind = pa.int64() if pa.types.is_integer(values.type) else pa.string()
    return hash_array(values.cast(kind).to_numpy(), categorize=False)  # type: ignore[operator]


def stored_id_sum(uris: list[str], kind: pa.DataType) -> int:
    """Return the sum of the hashes of the identifiers in files, which were of a kind (int64 or string) before."""
    found = storage.read_each(functools.partial(_file_contents, kind=kind), uris)
    return sum(int(hash_N.sum(dtype=np.uint64)) for hash_N, _ in found) % 2**64


class Contents(NamedTuple):
    """What a catalogue and its quarantine hold.

    Parameters
    ----------
    counts
        num_galaxies and num_quarantined.
    id_sum
        `id_sum` of all identifiers.
    num_repeated, repeated
        Galaxies with the identifier of another, and the first such identifier; 0, unknown, for more than 10^8.
    flags
        Of the galaxies in the catalogue.
    """

    counts: dict[str, int]
    id_sum: int
    num_repeated: int
    repeated: str
    flags: FlagCounts


def catalog_contents(output: str) -> Contents:
    """Read identifiers and flags of an inference."""
    uris = {folder: storage.list_files(storage.join(output, folder), ".parquet") for folder in (CATALOG, QUARANTINE)}
    with _damage_explained(uris[CATALOG][0]), storage.open_input(uris[CATALOG][0]) as file:
        kind = pq.read_schema(file).field("object_id").type
    counts, total, num_repeated, repeated, kept, flags = {}, 0, 0, "", [], FlagCounts()
    for name, folder in (("num_galaxies", CATALOG), ("num_quarantined", QUARANTINE)):
        counts[name] = 0
        for hash_N, found in storage.read_each(functools.partial(_file_contents, kind=kind), uris[folder]):
            counts[name] += len(hash_N)
            flags += found
            total += int(hash_N.sum(dtype=np.uint64))
            if sum(counts.values()) <= _MOST_COMPARED:
                kept.append(hash_N)
    if sum(counts.values()) <= _MOST_COMPARED:
        hash_N = np.sort(np.concatenate(kept))
        twice = hash_N[1:][hash_N[1:] == hash_N[:-1]]
        if num_repeated := len(twice):
            repeated = _first_of([*uris[CATALOG], *uris[QUARANTINE]], twice, kind)
    return Contents(counts, total % 2**64, num_repeated, repeated, flags)


def _first_of(uris: list[str], hashes: np.ndarray, kind: pa.DataType) -> str:
    """Return the first identifier in files that has one of some hashes."""
    for uri in uris:
        with _damage_explained(uri), storage.open_input(uri) as file:
            ids = pq.read_table(file, columns=["object_id"])["object_id"].cast(kind)
        if (found := np.isin(_hashes(ids), hashes)).any():
            return str(ids[int(found.argmax())])
    raise StorageError(f"{uris[0]} was changed while it was read; {AGAIN}")


def crop_scales(output: str) -> np.ndarray:
    """Return the crops' scales of the galaxies in up to a hundred files of a catalogue, evenly spaced."""
    uris = storage.list_files(storage.join(output, CATALOG), ".parquet")
    chosen = [uris[i] for i in sorted({round(i) for i in np.linspace(0, len(uris) - 1, _CROP_FILES)})]

    def read(uri: str) -> np.ndarray:
        with storage.open_input(uri) as file:
            return pq.read_table(file, columns=["crop_scale"])["crop_scale"].to_numpy()

    return np.concatenate(list(storage.read_each(read, chosen)))


def _file_contents(uri: str, *, kind: pa.DataType) -> tuple[np.ndarray, FlagCounts]:
    """Return the hashes of the identifiers in a file, and its flags, which a quarantine has not."""
    with _damage_explained(uri), storage.open_input(uri) as file:
        source = pq.ParquetFile(file)
        table = source.read(columns=[name for name in ("object_id", "flags") if name in source.schema_arrow.names])
        flags = FlagCounts.of(table["flags"].to_numpy()) if "flags" in table.column_names else FlagCounts()
        # The quarantine stores all identifiers as text.
        return _hashes(table["object_id"].cast(kind)), flags


@contextlib.contextmanager
def _damage_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        raise StorageError(f"{uri} was damaged since it was written: {str(error).partition(chr(10))[0]}; {AGAIN}") from None

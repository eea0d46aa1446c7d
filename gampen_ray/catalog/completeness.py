"""Check that a catalogue and its quarantine hold each galaxy of the input exactly once.

The check compares sums of hashed identifiers, modulo 2^64. A sum needs no memory and no order, and almost certainly differs if
a galaxy is missing, duplicated or wrong.
"""

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.util import hash_array

from gampen_ray import storage
from gampen_ray.catalog.parquet import CATALOG, QUARANTINE
from gampen_ray.errors import AGAIN, StorageError

__all__ = ["catalog_contents", "crop_scales", "id_sum", "stored_id_sum"]

_THREADS = 32
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
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(functools.partial(_file_hashes, kind=kind), uris)
        return sum(int(hash_N.sum(dtype=np.uint64)) for hash_N in found) % 2**64


def catalog_contents(output: str) -> tuple[dict[str, int], int, int]:
    """Return the numbers of galaxies in the catalogue and the quarantine of an inference, and of all of them together the
    `id_sum` and how many repeat the identifier of another (0, unknown, for more than 10^8).
    """
    uris = {folder: storage.list_files(storage.join(output, folder), ".parquet") for folder in (CATALOG, QUARANTINE)}
    with _damage_explained(uris[CATALOG][0]), storage.open_input(uris[CATALOG][0]) as file:
        kind = pq.read_schema(file).field("object_id").type
    counts, total, repeated, kept = {}, 0, 0, []
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, folder in (("num_galaxies", CATALOG), ("num_quarantined", QUARANTINE)):
            counts[name] = 0
            for hash_N in pool.map(functools.partial(_file_hashes, kind=kind), uris[folder]):
                counts[name] += len(hash_N)
                total += int(hash_N.sum(dtype=np.uint64))
                if sum(counts.values()) <= _MOST_COMPARED:
                    kept.append(hash_N)
    if sum(counts.values()) <= _MOST_COMPARED:
        hash_N = np.sort(np.concatenate(kept))
        repeated = int((hash_N[1:] == hash_N[:-1]).sum())
    return counts, total % 2**64, repeated


def crop_scales(output: str) -> np.ndarray:
    """Return the crops' scales of the galaxies in up to a hundred files of a catalogue, evenly spaced."""
    uris = storage.list_files(storage.join(output, CATALOG), ".parquet")
    chosen = [uris[i] for i in sorted({round(i) for i in np.linspace(0, len(uris) - 1, _CROP_FILES)})]

    def read(uri: str) -> np.ndarray:
        with storage.open_input(uri) as file:
            return pq.read_table(file, columns=["crop_scale"])["crop_scale"].to_numpy()

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate(list(pool.map(read, chosen)))


def _file_hashes(uri: str, *, kind: pa.DataType) -> np.ndarray:
    with _damage_explained(uri), storage.open_input(uri) as file:
        ids = pq.read_table(file, columns=["object_id"])["object_id"]
        # The quarantine stores all identifiers as text.
        return _hashes(ids.cast(kind))


@contextlib.contextmanager
def _damage_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        raise StorageError(f"{uri} was damaged since it was written: {str(error).partition(chr(10))[0]}; {AGAIN}") from None

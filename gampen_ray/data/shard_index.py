"""The footers of a dataset's shards in one file, so that a job with 10^5 shards need not read each of them at its start.

`ingest` and `simulate` write the index of a large dataset, as a hidden file. It saves time and decides nothing: the footer of a
shard that it does not hold, or whose size or time (on S3, ETag) is another since, is read.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.data import shards
from gampen_ray.data.dataset_info import schema_metadata
from gampen_ray.errors import StorageError, UserError

__all__ = ["INDEX", "footers", "write_index"]

INDEX = ".index.parquet"
"""Name of the index in the folder of a dataset."""
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("file_stamp", pa.string()),
        ("group_rows", pa.list_(pa.int64())),
        ("id_type", pa.string()),
        ("stamp", pa.string()),
    ]
)
_ID_TYPES = {str(kind): kind for kind in (pa.int64(), pa.string())}
_DATASET = b"dataset"
# The footers of fewer are read in a second.
_LEAST_SHARDS = 1000


def write_index(dataset: str, info: shards.DatasetInfo) -> None:
    """Write the index of all shards of a dataset, unless they are few."""
    uris = shards.shard_uris(dataset)
    if len(uris) < _LEAST_SHARDS:
        return
    # Before the footers: what changes meanwhile is read again.
    there = storage.stamps(uris)
    found = storage.read_each(lambda uri: shards.read_footer(uri, info), uris)
    rows = [
        (_name(dataset, uri), there[uri], one.group_rows, str(one.id_type), one.stamp)
        for uri, one in zip(uris, found, strict=True)
    ]
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata({_DATASET: _fingerprint(info)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes_atomic(storage.join(dataset, INDEX), sink.getvalue())


def footers(dataset: str, uris: Sequence[str], info: shards.DatasetInfo) -> list[shards.Footer]:
    """Return the footers of some shards of a dataset, in their order.

    Raises
    ------
    UserError
        If a shard whose footer is read is damaged or of another schema.
    """
    known = _known(dataset, info)
    there = storage.stamps(uris) if known else {}
    current = {uri: known.get((_name(dataset, uri), there[uri])) for uri in uris} if known else {}
    read = iter(storage.read_each(lambda uri: shards.read_footer(uri, info), [uri for uri in uris if not current.get(uri)]))
    return [current.get(uri) or next(read) for uri in uris]


def _known(dataset: str, info: shards.DatasetInfo) -> dict[tuple[str, str], shards.Footer]:
    # By name and stamp of the file; nothing if the index is missing, damaged, or of another dataset.
    try:
        with storage.open_input(storage.join(dataset, INDEX)) as source:
            table = pq.read_table(source)
    except (pa.ArrowException, OSError, UserError, StorageError):
        return {}
    if table.schema.remove_metadata() != _SCHEMA or (table.schema.metadata or {}).get(_DATASET) != _fingerprint(info):
        return {}
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return {
        (name, file_stamp): shards.Footer(group_rows, _ID_TYPES[id_type], stamp)
        for name, file_stamp, group_rows, id_type, stamp in rows
        if id_type in _ID_TYPES and file_stamp
    }


def _name(dataset: str, uri: str) -> str:
    return uri.removeprefix(storage.absolute(dataset)).strip("/")


def _fingerprint(info: shards.DatasetInfo) -> bytes:
    # Shards are held against this (`shards.read_footer`).
    return hashlib.blake2b(b"".join(schema_metadata(info).values()), digest_size=16).hexdigest().encode()

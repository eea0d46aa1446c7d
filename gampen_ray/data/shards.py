"""Cutout shards: Parquet files of galaxy images with ids, positions and targets, and the dataset that they form.

A dataset is a folder: ``split=train|val|test/part-*.parquet``, or ``part-*.parquet`` without targets; ``dataset.json``, written
last, which marks it complete; and ``quarantine/part-*.parquet`` for the rows that could not be used.

Shape legend: N galaxies, C bands, H x W pixels.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.data.dataset_info import (
    DATASET_JSON,
    NOISE,
    DatasetInfo,
    check_schema,
    read_dataset_info,
    schema_info,
    schema_metadata,
    write_dataset_info,
)
from gampen_ray.errors import UserError

__all__ = [
    "ALL",
    "DATASET_JSON",
    "NOISE",
    "QUARANTINE",
    "QUARANTINE_SCHEMA",
    "SIDE",
    "SPLITS",
    "DatasetInfo",
    "Footer",
    "image_columns",
    "images",
    "part_uri",
    "read_dataset_info",
    "read_footer",
    "read_shard",
    "require_noise_planes",
    "shard_uris",
    "sides",
    "write_dataset_info",
    "write_quarantine",
    "write_shard",
]

SPLITS = ("train", "val", "test")
ALL = "all"
"""Key of `DatasetInfo.num_rows` for a dataset that is not split."""
QUARANTINE = "quarantine"
"""Folder of the rows that could not be used."""
QUARANTINE_SCHEMA = pa.schema([("object_id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

SIDE = "side_pixels"
"""Column with the shorter side of what a file gave, pixels: around it, the cutout is zero-padded. Absent: none is."""
# Small enough for a streaming reader, large enough to compress: 4 MiB of 64 x 64 pixels.
_ROW_GROUP_ROWS, _ROW_GROUP_BYTES = 256, 16 << 20
# Holds the footer of most shards.
_TAIL_BYTES = 64 << 10


class Footer(NamedTuple):
    """What the footer of a shard says of its content.

    Parameters
    ----------
    group_rows
        Rows of each row group.
    id_type
        Type of ``object_id``.
    stamp
        Size of the file, bytes, and a hash of its footer, which holds the sizes and the extremes of all columns by row group:
        another content has another stamp, and a copy has the same.
    """

    group_rows: list[int]
    id_type: pa.DataType
    stamp: str


def part_uri(dataset: str, split: str, part: int) -> str:
    """Return the URI of a shard; ``split`` is train, val, test, ``"all"`` (no split) or ``"quarantine"``."""
    name = f"part-{part:06d}.parquet"
    if split == ALL:
        return storage.join(dataset, name)
    return storage.join(dataset, split if split == QUARANTINE else f"split={split}", name)


def shard_uris(dataset: str, split: str = "") -> list[str]:
    """Return the URIs of the shards of a split, or of all shards for an empty ``split``, sorted.

    Raises
    ------
    UserError
        If there are none; the message lists the existing splits.
    """
    root = storage.absolute(dataset)
    shards = [uri for uri in storage.list_files(dataset, ".parquet") if split_of(root, uri) != QUARANTINE]
    chosen = [uri for uri in shards if not split or split_of(root, uri) == split]
    if not chosen:
        there = sorted({split_of(root, uri) for uri in shards})
        what = f"no shards of split {split!r}" if split else "no shards"
        raise UserError(f"dataset {dataset} has {what}; found: {', '.join(there) or 'nothing'}")
    return chosen


def write_shard(uri: str, columns: Mapping[str, Any], info: DatasetInfo) -> None:
    """Write one shard atomically.

    Parameters
    ----------
    uri
        File to write; see `part_uri`.
    columns
        ``object_id`` (N, integers or strings), ``image`` (N x C x H x W, any float type; N x 2C x H x W with noise planes), the
        targets of ``info``, and any other scalar column (``ra`` and ``dec`` in degrees), as NumPy or Arrow arrays.
    info
        The dataset; ``num_rows``, ``num_quarantined`` and ``source`` are not used.

    Raises
    ------
    UserError
        If a column is missing, or the shape of the images differs from ``info``.
    """
    require(uri, ["object_id", "image", *info.target_units], list(columns))
    image_NCHW = np.ascontiguousarray(columns["image"], dtype=np.float32)
    if image_NCHW.ndim != 4 or image_NCHW.shape[1:] != info.planes_shape:
        raise UserError(
            f"{uri}: images of shape {image_NCHW.shape[1:]}, but the dataset has (bands, size, size) = {info.planes_shape}"
        )
    arrays: dict[str, pa.Array] = {"object_id": _ids(columns["object_id"])}
    arrays |= {name: pa.array(columns[name], type=pa.float64()) for name in ("ra", "dec") if name in columns}
    tensors = dict(zip(image_columns(info.noise_planes), np.split(image_NCHW, 1 + info.noise_planes, axis=1), strict=True))
    arrays |= {name: _tensor_array(values) for name, values in tensors.items()}
    arrays |= {name: pa.array(columns[name]).cast(pa.float64()) for name in info.target_units}
    arrays |= {name: pa.array(values) for name, values in columns.items() if name not in arrays}
    table = pa.table(arrays).replace_schema_metadata(schema_metadata(info))
    rows = max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES // max(1, image_NCHW[:1].nbytes)))
    _write_parquet(uri, table, rows, use_byte_stream_split=[f"{name}.list.element" for name in tensors])


def read_footer(uri: str, info: DatasetInfo) -> Footer:
    """Return what the footer of a shard says, usually with one request; see `read_shard` for ``info``.

    Raises
    ------
    UserError
        If the file is missing, damaged or of another schema.
    """
    with _damage_explained(uri), storage.open_input(uri) as source:
        size = source.size()
        tail = source.read_at(min(_TAIL_BYTES, size), max(0, size - _TAIL_BYTES))
        # A Parquet file ends with its footer, the length of that, and four letters.
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < length <= size:
            tail = source.read_at(length, size - length)
        metadata = pq.read_metadata(pa.BufferReader(tail))
        schema = metadata.schema.to_arrow_schema()
        check_schema(uri, schema, info)
    digest = hashlib.blake2b(tail[-length:], digest_size=16).hexdigest()
    group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return Footer(group_rows, schema.field("object_id").type, f"{size} {digest}")


def read_shard(
    uri: str,
    columns: Sequence[str] | None = None,
    row_groups: Sequence[int] | None = None,
    info: DatasetInfo | None = None,
    optional: Sequence[str] = (),
) -> pa.Table:
    """Read a shard, or some of its columns or row groups, and verify page checksums.

    Parameters
    ----------
    uri
        The file.
    columns, row_groups
        Selection; None: all.
    info
        Dataset to compare the shard's schema with; None: no comparison.
    optional
        Further columns, if they are there.

    Raises
    ------
    UserError
        If the file is missing, damaged, of a newer version or of another schema, or a column is missing.
    """
    with _damage_explained(uri), storage.open_input(uri) as source:
        file = _opened(uri, source)
        require(uri, columns or (), file.schema_arrow.names)
        if info:
            check_schema(uri, file.schema_arrow, info)
        if columns is not None:
            columns = [*columns, *(name for name in optional if name in file.schema_arrow.names)]
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        table = file.read_row_groups(groups, columns=None if columns is None else list(columns))
    return _complete(uri, table if columns is None else table.select(list(columns)))


def columns(dataset: str, split: str, info: DatasetInfo) -> pa.Schema:
    """Return the columns of a split, those of its first shard."""
    return read_shard(shard_uris(dataset, split)[0], row_groups=(), info=info).schema


def holds_numbers(column: pa.Field) -> bool:
    """Return whether a column holds integers, floating-point numbers or truth values."""
    return any(test(column.type) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))


def stream_shard(uri: str, row_groups: Sequence[int], columns: Sequence[str], num_rows: int) -> Iterator[tuple[pa.Table, int]]:
    """Yield row groups of a shard in batches of ``num_rows`` rows, each with the stored size of these columns in bytes.

    Missing columns are skipped; checksums and errors are those of `read_shard`.
    """
    with _damage_explained(uri), storage.open_input(uri) as source:
        file = _opened(uri, source)
        there = [name for name in columns if name in file.schema_arrow.names]
        groups = [file.metadata.row_group(group) for group in row_groups]
        chunks = (group.column(i) for group in groups for i in range(group.num_columns))
        compressed = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in there)
        for batch in file.iter_batches(num_rows, row_groups, columns=there):
            table = _complete(uri, pa.Table.from_batches([batch]))
            yield table, round(compressed * len(batch) / sum(group.num_rows for group in groups))


def image_columns(noise_planes: bool) -> tuple[str, ...]:
    """Return the columns from which `images` takes images, with the noise of each pixel or without."""
    return ("image", NOISE) if noise_planes else ("image",)


def require_noise_planes(dataset: str, info: DatasetInfo) -> None:
    """Raise a UserError if a dataset has no noise planes."""
    if not info.noise_planes:
        raise UserError(
            f"dataset: {dataset} has no noise planes, which the network takes; make it with `ingest` and reader.noise_planes, "
            "from files with a variance, inverse variance or error image"
        )


def images(table: pa.Table) -> np.ndarray:
    """Return the images (N x C x H x W, float32) read-only, without a copy if the table holds them in one chunk.

    Where the table has `NOISE` too, its planes follow those of the images (N x 2C x H x W).
    """
    require("table", ["image"], table.column_names)
    planes = [_planes(table.column(name)) for name in image_columns(NOISE in table.column_names)]
    image_NCHW = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=1)
    image_NCHW.flags.writeable = False
    return image_NCHW


def _planes(column: pa.ChunkedArray) -> np.ndarray:
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not isinstance(chunk.type, pa.FixedShapeTensorType):
        raise UserError(f"column image is {chunk.type}, not a fixed-shape tensor; make the dataset with gampen_ray")
    return chunk.to_numpy_ndarray()


def sides(table: pa.Table) -> np.ndarray:
    """Return the sides of the images before they were zero-padded, N, pixels; see `SIDE`."""
    if SIDE not in table.column_names:
        return np.full(len(table), table.schema.field("image").type.shape[-1], np.int32)
    return table.column(SIDE).to_numpy()


def write_quarantine(uri: str, *, object_id: Iterable[str], source: Iterable[str], reason: Iterable[str]) -> None:
    """Write the rows that cannot be used, atomically."""
    columns = {"object_id": list(object_id), "source": list(source), "reason": list(reason)}
    _write_parquet(uri, pa.table(columns, QUARANTINE_SCHEMA), _ROW_GROUP_ROWS)


def _opened(uri: str, source: pa.NativeFile) -> pq.ParquetFile:
    file = pq.ParquetFile(source, page_checksum_verification=True)
    # Refuses a newer version.
    schema_info(uri, file.schema_arrow)
    return file


def _complete(uri: str, table: pa.Table) -> pa.Table:
    for name in ("object_id", "image", NOISE):
        if name in table.column_names and (count := table.column(name).null_count):
            raise UserError(f"{uri}: column {name} is empty in {count:,} rows; make the dataset again")
    return table


@contextlib.contextmanager
def _damage_explained(uri: str) -> Iterator[None]:
    damaged = "damaged or not Parquet: "
    with storage.explained(uri, damaged):
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{uri}: {damaged}{' '.join(str(error).split())}") from None


def split_of(root: str, uri: str) -> str:
    """Return the split of a shard, or ``"all"`` or ``"quarantine"``, from its URI below the dataset's."""
    folder = uri.removeprefix(root).strip("/").split("/")[0]
    if folder.endswith(".parquet"):
        return ALL
    return folder.removeprefix("split=")


def require(uri: str, wanted: Iterable[str], there: Sequence[str]) -> None:
    """Raise a UserError for the first wanted column that is missing."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"{uri}: no column {missing[0]!r}; found: {', '.join(there)}")


def _ids(values: Any) -> pa.Array:
    ids = as_array(values)
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.int64())
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids.cast(pa.string())
    raise UserError(f"object_id must be integers or strings, not {ids.type}")


def as_array(values: Any) -> pa.Array:
    """Return NumPy or Arrow values as one Arrow array."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values)


def _tensor_array(image_NCHW: np.ndarray) -> pa.Array:
    shape = image_NCHW.shape[1:]
    # N x C x H x W -> N lists of C * H * W, in C order.
    lists = pa.FixedSizeListArray.from_arrays(pa.array(image_NCHW.reshape(-1)), int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), shape), lists)


def _write_parquet(uri: str, table: pa.Table, row_group_rows: int, **options: Any) -> None:
    sink = pa.BufferOutputStream()
    # Dictionaries enlarge float images; checksums turn a damaged page into an error.
    options |= {"compression": "zstd", "use_dictionary": False, "row_group_size": row_group_rows, "write_page_checksum": True}
    pq.write_table(table, sink, **options)
    storage.write_bytes_atomic(uri, sink.getvalue())

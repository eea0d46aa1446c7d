"""Tables written as catalogues that `gampen_ray.data.catalogs.read_catalog` reads, with units where the format has them."""

import csv
import io
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Column, MaskedColumn, Table

from gampen_ray import storage
from gampen_ray.errors import UserError

__all__ = ["check_suffix", "write_catalog"]

_SUFFIXES = ("csv", "ecsv", "fits", "parquet")


def check_suffix(field: str, uri: str) -> None:
    """Raise a `UserError` that names a config field if the name of a table says no format that is written."""
    if _format(uri) not in _SUFFIXES:
        known = ", ".join(f".{suffix}" for suffix in _SUFFIXES[:-1])
        raise UserError(f"{field}: {uri} is no table by its name; give one that ends in {known} or .{_SUFFIXES[-1]}")


def write_catalog(uri: str, table: pa.Table) -> None:
    """Write a table of numbers and texts, whole or not at all; fields may have ``unit`` and ``description`` in their metadata.

    Raises
    ------
    UserError
        If a text is not in ASCII, as FITS needs it.
    """
    write = {"csv": _csv, "ecsv": _ecsv, "fits": _fits, "parquet": _parquet}[_format(uri)]
    try:
        storage.write_bytes_atomic(uri, write(table))
    except UnicodeEncodeError as error:
        raise UserError(f"output: {error.object[:50]!r} has other letters than those of FITS, ASCII; give .ecsv") from None


def _format(uri: str) -> str:
    return uri.rpartition(".")[2].lower()


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=65536):
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return text.getvalue().encode()


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _ecsv(table: pa.Table) -> bytes:
    text = io.StringIO()
    _astropy(table).write(text, format="ascii.ecsv")
    return text.getvalue().encode()


def _fits(table: pa.Table) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of units that FITS does not know, which are left out.
        warnings.simplefilter("ignore")
        _astropy(table).write(content, format="fits")
    return content.getvalue()


def _astropy(table: pa.Table) -> Table:
    return Table([_column(field, table[field.name]) for field in table.schema])


def _column(field: pa.Field, values: pa.ChunkedArray) -> Any:
    null_N = values.is_null().to_numpy()
    if pa.types.is_boolean(values.type) and null_N.any():
        # Neither format has a missing truth value; astropy writes int8 as one.
        values = values.cast(pa.int16())
    if pa.types.is_boolean(values.type):
        filled = values.to_numpy()
    elif pa.types.is_integer(values.type):
        filled = values.fill_null(0).to_numpy()
    elif pa.types.is_floating(values.type):
        # Both formats have NaN.
        filled, null_N = values.fill_null(np.nan).to_numpy(), np.zeros(len(values), bool)
    else:
        filled = np.array(values.cast(pa.string()).fill_null("").to_pylist(), dtype=str)
    column: Any = MaskedColumn(filled, mask=null_N) if null_N.any() else Column(filled)
    column.name = field.name
    for key in ("unit", "description"):
        if text := (field.metadata or {}).get(key.encode()):
            setattr(column, key, text.decode())
    return column

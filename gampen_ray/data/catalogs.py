"""Input catalogues: CSV, FITS and Parquet files read as Arrow tables, with units in the field metadata under ``unit``."""

import gzip
import io
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table

from gampen_ray import storage
from gampen_ray.errors import UserError

__all__ = ["column_unit", "numbers", "read_catalog", "require_columns", "to_ids"]

_NULL_TEXTS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "--"]


def read_catalog(uri: str, text_columns: tuple[str, ...] = ()) -> pa.Table:
    """Read the scalar columns of a catalogue.

    Parameters
    ----------
    uri
        ``.csv``, ``.fits``, ``.fit`` or ``.parquet`` file, gzipped (``.gz``) or not.
    text_columns
        CSV columns read as text, such as identifiers, which floating point would round.

    Raises
    ------
    UserError
        If the file is missing, of another type, damaged, or has no rows.
    """
    name = uri.lower().removesuffix(".gz")
    if not name.endswith((".csv", ".fits", ".fit", ".parquet")):
        raise UserError(f"catalog {uri}: the name must end in .csv, .fits, .fit or .parquet, optionally followed by .gz")
    data = storage.read_bytes(uri)
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        if name.endswith(".csv"):
            table = _read_csv(data, text_columns)
        else:
            table = _read_parquet(data) if name.endswith(".parquet") else _read_fits(data)
    except Exception as error:
        # A damaged file can raise any exception.
        raise UserError(f"catalog {uri}: cannot be read: {' '.join(str(error).split())}") from None
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise UserError(f"catalog {uri}: several columns are named {min(repeated)!r}; rename one")
    if not table.num_rows:
        raise UserError(f"catalog {uri}: has no rows")
    return table


def require_columns(uri: str, table: pa.Table, wanted: dict[str, str]) -> None:
    """Raise a UserError if a column is missing, naming the config field that requires it.

    Parameters
    ----------
    wanted
        Config field by column, e.g. ``{"objid": "id_column"}``.
    """
    for column, field in wanted.items():
        if column not in table.column_names:
            there = ", ".join(table.column_names)
            raise UserError(f"{field}: catalog {uri} has no column {column!r}; its columns: {there}")


def column_unit(table: pa.Table, name: str) -> str:
    """Return the unit of a column, empty if unknown."""
    return ((table.schema.field(name).metadata or {}).get(b"unit") or b"").decode()


def to_ids(values: pa.ChunkedArray) -> pa.Array:
    """Return identifiers as int64 if all are integers in plain decimal notation, else as strings; "" becomes null.

    Raises
    ------
    UserError
        If floating-point identifiers are not integers, or too large to be exact.
    """
    array = values.combine_chunks()
    if pa.types.is_floating(array.type):
        present = array.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
        present = present[~np.isnan(present)]
        if (present != np.round(present)).any() or (np.abs(present) > 2**53).any():
            raise UserError(
                "id_column: the identifiers are floating-point numbers, which are not exact; store integers or text"
            )
        # from_pandas: NaN is null.
        return pa.array(array.to_numpy(zero_copy_only=False), from_pandas=True).cast(pa.int64())
    if pa.types.is_integer(array.type):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            return array.cast(pa.string())
    texts = [None if text is None or not text.strip() else text.strip() for text in array.cast(pa.string()).to_pylist()]
    try:
        integers = pa.array([None if text is None else int(text) for text in texts], type=pa.int64())
    except (ValueError, OverflowError):
        return pa.array(texts, type=pa.string())
    # "007" and "+7" stay text: an integer would lose their notation.
    exact = integers.cast(pa.string()).to_pylist() == texts
    return integers if exact else pa.array(texts, type=pa.string())


def numbers(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column as float64 and, for each row, why its value is not a finite number (empty text if it is finite)."""
    listed = values.to_pylist()
    floats = np.array([_float(value) for value in listed], dtype=np.float64)
    reasons = np.full(len(listed), "", dtype=object)
    for row in np.flatnonzero(~np.isfinite(floats)):
        value = listed[row]
        missing = value is None or (isinstance(value, str) and value.strip() in _NULL_TEXTS)
        reasons[row] = "is missing" if missing else f"is {value!r}, not a finite number"
    return floats, reasons


def _read_csv(data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(text_columns, pa.string()), strings_can_be_null=True, null_values=_NULL_TEXTS
    )
    return pacsv.read_csv(io.BytesIO(data), convert_options=options)


def _read_parquet(data: bytes) -> pa.Table:
    table = pq.read_table(io.BytesIO(data))
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        if isinstance(field.type, pa.DictionaryType):
            field, column = field.with_type(field.type.value_type), column.cast(field.type.value_type)
        if not pa.types.is_nested(field.type) and not isinstance(field.type, pa.BaseExtensionType):
            fields.append(field)
            columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))


def _read_fits(data: bytes) -> pa.Table:
    with warnings.catch_warnings():
        # Unknown units and non-standard headers are common and do not affect the values.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated.*")
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            hdu = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)), None)
            if hdu is None:
                raise ValueError("no HDU holds a table")
            table = Table.read(hdu, format="fits")
            table.convert_bytestring_to_unicode()
    fields, columns = [], []
    for name in table.colnames:
        column: Any = table[name]
        if column.ndim == 1:
            array = _native(column)
            unit = {"unit": str(column.unit)} if column.unit is not None else None
            fields.append(pa.field(name, array.type, metadata=unit))
            columns.append(array)
    return pa.table(columns, schema=pa.schema(fields))


def _native(column: Any) -> pa.Array:
    values = np.asarray(column)
    # FITS is big-endian; Arrow needs native byte order.
    values = values.astype(object if values.dtype.kind == "U" else values.dtype.newbyteorder("="))
    mask = np.ma.getmaskarray(column) if np.ma.isMaskedArray(column) else None
    return pa.array(values, mask=mask)


def _float(value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except (TypeError, ValueError):
        return np.nan

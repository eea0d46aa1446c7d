"""Input catalogues: tables of any format read as Arrow tables, with units in the field metadata under ``unit``."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.data.catalog_formats import (
    NULL_TEXTS,
    RATIO,
    format_of,
    most_bytes,
    parquet_files,
    plain_name,
    read_format,
    scalar_table,
)
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.decompression import decompressed
from gampen_ray.errors import UserError

__all__ = ["column_unit", "compare_units", "format_of", "numbers", "read_catalog", "require_columns", "to_ids"]

logger = logging.getLogger(__name__)

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute
_ROUNDED = r"^\s*[-+]?\d+([.,]\d*)?[eE]\+?\d+\s*$|^\s*\d{16,}[.,]0*\s*$"
_HEXADECIMAL = r"^\s*\d+e\d+\s*$"
"""Integers that a spreadsheet or a table of floating-point numbers has rounded; 4e12 among names may be hexadecimal."""


def read_catalog(uri: str, text_columns: tuple[str, ...] = ()) -> pa.Table:
    """Read the scalar columns of a catalogue; columns without a name, such as a row number, are left out.

    Parameters
    ----------
    uri
        A table in CSV (delimited by commas, semicolons or tabs), ECSV, VOTable, ASCII (CDS, MRT, fixed width, SExtractor),
        FITS or Parquet, compressed (``.gz``, ``.bz2``) or not, or a folder of Parquet files, such as a HATS catalogue.
    text_columns
        Columns read as text where the file does not state their type, such as identifiers, which floating point would round.

    Raises
    ------
    UserError
        If the file is missing, of another type, damaged, or has no rows.
    """
    format_ = format_of(uri)
    if not storage.exists(uri):
        raise UserError(f"catalog {uri}: no such file or folder")
    try:
        table = _read_parquet(uri) if format_ == "parquet" else read_format(format_, _content(uri), text_columns)
    except CutoutError as error:
        raise UserError(f"catalog {uri}: {error}") from None
    except UserError:
        raise
    except Exception as error:
        # A damaged file can raise any exception.
        raise UserError(f"catalog {uri}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    table = table.rename_columns([plain_name(name) for name in table.column_names])
    table = table.select([index for index, name in enumerate(table.column_names) if name])
    repeated = {name for name, count in Counter(table.column_names).items() if count > 1}
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


def compare_units(uri: str, table: pa.Table, units: Mapping[str, str], field: str) -> None:
    """Warn of columns whose unit, given by their names, is another in a table; ``field`` is the config field that names it."""
    for name, wanted in units.items():
        unit = column_unit(table, name)
        if unit and wanted and unit != wanted:
            # It may be another spelling.
            logger.warning("%s: %s: %s is in %r, but the model's is in %r", field, uri, name, unit, wanted)


def column_unit(table: pa.Table, name: str) -> str:
    """Return the unit of a column, empty if unknown."""
    return ((table.schema.field(name).metadata or {}).get(b"unit") or b"").decode()


def to_ids(values: pa.ChunkedArray) -> pa.Array:
    """Return identifiers as int64 if all are integers in plain decimal notation, else as strings; "" becomes null.

    Raises
    ------
    UserError
        If identifiers are floating-point numbers that are not integers or too large to be exact, or texts of such numbers.
    """
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
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
    texts = pc.utf8_trim_whitespace(array.cast(pa.string()))
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    rounded = pc.fill_null(pc.match_substring_regex(texts, _ROUNDED), False)
    if not pc.all(pc.or_(rounded, pc.match_substring_regex(texts, r"^[-+]?\d+$"))).as_py():
        rounded = pc.and_not(rounded, pc.fill_null(pc.match_substring_regex(texts, _HEXADECIMAL, ignore_case=True), False))
    if pc.any(rounded).as_py():
        first = texts.filter(rounded)[0].as_py()
        raise UserError(
            f"id_column: the identifier {first!r} has been rounded by a spreadsheet or a table of floating-point numbers; "
            "export the identifiers anew, as text"
        )
    try:
        integers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts
    # "007" stays text: an integer would lose its notation.
    return integers if integers.cast(pa.string()).equals(texts) else texts


def numbers(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column as float64 and, for each row, why its value is not a finite number (empty text if it is finite)."""
    reasons = np.full(len(values), "", dtype=object)
    try:
        floats = values.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        floats = np.array([_float(value) for value in values.to_pylist()], dtype=np.float64)
    for row in np.flatnonzero(~np.isfinite(floats)):
        value = values[int(row)].as_py()
        missing = value is None or (isinstance(value, str) and value.strip() in NULL_TEXTS)
        reasons[row] = "is missing" if missing else f"is {value!r}, not a finite number"
    return floats, reasons


def _content(uri: str) -> bytes:
    data = storage.read_bytes(uri)
    return decompressed(data, most_bytes(len(data)), f"and {RATIO} times its size")


def _read_parquet(uri: str) -> pa.Table:
    tables = []
    for name in parquet_files(uri):
        with storage.open_input(name) as source:
            tables.append(scalar_table(source))
    table = pa.concat_tables(tables, promote_options="default")
    # Texts may hold bytes that are none; Arrow notices where a text is read.
    table.validate(full=True)
    return table


def _float(value: object) -> float:
    try:
        return np.nan if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.nan

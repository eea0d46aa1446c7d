"""The catalogue as one file: a FITS binary table or a VOTable, written file by file of the catalogue, in the memory of one.

Both hold each row in the same bytes, big-endian numbers and texts of fixed length (FITS 4.0, 7.3; VOTable 1.4, BINARY2, which
adds a bit for each null).
"""

import binascii
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.catalog.parquet import catalog_parts, provenance_of
from gampen_ray.catalog.votable import TITLE, votable
from gampen_ray.data.units import fits_unit
from gampen_ray.errors import UserError

__all__ = ["FILES", "check_single_file", "write_single_file"]

FILES: dict[str, str] = {"fits": "catalog.fits", "votable": "catalog.vot"}
"""Names of the files by format."""

# FITS: what tools map into memory; VOTable: what they hold in it. FITS numbers columns from 1 to 999.
_MOST_BYTES, _MOST_COLUMNS = {"fits": 10**11, "votable": 2 * 10**9}, 999
# Letter of TFORM and NumPy's type.
_TYPES = {
    pa.int16(): ("I", ">i2"),
    pa.int32(): ("J", ">i4"),
    pa.int64(): ("K", ">i8"),
    pa.float32(): ("E", ">f4"),
    pa.float64(): ("D", ">f8"),
}
_CASTS = {
    pa.bool_(): pa.int16(),
    pa.int8(): pa.int16(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
}
_BLOCK = 2880


def check_single_file(format: str, schema: pa.Schema, num_rows: int) -> None:
    """Check, before anything is predicted, that a catalogue fits one file.

    Raises
    ------
    UserError
        If it is too large, or has too many columns or one of another type than numbers and texts.
    """
    dtype = _row_type(_plain(schema), {})
    most, size = _MOST_BYTES[format], num_rows * dtype.itemsize
    if size > most:
        raise UserError(
            f"catalog_format: {num_rows:,} rows of {dtype.itemsize:,} bytes are {size / 1e9:,.0f} GB, and {FILES[format]} may "
            f"have {most / 1e9:,.0f} GB; take hats, or parquet alone"
        )
    if format == "fits" and len(schema) > _MOST_COLUMNS:
        raise UserError(
            f"catalog_format: fits allows {_MOST_COLUMNS} columns, and the catalogue has {len(schema)}; take votable"
        )


def write_single_file(output: str, format: str, num_rows: int) -> None:
    """Write the finished catalogue of an inference as ``<output>/catalog.fits`` or ``<output>/catalog.vot``.

    Columns keep their units, UCDs and descriptions. Texts are ASCII, with others escaped as in Python (``\\xe9``). Truth values
    are 0 and 1; in FITS a null is NaN, an empty text, or the smallest integer (TNULL).

    Parameters
    ----------
    output
        Folder or s3:// URI of the inference.
    format
        ``fits`` or ``votable``.
    num_rows
        Number of rows of the catalogue.
    """
    first = next(catalog_parts(output)).schema
    schema = _plain(first)
    lengths = _text_lengths(output, schema)
    dtype = _row_type(schema, lengths)
    rows = (_rows(table.select(schema.names), schema, dtype, null_bits=format == "votable") for table in catalog_parts(output))
    with storage.open_output(storage.join(output, FILES[format])) as file:
        if format == "fits":
            file.write(fits.PrimaryHDU().header.tostring().encode())
            file.write(_fits_header(schema, dtype, num_rows).tostring().encode())
            file.writelines(rows)
            file.write(bytes(-num_rows * dtype.itemsize % _BLOCK))
        else:
            sizes = {name: str(length) for name, length in lengths.items()}
            head, end, tail = votable(schema, provenance_of(first), sizes).partition("</TABLE>")
            file.write(f'{head}<DATA>\n<BINARY2>\n<STREAM encoding="base64">\n'.encode())
            file.writelines(_base64(rows))
            file.write(f"</STREAM>\n</BINARY2>\n</DATA>\n{end}{tail}".encode())


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the types that both formats have."""
    fields = []
    for item in schema:
        kind = item.type
        if pa.types.is_fixed_size_list(kind):
            value = _CASTS.get(kind.value_type, kind.value_type)
            kind, inner = pa.list_(value, kind.list_size), value
        else:
            kind = inner = _CASTS.get(kind, kind)
        if inner not in _TYPES and kind != pa.string():
            raise UserError(
                f"columns: {item.name!r} is of type {item.type}, which FITS and VOTable lack; register it as a number or text, "
                "or leave catalog_format out"
            )
        fields.append(item.with_type(kind))
    return pa.schema(fields, metadata=schema.metadata)


def _text_lengths(output: str, schema: pa.Schema) -> dict[str, int]:
    # In VOTable, readers disagree on texts of one character.
    lengths = {item.name: 2 for item in schema if item.type == pa.string()}
    if lengths:
        for table in catalog_parts(output, list(lengths)):
            for name in lengths:
                lengths[name] = max([lengths[name], *map(len, _ascii(table[name]))])
    return lengths


def _row_type(schema: pa.Schema, lengths: dict[str, int]) -> np.dtype:
    fields: list[Any] = []
    for item in schema:
        if item.type == pa.string():
            fields.append((item.name, f"S{lengths.get(item.name, 1)}"))
        elif pa.types.is_fixed_size_list(item.type):
            fields.append((item.name, _TYPES[item.type.value_type][1], (item.type.list_size,)))
        else:
            fields.append((item.name, _TYPES[item.type][1]))
    return np.dtype(fields)


def _rows(table: pa.Table, schema: pa.Schema, dtype: np.dtype, *, null_bits: bool) -> bytes:
    """Return the bytes of the rows of a table."""
    num_bytes = math.ceil(len(schema) / 8)
    bits = [("", np.uint8, (num_bytes,))] if null_bits else []
    rows_N = np.zeros(len(table), np.dtype([*bits, ("row", dtype)]))
    if null_bits:
        null_NC = np.stack([column.is_null().to_numpy() for column in table.columns], axis=1)
        rows_N["f0"] = np.packbits(null_NC, axis=1)
    for item in schema:
        column = table[item.name].combine_chunks()
        if item.type == pa.string():
            rows_N["row"][item.name] = np.array(_ascii(column), dtype=dtype[item.name])
        elif pa.types.is_fixed_size_list(item.type):
            null = _null(item.type.value_type)
            values = column.cast(item.type).fill_null([null] * item.type.list_size).flatten().fill_null(null)
            rows_N["row"][item.name] = values.to_numpy().reshape(-1, item.type.list_size)
        else:
            rows_N["row"][item.name] = column.cast(item.type).fill_null(_null(item.type)).to_numpy()
    return rows_N.tobytes()


def _null(kind: pa.DataType) -> Any:
    return float("nan") if pa.types.is_floating(kind) else np.iinfo(kind.to_pandas_dtype()).min


def _ascii(column: Any) -> list[bytes]:
    return [(text or "").encode("ascii", "backslashreplace") for text in column.to_pylist()]


def _base64(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the blocks in base64, which has four characters for three bytes."""
    rest = b""
    for block in blocks:
        data = rest + block
        whole = len(data) - len(data) % 3
        rest = data[whole:]
        yield binascii.b2a_base64(data[:whole])
    yield binascii.b2a_base64(rest)


def _fits_header(schema: pa.Schema, dtype: np.dtype, num_rows: int) -> fits.Header:
    columns, words = [], {}
    for number, item in enumerate(schema, 1):
        is_list = pa.types.is_fixed_size_list(item.type)
        kind = item.type.value_type if is_list else item.type
        letter = _TYPES[kind][0] if kind in _TYPES else "A"
        count = item.type.list_size if is_list else dtype[item.name].itemsize if letter == "A" else ""
        unit, description, ucd = (item.metadata[key].decode() for key in (b"unit", b"description", b"ucd"))
        scale, unit = fits_unit(unit)
        options: dict[str, Any] = {"bscale": scale} if scale != 1 else {}
        if pa.types.is_integer(kind):
            options["null"] = _null(kind)
        columns.append(fits.Column(item.name, f"{count}{letter}", unit=unit or None, **options))
        # As TOPCAT names them.
        words |= {f"TCOMM{number}": description, f"TUCD{number}": ucd}
    header = fits.BinTableHDU.from_columns(columns, nrows=0).header
    header["NAXIS2"] = num_rows
    header["EXTNAME"] = "catalog"
    header["TITLE"] = TITLE
    header.update({key: value for key, value in words.items() if value})
    for name, value in provenance_of(schema).items():
        header[name.upper()[:8]] = value
    # As astropy writes descriptions and UCDs, which it reads from nowhere else (astropy.io.fits.connect).
    lines = (schema.metadata or {})[b"table_meta_yaml"].decode().splitlines()
    for line in ("--BEGIN-ASTROPY-SERIALIZED-COLUMNS--", *lines, "--END-ASTROPY-SERIALIZED-COLUMNS--"):
        pieces = [line[start : start + 70] for start in range(0, len(line), 70)]
        for piece in pieces[:-1]:
            header["COMMENT"] = piece + "\\"
        header["COMMENT"] = pieces[-1]
    return header

"""Catalogue files of every format as Arrow tables, with units in the field metadata under ``unit``.

Identifiers and file names are read as text wherever a format leaves the type open, as floating point would round them.
"""

import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.io.ascii import InconsistentTableError
from astropy.table import Table

from gampen_ray import storage
from gampen_ray.data.offline import offline
from gampen_ray.data.readers.fits_limits import check_headers
from gampen_ray.errors import UserError

__all__ = ["NULL_TEXTS", "RATIO", "format_of", "most_bytes", "parquet_files", "read_format", "scalar_table"]

NULL_TEXTS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "--"]
"""Texts that stand for a missing value."""
_DELIMITERS = ",;\t|"
RATIO = 30
"""A compressed catalogue has no more than this multiple of its size, decompressed: text has some five times."""
_LEAST_BYTES = 16 << 20
"""Nor is one refused below this size."""
# Columns of one value take no space in Parquet, and many catalogues have some.
_PARQUET_RATIO, _LEAST_PARQUET_BYTES = 200, 256 << 20
_MOST_COLUMNS = 5000
_SUFFIXES = {
    "csv": ("csv", "tsv"),
    "ascii": ("txt", "dat", "ascii", "mrt", "cat", "tbl"),
    "ecsv": ("ecsv",),
    "votable": ("vot", "votable", "xml"),
    "fits": ("fits", "fit"),
    "parquet": ("parquet", "pq"),
}
_HATS = ("hats.properties", "properties")
_COLLECTION, _PRIMARY = "collection.properties", "hats_primary_table_url"


def format_of(uri: str) -> str:
    """Return the format of a catalogue by its name: csv, ascii, ecsv, votable, fits or parquet (also a folder of Parquet).

    Raises
    ------
    UserError
        If the name has no known ending.
    """
    name = re.sub(r"\.(gz|bz2)$", "", uri.lower())
    for format_, suffixes in _SUFFIXES.items():
        if name.endswith(tuple(f".{suffix}" for suffix in suffixes)):
            return format_
    if storage.exists(uri) and storage.size(uri) is None:
        return "parquet"
    endings = ", ".join(f".{suffix}" for suffixes in _SUFFIXES.values() for suffix in suffixes)
    raise UserError(
        f"catalog {uri}: the name must end in {endings}, optionally followed by .gz or .bz2, or be a folder of Parquet files"
    )


def read_format(format_: str, data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    """Return the scalar columns of a catalogue's content in any format but Parquet; any exception means a damaged file."""
    reader: Callable[[bytes, tuple[str, ...]], pa.Table] = {"csv": _csv, "fits": _fits, "votable": _votable}.get(
        format_, _ascii
    )
    if data.removeprefix(b"\xef\xbb\xbf").startswith(b"# %ECSV"):
        reader = _ascii
    # An ECSV table may hold times.
    with offline():
        return reader(data, text_columns)


def parquet_files(uri: str) -> list[str]:
    """Return the Parquet files of a file or folder in order; of a HATS catalogue, its partitions alone.

    Raises
    ------
    UserError
        If there is none.
    """
    if storage.size(uri) is not None:
        return [storage.absolute(uri)]
    if storage.exists(collection := storage.join(uri, _COLLECTION)):
        return parquet_files(storage.join(uri, _properties(collection)[_PRIMARY]))
    found = storage.list_files(uri, ".parquet")
    if any(storage.exists(storage.join(uri, name)) for name in _HATS):
        # Beside the partitions there is a thumbnail, which repeats some of their rows.
        found = [name for name in found if re.search(r"/Npix=\d+(\.parquet$|/)", name)]
    # Spark, Dask and HATS write metadata files under such names.
    found = [name for name in found if not name.rpartition("/")[2].startswith("_")]
    if not found:
        raise UserError(f"{uri}: holds no Parquet file")
    return found


def _properties(uri: str) -> dict[str, str]:
    lines = storage.read_bytes(uri).decode().splitlines()
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def scalar_table(
    source: pa.NativeFile, without: str = "", *, keep: Callable[[str], bool] = bool, groups: Iterable[int] | None = None
) -> pa.Table:
    """Return scalar columns of a Parquet file, dictionaries decoded; others, such as images, are not read.

    Parameters
    ----------
    source
        The file, open.
    without
        A column that is left out.
    keep
        Whether a column of a name is read.
    groups
        Row groups; None: all.
    """
    file = pq.ParquetFile(source)
    scalar = [field for field in file.schema_arrow if _is_scalar(field.type) and field.name != without and keep(field.name)]
    numbers = range(file.num_row_groups) if groups is None else list(groups)
    table = _bounded(file, pa.schema(scalar), numbers, source.size())
    decoded = [pa.field(f.name, _decoded(f.type), metadata=f.metadata) for f in table.schema]
    return table.cast(pa.schema(decoded)).replace_schema_metadata(None)


def _bounded(file: pq.ParquetFile, schema: pa.Schema, numbers: Sequence[int], num_bytes: int) -> pa.Table:
    # Repeated values take no space in a file; in memory, each row has its own.
    num_rows = sum(file.metadata.row_group(number).num_rows for number in numbers)
    # Not by the columns of the footer: where these are damaged, Arrow ends the process.
    stored = math.ceil(num_bytes * min(1.0, num_rows / max(1, file.metadata.num_rows)))
    left = most = max(_LEAST_PARQUET_BYTES, _PARQUET_RATIO * stored)
    names, batches = schema.names, list[pa.RecordBatch]()
    # A value has a byte or more.
    coming = file.iter_batches(row_groups=numbers, columns=names) if num_rows * len(names) <= most else ()
    for batch in coming:
        batches.append(batch.select(names))
        left -= batch.nbytes
        if left < 0:
            break
    if coming == () or left < 0:
        raise ValueError(
            f"it has more than {most >> 20:,} MiB in memory, {_PARQUET_RATIO} times its size; store fewer repeated values"
        )
    return pa.Table.from_batches(batches, schema)


def most_bytes(stored: int) -> int:
    """Return what a compressed text of a size may have in memory."""
    return max(_LEAST_BYTES, RATIO * stored)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _is_scalar(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not isinstance(kind, pa.BaseExtensionType)


def _csv(data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    data = _utf8(data)
    header, first, num_skipped = _csv_header(data)
    delimiter = max(_DELIMITERS, key=header.count)
    _check_columns(header.count(delimiter))
    names, values = ([text.strip() for text in next(csv.reader([line], delimiter=delimiter), [])] for line in (header, first))
    decimal = "," if delimiter == ";" and any(re.fullmatch(r"[-+]?\d+,\d+", value) for value in values) else "."
    # A name may be that of the column after a comment sign.
    as_text = [name for name in names if plain_name(name).lower() in {column.lower() for column in text_columns}]
    return pacsv.read_csv(
        io.BytesIO(data),
        # A program that ends soon after its threads have read a table may abort (seen with pyarrow 26 beside torch).
        read_options=pacsv.ReadOptions(skip_rows=num_skipped, column_names=names, use_threads=False),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, invalid_row_handler=lambda row: "skip" if row.text.startswith("#") else "error"
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(as_text, pa.string()),
            strings_can_be_null=True,
            null_values=NULL_TEXTS,
            decimal_point=decimal,
        ),
    )


def _check_columns(count: int) -> None:
    if count > _MOST_COLUMNS:
        raise ValueError(f"a line has {count:,} fields, more than {_MOST_COLUMNS:,}; store the table as FITS or Parquet")


def _utf8(data: bytes) -> bytes:
    # A text in UTF-8 without its mark, from the other encodings of spreadsheets: "Unicode text", and Western Europe's.
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16").encode()
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return data.decode("latin-1").encode()
    return data.removeprefix(b"\xef\xbb\xbf")


def _csv_header(data: bytes) -> tuple[str, str, int]:
    """Return the header, the first row, and the number of lines up to the first row."""
    comment = ""
    lines = enumerate(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace", newline=None))
    for number, line in lines:
        if line.startswith("#"):
            comment = line[1:].strip()
        elif line.strip():
            delimiter = re.escape(max(_DELIMITERS, key=line.count))
            values = re.search(rf"(^|{delimiter})\s*[-+]?\d[\d.,]*\s*({delimiter}|$)", line)
            # The first line of values after a comment with as many fields: databases write the header as a comment.
            if values and 0 < len(re.findall(delimiter, line)) == len(re.findall(delimiter, comment)):
                return comment, line.rstrip("\n"), number
            first = next((one.rstrip("\n") for _, one in lines if not one.startswith("#")), "")
            return line.rstrip("\n"), first, number + 1
    raise ValueError("Empty CSV file")


_SEXTRACTOR = re.compile(r"\s*#\s*(\d+)\s+[-\w]")


def _ascii(data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    _check_columns(max((len(line.split()) for line in lines[:100]), default=0))
    as_text = {"converters": {name: str for column in text_columns for name in (column, f"# {column}")}}
    options: dict[str, Any]
    if lines and lines[0].startswith("# %ECSV"):
        options = {"format": "ascii.ecsv"}
    elif any(line.startswith("Byte-by-byte Description") for line in lines):
        options = {"format": "ascii.mrt" if any(line.startswith("Table:") for line in lines) else "ascii.cds"}
    elif lines and re.match(r"\s*[\\|]", lines[0]):
        if any(re.match(r"\|\s*(char|int|long|double|float|real)\b", line) for line in lines):
            options = {"format": "ascii.ipac"}
        else:
            lines = [line.strip().strip("|") for line in lines]
            options = {"format": "ascii.basic", "delimiter": "|"} | as_text
    else:
        # SExtractor numbers its columns in comments, and astropy makes all up to the last.
        numbers = [int(found[1][:20]) for line in lines if (found := _SEXTRACTOR.match(line))]
        if max(numbers, default=0) > _MOST_COLUMNS:
            raise ValueError(f"a comment numbers column {max(numbers):,}, of {_MOST_COLUMNS:,} at most; correct or remove it")
        options = {"format": "ascii"} | as_text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _arrow(Table.read(lines, **options))
        except InconsistentTableError as error:
            if "guess" not in str(error):
                raise
            raise ValueError("the layout of its columns cannot be guessed; save it as ECSV or CSV") from None


def _votable(data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    from astropy.io.votable import parse_single_table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _arrow(parse_single_table(io.BytesIO(data)).to_table(use_names_over_ids=True))


def _fits(data: bytes, text_columns: tuple[str, ...]) -> pa.Table:
    with warnings.catch_warnings():
        # Unknown units and non-standard headers are common and do not affect the values.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated.*")
        check_headers(data)
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            hdu = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)), None)
            if hdu is None:
                raise ValueError("no HDU holds a table")
            table = Table.read(hdu, format="fits")
            table.convert_bytestring_to_unicode()
            for number, name in enumerate(table.colnames, 1):
                # As TOPCAT writes it, and astropy does not read it.
                table[name].description = table[name].description or hdu.header.get(f"TCOMM{number}")
    return _arrow(table)


def plain_name(name: str) -> str:
    """Return a column's name without the comment sign that databases put before the first one."""
    return name.lstrip("# ").strip()


def _arrow(table: Table) -> pa.Table:
    fields, columns = [], []
    for name in table.colnames:
        column: Any = table[name]
        if getattr(column, "ndim", 0) == 1 and hasattr(column, "dtype"):
            array = _native(column)
            about = {key: str(value) for key in ("unit", "description") if (value := getattr(column, key, None)) is not None}
            fields.append(pa.field(name, array.type, metadata=about or None))
            columns.append(array)
    return pa.table(columns, schema=pa.schema(fields))


def _native(column: Any) -> pa.Array:
    values = np.asarray(column)
    # FITS is big-endian; Arrow needs native byte order.
    values = values.astype(object if values.dtype.kind == "U" else values.dtype.newbyteorder("="))
    mask = np.ma.getmaskarray(column) if np.ma.isMaskedArray(column) else None
    if values.dtype.kind == "O":
        # A masked text may hold any filler.
        hidden = np.zeros(len(values), bool) if mask is None else mask
        texts = (text.decode() if isinstance(text, bytes) else text for text in values)
        return pa.array([None if bad or text is None else str(text) for text, bad in zip(texts, hidden, strict=True)])
    return pa.array(values, mask=mask)

"""Mutated catalogues of every format, read as `ingest` and `evaluate` read them."""

import bz2
import functools
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

from gampen_ray.config import CatalogConfig
from gampen_ray.data.catalogs import column_unit, numbers, read_catalog, to_ids
from gampen_ray.data.positions import sky_positions
from gampen_ray.errors import UserError
from tests.fuzz.fits_files import _edit
from tests.fuzz.mutations import damaged, edited_text

_WORDS = (
    b"NaN nan -- null inf -1 0 1e999 1e308 99999999999999999999 12:34:56.7 +12d30m 2020-01-01 True ' \" \\ , ; | # %".split(
        b" "
    )
)
_WORDS += [
    b"9" * 5000,
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"x" * 300,
    b"deg",
    b"int64",
    b"subtype",
    b"arraysize",
    b"1000000000",
    b"<TD>",
]
_USUAL = CatalogConfig()
_CDS = """Title: A catalogue
Table: Galaxies
================================================================================
Byte-by-byte Description of file: table.dat
--------------------------------------------------------------------------------
   Bytes Format Units   Label   Explanations
--------------------------------------------------------------------------------
   1-  3 I3     ---     objid   Identifier
   5- 10 F6.2   deg     ra      Right ascension
  12- 17 F6.2   deg     dec     Declination
  19- 24 F6.2   Jy      flux    ? Flux
--------------------------------------------------------------------------------
"""
_SEXTRACTOR = """#   1 NUMBER      Running object number
#   2 ALPHA_J2000 Right ascension  [deg]
#   3 DELTA_J2000 Declination [deg]
#   4 FLUX_AUTO   Flux [count]
"""


@functools.cache
def files() -> dict[str, bytes]:
    """Return intact catalogues of every format, by file name."""
    rng = np.random.default_rng(0)
    count = 30
    table = Table(
        {
            "objid": np.arange(count) + 5877,
            "ra": rng.uniform(0, 360, count).round(2),
            "dec": rng.uniform(-90, 90, count).round(2),
        }
    )
    table["flux"], table["name"] = rng.lognormal(3, 1, count).round(3), [f"g{i}.fits" for i in range(count)]
    table["ra"].unit = table["dec"].unit = "deg"
    rows = [[f"{value}" for value in row] for row in table]
    plain = "\n".join(",".join(row) for row in [table.colnames, *rows]) + "\n"
    fixed = "".join(f"{i:3d} {row['ra']:6.2f} {row['dec']:6.2f} {row['flux'] % 999:6.2f}\n" for i, row in enumerate(table))
    made = {
        "a.csv": plain.encode(),
        "a.tsv": plain.replace(",", "\t").encode(),
        "semicolon.csv": plain.replace(",", ";").encode(),
    }
    made["excel.csv"] = plain.replace(",", "\t").encode("utf-16")
    made |= {"a.csv.gz": gzip.compress(made["a.csv"], mtime=0), "a.csv.bz2": bz2.compress(made["a.csv"])}
    made |= {
        "a.mrt": (_CDS + fixed).encode(),
        "sextractor.cat": (_SEXTRACTOR + fixed).encode(),
        "a.txt": plain.replace(",", " ").encode(),
    }
    for name, kind in (
        ("a.ecsv", "ascii.ecsv"),
        ("fixed.dat", "ascii.fixed_width"),
        ("a.tbl", "ascii.ipac"),
        ("two_line.txt", "ascii.fixed_width_two_line"),
    ):
        text = io.StringIO()
        table.write(text, format=kind)
        made[name] = text.getvalue().encode()
    for kind in ("tabledata", "binary", "binary2"):
        sink = io.BytesIO()
        table.write(sink, format="votable", tabledata_format=kind)
        made[f"{kind}.vot"] = sink.getvalue()
    made["a.vot.gz"] = gzip.compress(made["tabledata.vot"], mtime=0)
    sink = io.BytesIO()
    table.write(sink, format="fits")
    made |= {"a.fits": sink.getvalue(), "a.fits.gz": gzip.compress(sink.getvalue(), mtime=0)}
    arrow = pa.table({name: table[name].tolist() for name in table.colnames})
    for compression in ("snappy", "zstd", "none", "brotli"):
        sink = io.BytesIO()
        pq.write_table(arrow, sink, compression=compression, use_dictionary=compression != "none")
        made[f"{compression}.parquet"] = sink.getvalue()
    return made


def mutated(intact: dict[str, bytes], rng: np.random.Generator, number: int) -> tuple[str, bytes]:
    """Return a catalogue of a format with some mutations."""
    name = list(intact)[number % len(intact)]
    data = intact[name]
    packed = {".gz": gzip, ".bz2": bz2}.get(Path(name).suffix)
    inside = packed is not None and rng.random() < 0.7
    data = packed.decompress(data) if packed and inside else data
    for _ in range(rng.integers(1, 4)):
        kind = rng.random()
        if ".fits" in name and kind < 0.6:
            content = bytearray(data)
            _edit(content, rng)
            data = bytes(content)
        elif "parquet" in name and kind < 0.5 and len(data) > 12:
            at = max(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), 0)
            footer = damaged(data[at:-8], rng)
            data = data[:at] + footer + len(footer).to_bytes(4, "little") + data[-4:]
        elif kind < 0.75 and "parquet" not in name and ".fits" not in name:
            data = edited_text(data, rng, _WORDS)
        else:
            data = damaged(data, rng)
    return name, packed.compress(data) if packed and inside else data


def catalogs(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate a catalogue."""
    name, data = mutated(files(), rng, number)
    (folder / name).write_bytes(data)

    def read() -> None:
        table = read_catalog(str(folder / name), ("objid", "name"))
        for column in table.column_names:
            column_unit(table, column)
            numbers(table.column(column))
            try:
                to_ids(table.column(column))
            except UserError:
                continue
        sky_positions(table, ra_column=_USUAL.ra_column, dec_column=_USUAL.dec_column, unit=_USUAL.position_unit)

    return name, read

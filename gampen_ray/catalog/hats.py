"""The catalogue as HATS: partitioned on the sky, as LSDB reads it.

HATS (Hierarchical Adaptive Tiling Scheme, an IVOA Note) stores the rows of each HEALPix cell in one Parquet file, with smaller
cells where galaxies are denser. `hats-import` writes it in passes over the files of the catalogue (count, split, merge), so
memory does not grow with the catalogue.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.catalog.parquet import CATALOG, catalog_parts, described, provenance_of
from gampen_ray.catalog.votable import TITLE, parquet_metadata
from gampen_ray.data import shards
from gampen_ray.data.sources import Unit
from gampen_ray.errors import UserError

__all__ = ["FOLDER", "check_hats", "write_hats"]

logger = logging.getLogger(__name__)

FOLDER = "hats"
"""Folder of the HATS collection in the output of an inference."""

_GALAXIES = "galaxies"
_HEALPIX = pa.field(
    "_healpix_29",
    pa.int64(),
    metadata={"unit": "", "description": "HEALPix cell of order 29 of the position (nested, ICRS)", "ucd": "pos.healpix"},
)
# Rows within this distance of a partition's edge are also stored for its neighbours, so that cross-matches are complete.
_MARGIN_ARCSEC = 10.0
# Memory of a thread's rows, and of one partition; LSDB's authors advise partitions of this size.
_BYTES = 2**29
_MAX_THREADS = 4
# The default level of hats, 15, makes files 4 % smaller but takes twelve times as long.
_WRITING = {"compression_level": 3}
# Cells of 12 square arcmin, small enough for any partition.
_HIGHEST_ORDER = 10


def check_hats(dataset: str, units: list[Unit]) -> None:
    """Check, before anything is predicted, that a HATS catalogue can be written.

    Raises
    ------
    UserError
        If a package is missing, or the dataset has no positions.
    """
    if importlib.util.find_spec("hats_import") is None:
        raise UserError('catalog_format: hats needs the package hats-import; install it: pip install "gampen_ray[hats]"')
    # FITS files have no columns; positions come from their headers.
    if units and units[0].uri:
        columns = shards.read_shard(units[0].uri, row_groups=[]).column_names
        missing = [name for name in ("ra", "dec") if name not in columns]
        if missing:
            raise UserError(
                f"catalog_format: hats needs positions, but {dataset} lacks the columns {', '.join(missing)}; "
                "add them (ICRS, degrees) and ingest again, or leave catalog_format out"
            )


def write_hats(output: str, num_rows: int) -> int:
    """Write the finished catalogue of an inference as the HATS collection ``<output>/hats`` and return its number of rows.

    The collection holds the catalogue and a margin of 10 arcsec, which LSDB needs for complete cross-matches; columns keep
    their units and descriptions. Galaxies without a usable position (finite right ascension, declination in [-90, 90] degrees)
    are left out and counted in a warning. A finished collection is kept; an unfinished one is deleted and rewritten.

    Intermediate files, about as large as the catalogue, are in ``<output>/hats-scratch``, or for an s3:// URI in this machine's
    folder for temporary files (``TMPDIR``).

    Parameters
    ----------
    output
        Folder or s3:// URI of the inference.
    num_rows
        Number of rows of its catalogue.
    """
    from hats.catalog.dataset.table_properties import TableProperties
    from hats.io.validation import is_valid_collection

    output = storage.absolute(output)
    parts = storage.list_files(storage.join(output, CATALOG), ".parquet")
    folder, count = _path(storage.join(output, FOLDER)), 0
    if any(len(table) for uri in parts for table in PartReader(1).tables([uri], ["ra", "dec"])):
        if not is_valid_collection(folder):
            _convert(output, parts, num_rows)
        shutil.rmtree(_scratch(output), ignore_errors=True)
        count = TableProperties.read_from_dir(folder / _GALAXIES).total_rows or 0
    if count < num_rows:
        logger.warning("%d of %d galaxies have no position: they are in %s/ only", num_rows - count, num_rows, CATALOG)
    return count


@dataclasses.dataclass(frozen=True)
class PartReader:
    """Reads the catalogue files that a text file lists; hats-import's ``InputReader``.

    Parameters
    ----------
    rows
        Minimum number of rows of a table, except the last.
    """

    rows: int

    def read(self, input_file: Any, read_columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows with a position."""
        return self.tables(Path(input_file).read_text().splitlines(), read_columns)

    def tables(self, uris: list[str], columns: list[str] | None) -> Iterator[pa.Table]:
        """Yield the rows with a position of some files."""
        tables: list[pa.Table] = []
        for uri in uris:
            with storage.open_input(uri) as source:
                tables.append(_positioned(pq.read_table(source, columns=columns).replace_schema_metadata()))
            if sum(map(len, tables)) >= self.rows or uri == uris[-1]:
                yield pa.concat_tables(tables)
                tables = []


def _convert(output: str, parts: list[str], num_rows: int) -> None:
    from dask.distributed import Client
    from hats_import.collection.arguments import CollectionArguments
    from hats_import.pipeline import pipeline_with_client

    scratch = _scratch(output)
    shutil.rmtree(scratch, ignore_errors=True)
    storage.delete(storage.join(output, FOLDER))
    sample = next(table for table in catalog_parts(output) if len(table))
    rows = max(1, _BYTES * len(sample) // sample.nbytes)
    about = {"obs_title": TITLE, "hats_creator": "gampen_ray"}
    about |= {f"gampen_ray_{name}": value for name, value in provenance_of(sample.schema).items()}
    lists, schema_file = _plan(scratch, parts, max(1, rows * len(parts) // num_rows), sample.schema)
    arguments = CollectionArguments(
        output_path=_path(output),
        output_artifact_name=FOLDER,
        tmp_dir=scratch,
        progress_bar=False,
        addl_hats_properties=about,
    ).catalog(
        output_artifact_name=_GALAXIES,
        input_file_list=lists,
        file_reader=PartReader(rows),
        use_schema_file=schema_file,
        pixel_threshold=rows,
        highest_healpix_order=_HIGHEST_ORDER,
        sort_columns="object_id",
        write_table_kwargs=dict(_WRITING),
    )
    # By its name: hats-import would write its path on this machine.
    of = {"addl_hats_properties": about | {"primary_catalog": _GALAXIES}}
    arguments.add_margin(margin_threshold=_MARGIN_ARCSEC, is_default=True, write_table_kwargs=dict(_WRITING), **of)
    logger.info("writing %s", storage.join(output, FOLDER))
    client = Client(
        processes=False,
        n_workers=1,
        threads_per_worker=min(_MAX_THREADS, os.cpu_count() or 1),
        memory_limit=None,
        dashboard_address="127.0.0.1:0",
        local_directory=str(scratch),
    )
    with _quiet(), client:
        pipeline_with_client(arguments, client)


def _plan(scratch: Path, parts: list[str], parts_a_list: int, schema: pa.Schema) -> tuple[list[Path], Path]:
    """Write the lists of files to read together, and a file with the schema of the partitions."""
    scratch.mkdir(parents=True)
    lists = []
    for start in range(0, len(parts), parts_a_list):
        lists.append(scratch / f"parts-{start:09d}.txt")
        lists[-1].write_text("\n".join(parts[start : start + parts_a_list]) + "\n")
    schema_file = scratch / "schema.parquet"
    # hats-import adds the column of the cell itself: only its description is needed.
    fields, made = [_HEALPIX, *schema], provenance_of(schema)
    metadata = (described(fields, made).metadata or {}) | parquet_metadata(pa.schema(fields), made, {})
    pq.write_metadata(schema.with_metadata(metadata), schema_file)
    return lists, schema_file


def _positioned(table: pa.Table) -> pa.Table:
    ra_N, dec_N = (table[name].to_numpy() for name in ("ra", "dec"))
    return table.filter(pa.array(np.isfinite(ra_N) & (np.abs(dec_N) <= 90)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of hats-import about its own intermediate steps."""
    root, nothing = logging.getLogger(), logging.Filter("no logger")
    root.addFilter(nothing)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Computing partitions from catalog parquet files")
            yield
    finally:
        root.removeFilter(nothing)


def _scratch(output: str) -> Path:
    if not output.startswith("s3://"):
        return Path(output, "hats-scratch")
    # A fixed name, so that the next attempt deletes the files of this one.
    return Path(tempfile.gettempdir(), "gampen_ray-hats-" + output.removeprefix("s3://").replace("/", "-"))


def _path(uri: str) -> Any:
    """Return a path for the hats libraries, which by default access S3 without credentials."""
    from upath import UPath

    return UPath(uri, anon=False) if uri.startswith("s3://") else UPath(uri)

"""The galaxies of files of many: which files of a folder are such, and which image each row of a catalogue has."""

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.inputs import FITS_FILES
from gampen_ray.data import catalogs, containers
from gampen_ray.data.catalog_formats import parquet_files
from gampen_ray.data.containers import INDEX
from gampen_ray.data.file_names import stems
from gampen_ray.data.located import Located
from gampen_ray.data.readers.arrays import npy_header
from gampen_ray.data.shards import DATASET_JSON
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.run_folder import RUN_FILE

__all__ = ["container_files", "folder_containers", "in_containers", "one_container"]

pc: Any = pyarrow.compute
_INDEX_COLUMNS = ("idx_in_zarr", "index")
_MOST_BANDS = 10
"""Unless the config gives them, an array of NumPy has bands on an axis of at most this length."""
_CUTANA_TABLE = "images_metadata.parquet"
# Columns that hold nothing about the galaxy.
_UNUSED = ("row", "_healpix_29", "Norder", "Dir", "Npix")


def container_files(config: CutoutsConfig, listing: Sequence[str]) -> list[str]:
    """Return the files of many galaxies that ``images``, a file or a folder with these files, is or holds; else none."""
    return one_container(config) or folder_containers(config, listing)


def one_container(config: CutoutsConfig) -> list[str]:
    """Return the files of ``images`` if its own name says that it holds many galaxies: a file, Zarr group or HATS catalogue."""
    images, reader = storage.absolute(config.images), config.reader
    format_ = containers.container_format(images, reader)
    if storage.size(images) is not None:
        return [images] if format_ and not _holds_one(images, reader) else []
    if format_ == "zarr":
        return [images]
    hats = any(
        storage.exists(storage.join(images, name)) for name in ("hats.properties", "properties", "collection.properties")
    )
    return parquet_files(images) if hats else []


def folder_containers(config: CutoutsConfig, listing: Sequence[str]) -> list[str]:
    """Return the files of many galaxies in a folder, sorted; none if it holds files of one."""
    images, reader = storage.absolute(config.images), config.reader
    if any(storage.exists(storage.join(images, name)) for name in (RUN_FILE, DATASET_JSON)):
        # A dataset of shards, unfinished perhaps.
        return []
    names: dict[str, None] = {}
    pattern = re.compile(fnmatch.translate(config.pattern)).match
    for uri in listing:
        inside = uri.find(".zarr/", len(images))
        name = uri if inside < 0 else uri[: inside + 5]
        here = name.removeprefix(images).strip("/")
        matches = pattern(here if "/" in config.pattern else here.rpartition("/")[2])
        if matches and config.pattern == FITS_FILES:
            return []
        if (matches or config.pattern == FITS_FILES) and here.rpartition("/")[2] not in (_CUTANA_TABLE, "_metadata"):
            names[name] = None
    found = [name for name in names if containers.container_format(name, reader)]
    formats = {containers.container_format(name, reader) for name in found}
    if not found or _holds_one(found[0], reader):
        return []
    if len(formats) > 1:
        raise UserError(f"images: {images} holds {' and '.join(sorted(formats))} files; choose some by pattern, such as '*.h5'")
    return found


def _holds_one(uri: str, reader: ReaderConfig) -> bool:
    """Return whether a NumPy file holds the image of one galaxy."""
    if reader.format != "auto" or not uri.lower().endswith(".npy"):
        return False
    try:
        with storage.open_input(uri) as file:
            shape = npy_header(file)[0]
    except ValueError:
        # Damaged: a file's own reader says why.
        return True
    if len(shape) != 3 or len(reader.bands) > 1:
        return len(shape) <= 3
    if 1 < shape[0] <= _MOST_BANDS:
        raise UserError(
            f"images: {uri} has the shape {shape}: {shape[0]} galaxies, or the bands of one; set reader.format numpy_stack, or "
            "reader.bands"
        )
    return shape[0] == 1 or shape[2] <= _MOST_BANDS


def in_containers(config: CutoutsConfig, uris: Sequence[str]) -> Located:
    """Return the galaxies of files of many, with their own columns, or with those of a catalogue that is joined."""
    tables, sources = [], []
    with Progress("images", None, "files") as progress:
        for uri in uris:
            table = containers.container_rows(uri, config.reader)
            if INDEX not in table.column_names:
                table = table.append_column(INDEX, pa.array(np.arange(len(table))))
            tables.append(table)
            sources.append(pa.repeat(pa.scalar(uri, pa.string()), len(table)))
            progress.advance(1)
    table, source = pa.concat_tables(tables, promote_options="permissive"), pa.chunked_array(sources, pa.string())
    if not len(table):
        raise UserError(f"images: {config.images} holds no galaxy")
    index = table.column(INDEX).cast(pa.int64())
    table = table.drop_columns([name for name in (INDEX, *_UNUSED) if name in table.column_names])
    if config.catalog:
        catalog = catalogs.read_catalog(config.catalog, (config.id_column,))
        place = _joined(config, catalog, table, index)
        extra = [
            name for name in table.column_names if name not in catalog.column_names and name.startswith(("psf_", "noise_"))
        ]
        for name in extra:
            catalog = catalog.append_column(name, table.column(name).take(place))
        faults = np.where(place.is_null().to_numpy(zero_copy_only=False), f"no image in {config.images} has its identifier", "")
        return Located(
            table=catalog,
            source=source.take(place),
            index=index.take(place),
            faults=faults.astype(object),
            catalog=config.catalog,
        )
    if config.id_column not in table.column_names:
        if config.id_column != "object_id":
            raise UserError(
                f"id_column: {config.images} has no column {config.id_column!r}; its columns: {', '.join(table.column_names)}"
            )
        there = next((name for name in ("source_id", "SourceID", "id", "__key__") if name in table.column_names), None)
        numbered = pc.binary_join_element_wise(stems(source), index.cast(pa.string()), "-")
        ids = table.column(there).cast(pa.string()) if there else numbered
        table = table.drop_columns([there] if there else []).add_column(0, "object_id", ids)
    return Located(table=table, source=source, index=index)


def _joined(config: CutoutsConfig, catalog: pa.Table, images: pa.Table, index: pa.ChunkedArray) -> pa.Array:
    """Return which image, counted over all files, each row of a catalogue has; null: none."""
    ids = catalogs.to_ids(catalog.column(config.id_column)) if config.id_column in catalog.column_names else None
    if ids is not None and config.id_column in images.column_names:
        theirs = catalogs.to_ids(images.column(config.id_column))
        if ids.type != theirs.type:
            ids, theirs = ids.cast(pa.string()), theirs.cast(pa.string())
        return pc.index_in(ids, value_set=theirs)
    column = next((name for name in _INDEX_COLUMNS if name in catalog.column_names), None)
    if column:
        return pc.index_in(pc.cast(catalog.column(column), pa.int64()).combine_chunks(), value_set=index.combine_chunks())
    if len(catalog) != len(images):
        raise UserError(
            f"catalog {config.catalog} has {len(catalog):,} rows and {config.images} {len(images):,} images, which have no "
            f"column {config.id_column!r} to join them by; give a catalogue with a row an image, or with their numbers, "
            f"counted from 0, in a column {_INDEX_COLUMNS[0]}"
        )
    return pa.array(np.arange(len(catalog)))

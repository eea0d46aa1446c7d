"""Which image each galaxy has: a file, a file a band, or a place in a file of many.

The plan of an ingest has a row per galaxy and holds these columns of bookkeeping beside those of the catalogue. A catalogue may
have 10^7 rows: columns stay in Arrow.
"""

import dataclasses
import difflib
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
from gampen_ray.data import catalogs, containers, gampen_folder, readers
from gampen_ray.data.catalog_formats import parquet_files
from gampen_ray.data.containers import INDEX
from gampen_ray.data.file_names import TEMPLATE_FIELD, NoFilesError, file_uris, listed_files, matching, stems, templated_files
from gampen_ray.data.image_reading import FILES, SOURCE
from gampen_ray.data.readers.arrays import npy_header
from gampen_ray.data.shards import DATASET_JSON
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.run_folder import RUN_FILE

__all__ = ["Located", "check_format", "container_files", "locate"]

pc: Any = pyarrow.compute
_INDEX_COLUMNS = ("idx_in_zarr", "index")
_MOST_BANDS = 10
"""Unless the config gives them, an array of NumPy has bands on an axis of at most this length."""
_CUTANA_TABLE = "images_metadata.parquet"
# Columns that hold nothing about the galaxy.
_UNUSED = ("row", "_healpix_29", "Norder", "Dir", "Npix")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """Galaxies and their images.

    Parameters
    ----------
    table
        Columns of the catalogue, or those beside the images of a file of many; an identifier only if there is one.
    source
        URI of each galaxy's file, null where there is none.
    faults
        Why there is none, by row; empty text, or no rows at all, for the ordinary reasons.
    catalog
        URI of the catalogue, empty without one.
    index, files
        Place in a file of many; URIs of the bands' files; None: neither.
    """

    table: pa.Table
    source: pa.ChunkedArray
    faults: np.ndarray | None = None
    catalog: str = ""
    index: pa.ChunkedArray | None = None
    files: pa.ChunkedArray | None = None

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """Columns of the plan, by name; the file of a row without one is the catalogue."""
        source = self.source.fill_null(self.catalog) if self.catalog else self.source
        others = {INDEX: self.index, FILES: self.files}
        return {SOURCE: source} | {name: values for name, values in others.items() if values is not None}

    def take(self, rows: pa.Array) -> "Located":
        """Return some of the galaxies."""
        columns = {"table": self.table, "source": self.source, "index": self.index, "files": self.files}
        taken: dict[str, Any] = {name: None if values is None else values.take(rows) for name, values in columns.items()}
        faults = None if self.faults is None else self.faults[rows.to_numpy()]
        return dataclasses.replace(self, **taken, faults=faults)


def locate(config: CutoutsConfig) -> Located:
    """Return all galaxies with their images.

    Parameters
    ----------
    config
        With absolute URIs.

    Raises
    ------
    UserError
        If a file, folder or column is missing, or images and catalogue do not fit each other.
    """
    images, is_folder = config.images, storage.size(config.images) is None
    if not config.catalog and gampen_folder.is_gampen_folder(images):
        catalog = storage.join(images, gampen_folder.INFO_CSV)
        return _by_catalog(config, catalog, storage.join(images, gampen_folder.CUTOUTS), gampen=True)
    if not storage.exists(images):
        raise NoFilesError(f"images: no folder {images}")
    check_format(config.reader)
    if many := _one_container(config):
        return _in_containers(config, many)
    catalog = _read_catalog(config, config.catalog) if config.catalog else None
    if catalog and is_folder and _names_files(config, catalog):
        return _by_catalog(config, config.catalog, images, gampen=False)
    listing = listed_files(images) if is_folder else [images]
    if many := _containers(config, listing):
        return _in_containers(config, many)
    if catalog and is_folder:
        raise UserError(
            f"file_column: catalog {config.catalog} has no column {config.file_column!r}; give file_column, or file_template "
            f'such as "{{{config.id_column}}}*.fits"; its columns: {", ".join(catalog.column_names)}'
        )
    if config.targets and not catalog:
        raise UserError(f"targets: {', '.join(config.targets)}: there is no catalogue to read them from; set catalog")
    if config.file_template:
        return _grouped(config, listing)
    source = pa.chunked_array([pa.array(matching(images, config.pattern, listing), pa.string())])
    if catalog and len(catalog) > 1:
        raise UserError(
            f"images: {images} is one image, but catalog {config.catalog} has {len(catalog):,} rows; give the folder of their "
            "cutouts, one file a row, or cut them out of the image first"
        )
    if catalog:
        return Located(table=catalog, source=source, catalog=config.catalog)
    return Located(table=pa.table({"object_id": stems(source)}), source=source)


def check_format(config: ReaderConfig) -> None:
    """Raise a UserError if no reader and no container has the configured format."""
    known = ("auto", *readers.READERS.names, *containers.CONTAINERS.names)
    if config.format not in known:
        close = difflib.get_close_matches(config.format, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"reader.format: {config.format!r} is unknown; {hint}give one of {', '.join(known)}")


def container_files(config: CutoutsConfig, listing: Sequence[str]) -> list[str]:
    """Return the files of many galaxies that ``images``, a file or a folder with these files, is or holds; else none."""
    return _one_container(config) or _containers(config, listing)


def _one_container(config: CutoutsConfig) -> list[str]:
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


def _containers(config: CutoutsConfig, listing: Sequence[str]) -> list[str]:
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


def _read_catalog(config: CutoutsConfig, uri: str) -> pa.Table:
    fields = set(TEMPLATE_FIELD.findall(config.file_template)) - {"band"}
    return catalogs.read_catalog(uri, (config.id_column, config.file_column, *_band_columns(config), *sorted(fields)))


def _band_columns(config: CutoutsConfig) -> list[str]:
    return [f"file_{band}" for band in config.reader.bands]


def _names_files(config: CutoutsConfig, table: pa.Table) -> bool:
    return bool(config.file_template) or not {config.file_column, _band_columns(config)[0]}.isdisjoint(table.column_names)


def _in_containers(config: CutoutsConfig, uris: Sequence[str]) -> Located:
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


def _by_catalog(config: CutoutsConfig, uri: str, folder: str, *, gampen: bool) -> Located:
    """Return the rows of a catalogue with their files below a folder."""
    table = _read_catalog(config, uri)
    # GaMPEN catalogues have no identifier; the file's stem replaces it.
    by_stem = gampen and config.id_column == "object_id" and "object_id" not in table.column_names
    band_columns = _band_columns(config)
    several = (
        not config.file_template and config.file_column not in table.column_names and band_columns[0] in table.column_names
    )
    if config.file_template:
        wanted = dict.fromkeys(
            (name for name in TEMPLATE_FIELD.findall(config.file_template) if name != "band"), "file_template"
        )
    else:
        wanted = dict.fromkeys(band_columns, "reader.bands") if several else {config.file_column: "file_column"}
    catalogs.require_columns(uri, table, wanted | ({} if by_stem else {config.id_column: "id_column"}))
    files = faults = None
    if config.file_template:
        planes, faults = templated_files(config.file_template, config.reader.bands, table, folder)
        source, files = _bundled(planes)
    elif several:
        planes = [file_uris(folder, table.column(name)) for name in band_columns]
        source, files = _bundled(planes)
        faults = _missing_bands(band_columns, [table.column(name) for name in band_columns], planes, config.images)
    else:
        source = file_uris(folder, table.column(config.file_column))
    if by_stem:
        table = table.add_column(0, "object_id", stems(table.column(config.file_column).cast(pa.string())))
    return Located(table=table, source=source, files=files, faults=faults, catalog=uri)


def _bundled(planes: Sequence[pa.ChunkedArray]) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Return the first file of each row, null where one of them is missing, and if there are several a list of all."""
    missing = pc.or_(pc.is_null(planes[0]), pc.is_null(planes[-1]))
    for plane in planes[1:-1]:
        missing = pc.or_(missing, pc.is_null(plane))
    source = pc.if_else(missing, pa.scalar(None, pa.string()), planes[0])
    if len(planes) == 1:
        return source, None
    columns = [plane.combine_chunks() for plane in planes]
    count, size = len(columns[0]), len(columns)
    # Concatenated band by band; row n of the lists is the elements n, n + count, n + 2 count, ...
    order = pa.array((np.arange(count)[:, np.newaxis] + count * np.arange(size)).ravel())
    lists = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * size, pa.concat_arrays(columns).take(order))
    return source, pa.chunked_array([lists])


def _missing_bands(names: Sequence[str], values: Sequence[Any], planes: Sequence[Any], images: str) -> np.ndarray:
    faults = np.full(len(planes[0]), "", dtype=object)
    for name, texts, plane in zip(names, values, planes, strict=True):
        for row in np.flatnonzero(pc.is_null(plane).to_numpy()):
            faults[row] = faults[row] or _missing(name, texts[int(row)].as_py(), images)
    return faults


def _missing(column: str, name: Any, images: str) -> str:
    text = "" if name is None else str(name)
    return f"{column} is {text[:100]!r}: no file below {images}" if text.strip() else f"{column} is missing"


def _grouped(config: CutoutsConfig, uris: Sequence[str]) -> Located:
    """Return the galaxies whose files match a template without a catalogue: files of one identifier belong together."""
    template, bands = config.file_template, config.reader.bands
    fields = set(TEMPLATE_FIELD.findall(template)) - {"band"}
    if len(fields) != 1:
        raise UserError(f"file_template: {template!r} has the columns {', '.join(sorted(fields)) or 'none'}; set catalog")
    (name,) = fields
    pieces = [re.escape(piece) for piece in TEMPLATE_FIELD.split(template)]
    pieces = [piece.replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for piece in pieces]
    pieces[1::2] = [f"(?P<{piece}>{'|'.join(map(re.escape, bands)) if piece == 'band' else '.+?'})" for piece in pieces[1::2]]
    matches = re.compile("".join(pieces)).fullmatch
    root = storage.join(storage.absolute(config.images), "")
    found: dict[str, dict[str, str]] = {}
    for uri in uris:
        text = uri.removeprefix(root)
        if match := matches(text) or matches(text.rpartition("/")[2]):
            groups = match.groupdict()
            band = groups.get("band", bands[0])
            galaxy = found.setdefault(groups[name], {})
            if band in galaxy:
                raise UserError(f"file_template: {galaxy[band]} and {uri} are the same galaxy and band; narrow the template")
            galaxy[band] = uri
    if not found:
        raise NoFilesError(f"images: none of the {len(uris):,} files below {config.images} matches the template {template!r}")
    wanted = bands if "{band}" in template else bands[:1]
    planes = [pa.chunked_array([pa.array([files.get(band) for files in found.values()], pa.string())]) for band in wanted]
    faults = np.full(len(found), "", dtype=object)
    for row, (galaxy, files) in enumerate(found.items()):
        if missing := [band for band in wanted if band not in files]:
            faults[row] = f"no file of the band {missing[0]}: {template.replace('{' + name + '}', galaxy)}"
    source, files = _bundled(planes)
    return Located(table=pa.table({"object_id": pa.array(list(found), pa.string())}), source=source, files=files, faults=faults)

"""Which image each galaxy has: a file, a file a band, or a place in a file of many; and the reading of these images.

The plan of an ingest has a row per galaxy and holds these columns of bookkeeping beside those of the catalogue. A catalogue may
have 10^7 rows: columns stay in Arrow.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import itertools
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.parts import FITS_FILES
from gampen_ray.data import catalogs, containers, gampen_folder, readers
from gampen_ray.data.catalog_formats import parquet_files
from gampen_ray.data.containers import INDEX
from gampen_ray.data.containers.numpy_files import npy_header
from gampen_ray.data.cutouts import MAX_FILE_BYTES, Cutout, CutoutError
from gampen_ray.data.shards import DATASET_JSON
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.run_folder import RUN_FILE

__all__ = [
    "FILES",
    "INDEX",
    "SOURCE",
    "Images",
    "Located",
    "NoFilesError",
    "file_content",
    "locate",
    "matching_files",
    "raised",
]

pc: Any = pyarrow.compute
SOURCE, FILES = "gampen_ray:source", "gampen_ray:files"
"""Columns with the URI of a galaxy's file, and where there is a file a band, with all of them in the order of the bands."""
_MAX_NAME_BYTES = 255
_READ_THREADS = 8
_WILDCARDS = re.compile(r"[*?]")
_FIELD = re.compile(r"\{(\w+)\}")
_STEM = r"(?i)(\.[a-z][\p{L}\p{N}_]*)?(\.(gz|fz|bz2))?$"
_INDEX_COLUMNS = ("idx_in_zarr", "index")
_MOST_BANDS = 10
"""Where it is not said, an array of NumPy with an axis of at most this length has bands on it."""
_CUTANA_TABLE = "images_metadata.parquet"
_OTHERS = ("*.fit", "*.npy", "*.jpg", "*.jpeg", "*.png")
"""Patterns of files that are taken where none matches the default."""
# Columns that hold nothing about the galaxy.
_UNUSED = ("row", "_healpix_29", "Norder", "Dir", "Npix")


class NoFilesError(UserError):
    """The folder does not exist or holds no matching file."""


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
    pixel_scale_arcsec
        As a file of many states it; None: unknown.
    """

    table: pa.Table
    source: pa.ChunkedArray
    faults: np.ndarray | None = None
    catalog: str = ""
    index: pa.ChunkedArray | None = None
    files: pa.ChunkedArray | None = None
    pixel_scale_arcsec: float | None = None

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
    source = pa.chunked_array([pa.array(_matching(images, config.pattern, listing), pa.string())])
    if catalog and len(catalog) > 1:
        raise UserError(
            f"images: {images} is one image, but catalog {config.catalog} has {len(catalog):,} rows; give the folder of their "
            "cutouts, one file a row, or cut them out of the image first"
        )
    if catalog:
        return Located(table=catalog, source=source, catalog=config.catalog)
    return Located(table=pa.table({"object_id": _stems(source)}), source=source)


def matching_files(images: str, pattern: str) -> list[str]:
    """Return the absolute URIs of the files below a folder that match a pattern, sorted, or of ``images`` if it is a file.

    Where no file matches the default pattern, NumPy files and pictures are taken.

    Raises
    ------
    NoFilesError
        If there are none.
    """
    if not storage.exists(images):
        raise NoFilesError(f"images: no folder {images}")
    if storage.size(images) is not None:
        return [storage.absolute(images)]
    return _matching(images, pattern, listed_files(images))


def check_format(config: ReaderConfig) -> None:
    """Raise a UserError if no reader and no container has the configured format."""
    known = ("auto", *readers.READERS.names, *containers.CONTAINERS.names)
    if config.format not in known:
        close = difflib.get_close_matches(config.format, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"reader.format: {config.format!r} is unknown; {hint}give one of {', '.join(known)}")


def matches_default(uri: str) -> bool:
    """Return whether a file's name matches the default pattern."""
    return fnmatch.fnmatchcase(uri.rpartition("/")[2], FITS_FILES)


def listed_files(folder: str) -> list[str]:
    """Return the URIs of all files below a folder, sorted, with progress if there are many."""
    with Progress("images", None, "files") as progress:
        return storage.list_files(folder, listed=progress.advance)


def _matching(images: str, pattern: str, uris: Sequence[str]) -> list[str]:
    root = storage.absolute(images)
    if list(uris) == [root]:
        return [root]
    # A pattern without "/" matches the file name alone, as in find.
    names = [uri.removeprefix(root).strip("/") if "/" in pattern else uri.rpartition("/")[2] for uri in uris]
    for one in (pattern, *_OTHERS) if pattern == FITS_FILES else (pattern,):
        matches = re.compile(fnmatch.translate(one)).match
        if matching := [uri for uri, name in zip(uris, names, strict=True) if matches(name)]:
            return matching
    raise NoFilesError(f"images: none of the {len(uris):,} files below {images} matches the pattern {pattern!r}")


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
    fields = set(_FIELD.findall(config.file_template)) - {"band"}
    return catalogs.read_catalog(uri, (config.id_column, config.file_column, *_band_columns(config), *sorted(fields)))


def _band_columns(config: CutoutsConfig) -> list[str]:
    return [f"file_{band}" for band in config.reader.bands]


def _names_files(config: CutoutsConfig, table: pa.Table) -> bool:
    return bool(config.file_template) or not {config.file_column, _band_columns(config)[0]}.isdisjoint(table.column_names)


def _in_containers(config: CutoutsConfig, uris: Sequence[str]) -> Located:
    """Return the galaxies of files of many, with their own columns, or with those of a catalogue that is joined."""
    tables, sources, scale = [], [], None
    with Progress("images", None, "files") as progress:
        for uri in uris:
            with containers.open_container(uri, config.reader) as container:
                table, scale = container.rows(), scale or container.pixel_scale_arcsec
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
            pixel_scale_arcsec=scale,
        )
    if config.id_column not in table.column_names:
        if config.id_column != "object_id":
            raise UserError(
                f"id_column: {config.images} has no column {config.id_column!r}; its columns: {', '.join(table.column_names)}"
            )
        there = next((name for name in ("source_id", "SourceID", "id", "__key__") if name in table.column_names), None)
        numbered = pc.binary_join_element_wise(_stems(source), index.cast(pa.string()), "-")
        ids = table.column(there).cast(pa.string()) if there else numbered
        table = table.drop_columns([there] if there else []).add_column(0, "object_id", ids)
    return Located(table=table, source=source, index=index, pixel_scale_arcsec=scale)


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
        wanted = dict.fromkeys((name for name in _FIELD.findall(config.file_template) if name != "band"), "file_template")
    else:
        wanted = dict.fromkeys(band_columns, "reader.bands") if several else {config.file_column: "file_column"}
    catalogs.require_columns(uri, table, wanted | ({} if by_stem else {config.id_column: "id_column"}))
    files = faults = None
    if config.file_template:
        source, files, faults = _templated(config, table, folder)
    elif several:
        planes = [_uris(folder, table.column(name)) for name in band_columns]
        source, files = _bundled(planes)
        faults = _missing_bands(band_columns, [table.column(name) for name in band_columns], planes, config.images)
    else:
        source = _uris(folder, table.column(config.file_column))
    if by_stem:
        table = table.add_column(0, "object_id", _stems(table.column(config.file_column).cast(pa.string())))
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


def _templated(
    config: CutoutsConfig, table: pa.Table, folder: str
) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None, np.ndarray]:
    """Return the files that a template names for each row, and why there is none."""
    template, bands = config.file_template, config.reader.bands
    templates = [template.replace("{band}", band) for band in bands] if "{band}" in template else [template]
    planes, faults = [], np.full(len(table), "", dtype=object)
    below = _Listing(folder) if _WILDCARDS.search(template) else None
    for one in templates:
        if below is None:
            names = _expanded(one, table)
            planes.append(_uris(folder, names))
            continue
        found, reasons = below.matches(one, table)
        planes.append(found)
        faults = np.where(faults == "", reasons, faults)
    source, files = _bundled(planes)
    return source, files, faults


def _expanded(template: str, table: pa.Table) -> pa.ChunkedArray:
    pieces = _FIELD.split(template)
    parts = [
        pc.utf8_trim_whitespace(table.column(piece).cast(pa.string())) if number % 2 else pa.scalar(piece)
        for number, piece in enumerate(pieces)
    ]
    if len(parts) == 1:
        return pa.chunked_array([pa.repeat(parts[0], len(table))])
    return pc.binary_join_element_wise(*parts, "")


class _Listing:
    """The files below a folder, by their names there, for templates with wildcards."""

    def __init__(self, folder: str) -> None:
        root = storage.join(storage.absolute(folder), "")
        self._root = root
        self._names = [uri.removeprefix(root) for uri in listed_files(folder)]
        self._reversed: list[str] = []

    def matches(self, template: str, table: pa.Table) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return the file of each row that alone matches the template, and why there is none."""
        wild = [match.start() for match in _WILDCARDS.finditer(template)]
        fixed, rest = template[: wild[0]], template[wild[0] :]
        if backwards := not _FIELD.search(fixed):
            fixed, rest = template[wild[-1] + 1 :], template[: wild[-1] + 1]
        if not _FIELD.search(fixed):
            raise UserError(
                f"file_template: {template!r} has a wildcard both before and after its columns, which would compare every file "
                "with every row; begin or end it with a column"
            )
        if backwards and not self._reversed:
            self._reversed = sorted(name[::-1] for name in self._names)
        names = self._reversed if backwards else self._names
        inner = dict.fromkeys(_FIELD.findall(rest))
        rests = [_texts(table.column(name).cast(pa.string())) for name in inner]
        pattern, matches = rest, _glob(rest)
        found: list[str | None] = []
        faults = np.full(len(table), "", dtype=object)
        for row, key in enumerate(_texts(_expanded(fixed, table))):
            if rests:
                pattern = rest.format(**{name: next(texts) for name, texts in zip(inner, rests, strict=True)})
                matches = _glob(pattern)
            start, good = key[::-1] if backwards else key, []
            for at in range(bisect_left(names, start), len(names)):
                if not key or not names[at].startswith(start):
                    break
                other = names[at][len(start) :]
                if matches(other[::-1] if backwards else other):
                    good.append(names[at][::-1] if backwards else names[at])
            found.append(self._root + good[0] if len(good) == 1 else None)
            if len(good) != 1:
                whole = f"{pattern}{key}" if backwards else f"{key}{pattern}"
                several = f"several files match {whole}: {', '.join(good[:3])}; narrow file_template"
                faults[row] = several if good else f"no file matches {whole}"
        return pa.chunked_array([pa.array(found, pa.string())]), faults


def _glob(pattern: str) -> Any:
    """Return a function that matches names, in which ``*`` and ``?`` are wildcards and ``[`` is not."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]"))).match


def _texts(values: pa.ChunkedArray) -> Iterator[str]:
    for chunk in values.chunks:
        yield from (text.strip() for text in chunk.fill_null("").to_pylist())


def _grouped(config: CutoutsConfig, uris: Sequence[str]) -> Located:
    """Return the galaxies whose files match a template without a catalogue: files of one identifier belong together."""
    template, bands = config.file_template, config.reader.bands
    fields = set(_FIELD.findall(template)) - {"band"}
    if len(fields) != 1:
        raise UserError(f"file_template: {template!r} has the columns {', '.join(sorted(fields)) or 'none'}; set catalog")
    (name,) = fields
    pieces = [re.escape(piece) for piece in _FIELD.split(template)]
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


def _stems(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return `stem` of every name; null for an empty name."""
    texts = pc.replace_substring_regex(pc.replace_substring_regex(names, r"(?s)^.*/", ""), _STEM, "")
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _uris(folder: str, names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the URI of each name below a folder; null if it is missing, no valid name, or leads out of the folder."""
    root = storage.join(folder, "")
    texts = pc.utf8_trim_whitespace(names.cast(pa.string()).fill_null(""))
    whole = pc.match_substring_regex(texts, "^(/|s3://)")
    uris = pc.if_else(whole, texts, pc.binary_join_element_wise(pa.scalar(root), texts, ""))
    odd = pc.or_(
        pc.match_substring_regex(texts, r"(^|/)\.{1,2}(/|$)|\x00|/$"), pc.greater(pc.binary_length(texts), _MAX_NAME_BYTES)
    )
    if pc.any(odd).as_py():
        fixed = pa.array([_file_uri(folder, name) for name in texts.filter(odd).to_pylist()], pa.string())
        uris = pa.chunked_array([pc.replace_with_mask(uris.combine_chunks(), odd.combine_chunks(), fixed)])
    inside = pc.and_(pc.starts_with(uris, root), pc.not_equal(texts, ""))
    return pc.if_else(inside, uris, pa.scalar(None, pa.string()))


def _file_uri(folder: str, name: str) -> str:
    # Empty if the name is not a valid file name.
    parts = name.split("/")
    if "\0" in name or max(len(part.encode()) for part in parts) > _MAX_NAME_BYTES:
        return ""
    uri = name if name.startswith(("/", "s3://")) else storage.join(folder, name)
    if not {".", ".."}.isdisjoint(parts):
        scheme = "" if storage.is_local(folder) else "s3://"
        uri = scheme + posixpath.normpath(uri.removeprefix(scheme))
    return uri


def file_content(uri: str) -> bytes | CutoutError:
    """Return the content of a file, or the error: files are read ahead of their use, so it is raised later (`raised`)."""
    size = storage.size(uri)
    if size is None:
        there = "it is a folder" if storage.exists(uri) else "there is no such file"
        return CutoutError(there)
    if size > MAX_FILE_BYTES:
        return CutoutError(f"the file has {size >> 20:,} MiB: too large for a cutout")
    try:
        return storage.read_bytes(uri)
    except UserError as error:
        if uri.startswith("s3://"):
            # The file exists: a server fault must not quarantine the galaxy.
            raise
        return CutoutError(f"the file cannot be read: {error}")


def raised(content: bytes | CutoutError) -> bytes:
    """Return the result of `file_content`, or raise it if it is an error."""
    if isinstance(content, CutoutError):
        raise content
    return content


class Images:
    """Reads the images of some rows of a plan; a context manager, which closes the files of many.

    Parameters
    ----------
    rows
        Rows of the plan.
    reader
        How files are read.
    """

    def __init__(self, rows: pa.Table, reader: ReaderConfig) -> None:
        self._reader, self._stack = reader, contextlib.ExitStack()
        self._sources = rows.column(SOURCE).to_pylist()
        self._index = rows.column(INDEX).to_pylist() if INDEX in rows.column_names else None
        self._files = rows.column(FILES).to_pylist() if FILES in rows.column_names else None
        self._open: tuple[str, Any] = ("", None)

    def __enter__(self) -> "Images":
        self._pool = self._stack.enter_context(ThreadPoolExecutor(_READ_THREADS))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._stack.close()

    def read(self, rows: Iterable[int]) -> Iterator[tuple[Any, int]]:
        """Yield for each row what `cutout` takes, and the number of bytes read."""
        if self._index is not None:
            for source, some in itertools.groupby(rows, key=lambda row: self._sources[row]):
                for found in self._container(source).read([self._index[row] for row in some]):
                    yield found, found.image_CHW.nbytes if isinstance(found, Cutout) else 0
            return
        names = [self._files[row] if self._files else [self._sources[row]] for row in rows]
        contents = self._pool.map(file_content, itertools.chain.from_iterable(names))
        for some in names:
            files = [next(contents) for _ in some]
            yield (some, files), sum(len(content) for content in files if isinstance(content, bytes))

    def cutout(self, found: Any) -> Cutout:
        """Return the image that `read` has found; a `CutoutError` if it cannot be used."""
        if isinstance(found, CutoutError):
            raise found
        if isinstance(found, Cutout):
            return found
        names, files = found
        if len(names) == 1:
            return readers.read_cutout(raised(files[0]), names[0], self._reader)
        return readers.read_bands(files, names, self._reader)

    def _container(self, uri: str) -> containers.Container:
        if self._open[0] != uri:
            self._close()
            self._entered = containers.open_container(uri, self._reader)
            self._open = uri, self._entered.__enter__()
        return self._open[1]

    def _close(self) -> None:
        if self._open[0]:
            self._entered.__exit__(None, None, None)
            self._open = "", None

"""The galaxies of a catalogue whose rows name their files, by columns or a template, and of files whose names fit one."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig
from gampen_ray.data import catalogs
from gampen_ray.data.file_names import TEMPLATE_FIELD, NoFilesError, file_uris, stems, templated_files
from gampen_ray.data.located import Located, bundled
from gampen_ray.errors import UserError

__all__ = ["by_catalog", "by_template", "names_files", "read_catalog"]

pc: Any = pyarrow.compute


def read_catalog(config: CutoutsConfig, uri: str) -> pa.Table:
    """Return a catalogue, of which the columns with identifiers and names are texts where they are no integers."""
    fields = set(TEMPLATE_FIELD.findall(config.file_template)) - {"band"}
    return catalogs.read_catalog(uri, (config.id_column, config.file_column, *_band_columns(config), *sorted(fields)))


def _band_columns(config: CutoutsConfig) -> list[str]:
    return [f"file_{band}" for band in config.reader.bands]


def names_files(config: CutoutsConfig, table: pa.Table) -> bool:
    """Return whether the rows of a catalogue name their files."""
    return bool(config.file_template) or not {config.file_column, _band_columns(config)[0]}.isdisjoint(table.column_names)


def by_catalog(config: CutoutsConfig, uri: str, table: pa.Table, folder: str, *, gampen: bool) -> Located:
    """Return the rows of a catalogue, or of GaMPEN's own, with their files below a folder."""
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
        source, files = bundled(planes)
    elif several:
        planes = [file_uris(folder, table.column(name)) for name in band_columns]
        source, files = bundled(planes)
        faults = _missing_bands(band_columns, [table.column(name) for name in band_columns], planes, config.images)
    else:
        source = file_uris(folder, table.column(config.file_column))
    if by_stem:
        table = table.add_column(0, "object_id", stems(table.column(config.file_column).cast(pa.string())))
    return Located(table=table, source=source, files=files, faults=faults, catalog=uri)


def _missing_bands(names: Sequence[str], values: Sequence[Any], planes: Sequence[Any], images: str) -> np.ndarray:
    faults = np.full(len(planes[0]), "", dtype=object)
    for name, texts, plane in zip(names, values, planes, strict=True):
        for row in np.flatnonzero(pc.is_null(plane).to_numpy()):
            faults[row] = faults[row] or _missing(name, texts[int(row)].as_py(), images)
    return faults


def _missing(column: str, name: Any, images: str) -> str:
    text = "" if name is None else str(name)
    return f"{column} is {text[:100]!r}: no file below {images}" if text.strip() else f"{column} is missing"


def by_template(config: CutoutsConfig, uris: Sequence[str]) -> Located:
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
    source, files = bundled(planes)
    return Located(table=pa.table({"object_id": pa.array(list(found), pa.string())}), source=source, files=files, faults=faults)

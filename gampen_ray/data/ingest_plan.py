"""From a folder of cutouts and a catalogue to cutout shards: the plan for all rows, and the work on one part of them.

Every row of the catalogue ends up exactly once, in a shard or in quarantine.
"""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.base import fields, to_dict
from gampen_ray.data import catalogs, image_reading, image_rows, shards, validation
from gampen_ray.data.containers import INDEX
from gampen_ray.data.cutouts import CutoutError, central, fit_to_size
from gampen_ray.data.gampen_labels import Label, magnitude
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.split_tables import listed_splits
from gampen_ray.data.splits import assign_splits
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.provenance import content_fingerprint

__all__ = ["REASON", "PlannedRows", "pack", "plan", "read_rows"]

# Bookkeeping columns of the plan, beside those of the catalogue and of `image_rows`.
_SPLIT, REASON = "gampen_ray:split", "gampen_ray:reason"
_SOURCE = image_reading.SOURCE
_BOOKKEEPING = (_SOURCE, INDEX, image_reading.FILES, _SPLIT, REASON)
_MAGNITUDE = "magnitude"
_READ_AHEAD = 32
_PIECE = 1 << 18
"""Rows whose texts are in Python at once."""


def plan(config: CutoutsConfig, *, located: image_rows.Located | None = None) -> tuple[pa.Table, DatasetInfo]:
    """Assign every row an identifier, a file and a split, or the reason why it cannot be used.

    Parameters
    ----------
    config
        With absolute URIs.
    located
        Galaxies with their images, such as a part of all; None: all (`gampen_ray.data.image_rows.locate`).

    Returns
    -------
    pa.Table
        Rows for `pack`, in the catalogue's order, or sorted by file name without one.
    DatasetInfo
        Metadata of the dataset, without row counts.

    Raises
    ------
    UserError
        If a file, folder or column is missing, or a column name is reserved in shards.
    """
    image_rows.check_format(config.reader)
    reserved = [name for name in (config.id_column, config.file_column, "object_id", "image") if name in config.targets]
    if reserved or len(set(config.targets)) < len(config.targets):
        raise UserError(f"targets: {', '.join(config.targets)}: give each target once, and no id, file or image column")
    located = located or image_rows.locate(config)
    table = _checked(config, located)
    columns = {name: table.column(name) for name in table.column_names}
    for name in ("ra", "dec"):
        spelled = next((column for column in columns if column.lower() == name), None)
        columns[name] = pa.array(catalogs.numbers(columns.pop(spelled))[0]) if spelled else pa.nulls(len(table), pa.float64())
    reasons = validation.validate_rows({"object_id": columns["object_id"]})
    if located.faults is not None:
        _add(reasons, located.faults != "", located.faults)
    for row in np.flatnonzero((reasons == "") & located.source.is_null().to_numpy()):
        name = table.column(config.file_column)[int(row)].as_py()
        text = "" if name is None else str(name)
        fault = f"is {text[:100]!r}: no file below {config.images}" if text.strip() else "is missing"
        reasons[row] = f"{config.file_column} {fault}"
    target_units = _convert_targets(config, table, columns, reasons)
    ids = columns["object_id"].combine_chunks()
    splits = _find_splits(config, table, ids, reasons)
    info = DatasetInfo(
        bands=config.reader.bands,
        cutout_size=config.cutout_size,
        pixel_scale_arcsec=_pixel_scale(config, located),
        zero_point_mag=config.reader.zero_point_mag,
        flux_unit=config.flux_unit,
        survey=config.survey,
        target_units=target_units,
        fingerprint=_fingerprint(
            config, located, ids.cast(pa.string()), pa.array(splits, pa.string()), *(columns[name] for name in target_units)
        ),
        source=to_dict(config),
    )
    texts = {_SPLIT: pa.array(splits, pa.string()), REASON: pa.array(reasons, pa.string())}
    return pa.table(columns | located.bookkeeping | texts), info


def pack(rows: pa.Table, part: int, *, output: str, reader: ReaderConfig, info: DatasetInfo) -> Counter[str]:
    """Read the files of some rows and write their shards and quarantine file, all numbered ``part``; repeatable.

    Parameters
    ----------
    rows
        Some rows of the plan.
    part
        Number of the files.
    output
        URI of the dataset.
    reader, info
        See `plan`.

    Returns
    -------
    Counter
        Rows by split (``"all"`` without targets) and in ``"quarantine"``.
    """
    columns, sources, reasons, _ = read_rows(rows, reader, info)
    ids = rows.column("object_id").to_pylist()
    counts: Counter[str] = Counter()
    splits = np.array(rows.column(_SPLIT).to_pylist(), dtype=object)
    for split in shards.SPLITS if info.targets else (shards.ALL,):
        chosen = np.flatnonzero((reasons == "") & (splits == split))
        uri = shards.part_uri(output, split, part)
        counts[split] = len(chosen)
        if len(chosen):
            taken = {
                name: values.take(chosen) if isinstance(values, pa.ChunkedArray) else values[chosen]
                for name, values in columns.items()
            }
            shards.write_shard(uri, taken, info)
        else:
            # An interrupted run may have left a shard of files that have since changed.
            storage.delete(uri)
    bad = np.flatnonzero(reasons != "")
    counts[shards.QUARANTINE] = len(bad)
    uri = shards.part_uri(output, shards.QUARANTINE, part)
    if len(bad):
        texts = ["" if ids[row] is None else str(ids[row]) for row in bad]
        shards.write_quarantine(uri, object_id=texts, source=[sources[row] for row in bad], reason=reasons[bad])
    else:
        storage.delete(uri)
    return counts


def read_rows(rows: pa.Table, reader: ReaderConfig, info: DatasetInfo) -> tuple[dict[str, Any], np.ndarray, np.ndarray, int]:
    """Read the files of some rows of the plan.

    Returns
    -------
    columns
        By name, one value per row: the catalogue's, ``ra``, ``dec``, ``image`` (N x C x H x W), ``pixels_filled``, ``padded``.
    sources
        File of each row.
    reasons
        Why each row cannot be used, empty text for a good row; the image of a bad row is zero.
    num_bytes
        Read from the files, as stored.
    """
    reasons = np.array(rows.column(REASON).to_pylist(), dtype=object)
    columns: dict[str, Any] = {name: rows.column(name) for name in rows.column_names if name not in _BOOKKEEPING}
    cutouts, num_bytes = _read_cutouts(rows, reasons, reader, info)
    return columns | cutouts, np.array(rows.column(_SOURCE).to_pylist(), dtype=object), reasons, num_bytes


@dataclasses.dataclass(frozen=True)
class PlannedRows:
    """Some rows of a plan: a view of it here, an Arrow stream on the way to another process."""

    table: pa.Table

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        return _received, (sink.getvalue().to_pybytes(),)


def _received(data: bytes) -> PlannedRows:
    with pa.ipc.open_stream(data) as reader:
        return PlannedRows(reader.read_all())


def _convert_targets(config: CutoutsConfig, table: pa.Table, columns: dict[str, Any], reasons: np.ndarray) -> dict[str, str]:
    # Converts target columns to numbers, adds the physical targets of GaMPEN's labels and the magnitude of a flux (NaN where
    # undefined), and returns the units of the targets by name.
    target_units = {}
    zero_point_mag = None if _MAGNITUDE in columns else config.reader.zero_point_mag
    for name in config.targets:
        if name not in columns:
            # The magnitude, which is derived below.
            continue
        label = Label.parse(name)
        if label.target != name and label.target in columns:
            raise UserError(f"targets: {name} encodes {label.target}, which is also a column; give only one of the two")
        values, faults = catalogs.numbers(columns[name])
        _add(reasons, faults != "", np.array([f"target {name} {fault}" for fault in faults], dtype=object))
        columns[label.target] = _physical(label, values, table)
        target_units[label.target] = _target_unit(config, table, label)
    if "flux" in target_units and zero_point_mag is not None:
        flux = np.asarray(columns["flux"])
        dark = ~(flux > 0)
        columns[_MAGNITUDE] = magnitude(np.where(dark, np.nan, flux), zero_point_mag)
        if _MAGNITUDE in config.targets:
            _add(reasons, dark, np.array([f"target flux is {value:g}: it has no magnitude" for value in flux], dtype=object))
            target_units[_MAGNITUDE] = "mag"
    return target_units


def _find_splits(config: CutoutsConfig, table: pa.Table, ids: pa.Array, reasons: np.ndarray) -> np.ndarray:
    # Assigns splits to usable rows, and reasons to rows that the tables of the requested split do not list.
    if config.split_slug:
        keys = {name: _texts(table.column(name)) for name in (config.file_column,) if name in table.column_names}
        splits, faults = listed_splits(config.images, config.split_slug, keys | {config.id_column: _texts(ids)})
        _add(reasons, faults != "", faults)
        return splits
    splits = np.full(len(table), shards.ALL, dtype=object)
    usable = np.flatnonzero(reasons == "")
    for start in range(0, len(usable) if config.targets else 0, _PIECE):
        some = usable[start : start + _PIECE]
        splits[some] = assign_splits(ids.take(some).to_numpy(zero_copy_only=False), config.split)
    return splits


def _checked(config: CutoutsConfig, located: image_rows.Located) -> pa.Table:
    # The catalogue with its identifiers as object_id, the first column.
    table, uri = located.table, located.catalog or config.images
    # The magnitude is derived from the flux.
    has_flux = "flux" in (Label.parse(name).target for name in config.targets)
    derived = _MAGNITUDE if has_flux and config.reader.zero_point_mag is not None else None
    wanted = {name: "targets" for name in config.targets if name != derived}
    id_column = config.id_column if config.id_column in table.column_names else "object_id"
    catalogs.require_columns(uri, table, {id_column: "id_column"} | wanted)
    for name in table.column_names:
        clash = name == "object_id" and id_column != "object_id"
        if clash or name in ("image", "split") or name.startswith("gampen_ray:"):
            raise UserError(f"catalog {uri}: column {name!r} is reserved in shards; rename it in the catalogue")
    ids = catalogs.to_ids(table.column(id_column))
    others = [name for name in table.column_names if name != id_column]
    fields = [pa.field("object_id", ids.type), *(table.schema.field(name) for name in others)]
    return pa.table([ids, *(table.column(name) for name in others)], schema=pa.schema(fields))


def _pixel_scale(config: CutoutsConfig, located: image_rows.Located) -> float | None:
    stated, found = config.reader.pixel_scale_arcsec, located.pixel_scale_arcsec
    if stated and found and abs(stated / found - 1) > 0.01:
        raise UserError(
            f"reader.pixel_scale_arcsec: {stated:g}, but {config.images} says {found:g}; give that, or leave it out to take it"
        )
    return stated or found


def _fingerprint(config: CutoutsConfig, located: image_rows.Located, *columns: Any) -> str:
    # Paths and the verb's own fields do not change the data; other pixels under the same name do.
    content = fields(CutoutsConfig).keys() - {"images", "catalog"}
    settings = {key: value for key, value in to_dict(config).items() if key in content}
    files = located.source if located.files is None else located.files.combine_chunks().flatten()
    place = [] if located.index is None else [located.index.combine_chunks()]
    return content_fingerprint(settings, _stamped(config, files), *place, *columns)


def _stamped(config: CutoutsConfig, source: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    # The files' names below the folder with what changes with their content. In pieces: texts in Python take much memory.
    pieces = []
    with Progress("files", None, "files") as progress:
        for start in range(0, len(source), _PIECE):
            uris = source.slice(start, _PIECE).to_pylist()
            stamps = storage.stamps({uri for uri in uris if uri})
            pieces.append(pa.array([f"{uri.removeprefix(config.images)} {stamps[uri]}" if uri else "" for uri in uris]))
            progress.advance(len(uris))
    return pa.chunked_array(pieces, pa.string())


def _texts(values: pa.Array | pa.ChunkedArray) -> list[str]:
    # Nulls become empty texts.
    return [text.strip() for text in values.cast(pa.string()).fill_null("").to_pylist()]


def _read_cutouts(
    rows: pa.Table, reasons: np.ndarray, reader: ReaderConfig, info: DatasetInfo
) -> tuple[dict[str, np.ndarray], int]:
    # Reads the files of usable rows, adds reasons, and returns the columns from the files and the number of bytes read.
    ra, dec = (np.array(rows.column(name).to_numpy(), dtype=np.float64) for name in ("ra", "dec"))
    image_NCHW = np.zeros((len(rows), *info.image_shape), dtype=np.float32)
    filled, padded = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    planned, num_bytes = np.flatnonzero(reasons == ""), 0
    numbers: dict[str, np.ndarray] = {}
    with image_reading.Images(rows, reader) as images:
        for start in range(0, len(planned), _READ_AHEAD):
            ahead = planned[start : start + _READ_AHEAD]
            for row, (found, size) in zip(ahead, images.read(ahead), strict=True):
                num_bytes += size
                try:
                    cutout = images.cutout(found)
                    image_NCHW[row] = fit_to_size(cutout.image_CHW, info.cutout_size, reader.nan_policy)
                except CutoutError as error:
                    reasons[row] = str(error)
                else:
                    inside_CHW = central(cutout.image_CHW, info.cutout_size)
                    filled[row] = not np.isfinite(inside_CHW).all()
                    padded[row] = min(inside_CHW.shape[1:]) < info.cutout_size
                    if not np.isfinite(ra[row] + dec[row]):
                        ra[row], dec[row] = cutout.ra, cutout.dec
                    for name, value in cutout.numbers.items():
                        if name not in numbers:
                            numbers[name] = np.array(rows.column(name).to_numpy(), dtype=np.float64)
                        numbers[name][row] = value
    return numbers | {"ra": ra, "dec": dec, "image": image_NCHW, "pixels_filled": filled, "padded": padded}, num_bytes


def _target_unit(config: CutoutsConfig, table: pa.Table, label: Label) -> str:
    # The unit of a transformed column is not that of its physical target.
    if label.transform == "identity" and (unit := catalogs.column_unit(table, label.column)):
        return unit
    if label.target == "flux":
        return config.flux_unit or label.unit
    return "arcsec" if label.target.endswith("_arcsec") else ""


def _physical(label: Label, values: np.ndarray, table: pa.Table) -> np.ndarray:
    y = label.physical(values)
    if label.transform == "logit" and label.quantity in table.column_names:
        # The logit was taken of other values in place of 0 and 1.
        quantity, _ = catalogs.numbers(table.column(label.quantity))
        return np.where((quantity == 0) | (quantity == 1), quantity, y)
    return y


def _add(reasons: np.ndarray, faults: np.ndarray, texts: np.ndarray) -> None:
    # Keeps the first reason of a row.
    new = faults & (reasons == "")
    reasons[new] = texts[new]

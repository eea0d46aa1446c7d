"""From a folder of cutouts and a catalogue to the plan of an ingest: what becomes of each row, and what all have in common.

Every row of the catalogue ends up exactly once, in a shard or in quarantine; `gampen_ray.data.packing` reads the images.
"""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.base import fields, to_dict
from gampen_ray.data import catalogs, image_rows, positions, shards, validation
from gampen_ray.data.agreement import check_flux_unit, settle
from gampen_ray.data.cutouts import Cutout, CutoutError, side_at_scale
from gampen_ray.data.image_reading import Images, raised
from gampen_ray.data.located import Located
from gampen_ray.data.packing import REASON, SPLIT
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.split_tables import listed_splits
from gampen_ray.data.splits import assign_splits
from gampen_ray.data.target_columns import add_reasons, convert_targets, wanted_columns
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.provenance import content_fingerprint

__all__ = ["content_settings", "plan"]

logger = logging.getLogger(__name__)

_PIECE = 1 << 18
"""Rows whose texts are in Python at once."""
_SAMPLE = 32
"""Images that are looked at before the work, evenly spaced."""


def plan(
    config: CutoutsConfig,
    *,
    located: Located | None = None,
    origin: str = "given",
    scale_arcsec: float | None = None,
) -> tuple[pa.Table, DatasetInfo]:
    """Assign every row an identifier, an image and a split, or the reason why it cannot be used.

    A few images are looked at, for what the config leaves out and for contradictions to it.

    Parameters
    ----------
    config
        With absolute URIs.
    located
        Galaxies with their images, such as a part of all; None: all (`gampen_ray.data.image_rows.locate`).
    origin
        Where the config's bands come from; see `gampen_ray.data.agreement.settle`.
    scale_arcsec
        Pixel scale to which ``cutout_size`` refers, where it is not that of the files.

    Returns
    -------
    pa.Table
        Rows for `gampen_ray.data.packing.pack`, in the catalogue's order, or sorted by file name without one.
    DatasetInfo
        Metadata of the dataset, without row counts.

    Raises
    ------
    UserError
        If a file, folder or column is missing, or a column name is reserved in shards; if the images contradict the config or
        the catalogue.
    """
    image_rows.check_format(config.reader)
    reserved = [name for name in (config.id_column, config.file_column, "object_id", "image") if name in config.targets]
    if reserved or len(set(config.targets)) < len(config.targets):
        raise UserError(f"targets: {', '.join(config.targets)}: give each target once, and no id, file or image column")
    located = located or image_rows.locate(config)
    table = _checked(config, located)
    sky = _sky(config, table)
    columns: dict[str, Any] = {name: table.column(name) for name in table.column_names if name.lower() not in ("ra", "dec")}
    columns |= {"ra": pa.array(sky.ra_N), "dec": pa.array(sky.dec_N)}
    reasons = _reasons(config, located, table, sky)
    sample, failed = _sample(located, reasons, config.reader)
    sources = dict(zip(sample, located.source.take(pa.array(list(sample), pa.int64())).to_pylist(), strict=True))
    reader = settle(config.reader, {sources[row]: cutout for row, cutout in sample.items()}, origin=origin)
    # Refuses those of other bands.
    reader.nan_policies(reader.bands)
    _check_positions(config, sky, sample, sources)
    for name in sorted({name for cutout in sample.values() for name in cutout.numbers} - columns.keys()):
        # Known only when the images are read.
        columns[name] = pa.array(np.full(len(table), np.nan))
    target_units = convert_targets(config, table, columns, reasons, reader.zero_point_mag)
    ids = columns["object_id"].combine_chunks()
    splits = _find_splits(config, table, ids, reasons)
    size = _size(
        config.cutout_size,
        reader.pixel_scale_arcsec,
        scale_arcsec,
        list(sample.values()),
        failed or next(filter(None, reasons), ""),
    )
    info = DatasetInfo(
        bands=reader.bands,
        cutout_size=size,
        pixel_scale_arcsec=reader.pixel_scale_arcsec,
        zero_point_mag=reader.zero_point_mag,
        flux_unit=config.flux_unit,
        survey=config.survey,
        target_units=target_units,
        fingerprint=_fingerprint(config, located, ids.cast(pa.string()), pa.array(splits, pa.string()), *columns.values()),
        source=to_dict(config),
        noise_planes=reader.noise_planes,
    )
    check_flux_unit(config.flux_unit, info)
    texts = {SPLIT: pa.array(splits, pa.string()), REASON: pa.array(reasons, pa.string())}
    planned = pa.table(columns | located.bookkeeping | texts)
    # With the units and descriptions of the catalogue, of what is as it is there.
    same = {*table.column_names} - {"ra", "dec", *config.targets}
    fields = [f.with_metadata(table.schema.field(f.name).metadata) if f.name in same else f for f in planned.schema]
    return pa.Table.from_arrays(planned.columns, schema=pa.schema(fields)), info


def _sky(config: CutoutsConfig, table: pa.Table) -> positions.Positions:
    sky = positions.sky_positions(table, ra_column=config.ra_column, dec_column=config.dec_column, unit=config.position_unit)
    for line in sky.remarks:
        logger.info(line)
    return sky


def _reasons(config: CutoutsConfig, located: Located, table: pa.Table, sky: positions.Positions) -> np.ndarray:
    # Why each row cannot be used, before any target or image is looked at.
    reasons = validation.validate_rows({"object_id": table.column("object_id")})
    if located.faults is not None:
        add_reasons(reasons, located.faults != "", located.faults)
    for row in np.flatnonzero((reasons == "") & located.source.is_null().to_numpy()):
        name = table.column(config.file_column)[int(row)].as_py()
        text = "" if name is None else str(name)
        fault = f"is {text[:100]!r}: no file below {config.images}" if text.strip() else "is missing"
        reasons[row] = f"{config.file_column} {fault}"
    add_reasons(reasons, sky.reason_N != "", sky.reason_N)
    if located.index is None:
        _refuse_shared(located.source, reasons)
    return reasons


def _refuse_shared(source: pa.ChunkedArray, reasons: np.ndarray) -> None:
    # One image cannot show several galaxies at its centre. Hashes take less time and memory than names.
    usable = np.flatnonzero(reasons == "")
    pieces = (source.slice(start, _PIECE).to_pylist() for start in range(0, len(source), _PIECE))
    hashes = np.fromiter((hash(uri) for piece in pieces for uri in piece), np.int64, len(source))[usable]
    values, counts = np.unique(hashes, return_counts=True)
    rows = usable[np.isin(hashes, values[counts > 1])]
    uris = source.take(pa.array(rows)).to_pylist()
    times = Counter(uris)
    for row, uri in zip(rows, uris, strict=True):
        if times[uri] > 1:
            reasons[row] = f"several rows have the same file: {times[uri]:,} have this one; cut a cutout for each galaxy"


def _find_splits(config: CutoutsConfig, table: pa.Table, ids: pa.Array, reasons: np.ndarray) -> np.ndarray:
    # Assigns splits to usable rows, and reasons to rows that the tables of the requested split do not list.
    if config.split_slug:
        keys = {name: _texts(table.column(name)) for name in (config.file_column,) if name in table.column_names}
        splits, faults = listed_splits(config.images, config.split_slug, keys | {config.id_column: _texts(ids)})
        add_reasons(reasons, faults != "", faults)
        return splits
    splits = np.full(len(table), shards.ALL, dtype=object)
    usable = np.flatnonzero(reasons == "")
    for start in range(0, len(usable) if config.targets else 0, _PIECE):
        some = usable[start : start + _PIECE]
        splits[some] = assign_splits(ids.take(some).to_numpy(zero_copy_only=False), config.split)
    return splits


def _checked(config: CutoutsConfig, located: Located) -> pa.Table:
    # The catalogue with its identifiers as object_id, the first column.
    table, uri = located.table, located.catalog or config.images
    id_column = config.id_column if config.id_column in table.column_names else "object_id"
    wanted = dict.fromkeys(wanted_columns(config.targets), "targets")
    catalogs.require_columns(uri, table, {id_column: "id_column"} | wanted)
    for name in table.column_names:
        clash = name == "object_id" and id_column != "object_id"
        if clash or name in ("image", "split", shards.NOISE) or name.startswith("gampen_ray:"):
            raise UserError(f"catalog {uri}: column {name!r} is reserved in shards; rename it in the catalogue")
    ids = catalogs.to_ids(table.column(id_column))
    others = [name for name in table.column_names if name != id_column]
    fields = [pa.field("object_id", ids.type), *(table.schema.field(name) for name in others)]
    return pa.table([ids, *(table.column(name) for name in others)], schema=pa.schema(fields))


def _sample(located: Located, reasons: np.ndarray, reader: ReaderConfig) -> tuple[dict[int, Cutout], str]:
    # Some usable rows with their images, of whose pixels only the shape is kept; why one of the others cannot be read.
    usable = np.flatnonzero(reasons == "")
    if located.index is None:
        places = np.unique(np.linspace(0, len(usable) - 1, min(_SAMPLE, len(usable))).round().astype(int))
    else:
        # Files of many are read from their start.
        places = np.arange(min(_SAMPLE, len(usable)))
    rows = usable[places].tolist()
    sample, failed = {}, ""
    with Images(pa.table(located.take(pa.array(rows, pa.int64())).bookkeeping), reader) as images:
        for row, (found, _) in zip(rows, images.read(range(len(rows))), strict=True):
            try:
                cutout = raised(found)
            except CutoutError as error:
                failed = failed or f"{located.source[row].as_py()}: {error}"
                continue
            pixels_CHW = np.broadcast_to(np.float32(0), cutout.image_CHW.shape)
            sample[row] = dataclasses.replace(cutout, image_CHW=pixels_CHW, sigma_CHW=None)
    return sample, failed


def _size(asked: int, own_scale: float | None, scale: float | None, cutouts: list[Cutout], failed: str) -> int:
    # The side of the cutouts; asked for at another pixel scale, they cover the same part of the sky.
    if asked:
        return side_at_scale(asked, scale, own_scale)
    if not cutouts:
        raise UserError(f"images: none of the files looked at can be read; {failed}")
    shorter = sorted(min(cutout.image_CHW.shape[1:]) for cutout in cutouts)
    longest = max(max(cutout.image_CHW.shape[1:]) for cutout in cutouts)
    size = shorter[len(shorter) // 2]
    if (shorter[0], longest) != (size, size):
        logger.info(
            "cutout_size: %s pixels, the median of the files' shorter sides, which have %s to %s; the longest side has %s",
            *(size, shorter[0], shorter[-1], longest),
        )
    return size


def _check_positions(
    config: CutoutsConfig, sky: positions.Positions, sample: Mapping[int, Cutout], sources: Mapping[int, str]
) -> None:
    # Refuses a catalogue whose positions are not those of its images.
    def offsets(factor: float = 1.0) -> dict[int, float]:
        known = {
            row: positions.offset_arcsec(float(sky.ra_N[row]) * factor, float(sky.dec_N[row]), cutout)
            for row, cutout in sample.items()
        }
        return {row: offset for row, offset in known.items() if math.isfinite(offset)}

    def wrong(found: dict[int, float]) -> list[int]:
        return sorted(
            (row for row, offset in found.items() if positions.misplaced(offset, sample[row])), key=lambda row: found[row]
        )

    found = offsets()
    bad = wrong(found)
    if len(bad) <= config.max_misplaced * len(found):
        return
    row = bad[len(bad) // 2]
    remedy = "check file_column and the positions"
    if np.nanmax(sky.ra_N) <= 24 and not wrong(offsets(15.0)):
        remedy = "as hours the right ascensions fit: give position_unit 'hour'"
    raise UserError(
        f"catalog: {len(bad)} of {len(found)} images looked at show another position than their rows, in the median by "
        f"{found[row]:.4g} arcsec ({sources[row]}: {sample[row].ra:.6f} {sample[row].dec:.6f}, not {sky.ra_N[row]:.6f} "
        f"{sky.dec_N[row]:.6f}); {remedy}, or raise max_misplaced"
    )


def content_settings(config: CutoutsConfig) -> dict[str, Any]:
    """Return the settings that change the data: paths and the verb's own fields do not."""
    content = fields(CutoutsConfig).keys() - {"images", "catalog"}
    settings = {key: value for key, value in to_dict(config).items() if key in content}
    if not config.reader.noise_planes:
        # Datasets without noise planes keep the fingerprints of earlier versions.
        del settings["reader"]["noise_planes"]
    return settings


def _fingerprint(config: CutoutsConfig, located: Located, *columns: Any) -> str:
    # Other pixels under the same name change the data.
    files = located.source if located.files is None else located.files.combine_chunks().flatten()
    place = [] if located.index is None else [located.index.combine_chunks()]
    return content_fingerprint(content_settings(config), _stamped(config, files), *place, *columns)


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

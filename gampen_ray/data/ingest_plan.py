"""From a folder of cutouts and a catalogue to cutout shards: the plan for all rows, and the work on one part of them.

Every row of the catalogue ends up exactly once, in a shard or in quarantine.
"""

import dataclasses
import fnmatch
import logging
import math
import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.base import fields, to_dict
from gampen_ray.data import catalogs, gampen_folder, kinds, positions, readers, shards, validation
from gampen_ray.data.agreement import agreed, settle
from gampen_ray.data.cutouts import MAX_FILE_BYTES, Cutout, CutoutError, central, fit_to_size, sentinels, stem, without_blanks
from gampen_ray.data.gampen_labels import Label, magnitude
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.split_tables import listed_splits
from gampen_ray.data.splits import assign_splits
from gampen_ray.errors import UserError
from gampen_ray.provenance import content_fingerprint

__all__ = [
    "NoFilesError",
    "Packed",
    "Rows",
    "file_content",
    "from_bytes",
    "matching_files",
    "pack",
    "plan",
    "raised",
    "read_rows",
    "to_bytes",
]

logger = logging.getLogger(__name__)

# Bookkeeping columns of the plan, beside those of the catalogue.
_SOURCE, _SPLIT, _REASON = "gampen_ray:source", "gampen_ray:split", "gampen_ray:reason"
_MAGNITUDE = "magnitude"
_MAX_NAME_BYTES = 255
_READ_AHEAD = 32
_READ_THREADS = 8
# Files that are looked at before the work, evenly spaced.
_SAMPLE = 32


class NoFilesError(UserError):
    """The folder does not exist or holds no matching file."""


class Rows(NamedTuple):
    """Rows of the plan with what their files hold.

    Parameters
    ----------
    columns
        By name, one value per row: the catalogue's, ``ra``, ``dec``, ``image`` (N x C x H x W), ``pixels_filled``,
        ``side_pixels`` (shorter side of the file's image inside the cutout: less than the cutout's where that is zero-padded).
    sources
        File of each row.
    reasons
        Why each row cannot be used, empty text for a good row; the image of a bad row is zero.
    remarks
        Numbers of rows by what was done to them or seen in them: ``cropped`` (pixels of the file lie outside the cutout),
        ``padded``, ``misplaced`` (see `gampen_ray.data.positions.misplaced`).
    num_bytes
        Read from the files, as stored.
    """

    columns: dict[str, Any]
    sources: np.ndarray
    reasons: np.ndarray
    remarks: Counter[str]
    num_bytes: int


class Packed(NamedTuple):
    """Numbers of rows that were packed, by split (``"all"`` without targets) and in ``"quarantine"``; remarks as in `Rows`."""

    counts: Counter[str]
    remarks: Counter[str]


def plan(config: CutoutsConfig, *, origin: str = "given", scale_arcsec: float | None = None) -> tuple[pa.Table, DatasetInfo]:
    """Assign every row an identifier, a file and a split, or the reason why it cannot be used.

    A few files are looked at, for what the config leaves out and for contradictions to it.

    Parameters
    ----------
    config
        With absolute URIs.
    origin
        Where the config's bands come from; see `gampen_ray.data.agreement.settle`.
    scale_arcsec
        Pixel scale to which ``cutout_size`` refers, where it is not that of the files.

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
    readers.chosen_readers(config.reader)
    reserved = [name for name in (config.id_column, config.file_column, "object_id", "image") if name in config.targets]
    if reserved or len(set(config.targets)) < len(config.targets):
        raise UserError(f"targets: {', '.join(config.targets)}: give each target once, and no id, file or image column")
    table, sources, catalog_uri = _rows(config)
    columns = {name: table.column(name) for name in table.column_names}
    sky = positions.sky_positions(
        table, **{name: getattr(config, name) for name in ("ra_column", "dec_column")}, unit=config.position_unit
    )
    for line in sky.remarks:
        logger.info(line)
    columns = {name: column for name, column in columns.items() if name.lower() not in ("ra", "dec")}
    columns |= {"ra": pa.array(sky.ra_N), "dec": pa.array(sky.dec_N)}
    reasons = validation.validate_rows({"object_id": columns["object_id"]})
    for row in np.flatnonzero((reasons == "") & (sources == "")):
        name = table.column(config.file_column)[int(row)].as_py()
        fault = f"is {name[:100]!r}: no file below {config.images}" if name and name.strip() else "is missing"
        reasons[row] = f"{config.file_column} {fault}"
    _add(reasons, sky.reason_N != "", sky.reason_N)
    _refuse_shared(sources, reasons)
    target_units = _convert_targets(config, table, columns, reasons)
    ids = columns["object_id"].combine_chunks()
    splits = _find_splits(config, table, ids, reasons)
    sample = _sample(sources, reasons, config.reader)
    reader = settle(config.reader, {sources[row]: cutout for row, cutout in sample.items()}, origin=origin)
    _check_positions(config, sky, sample, sources)
    info = DatasetInfo(
        bands=reader.bands,
        cutout_size=_size(config.cutout_size, reader.pixel_scale_arcsec, scale_arcsec, list(sample.values())),
        pixel_scale_arcsec=reader.pixel_scale_arcsec,
        zero_point_mag=reader.zero_point_mag,
        flux_unit=config.flux_unit,
        survey=config.survey,
        target_units=target_units,
        fingerprint=_fingerprint(config, sources, _texts(ids), splits, *(columns[name] for name in target_units)),
        source=to_dict(config),
    )
    bookkeeping = {_SOURCE: np.where(sources == "", catalog_uri, sources), _SPLIT: splits, _REASON: reasons}
    return pa.table(columns | {key: pa.array(value, pa.string()) for key, value in bookkeeping.items()}), info


def pack(rows: pa.Table, part: int, *, output: str, reader: ReaderConfig, info: DatasetInfo) -> Packed:
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
    """
    columns, sources, reasons, remarks, _ = read_rows(rows, reader, info)
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
    return Packed(counts, remarks)


def read_rows(rows: pa.Table, reader: ReaderConfig, info: DatasetInfo) -> Rows:
    """Read the files of some rows of the plan, with the config's reader and the plan's metadata."""
    reasons = np.array(rows.column(_REASON).to_pylist(), dtype=object)
    columns: dict[str, Any] = {name: rows.column(name) for name in rows.column_names if name not in (_SOURCE, _SPLIT, _REASON)}
    cutouts, remarks, num_bytes = _read_cutouts(rows, reasons, reader, info)
    return Rows(columns | cutouts, np.array(rows.column(_SOURCE).to_pylist(), dtype=object), reasons, remarks, num_bytes)


def to_bytes(rows: pa.Table) -> bytes:
    """Serialise rows of the plan as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    """Deserialise rows from `to_bytes`."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


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
        columns[label.target] = y = _physical(label, values, table)
        _add_domain(reasons, name, values, label.target, y)
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
    if config.targets:
        splits[usable] = assign_splits(ids.take(usable).to_numpy(zero_copy_only=False), config.split)
    return splits


def _fingerprint(config: CutoutsConfig, sources: np.ndarray, *columns: np.ndarray | list[str]) -> str:
    # Paths and the verb's own fields do not change the data; other pixels under the same name do.
    content = fields(CutoutsConfig).keys() - {"images", "catalog"}
    settings = {key: value for key, value in to_dict(config).items() if key in content}
    stamps = storage.stamps({source for source in sources if source})
    files = [f"{source.removeprefix(config.images)} {stamps[source]}" if source else "" for source in sources]
    return content_fingerprint(settings, files, *columns)


def _texts(values: pa.Array | pa.ChunkedArray) -> list[str]:
    # Nulls become empty texts.
    return [text.strip() for text in values.cast(pa.string()).fill_null("").to_pylist()]


def _read_cutouts(
    rows: pa.Table, reasons: np.ndarray, reader: ReaderConfig, info: DatasetInfo
) -> tuple[dict[str, np.ndarray], Counter[str], int]:
    # Reads the files of usable rows, adds reasons, and returns the columns from the files, remarks and the bytes read.
    ra, dec = (np.array(rows.column(name).to_numpy(), dtype=np.float64) for name in ("ra", "dec"))
    size, remarks = info.cutout_size, Counter[str]()
    image_NCHW = np.zeros((len(rows), *info.image_shape), dtype=np.float32)
    filled, sides = np.zeros(len(rows), dtype=bool), np.full(len(rows), size, dtype=np.int32)
    planned, sources, num_bytes = np.flatnonzero(reasons == ""), rows.column(_SOURCE).to_pylist(), 0
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for start in range(0, len(planned), _READ_AHEAD):
            ahead = planned[start : start + _READ_AHEAD]
            for row, content in zip(ahead, pool.map(file_content, [sources[row] for row in ahead]), strict=True):
                num_bytes += len(content) if isinstance(content, bytes) else 0
                try:
                    cutout = readers.read_cutout(raised(content), sources[row], reader)
                    inside_CHW = without_blanks(central(agreed(cutout, reader, info), size))
                    image_NCHW[row] = fit_to_size(inside_CHW, size, reader.nan_policy, info.bands)
                except CutoutError as error:
                    reasons[row] = str(error)
                    continue
                filled[row] = not np.isfinite(inside_CHW).all()
                sides[row] = min(inside_CHW.shape[1:])
                remarks["padded"] += int(sides[row] < size)
                remarks["cropped"] += int(max(cutout.image_CHW.shape[1:]) > size)
                remarks["misplaced"] += int(
                    positions.misplaced(positions.offset_arcsec(float(ra[row]), float(dec[row]), cutout), cutout)
                )
                if not np.isfinite(ra[row] + dec[row]):
                    ra[row], dec[row] = cutout.ra, cutout.dec
    columns = {"ra": ra, "dec": dec, "image": image_NCHW, "pixels_filled": filled, "side_pixels": sides}
    return columns, remarks, num_bytes


def _sample(sources: np.ndarray, reasons: np.ndarray, reader: ReaderConfig) -> dict[int, Cutout]:
    # Some usable rows with their files, of whose pixels only the shape is kept; files that cannot be read are left out.
    def look(row: int) -> Cutout | None:
        try:
            cutout = readers.read_cutout(raised(file_content(sources[row])), sources[row], reader)
        except CutoutError:
            return None
        return dataclasses.replace(cutout, image_CHW=np.broadcast_to(np.float32(0), cutout.image_CHW.shape))

    usable = np.flatnonzero((reasons == "") & (sources != ""))
    rows = usable[np.unique(np.linspace(0, len(usable) - 1, min(_SAMPLE, len(usable))).round().astype(int))]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = list(pool.map(look, rows.tolist()))
    return {row: cutout for row, cutout in zip(rows.tolist(), found, strict=True) if cutout}


def _size(asked: int, own_scale: float | None, scale: float | None, cutouts: list[Cutout]) -> int:
    # The side of the cutouts; asked for at another pixel scale, they cover the same part of the sky.
    if asked:
        return math.ceil(asked * scale / own_scale - 1e-6) if own_scale and scale else asked
    if not cutouts:
        raise UserError("cutout_size: none of the files looked at can be read; give the side of the cutouts, pixels")
    shorter = sorted(min(cutout.image_CHW.shape[1:]) for cutout in cutouts)
    longest = max(max(cutout.image_CHW.shape[1:]) for cutout in cutouts)
    size = shorter[len(shorter) // 2]
    if (shorter[0], longest) != (size, size):
        logger.info(
            "cutout_size: %s pixels, the median of the files' shorter sides, which have %s to %s; the longest side has %s",
            *(size, shorter[0], shorter[-1], longest),
        )
    return size


def _refuse_shared(sources: np.ndarray, reasons: np.ndarray) -> None:
    # One image cannot show several galaxies at its centre.
    named = Counter(source for source, reason in zip(sources, reasons, strict=True) if source and not reason)
    for row in np.flatnonzero((sources != "") & (reasons == "")):
        if (count := named[sources[row]]) > 1:
            reasons[row] = f"several rows have the same file: {count:,} have this one; cut a cutout for each galaxy"


def _check_positions(
    config: CutoutsConfig, sky: positions.Positions, sample: Mapping[int, Cutout], sources: np.ndarray
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


def _rows(config: CutoutsConfig) -> tuple[pa.Table, np.ndarray, str]:
    # Returns the catalogue with object_id, the file of each row ("" if none below the folder), and the catalogue's URI.
    gampen = not config.catalog and gampen_folder.is_gampen_folder(config.images)
    if not config.catalog and not gampen:
        if config.targets:
            raise UserError(f"targets: {', '.join(config.targets)}: there is no catalogue to read them from; set catalog")
        uris = matching_files(config.images, config.pattern)
        table = pa.table({"object_id": pa.array([stem(uri) for uri in uris], pa.string())})
        return table, np.array(uris, dtype=object), ""
    uri = config.catalog or storage.join(config.images, gampen_folder.INFO_CSV)
    folder = storage.join(config.images, gampen_folder.CUTOUTS) if gampen else config.images
    if not storage.exists(folder):
        raise UserError(f"images: no folder {folder}")
    table = catalogs.read_catalog(uri, (config.id_column, config.file_column))
    # GaMPEN catalogues have no identifier; the file's stem replaces it.
    by_stem = gampen and config.id_column == "object_id" and "object_id" not in table.column_names
    wanted = {config.file_column: "file_column"} | ({} if by_stem else {config.id_column: "id_column"})
    # The magnitude is derived from the flux.
    has_flux = "flux" in (Label.parse(name).target for name in config.targets)
    derived = _MAGNITUDE if has_flux and config.reader.zero_point_mag is not None else None
    wanted |= {name: "targets" for name in config.targets if name != derived}
    catalogs.require_columns(uri, table, wanted)
    files = _texts(table.column(config.file_column))
    sources = np.array([_file_uri(folder, file) for file in files], dtype=object)
    _refuse_rounded_ids(config, uri, table)
    ids = pa.array([stem(file) or None for file in files]) if by_stem else catalogs.to_ids(table.column(config.id_column))
    for name in table.column_names:
        clash = name == "object_id" and config.id_column != "object_id"
        if clash or name in ("image", "split") or name.startswith("gampen_ray:"):
            raise UserError(f"catalog {uri}: column {name!r} is reserved in shards; rename it in the catalogue")
    others = [name for name in table.column_names if name != config.id_column]
    fields = [pa.field("object_id", ids.type), *(table.schema.field(name) for name in others)]
    return pa.table([ids, *(table.column(name) for name in others)], schema=pa.schema(fields)), sources, uri


def _refuse_rounded_ids(config: CutoutsConfig, uri: str, table: pa.Table) -> None:
    # A spreadsheet shows long integers in this notation, and stores it.
    if config.id_column in table.column_names:
        rounded = [text for text in _texts(table.column(config.id_column)) if re.fullmatch(r"\d(\.\d+)?[eE]\+\d\d", text)]
        if rounded:
            raise UserError(
                f"id_column: catalog {uri} has {len(rounded):,} identifiers such as {rounded[0]}: a spreadsheet has rounded "
                "long integers; export the column as text from the original"
            )


def _file_uri(folder: str, name: str) -> str:
    # Empty if the name is missing, not a valid file name, or leads out of the folder.
    parts = name.split("/")
    if not name or "\0" in name or max(len(part.encode()) for part in parts) > _MAX_NAME_BYTES:
        return ""
    uri = name if name.startswith(("/", "s3://")) else storage.join(folder, name)
    if not {".", ".."}.isdisjoint(parts):
        scheme = "" if storage.is_local(folder) else "s3://"
        uri = scheme + posixpath.normpath(uri.removeprefix(scheme))
    return uri if uri.startswith(storage.join(folder, "")) else ""


def matching_files(images: str, pattern: str) -> list[str]:
    """Return the absolute URIs of the files below a folder that match a pattern, sorted; a `NoFilesError` if there are none."""
    if not storage.exists(images):
        raise NoFilesError(f"images: no folder {images}")
    root = storage.absolute(images)
    uris = storage.list_files(images)
    # A pattern without "/" matches the file name alone, as in find.
    names = [uri.removeprefix(root).strip("/") if "/" in pattern else uri.rpartition("/")[2] for uri in uris]
    matching = [uri for uri, name in zip(uris, names, strict=True) if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        raise NoFilesError(f"images: none of the {len(uris):,} files below {images} matches the pattern {pattern!r}")
    galaxies, siblings = kinds.without_siblings([stem(uri) for uri in matching])
    if siblings:
        names = ", ".join(matching[row].rpartition("/")[2] for row in siblings[:3])
        logger.warning(
            "%s of %s files are left out, as masks, weights, PSFs or the like of others by their names, such as %s; another "
            "pattern takes them",
            *(f"{len(siblings):,}", f"{len(matching):,}", names),
        )
    return [matching[row] for row in galaxies]


def _target_unit(config: CutoutsConfig, table: pa.Table, label: Label) -> str:
    # The unit of a transformed column is not that of its physical target.
    if label.transform == "identity" and (unit := catalogs.column_unit(table, label.column)):
        return unit
    if label.target == "flux":
        return config.flux_unit or label.unit
    return "arcsec" if label.target.endswith("_arcsec") else ""


def _add_domain(reasons: np.ndarray, name: str, values: np.ndarray, target: str, physical: np.ndarray) -> None:
    # Adds a reason where a column's value stands for none, or its physical target cannot be.
    low, high = _domain(target)
    blank = sentinels(values)
    domain = "positive" if high == math.inf else f"within {low:g} to {high:g}"
    for row in np.flatnonzero((reasons == "") & (blank | (physical < low) | (physical > high))):
        fault = f"{target} is {physical[row]:g}: not {domain}"
        reasons[row] = "target " + (f"{name} is {values[row]:g}, which stands for no value" if blank[row] else fault)


def _domain(target: str) -> tuple[float, float]:
    # The values that a target can have, by its name; others are unlimited.
    if target.endswith(("_to_total", "axis_ratio")):
        return 0.0, 1.0
    if target.endswith("_arcsec"):
        return float(np.finfo(np.float64).tiny), math.inf
    return (-50.0, 50.0) if target.endswith("magnitude") else (-math.inf, math.inf)


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

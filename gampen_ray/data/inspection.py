"""What a folder or file holds, what of it cannot be used, and the config of an ingest that fits; some images are read."""

import contextlib
import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.base import replace
from gampen_ray.data import catalogs, containers, file_names, image_reading, image_rows, ingest_plan, packing, shards
from gampen_ray.data.container_rows import container_files
from gampen_ray.data.cutouts import CutoutError, stem
from gampen_ray.data.gampen_folder import is_gampen_folder
from gampen_ray.data.kinds import without_siblings
from gampen_ray.data.located import Located
from gampen_ray.data.name_templates import band_template, id_template
from gampen_ray.data.quarantine import reason_examples
from gampen_ray.data.reader_process import list_hdus
from gampen_ray.data.readers.fits_listing import FitsListing
from gampen_ray.errors import UserError

__all__ = ["Inspection", "inspect_images"]

_MOST_PLANNED, _MOST_MEBIBYTES = 100_000, 1024
_MOST_ODD, _MOST_HDUS = 5, 16
_ODD_TABLE = re.compile(r"\.(fits?|parquet)(\.gz)?$", re.IGNORECASE)
_TABLES = (".csv", ".ecsv", ".vot", ".votable", ".csv.gz")
_IDS = ("object_id", "objid", "objectid", "source_id", "sourceid", "id", "name", "galaxy", "#id")
_FILE = re.compile(r"\.(fits?|npy)(\.(gz|fz|bz2))?$", re.IGNORECASE)
_CARDS = ("BUNIT", "MAGZERO", "MAGZPT", "FLUXMAG0", "PHOTFLAM", "PHOTPLAM", "PIXAR_SR", "FILTER", "BAND", "EXPTIME", "GAIN")


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found.

    Parameters
    ----------
    facts
        Descriptions by label, in order.
    reasons
        Numbers of rows that would be quarantined, by one reason of each kind.
    num_read
        Images that were read.
    config
        The ingest that fits; None where nothing can be ingested.
    """

    facts: dict[str, str]
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    num_read: int = 0
    config: CutoutsConfig | None = None


def inspect_images(config: CutoutsConfig, num_images: int, *, guess: bool = True) -> Inspection:
    """Look at a folder or file.

    Parameters
    ----------
    config
        With absolute URIs; what it leaves out is guessed.
    num_images
        Most images that are read, evenly spaced.
    guess
        Whether a catalogue is looked for beside the images.

    Raises
    ------
    UserError
        If there is nothing, or images and catalogue do not fit each other.
    """
    if not storage.exists(config.images):
        raise UserError(f"path: there is no file or folder {config.images}")
    with _remarks() as remarks:
        found = _inspected(config, num_images, guess=guess)
    # Some steps are done twice.
    texts = dict.fromkeys(remarks)
    return dataclasses.replace(found, facts=found.facts | ({"remarks": "; ".join(texts)} if texts else {}))


@contextlib.contextmanager
def _remarks() -> Iterator[list[str]]:
    """Keep what is logged of the data, which is a part of what was found."""
    texts: list[str] = []
    log, handler = logging.getLogger("gampen_ray.data"), logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield texts
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _inspected(config: CutoutsConfig, num_images: int, *, guess: bool) -> Inspection:
    path = config.images
    if storage.exists(storage.join(path, shards.DATASET_JSON)):
        return Inspection(_dataset(path))
    if (table := _as_catalog(path)) is not None:
        return Inspection({"format": "a catalogue, without images", **_catalog_facts(table)})
    facts: dict[str, str] = {}
    listing = [path]
    if storage.size(path) is None and containers.container_format(path, config.reader) != "zarr":
        listing = file_names.listed_files(path)
        facts["files"] = _endings(listing)
    images_catalog = config.catalog
    if not config.catalog and guess and not is_gampen_folder(path):
        config = _with_catalog(config, listing)
    asked, config = config, _with_files(config, listing)
    if guess and config.catalog != images_catalog and not _is_linked(config):
        facts["catalogue"] = f"{config.catalog} is left out: no column names the files; give file_column or file_template"
        config = _with_files(replace(asked, catalog=""), listing)
    config = _with_bands(config, listing, facts)
    located = image_rows.locate(config)
    sample = _sample(located, num_images)
    config = _with_images(config, sample, facts)
    everything = len(located.table) <= _MOST_PLANNED
    try:
        rows, info = ingest_plan.plan(config, located=located if everything else sample)
    except UserError as error:
        return Inspection(facts | {"refused": str(error)})
    facts |= _common_facts(info)
    reasons = _planned_reasons(rows)
    usable = np.flatnonzero(reasons == "")
    chosen = usable[np.linspace(0, len(usable) - 1, min(num_images, len(usable)), dtype=int)] if len(usable) else usable
    read = packing.read_rows(rows.take(pa.array(chosen)), config.reader, info)
    facts["galaxies"] = f"{len(located.table):,}"
    facts |= _catalog_facts(located.table) if config.catalog else {}
    facts["identifiers"] = _identifiers(rows)
    if misplaced := read.remarks["misplaced"]:
        facts["positions"] = f"{misplaced:,} of {len(chosen):,} images are not centred on the catalogue's position"
    sources = np.array(rows.column(image_reading.SOURCE).to_pylist(), dtype=object)
    found = [*zip(sources, reasons, strict=True), *zip(sources[chosen], read.reasons, strict=True)]
    bad = reason_examples([(source, reason) for source, reason in found if reason])
    return Inspection(facts, bad, len(chosen), config if (read.reasons == "").any() else None)


def _dataset(path: str) -> dict[str, str]:
    info = shards.read_dataset_info(path)
    counts = ", ".join(f"{split} {count:,}" for split, count in info.num_rows.items())
    return {
        "format": "a dataset of cutout shards: `train` and `infer` read it as it is",
        "galaxies": f"{counts}; {info.num_quarantined:,} in quarantine",
        "bands": ", ".join(info.bands),
        **({"noise planes": "of each band"} if info.noise_planes else {}),
        "size": f"{info.cutout_size} pixels",
        "pixel scale": _or_unknown(info.pixel_scale_arcsec, "arcsec"),
        "zero point": _or_unknown(info.zero_point_mag, "mag"),
        "targets": ", ".join(f"{name} [{unit}]" if unit else name for name, unit in info.target_units.items()) or "none",
    }


def _common_facts(info: shards.DatasetInfo) -> dict[str, str]:
    """Return what all images have in common, as `ingest` takes it."""
    return {
        "bands": ", ".join(info.bands),
        "cutout size": f"{info.cutout_size} pixels",
        "pixel scale": _or_unknown(info.pixel_scale_arcsec, "arcsec", ": give reader.pixel_scale_arcsec"),
        "zero point": _or_unknown(info.zero_point_mag, "mag", ": give reader.zero_point_mag"),
    }


def _or_unknown(value: float | None, unit: str, remedy: str = "") -> str:
    return f"unknown{remedy}" if value is None else f"{value:.6g} {unit}"


def _as_catalog(path: str) -> pa.Table | None:
    """Return the table of a file that is a catalogue; None for images."""
    if storage.size(path) is None:
        return None
    lower = re.sub(r"\.(gz|bz2)$", "", path.lower())
    if lower.endswith((".fits", ".fit")):
        images = _listing(path, ReaderConfig(max_mebibytes=_MOST_MEBIBYTES)).images
        return None if images is None or any(images) else catalogs.read_catalog(path)
    try:
        format_ = catalogs.format_of(path)
    except UserError:
        return None
    if format_ != "parquet":
        return catalogs.read_catalog(path, _IDS)
    try:
        with containers.open_container(path, ReaderConfig()):
            return None
    except UserError:
        return catalogs.read_catalog(path)


def _catalog_facts(table: pa.Table) -> dict[str, str]:
    units = {name: catalogs.column_unit(table, name) for name in table.column_names}
    columns = [f"{name} [{unit}]" if unit else name for name, unit in units.items()]
    more = f" and {len(columns) - 30:,} more" if len(columns) > 30 else ""
    return {"rows": f"{len(table):,}", "columns": ", ".join(columns[:30]) + more}


def _endings(listing: Sequence[str]) -> str:
    """Return how many files have which names, digits left out."""
    kinds = Counter(re.sub(r"\d+", "#", uri.rpartition("/")[2]) for uri in listing)
    if len(kinds) > max(8, len(listing) // 4):
        kinds = Counter("*" + "".join(re.findall(r"\.[A-Za-z]\w*", uri.rpartition("/")[2])) for uri in listing)
    shown = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(8))
    return f"{len(listing):,}: {shown}{', ...' if len(kinds) > 8 else ''}"


def _with_catalog(config: CutoutsConfig, listing: Sequence[str]) -> CutoutsConfig:
    """Return the config with the only table in the folder, which may be a FITS file of a name unlike all others."""
    folder = storage.join(storage.absolute(config.images), "")
    inside = [uri for uri in listing if "/" not in uri.removeprefix(folder) and uri != config.images]
    found = [uri for uri in inside if uri.lower().endswith(_TABLES)]
    if not found and any(_FILE.search(uri) for uri in listing):
        kinds = Counter(re.sub(r"\d+", "#", uri) for uri in inside)
        odd = [uri for uri in inside if kinds[re.sub(r"\d+", "#", uri)] == 1]
        found = [uri for uri in odd[:_MOST_ODD] if _ODD_TABLE.search(uri) and _as_catalog(uri) is not None]
    return replace(config, catalog=found[0]) if len(found) == 1 else config


def _with_files(config: CutoutsConfig, listing: Sequence[str]) -> CutoutsConfig:
    """Return the config with identifier and file columns, or a template that gives each row its file."""
    if is_gampen_folder(config.images) or len(listing) == 1:
        return config
    root = storage.join(storage.absolute(config.images), "")
    names = [uri.removeprefix(root) for uri in listing if _FILE.search(uri)]
    names = [names[row] for row in without_siblings([stem(name) for name in names])[0]]
    template, bands = (config.file_template, []) if config.file_template else band_template(names)
    if not config.catalog:
        return _banded(replace(config, file_template=template), bands) if template else config
    table = catalogs.read_catalog(config.catalog, (*_IDS, config.id_column, config.file_column))
    lower = {name.lower(): name for name in reversed(table.column_names)}
    if config.id_column not in table.column_names and (there := next((lower[name] for name in _IDS if name in lower), None)):
        config = replace(config, id_column=there)
    if (
        config.file_column in table.column_names
        or config.file_template
        or config.id_column not in table.column_names
        or not names
    ):
        return config
    known = {*names, *(name.rpartition("/")[2] for name in names)}
    head = table.slice(0, 50)
    texts = {name: {str(value).strip() for value in head.column(name).to_pylist()} for name in table.column_names}
    columns = [name for name in table.column_names if name.startswith("file_") and texts[name] & known]
    if columns and not _given(config):
        return _banded(config, [name.removeprefix("file_") for name in columns])
    if column := next((name for name in table.column_names if texts[name] & known), None):
        return replace(config, file_column=column)
    ids = [str(value).strip() for value in catalogs.to_ids(head.column(config.id_column)).to_pylist() if value is not None]
    if bands and any(template.replace("{object_id}", text).replace("{band}", bands[0]) in known for text in ids):
        return _banded(replace(config, file_template=template.replace("{object_id}", f"{{{config.id_column}}}")), bands)
    template = id_template(ids, names, config.id_column)
    return replace(config, file_template=template) if template else config


def _is_linked(config: CutoutsConfig) -> bool:
    """Return whether a catalogue names its rows' images, by a column, a template or as the columns of a file of many."""
    if config.file_template or config.reader.format != "auto":
        return True
    table = catalogs.read_catalog(config.catalog, _IDS)
    columns = {config.file_column, *(f"file_{band}" for band in config.reader.bands)}
    return not columns.isdisjoint(table.column_names) and config.id_column in table.column_names


def _with_bands(config: CutoutsConfig, listing: Sequence[str], facts: dict[str, str]) -> CutoutsConfig:
    """Return the config with the bands that the files name, or numbered ones where these only have several."""
    images = [uri for uri in listing if _FILE.search(uri)]
    root = storage.join(storage.absolute(config.images), "")
    if "{band}" in config.file_template:
        facts["format"] = f"a file a band, {config.file_template}"
        return config if _given(config) else _banded(config, band_template([uri.removeprefix(root) for uri in images])[1])
    if many := container_files(config, listing):
        facts["format"] = f"{containers.container_format(many[0], config.reader)}, files of many galaxies ({len(many):,})"
        with containers.open_container(many[0], config.reader) as container:
            return _banded(config, container.bands)
    first = next((uri for uri in images if file_names.matches_default(uri)), None) or (images[0] if images else "")
    if first and not first.lower().endswith(".npy"):
        found = _listing(first, config.reader)
        facts["format"] = "FITS, a file a galaxy" if found.images is not None else "files that are not FITS, a file a galaxy"
        if found.images:
            facts["HDUs"] = f"{_shortened(found.texts)} (of {first.rpartition('/')[2]})"
            return _banded(config, found.bands)
    return config


def _banded(config: CutoutsConfig, bands: Sequence[str]) -> CutoutsConfig:
    return config if _given(config) or not bands else replace(config, **{"reader.bands": tuple(bands)})


def _listing(uri: str, reader: ReaderConfig) -> FitsListing:
    try:
        return list_hdus(image_reading.raised(image_reading.file_content(uri, reader)), reader)
    except CutoutError:
        # Its reader gives the reason when the image is read.
        return FitsListing()


def _sample(located: Located, count: int) -> Located:
    rows = np.linspace(0, len(located.table) - 1, min(count, len(located.table)), dtype=int)
    return located.take(pa.array(np.unique(rows)))


def _with_images(config: CutoutsConfig, sample: Located, facts: dict[str, str]) -> CutoutsConfig:
    """Return the config with numbered bands where the images of a sample have several; describe them."""
    table = pa.table(sample.bookkeeping)
    good = np.flatnonzero(sample.source.is_valid().to_numpy())
    sizes: Counter[tuple[int, ...]] = Counter()
    cards: dict[str, Counter[Any]] = {name: Counter() for name in _CARDS}
    failed: CutoutError | None = None
    with image_reading.Images(table, config.reader, headers=True) as images:
        for start in range(0, len(good), 32):
            for found, _ in images.read(good[start : start + 32]):
                try:
                    cutout = image_reading.raised(found)
                except CutoutError as error:
                    failed = error
                    continue
                sizes[cutout.image_CHW.shape[1:]] += 1
                for name in _CARDS:
                    if isinstance(value := cutout.header.get(name), str | int | float) and value != "":
                        cards[name][value] += 1
    if not sizes:
        if failed and (count := re.search(r"has shape \((\d+), \d+, (\d+)\)", str(failed))) and not _given(config):
            # An array with several bands, on the first or the last axis.
            planes = min(map(int, count.groups()))
            if 1 < planes <= 32:
                several = tuple(f"band{number}" for number in range(1, planes + 1))
                return _with_images(replace(config, **{"reader.bands": several}), sample, facts)
        raise UserError(f"images: none of the {len(good):,} images of {config.images} that were read can be used: {failed}")
    facts["size"] = ", ".join(f"{h} x {w} ({count:,})" for (h, w), count in sizes.most_common(4))
    facts |= {name: _values(values) for name, values in cards.items() if values}
    return config


def _shortened(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MOST_HDUS:,} more" if len(texts) > _MOST_HDUS else ""
    return "; ".join(texts[:_MOST_HDUS]) + more


def _given(config: CutoutsConfig) -> bool:
    return config.reader.bands != ReaderConfig().bands


def _values(values: Counter[Any]) -> str:
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value, _ in values.most_common(4)]
    return ", ".join(shown) + (f" and {len(values) - 4:,} more" if len(values) > 4 else "")


def _planned_reasons(rows: pa.Table) -> np.ndarray:
    return np.array(rows.column(packing.REASON).to_pylist(), dtype=object)


def _identifiers(rows: pa.Table) -> str:
    ids = rows.column("object_id")
    some = ", ".join(map(str, ids.slice(0, 3).to_pylist()))
    return f"{'integers' if pa.types.is_integer(ids.type) else 'texts'}, such as {some}"

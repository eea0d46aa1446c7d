"""What inference reads, in units of work: a dataset of cutout shards, or FITS cutouts as they lie in a folder.

A unit of shards is a run of row groups of one of them; a unit of FITS files is a part of the plan of an ingest, which is read
as an ingest would read it but not written. Shape legend: N galaxies, C bands, H x W pixels.
"""

import dataclasses

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import IngestConfig
from gampen_ray.data import packing, shards, validation
from gampen_ray.errors import UserError

__all__ = ["Source", "Unit", "open_source", "shard_units"]

# Below Ray Data's block size, so that a unit is never cut; large enough to keep a device busy.
_UNIT_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Some rows that are read, predicted and written together.

    Parameters
    ----------
    name
        Of the catalogue file it becomes; the same in every run.
    num_rows
        How many rows.
    uri, start, stop
        Row groups ``start`` to ``stop`` of a shard; empty for FITS files.
    rows
        Rows of an ingest's plan, as an Arrow stream; empty for shards.
    """

    name: str
    num_rows: int
    uri: str = ""
    start: int = 0
    stop: int = 0
    rows: bytes = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where galaxies come from; small, so that it can be sent to every task.

    Parameters
    ----------
    info
        What holds for all of them.
    ingest
        How FITS files are read; None for shards.
    """

    info: shards.DatasetInfo
    ingest: IngestConfig | None

    def read(self, unit: Unit) -> dict[str, np.ndarray]:
        """Return a unit's rows, N in all.

        Returns
        -------
        dict
            ``object_id``, ``ra``, ``dec`` if known, ``image`` (N x C x H x W; zero in a row that cannot be predicted),
            ``reason`` (empty text for a good row), ``source`` (file), ``pixels_filled`` and ``padded``.
        """
        if self.ingest is None:
            table = shards.read_shard(unit.uri, row_groups=range(unit.start, unit.stop), info=self.info)
            image_NCHW = shards.images(table).copy()
            reason_N = validation.validate_rows({"image": image_NCHW})
            image_NCHW[reason_N != ""] = 0.0
            columns = {name: table[name] for name in table.column_names}
            source_N = np.full(len(table), unit.uri)
        else:
            table = packing.from_bytes(unit.rows)
            columns, source_N, reason_N = packing.read_rows(table, self.ingest, self.info)
            columns["object_id"] = _filled(table["object_id"])
            image_NCHW = columns["image"]
        result = {name: np.asarray(columns[name]) for name in ("object_id", "ra", "dec") if name in columns}
        for name in ("pixels_filled", "padded"):
            result[name] = np.asarray(columns[name]) if name in columns else np.zeros(len(table), bool)
        return result | {"image": image_NCHW, "reason": reason_N.astype(str), "source": source_N.astype(str)}


def open_source(dataset: str, *, split: str, bands: tuple[str, ...], size: int) -> tuple[Source, list[Unit]]:
    """Return a source and its units, in order.

    Parameters
    ----------
    dataset
        Dataset of cutout shards, folder of FITS cutouts, or GaMPEN data folder.
    split
        Of a dataset that has splits; empty: all rows.
    bands, size
        As the model takes them: FITS cutouts are read with these.

    Raises
    ------
    UserError
        If there is neither a complete dataset nor a FITS file.
    """
    if storage.exists(storage.join(dataset, shards.DATASET_JSON)):
        info = shards.read_dataset_info(dataset)
        image_bytes = 4 * int(np.prod(info.image_shape))
        uris = shards.shard_uris(dataset, split)
        units = [unit for index, uri in enumerate(uris) for unit in shard_units(uri, index, info, image_bytes)]
        return Source(info=info, ingest=None), units
    ingest = IngestConfig(images=dataset, output=dataset, cutout_size=size, bands=bands)
    try:
        rows, info = packing.plan(ingest)
    except packing.NoFilesError:
        raise UserError(
            f"dataset: {dataset} holds neither a finished dataset ({shards.DATASET_JSON}) nor FITS files ({ingest.pattern}); "
            "make it with `gampen-ray ingest` or `gampen-ray simulate`, or give a folder of FITS cutouts"
        ) from None
    if split:
        raise UserError(f"split: {split}, but {dataset} holds FITS files without splits; leave split out, or ingest them first")
    step = max(1, _UNIT_BYTES // (4 * len(bands) * size**2))
    parts = [(start, rows.slice(start, step)) for start in range(0, len(rows), step)]
    units = [Unit(name=f"part-{start:09d}.parquet", num_rows=len(part), rows=packing.to_bytes(part)) for start, part in parts]
    return Source(info=info, ingest=ingest), units


def shard_units(uri: str, index: int, info: shards.DatasetInfo, image_bytes: int) -> list[Unit]:
    """Return the units of shard number ``index``: runs of row groups of at most 32 MiB of pixels, but one at the least."""
    rows = shards.row_group_sizes(uri, info)
    units: list[Unit] = []
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or sum(rows[start : stop + 1]) * image_bytes > _UNIT_BYTES:
            name = f"part-{index:06d}-{start:04d}.parquet"
            units.append(Unit(name=name, uri=uri, start=start, stop=stop, num_rows=sum(rows[start:stop])))
            start = stop
    return units


def _filled(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Identifiers without nulls; a row without one is in quarantine already, with that reason."""
    return ids.fill_null(0 if pa.types.is_integer(ids.type) else "")

"""The work on some rows of an ingest's plan: their images are read, and written to shards or quarantine.

Shape legend: N galaxies, C bands, H x W pixels.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data import positions, shards
from gampen_ray.data.agreement import agreed
from gampen_ray.data.containers import INDEX
from gampen_ray.data.cutouts import CORE, CutoutError, central, fit_to_size, noise_to_size, without_blanks
from gampen_ray.data.image_reading import FILES, SOURCE, Images, raised
from gampen_ray.data.shards import DatasetInfo

__all__ = ["REASON", "SPLIT", "PlannedRows", "Rows", "read_rows", "refused", "write_rows"]

SPLIT, REASON = "gampen_ray:split", "gampen_ray:reason"
"""Columns of the plan with the split of each row, and why it cannot be used."""
_BOOKKEEPING = (SOURCE, INDEX, FILES, SPLIT, REASON)
_READ_AHEAD = 32


class Rows(NamedTuple):
    """Rows of the plan with what their files hold.

    Parameters
    ----------
    columns
        By name, one value per row: the catalogue's, ``ra``, ``dec``, ``image`` (N x C x H x W; N x 2C x H x W with noise
        planes), ``pixels_filled`` (number of pixels), ``core_filled`` (those near the middle), ``side_pixels`` (shorter side of
        the file's image inside the cutout: less than the cutout's where that is zero-padded), and numbers that come with the
        images.
    sources
        File of each row.
    reasons
        Why each row cannot be used, empty text for a good row; the image of a bad row is zero.
    splits
        Split of each row, ``"all"`` without targets.
    remarks
        Numbers of rows by what was done to them or seen in them: ``cropped`` (pixels of the file lie outside the cutout),
        ``padded``, ``filled``, ``filled BAND``, ``misplaced`` (see `gampen_ray.data.positions.misplaced`).
    num_bytes
        Read from the files, as stored.
    """

    columns: dict[str, Any]
    sources: np.ndarray
    reasons: np.ndarray
    splits: np.ndarray
    remarks: Counter[str]
    num_bytes: int


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


def write_rows(rows: Rows, part: int, *, output: str, info: DatasetInfo) -> Counter[str]:
    """Write rows to the shards of their splits and to quarantine; return their numbers by folder. Repeatable.

    Parameters
    ----------
    rows
        From `read_rows`.
    part
        Number of the files.
    output
        URI of the dataset.
    info
        See `gampen_ray.data.ingest_plan.plan`.
    """
    columns, sources, reasons, splits, *_ = rows
    ids = columns["object_id"].to_pylist()
    counts: Counter[str] = Counter()
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


def refused(rows: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """Return rows of the plan some of which are not read, for the reasons that are given by their numbers."""
    if not reasons:
        return rows
    texts = [reasons.get(row, reason) for row, reason in enumerate(rows.column(REASON).to_pylist())]
    return rows.set_column(rows.column_names.index(REASON), REASON, pa.array(texts, pa.string()))


def read_rows(rows: pa.Table, reader: ReaderConfig, info: DatasetInfo) -> Rows:
    """Read the files of some rows of the plan, with the config's reader and the plan's metadata."""
    reasons = np.array(rows.column(REASON).to_pylist(), dtype=object)
    columns: dict[str, Any] = {name: rows.column(name) for name in rows.column_names if name not in _BOOKKEEPING}
    ra, dec = (np.array(rows.column(name).to_numpy(), dtype=np.float64) for name in ("ra", "dec"))
    policies = reader.nan_policies(info.bands)
    side, remarks, num_bytes = info.cutout_size, Counter[str](), 0
    image_NCHW = np.zeros((len(rows), *info.planes_shape), dtype=np.float32)
    filled, core, sides = (np.full(len(rows), value, dtype=np.int32) for value in (0, 0, side))
    numeric = {field.name for field in rows.schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)}
    numbers: dict[str, np.ndarray] = {}
    planned = np.flatnonzero(reasons == "")
    with Images(rows, reader) as images:
        for start in range(0, len(planned), _READ_AHEAD):
            ahead = planned[start : start + _READ_AHEAD]
            for row, (found, size) in zip(ahead, images.read(ahead), strict=True):
                num_bytes += size
                try:
                    cutout = agreed(raised(found), reader, info)
                    inside_CHW = without_blanks(central(cutout.image_CHW, side))
                    planes = [fit_to_size(inside_CHW, side, policies, info.bands)]
                    if info.noise_planes:
                        planes.append(noise_to_size(cutout, inside_CHW, side, info.bands))
                    np.concatenate(planes, out=image_NCHW[row])
                except CutoutError as error:
                    reasons[row] = str(error)
                    continue
                filled_C = np.count_nonzero(~np.isfinite(inside_CHW), axis=(1, 2))
                filled[row] = filled_C.sum()
                remarks.update(f"filled {info.bands[band]}" for band in np.flatnonzero(filled_C))
                core[row] = np.count_nonzero(~np.isfinite(central(inside_CHW, CORE)))
                sides[row] = min(inside_CHW.shape[1:])
                offset = positions.offset_arcsec(float(ra[row]), float(dec[row]), cutout)
                remarks["padded"] += int(sides[row] < side)
                remarks["cropped"] += int(max(cutout.image_CHW.shape[1:]) > side)
                remarks["filled"] += int(filled[row] > 0)
                remarks["misplaced"] += int(positions.misplaced(offset, cutout))
                if not np.isfinite(ra[row] + dec[row]):
                    ra[row], dec[row] = cutout.ra, cutout.dec
                for name in cutout.numbers.keys() & numeric:
                    if name not in numbers:
                        numbers[name] = np.array(rows.column(name).to_numpy(), dtype=np.float64)
                    # What the catalogue states is kept.
                    if np.isnan(numbers[name][row]):
                        numbers[name][row] = cutout.numbers[name]
    read = {"ra": ra, "dec": dec, "image": image_NCHW, "pixels_filled": filled, "core_filled": core, shards.SIDE: sides}
    sources = np.array(rows.column(SOURCE).to_pylist(), dtype=object)
    splits = np.array(rows.column(SPLIT).to_pylist(), dtype=object)
    return Rows(columns | numbers | read, sources, reasons, splits, remarks, num_bytes)

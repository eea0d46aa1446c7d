"""Predict a unit of input: read it, predict, summarise, and write its catalogue file.

A unit (`gampen_ray.data.sources`) becomes one catalogue file of the same name, written atomically after its quarantine file.
Its receipt comes last and marks the unit as done. A unit predicted twice, as after a lost node, gives the same files.
Shape legend: N galaxies, K passes, D targets.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gampen_ray import storage
from gampen_ray.catalog.columns import EFFECTIVE_SHARE
from gampen_ray.catalog.completeness import id_sum
from gampen_ray.catalog.parquet import CATALOG, QUARANTINE, catalog_table, part_content
from gampen_ray.data import shards
from gampen_ray.data.carried import Carried
from gampen_ray.data.sources import Source, Unit
from gampen_ray.data.tiles.reading import RESAMPLED, TILE_COLUMNS
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.flags import Flag, prior_flags
from gampen_ray.inference.known_conditions import impossible
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.inference.predictor import Prediction, Predictor
from gampen_ray.inference.rates import UnitReceipt
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture, proper
from gampen_ray.receipts import write_receipt

__all__ = ["PredictedUnit", "UnitPredictor", "check_fit", "write_unit"]

logger = logging.getLogger(__name__)

_NO_DRAW = "no posterior: no draw of it lies where both the training and the prior that was asked for have galaxies"
_NO_POSTERIOR = "the network gives no finite posterior: extreme pixel values"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedUnit:
    """The predictions of a unit, without its pixels.

    Parameters
    ----------
    name
        Name of the unit.
    rows
        ``object_id``, ``ra`` and ``dec`` if known, ``source``, ``reason``, ``flags``, ``crop_scale``, ``centre_offset``,
        ``mean`` and ``scale_tril``, and columns that are carried; None if the time limit left none.
    bytes_read, seconds, device_seconds
        See `gampen_ray.inference.rates.UnitReceipt`.
    """

    name: str
    rows: pa.Table | None
    bytes_read: int
    seconds: float
    device_seconds: float


class UnitPredictor:
    """Reads and predicts a unit batch by batch.

    Safe to call from several threads: one uses the device while others read and decode.

    Parameters
    ----------
    predict
        The model on its device.
    source
        Source of the units.
    seconds
        Time limit from now on, after which nothing is predicted; None: no limit.
    count
        Called with galaxies, bytes_read and device_seconds of each batch.
    fill_conditions
        Whether a galaxy of which a condition is unknown is predicted over the training galaxies' values, or goes to quarantine.
    """

    def __init__(
        self,
        predict: Predictor,
        source: Source,
        *,
        seconds: float | None = None,
        count: Callable[..., None] | None = None,
        fill_conditions: bool = False,
    ) -> None:
        self._fill_conditions = fill_conditions
        self._predict, self._source, self._count = predict, source, count
        self._device = threading.Lock()
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def __call__(self, unit: Unit) -> PredictedUnit:
        """Return the posteriors of a unit's rows."""
        start, device_seconds, bytes_read = time.monotonic(), 0.0, 0
        parts = []
        for rows, num_bytes in () if self._is_over() else self._source.read(unit, self._predict.batch_size):
            with self._device:
                began = time.monotonic()
                if self._is_over():
                    break
                condition_NJ = self._conditions(rows)
                prediction = self._predict(rows["image"], condition_NJ, np.asarray(rows[shards.SIDE]))
                seconds = time.monotonic() - began
            parts.append(self._table(rows, prediction, condition_NJ))
            device_seconds, bytes_read = device_seconds + seconds, bytes_read + num_bytes
            if self._count:
                self._count(galaxies=len(rows["reason"]), bytes_read=num_bytes, device_seconds=seconds)
        return PredictedUnit(
            name=unit.name,
            rows=pa.concat_tables(parts) if parts else None,
            bytes_read=bytes_read,
            seconds=time.monotonic() - start,
            device_seconds=device_seconds,
        )

    def _conditions(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        """Return the values of the source's conditions, N x J, NaN where one is unknown."""
        unknown_N = np.full(len(rows["reason"]), np.nan)
        values = [np.ma.filled(np.asarray(rows.get(name, unknown_N), np.float64), np.nan) for name in self._source.conditions]
        return np.stack(values, axis=1) if values else np.empty((len(unknown_N), 0))

    def _table(self, rows: dict[str, np.ndarray], prediction: Prediction, condition_NJ: np.ndarray) -> pa.Table:
        # Stored as float32, in which larger values overflow.
        mean_NKD, scale_tril_NKDD = prediction.mixture.mean_NKD.float(), prediction.mixture.scale_tril_NKDD.float()
        usable_N = prediction.usable_N & proper(mean_NKD, scale_tril_NKDD).numpy()
        reason_N = np.where((rows["reason"] == "") & ~usable_N, _NO_POSTERIOR, rows["reason"])
        conditions = dict(zip(self._source.conditions, condition_NJ.T, strict=True))
        impossible_N = impossible(self._source.conditions, condition_NJ)
        reason_N = np.where((reason_N == "") & (impossible_N != ""), impossible_N, reason_N)
        if not self._fill_conditions:
            for name, value_N in conditions.items():
                reason_N = np.where((reason_N == "") & ~np.isfinite(value_N), f"the condition {name} is unknown", reason_N)
        flags_N = np.where(rows["pixels_filled"], Flag.PIXELS_FILLED.value, 0) | prediction.flags_N
        flags_N |= np.where(rows["core_filled"], Flag.CORE_SATURATED.value, 0)
        flags_N |= np.where(rows[RESAMPLED], Flag.RESAMPLED.value, 0)
        own = ("object_id", "ra", "dec", "source", *TILE_COLUMNS, *(column.name for column in self._source.carried))
        columns = {name: rows[name] for name in own if name in rows} | conditions
        columns |= {"reason": reason_N, "flags": flags_N, "crop_scale": prediction.crop_scale_N}
        columns["centre_offset"] = prediction.centre_offset_N
        columns["mean"] = _tensor_array(mean_NKD)
        columns["scale_tril"] = _tensor_array(scale_tril_NKDD)
        return pa.table(columns)

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline


def write_unit(
    unit: PredictedUnit,
    *,
    output: str | None,
    targets: TargetSchema,
    store_mixture: bool,
    mode_centred: bool,
    conditions: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    carried: tuple[Carried, ...] = (),
    provenance: tuple[tuple[str, str], ...] = (),
    exchange: Callable[[Mixture], tuple[Mixture, np.ndarray]] | None = None,
    write_summary: Callable[[str, pa.Table, Mixture], str] | None = None,
) -> UnitReceipt:
    """Summarise the posteriors of a unit and write its quarantine file, its catalogue file and, last, its receipt.

    Parameters
    ----------
    unit
        From `UnitPredictor`.
    output
        Folder of the catalogue; None: nothing is written.
    targets
        Targets of the model.
    store_mixture, mode_centred, conditions, extra, carried, provenance
        Columns of the catalogue, and what made it; see `gampen_ray.catalog.parquet.catalog_table`.
    exchange
        Returns posteriors under another prior, and the effective share of their draws; None: that of the training is kept.
    write_summary
        Called with the unit's name, the catalogue's rows and their posteriors, to write another summary; it returns its URI.
    """
    began = time.monotonic()
    counts = {"num_rows": 0, "num_quarantined": 0, "id_sum": 0, "bytes_written": 0}
    written: list[str] = []
    if unit.rows is not None:
        reason_N = unit.rows["reason"].to_numpy()
        good_M = np.flatnonzero(reason_N == "")
        rows = unit.rows.take(pa.array(good_M))
        mixture, trained = Mixture(_tensor(rows["mean"]), _tensor(rows["scale_tril"]), targets), None
        if exchange:
            trained = mixture
            mixture, share_N = exchange(trained)
            rows = rows.append_column(EFFECTIVE_SHARE, pa.array(share_N))
            flags_N = pa.array(rows["flags"].to_numpy() | prior_flags(share_N))
            rows = rows.set_column(rows.column_names.index("flags"), "flags", flags_N)
        which: dict[str, Any] = {
            "store_mixture": store_mixture,
            "trained": trained,
            "mode_centred": mode_centred,
            "conditions": conditions,
            "extra": extra,
            "carried": carried,
            "provenance": provenance,
        }
        with np.errstate(over="ignore", invalid="ignore"):
            catalog = catalog_table(rows, mixture, rows["crop_scale"].to_numpy(), rows["flags"].to_numpy(), **which)
        # Conditions and a user's own columns may be null.
        fault_M = _faults(catalog.drop_columns([*conditions, *extra, *(column.name for column in carried)]))
        if exchange:
            fault_M = np.where(rows[EFFECTIVE_SHARE].to_numpy() > 0, fault_M, _NO_DRAW)
        if (bad_M := fault_M != "").any():
            reason_N[good_M[bad_M]] = fault_M[bad_M]
            kept = pa.array(~bad_M)
            catalog, rows, mixture = catalog.filter(kept), rows.filter(kept), mixture[~bad_M]
        wrong = {name: unit.rows[name].to_numpy()[reason_N != ""].astype(str) for name in ("object_id", "source")}
        num_wrong = len(wrong["object_id"])
        content = part_content(catalog)
        counts = {
            "num_rows": len(unit.rows),
            "num_quarantined": num_wrong,
            "id_sum": id_sum(unit.rows["object_id"]),
            "bytes_written": content.size,
        }
        if output is not None:
            if write_summary:
                written.append(write_summary(unit.name, rows, mixture))
            if num_wrong:
                written.append(storage.join(output, QUARANTINE, unit.name))
                shards.write_quarantine(written[-1], **wrong, reason=reason_N[reason_N != ""])
            written.append(storage.join(output, CATALOG, unit.name))
            storage.write_bytes_atomic(written[-1], content)
    seconds = unit.seconds + time.monotonic() - began
    receipt = UnitReceipt(**counts, bytes_read=unit.bytes_read, seconds=seconds, device_seconds=unit.device_seconds)
    if output is not None:
        write_receipt(output, unit.name, written, dataclasses.asdict(receipt))
    return receipt


def check_fit(bundle: Bundle, info: shards.DatasetInfo, *, dataset: str, num_passes: int, seed: int) -> None:
    """Check that a model can predict a dataset, and log the conversions of its pixels.

    Raises
    ------
    UserError
        If several passes are requested of a model without dropout, or the dataset has another number of bands.
    """
    ThinnedNetworks(bundle.network, num_passes, seed)
    expected = bundle.images.bands
    if len(info.bands) != len(expected):
        raise UserError(
            f"dataset: {dataset} has the bands {', '.join(info.bands)}, but the bundle was trained on "
            f"{', '.join(expected)}; use a dataset with these bands"
        )
    if info.bands != expected:
        logger.warning("the bundle was trained on the bands %s, the dataset has %s", ", ".join(expected), ", ".join(info.bands))
    for line in bundle.images.conversions(zero_point_mag=info.zero_point_mag, pixel_scale_arcsec=info.pixel_scale_arcsec):
        logger.warning(line)


def _faults(catalog: pa.Table) -> np.ndarray:
    """Return N reasons, empty for rows whose summaries are all finite."""
    fault_N = np.full(len(catalog), "", dtype=object)
    for name in catalog.column_names:
        column = catalog[name].combine_chunks()
        if name in ("ra", "dec", "centre_offset") or not len(column):
            continue
        if pa.types.is_fixed_size_list(column.type):
            finite_N = np.isfinite(column.flatten().to_numpy()).reshape(len(column), -1).all(axis=1)
        elif pa.types.is_floating(column.type):
            finite_N = np.isfinite(column.to_numpy())
        else:
            continue
        fault_N[(fault_N == "") & ~finite_N] = f"the posterior summary {name} is not finite"
    return fault_N


def _tensor_array(values: torch.Tensor) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values.contiguous().numpy())


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    return torch.from_numpy(column.combine_chunks().to_numpy_ndarray().astype(np.float64))

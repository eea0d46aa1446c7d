"""The workers' side of `infer`: actors that read and predict units, and what summarises and writes them.

A unit (`gampen_ray.data.sources`) becomes one catalogue file of the same name, whole or not at all. Its quarantine file comes
first, so the presence of the catalogue's says that the unit is done; a unit that is predicted twice, as after a lost node, is
written twice with the same content.
Shape legend: N galaxies, K passes, D targets.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.util.metrics import Counter

from gampen_ray import storage
from gampen_ray.catalog.parquet import CATALOG, QUARANTINE, catalog_table, part_content
from gampen_ray.config import InferConfig
from gampen_ray.data import ingest_plan, shards
from gampen_ray.data.sources import Source, Unit
from gampen_ray.engine.cluster import cluster_workers
from gampen_ray.engine.resources import Workers
from gampen_ray.gampen.summary_files import FOLDER, gampen_summary
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.flags import Flag
from gampen_ray.inference.predictor import Prediction, Predictor
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture

__all__ = ["UnitResult", "inference_workers", "run_inference", "summary_part"]

_CPUS_PER_WRITE = 0.25
# A summary takes 0.2 ms of a core: little beside a prediction on a core, but not beside one on a fast device.
_WRITERS_PER_GPU = 4
# One unit is read while another is on the device, and a third waits.
_UNITS_AT_ONCE, _UNITS_AHEAD = 2, 3
# A Ray Data execution keeps track of all its units in the driver; larger jobs are cut into several.
_UNITS_PER_EXECUTION = 4096
# A unit of a large network on CPUs takes long; Ray's own limit of half an hour is made for other jobs.
_NO_PROGRESS_TIMEOUT_S = 6 * 3600
_NO_POSTERIOR = "the network gives no finite posterior: extreme pixel values"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a unit.

    Parameters
    ----------
    num_rows, num_quarantined
        Rows predicted or quarantined, and those in quarantine.
    bytes_read, bytes_written
        Of the input as stored, and of the catalogue file.
    start, stop
        When an actor took and ended it, seconds of the epoch.
    device_seconds
        How long the device worked on it.
    """

    num_rows: int
    num_quarantined: int
    bytes_read: int
    bytes_written: int
    start: float
    stop: float
    device_seconds: float


def inference_workers(config: InferConfig, num_units: int) -> Workers:
    """Return the actors for a number of units on the cluster at hand: no more than units.

    Raises
    ------
    UserError
        If the cluster cannot hold them.
    """
    workers = cluster_workers(config.resources)
    return dataclasses.replace(workers, count=min(workers.count, num_units), room=min(workers.room, num_units))


def run_inference(
    config: InferConfig, bundle: Bundle, source: Source, units: list[Unit], workers: Workers, *, seconds: float | None = None
) -> Iterator[UnitResult]:
    """Predict units in no particular order and yield what became of each once it is written.

    Parameters
    ----------
    config, bundle, source, units
        What to predict, with what.
    workers
        Actors that predict.
    seconds
        Each actor stops after this time, and nothing is written: a measurement. None: all units, whole.
    """
    write = functools.partial(
        _write_unit,
        config=config,
        targets=bundle.targets,
        zero_point_mag=bundle.images.zero_point_mag,
        dry_run=seconds is not None,
    )
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    for first in range(0, len(units), _UNITS_PER_EXECUTION):
        some = units[first : first + _UNITS_PER_EXECUTION]
        units_done = ray.data.from_items(
            [dataclasses.asdict(unit) for unit in some], override_num_blocks=len(some)
        ).map_batches(
            _Predict,
            # On CPUs an actor's other thread has time to write; beside a GPU it would keep the device waiting.
            fn_constructor_args=(config, workers, source, seconds, None if workers.gpus else write),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=workers.count,
                initial_size=workers.count,
                max_tasks_in_flight_per_actor=_UNITS_AHEAD,
                max_concurrent_calls_per_actor=_UNITS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
        )
        if workers.gpus:
            units_done = units_done.map_batches(
                write,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=_CPUS_PER_WRITE,
                compute=ray.data.TaskPoolStrategy(size=min(len(some), workers.count * _WRITERS_PER_GPU)),
            )
        yield from (UnitResult(**row) for row in units_done.iter_rows())


class _Predict:
    """An inference actor: reads a unit piece by piece, and gives its posteriors or what ``write`` makes of them.

    Ray calls it from several threads: while one waits for storage, decodes or summarises, another has the device.
    """

    def __init__(
        self,
        config: InferConfig,
        workers: Workers,
        source: Source,
        seconds: float | None,
        write: Callable[[pa.Table], pa.Table] | None,
    ) -> None:
        torch.set_num_threads(workers.threads)
        torch.backends.cudnn.benchmark = True
        self._source, self._num_passes, self._write = source, config.num_passes, write
        self._predict = Predictor(
            load_bundle(config.bundle),
            num_passes=config.num_passes,
            seed=config.seed,
            device="cuda" if workers.gpus else "cpu",
            precision=config.precision,
            batch_size=config.batch_size,
            zero_point_mag=source.info.zero_point_mag,
            pixel_scale_arcsec=source.info.pixel_scale_arcsec,
        )
        self._device = threading.Lock()
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._counters = {
            name: Counter(f"gampen_ray_infer_{name}", description=text)
            for name, text in (
                ("galaxies", "Galaxies predicted."),
                ("passes", "Monte Carlo dropout passes, summed over galaxies."),
                ("bytes_read", "Bytes of the input read, as stored."),
                ("device_seconds", "Time in which the device worked, seconds."),
            )
        }

    def __call__(self, items: pa.Table) -> pa.Table:
        (item,) = items.to_pylist()
        unit = Unit(**item)
        start, device_seconds, bytes_read = time.time(), 0.0, 0
        parts = []
        pieces = () if self._over() else self._source.read(unit, self._predict.batch_size)
        for rows, num_bytes in pieces:
            with self._device:
                began = time.monotonic()
                if self._over():
                    break
                prediction = self._predict(rows["image"])
                seconds = time.monotonic() - began
            parts.append(self._table(rows, prediction))
            device_seconds, bytes_read = device_seconds + seconds, bytes_read + num_bytes
            self._count(galaxies=len(rows["reason"]), bytes_read=num_bytes, device_seconds=seconds)
        told = {"bytes_read": bytes_read, "start": start, "stop": time.time(), "device_seconds": device_seconds}
        # One row, which Ray Data never cuts.
        rows = ingest_plan.to_bytes(pa.concat_tables(parts)) if parts else b""
        result = pa.table(
            {"name": [unit.name], "rows": pa.array([rows], pa.large_binary()), **{k: [v] for k, v in told.items()}}
        )
        return self._write(result) if self._write else result

    def _over(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _table(self, rows: dict[str, np.ndarray], prediction: Prediction) -> pa.Table:
        """Return what is known of some rows but their pixels."""
        reason_N = np.where((rows["reason"] == "") & ~prediction.usable_N, _NO_POSTERIOR, rows["reason"])
        flags_N = np.where(rows["pixels_filled"], Flag.PIXELS_FILLED.value, 0) | prediction.flags_N
        flags_N |= np.where(rows["padded"], Flag.INPUT_PADDED.value, 0)
        columns = {name: rows[name] for name in ("object_id", "ra", "dec", "source") if name in rows}
        columns |= {"reason": reason_N, "flags": flags_N, "crop_scale": prediction.crop_scale_N}
        columns["mean"] = _tensor_array(prediction.mixture.mean_NKD)
        columns["scale_tril"] = _tensor_array(prediction.mixture.scale_tril_NKDD)
        return pa.table(columns)

    def _count(self, **amounts: float) -> None:
        amounts["passes"] = amounts["galaxies"] * self._num_passes
        for name, amount in amounts.items():
            # Ray refuses to count nothing.
            if amount > 0:
                self._counters[name].inc(amount)


def _write_unit(
    items: pa.Table, *, config: InferConfig, targets: TargetSchema, zero_point_mag: float | None, dry_run: bool
) -> pa.Table:
    """Summarise the posteriors of a unit and write its catalogue and quarantine files; the catalogue's comes last."""
    (item,) = items.to_pylist()
    name, rows = item.pop("name"), item.pop("rows")
    result = {"num_rows": 0, "num_quarantined": 0, "bytes_written": 0, **item}
    if rows:
        table = ingest_plan.from_bytes(rows)
        good, wrong = table.filter(pc.field("reason") == ""), table.filter(pc.field("reason") != "")
        mean_NKD, scale_tril_NKDD = (torch.from_numpy(_tensors(good[key])) for key in ("mean", "scale_tril"))
        mixture = Mixture(mean_NKD, scale_tril_NKDD, targets)
        catalog = catalog_table(
            good,
            mixture,
            good["crop_scale"].to_numpy(),
            good["flags"].to_numpy(),
            store_mixture=config.posterior == "mixture" or config.catalog_format == "gampen",
            mode_centred=config.mode_centred,
        )
        content = part_content(catalog)
        result |= {"num_rows": len(table), "num_quarantined": len(wrong), "bytes_written": content.size}
        if not dry_run:
            if config.catalog_format == "gampen":
                magnitudes = {"zero_point_mag": zero_point_mag, "gampen_magnitudes": config.gampen_magnitudes}
                summary = gampen_summary(good, mixture, **magnitudes)
                storage.write_bytes_atomic(summary_part(config.output, name), summary.to_csv(index=False).encode())
            if len(wrong):
                columns = (wrong[key].cast(pa.string()).to_pylist() for key in shards.QUARANTINE_SCHEMA.names)
                shards.write_quarantine(storage.join(config.output, QUARANTINE, name), zip(*columns, strict=True))
            storage.write_bytes_atomic(storage.join(config.output, CATALOG, name), content)
    return pa.table({key: [value] for key, value in result.items()})


def summary_part(output: str, unit: str = "") -> str:
    """Return where a unit's part of GaMPEN's summary lies, or all of them."""
    return storage.join(output, FOLDER, "parts", *([unit.removesuffix(".parquet") + ".csv"] if unit else []))


def _tensor_array(values: torch.Tensor) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values.float().contiguous().numpy())


def _tensors(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy_ndarray().astype(np.float64)

"""The `infer` verb: read -> predict -> write, streamed by Ray Data over units of work.

A unit (`gampen_ray.data.sources`) travels as one block, and becomes one catalogue file of the same name; the presence of that
file says that the unit is done, so an interrupted job goes on where it was.
Shape legend: N galaxies, K passes, D targets, C bands, H x W pixels.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from gampen_ray import storage
from gampen_ray.config import InferConfig
from gampen_ray.data import shards
from gampen_ray.data.sources import Source, Unit, open_source
from gampen_ray.engine.resources import Workers, plan_workers
from gampen_ray.engine.session import num_cpus, num_gpus, ray_session
from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.bundle import Bundle, Predictor, bundle_digest, load_bundle
from gampen_ray.posterior.catalog import CATALOG, MANIFEST, QUARANTINE, Flag, catalog_parts, catalog_table, write_part
from gampen_ray.posterior.gampen_catalog import FOLDER, SUMMARY, gampen_summary, join_summaries, write_draws
from gampen_ray.posterior.hats_catalog import check_hats, write_hats
from gampen_ray.posterior.mc_dropout import ThinnedNetworks
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.progress import Progress
from gampen_ray.provenance import claim_output, provenance
from gampen_ray.settings import to_dict

logger = logging.getLogger(__name__)

_CPUS_PER_IO_TASK = 0.25
_NO_POSTERIOR = "the network gives no finite posterior: extreme pixel values"


def infer(config: InferConfig) -> dict[str, Any]:
    """Predict a dataset into a catalogue and return the manifest.

    An unfinished job of the same config goes on; a finished one is left as it is.

    Raises
    ------
    UserError
        If bundle and dataset do not fit, the output holds another run, or the cluster is too small.
    """
    config = dataclasses.replace(
        config,
        bundle=storage.absolute(config.bundle),
        dataset=storage.absolute(config.dataset),
        output=storage.absolute(config.output),
    )
    bundle = load_bundle(config.bundle)
    source, units = open_source(config.dataset, split=config.split, bands=bundle.images.bands, size=bundle.images.size)
    _check_fit(config, bundle, source.info)
    if config.catalog_format == "hats":
        check_hats(config.dataset, units)
    inputs = {"bundle": bundle_digest(config.bundle), "dataset": source.info.fingerprint}
    claim_output(config.output, config, inputs)
    manifest_uri = storage.join(config.output, MANIFEST)
    if storage.exists(manifest_uri):
        logger.info("%s is complete; nothing to do", config.output)
        return storage.read_json(manifest_uri)
    there = {uri.rpartition("/")[2] for uri in storage.list_files(storage.join(config.output, CATALOG), ".parquet")}
    todo = [unit for unit in units if unit.name not in there]
    start = time.monotonic()
    with Progress("infer", sum(unit.num_rows for unit in units), "galaxies") as progress:
        progress.advance(sum(unit.num_rows for unit in units if unit.name in there))
        if todo:
            with ray_session():
                workers = plan_workers(config.resources, num_cpus=num_cpus(), num_gpus=num_gpus())
                for rows in _predicted(config, bundle, source, todo, workers):
                    progress.advance(rows)
    manifest = {
        **_counts(config.output),
        "seconds": round(time.monotonic() - start, 1),
        "config": to_dict(config),
        "calibration_scale": bundle.calibration_scale_D.tolist(),
        "inputs": inputs,
        "bundle_provenance": bundle.provenance,
        "provenance": provenance(),
    }
    if config.catalog_format == "gampen":
        _write_gampen(config, bundle.targets)
    if config.catalog_format == "hats":
        manifest["num_in_hats"] = write_hats(config.output, manifest["num_galaxies"])
    if manifest["num_galaxies"] + manifest["num_quarantined"] != sum(unit.num_rows for unit in units):
        raise RuntimeError(f"{config.output} holds {_counts(config.output)}, the dataset {sum(u.num_rows for u in units)} rows")
    storage.write_json(manifest_uri, manifest)
    storage.delete(_summary_part(config.output))
    logger.info("wrote %s: %s galaxies, %s in quarantine", config.output, manifest["num_galaxies"], manifest["num_quarantined"])
    return manifest


def _check_fit(config: InferConfig, bundle: Bundle, info: shards.DatasetInfo) -> None:
    ThinnedNetworks(bundle.network, config.num_passes, config.seed)
    expected = bundle.images.bands
    if len(info.bands) != len(expected):
        raise UserError(
            f"dataset: {config.dataset} has the bands {', '.join(info.bands)}, but the bundle was trained on "
            f"{', '.join(expected)}; use a dataset with these bands"
        )
    if info.bands != expected:
        logger.warning("the bundle was trained on the bands %s, the dataset has %s", ", ".join(expected), ", ".join(info.bands))
    for line in bundle.images.conversions(zero_point_mag=info.zero_point_mag, pixel_scale_arcsec=info.pixel_scale_arcsec):
        logger.info(line)


def _predicted(config: InferConfig, bundle: Bundle, source: Source, units: list[Unit], workers: Workers) -> Iterator[int]:
    """Run the pipeline and yield the number of rows of each unit when it is written."""
    items = [dataclasses.asdict(unit) for unit in units]
    written = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(functools.partial(_read_unit, source=source), batch_size=None, num_cpus=_CPUS_PER_IO_TASK)
        .map_batches(
            _Predict,
            fn_constructor_args=(config, workers, source.info),
            batch_size=None,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers.count, len(units))),
        )
        .map_batches(
            functools.partial(_write_unit, config=config, targets=bundle.targets, zero_point_mag=bundle.images.zero_point_mag),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_CPUS_PER_IO_TASK,
        )
    )
    for row in written.iter_rows():
        yield row["num_rows"]


def _read_unit(item: Any, *, source: Source) -> dict[str, np.ndarray]:
    """Return a unit's rows with what is known of them."""
    unit = Unit(**{name: values[0] for name, values in item.items()})
    rows = source.read(unit)
    flags_N = np.zeros(unit.num_rows, np.int64)
    for column, flag in (("pixels_filled", Flag.PIXELS_FILLED), ("padded", Flag.INPUT_PADDED)):
        flags_N |= np.where(rows.pop(column), flag.value, 0)
    shared = {"unit": np.full(unit.num_rows, unit.name), "unit_rows": np.full(unit.num_rows, unit.num_rows)}
    return rows | shared | {"flags": flags_N}


class _Predict:
    """An inference actor: adds the mixture to a unit's rows and drops their images."""

    def __init__(self, config: InferConfig, workers: Workers, info: shards.DatasetInfo) -> None:
        torch.set_num_threads(workers.threads)
        bundle = load_bundle(config.bundle)
        device = "cuda" if workers.gpus else "cpu"
        self._predict = Predictor(
            bundle,
            num_passes=config.num_passes,
            seed=config.seed,
            device=device,
            zero_point_mag=info.zero_point_mag,
            pixel_scale_arcsec=info.pixel_scale_arcsec,
        )
        self._batch_size, self._size = config.batch_size, bundle.images.size

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        image_NCHW = rows.pop("image")
        starts = range(0, len(image_NCHW), self._batch_size)
        predictions = [self._predict(image_NCHW[i : i + self._batch_size]) for i in starts]
        usable_N = np.concatenate([p.usable_N for p in predictions])
        rows["reason"] = np.where((rows["reason"] == "") & ~usable_N, _NO_POSTERIOR, rows["reason"])
        rows["mean"] = np.concatenate([p.mixture.mean_NKD.numpy() for p in predictions])
        rows["scale_tril"] = np.concatenate([p.mixture.scale_tril_NKDD.numpy() for p in predictions])
        rows["crop_scale"] = np.concatenate([p.crop_scale_N for p in predictions])
        if min(self._predict.match(image_NCHW[:1]).shape[-2:]) < self._size:
            rows["flags"] = rows["flags"] | Flag.INPUT_PADDED.value
        return rows


def _write_unit(
    rows: pa.Table, *, config: InferConfig, targets: TargetSchema, zero_point_mag: float | None
) -> dict[str, list[int]]:
    """Summarise the posteriors of a unit and write its catalogue and quarantine files; the catalogue's comes last."""
    name, num_rows = rows["unit"][0].as_py(), rows["unit_rows"][0].as_py()
    if len(rows) != num_rows:
        raise RuntimeError(f"unit {name} has {num_rows} rows, {len(rows)} came: Ray Data cut its block")
    bad = np.asarray(rows["reason"].to_pylist()) != ""
    if bad.any():
        wrong = rows.filter(pa.array(bad))
        columns = (wrong[key].cast(pa.string()).to_pylist() for key in shards.QUARANTINE_SCHEMA.names)
        shards.write_quarantine(storage.join(config.output, QUARANTINE, name), zip(*columns, strict=True))
    good = rows.filter(pa.array(~bad))
    mean_NKD, scale_tril_NKDD = (_tensor(good[key]) for key in ("mean", "scale_tril"))
    objects = good.select([key for key in ("object_id", "ra", "dec") if key in good.column_names])
    mixture = Mixture(mean_NKD, scale_tril_NKDD, targets)
    if config.catalog_format == "gampen":
        summary = gampen_summary(objects, mixture, zero_point_mag=zero_point_mag, gampen_magnitudes=config.gampen_magnitudes)
        storage.write_bytes_atomic(_summary_part(config.output, name), summary.to_csv(index=False).encode())
    table = catalog_table(
        objects,
        mixture,
        good["crop_scale"].to_numpy(),
        good["flags"].to_numpy(),
        store_mixture=config.posterior == "mixture" or config.catalog_format == "gampen",
        mode_centred=config.mode_centred,
    )
    write_part(storage.join(config.output, CATALOG, name), table)
    return {"num_rows": [len(rows)]}


def _write_gampen(config: InferConfig, targets: TargetSchema) -> None:
    """Write GaMPEN's files from the finished catalogue."""
    folder = storage.join(config.output, FOLDER)
    join_summaries(storage.list_files(_summary_part(config.output), ".csv"), storage.join(folder, SUMMARY))
    write_draws(lambda: catalog_parts(config.output), targets, folder, config.num_passes, config.seed)


def _summary_part(output: str, unit: str = "") -> str:
    return storage.join(output, FOLDER, "parts", *([unit.removesuffix(".parquet") + ".csv"] if unit else []))


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    return torch.from_numpy(column.combine_chunks().to_numpy_ndarray().copy())


def _counts(output: str) -> dict[str, int]:
    counts = {}
    for name, folder in (("num_galaxies", CATALOG), ("num_quarantined", QUARANTINE)):
        total = 0
        for uri in storage.list_files(storage.join(output, folder), ".parquet"):
            with storage.open_input(uri) as source:
                total += pq.ParquetFile(source).metadata.num_rows
        counts[name] = total
    return counts

"""The `infer` verb: units of work -> actors -> catalogue files, streamed by Ray Data, and resumed by what is there already.

Each unit becomes one catalogue file of a name that depends on the input alone (`gampen_ray.engine.prediction`): the presence of
that file is the ledger. Nothing else has to be kept, for any number of rows, and whatever was killed leaves whole files only.
"""

import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gampen_ray import storage
from gampen_ray.catalog.hats import check_hats, write_hats
from gampen_ray.catalog.parquet import CATALOG, MANIFEST, QUARANTINE, catalog_parts
from gampen_ray.config import InferConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import shards
from gampen_ray.data.sources import Source, Unit, open_source
from gampen_ray.engine.estimate import estimate
from gampen_ray.engine.prediction import inference_workers, run_inference, summary_part
from gampen_ray.engine.rates import Rates
from gampen_ray.engine.session import ray_session
from gampen_ray.errors import UserError
from gampen_ray.gampen.summary_files import FOLDER, SUMMARY, join_summaries, write_draws
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.model.targets import TargetSchema
from gampen_ray.progress import Progress
from gampen_ray.provenance import claim_output, provenance

logger = logging.getLogger(__name__)

_FOOTER_THREADS = 32


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
    source, units = open_source(
        config.dataset,
        split=config.split,
        reader=config.reader,
        bands=bundle.images.bands,
        size=bundle.images.size,
        unit_rows=config.galaxies_per_file,
    )
    _check_fit(config, bundle, source.info)
    if config.catalog_format == "hats":
        check_hats(config.dataset, units)
    if config.estimate:
        return estimate(config, bundle, source, units)
    inputs = {"bundle": bundle_digest(config.bundle), "dataset": source.info.fingerprint}
    claim_output(config.output, config, inputs)
    manifest_uri = storage.join(config.output, MANIFEST)
    if storage.exists(manifest_uri):
        logger.info("%s is complete; nothing to do", config.output)
        return storage.read_json(manifest_uri)
    rates = _predict_all(config, bundle, source, units)
    if config.catalog_format == "gampen":
        _write_gampen(config, bundle.targets)
    counts = _counts(config.output)
    if sum(counts.values()) != sum(unit.num_rows for unit in units):
        raise RuntimeError(f"{config.output} holds {counts}, the dataset {sum(unit.num_rows for unit in units)} rows")
    if config.catalog_format == "hats":
        counts["num_in_hats"] = write_hats(config.output, counts["num_galaxies"])
    manifest = {
        **counts,
        "rates": rates,
        "config": to_dict(config),
        "calibration_scale": bundle.calibration_scale_D.tolist(),
        "inputs": inputs,
        "bundle_provenance": bundle.provenance,
        "provenance": provenance(),
    }
    storage.write_json(manifest_uri, manifest)
    storage.delete(summary_part(config.output))
    logger.info("wrote %s: %s galaxies, %s in quarantine", config.output, counts["num_galaxies"], counts["num_quarantined"])
    return manifest


def _predict_all(config: InferConfig, bundle: Bundle, source: Source, units: list[Unit]) -> dict[str, Any]:
    """Predict the units that are not there yet and return at what rate."""
    there = {uri.rpartition("/")[2] for uri in storage.list_files(storage.join(config.output, CATALOG), ".parquet")}
    todo = [unit for unit in units if unit.name not in there]
    began = time.time()
    if not todo:
        return {}
    progress = Progress("infer", sum(unit.num_rows for unit in units), "galaxies")
    progress.skip(sum(unit.num_rows for unit in units if unit.name in there))
    with progress, ray_session():
        workers = inference_workers(config, len(todo))
        rates = Rates(began, config.num_passes, workers)
        for result in run_inference(config, bundle, source, todo, workers):
            rates.add(result)
            progress.advance(result.num_rows, rates.text())
    measured = rates.to_dict()
    speed = measured["galaxies_per_second"]
    logger.info("without %.0f s of start-up: %.4g galaxies/s, %s", measured["startup_seconds"], speed, rates.text())
    return measured


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


def _write_gampen(config: InferConfig, targets: TargetSchema) -> None:
    """Write GaMPEN's files from the finished catalogue."""
    folder = storage.join(config.output, FOLDER)
    join_summaries(storage.list_files(summary_part(config.output), ".csv"), storage.join(folder, SUMMARY))
    write_draws(lambda: catalog_parts(config.output), targets, folder, config.num_passes, config.seed)


def _counts(output: str) -> dict[str, int]:
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return {
            name: sum(map(sum, pool.map(shards.row_group_sizes, storage.list_files(storage.join(output, folder), ".parquet"))))
            for name, folder in (("num_galaxies", CATALOG), ("num_quarantined", QUARANTINE))
        }

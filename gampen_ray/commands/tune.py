"""The `tune` verb: searches for the best training config, or chooses the dropout rate of a trained one by coverage."""

import dataclasses
import logging

import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.commands.train import train
from gampen_ray.config import ResourcesConfig, TrainConfig, TuneConfig
from gampen_ray.config.base import to_toml
from gampen_ray.config.tuning import DROPOUT_RATE
from gampen_ray.engine.cluster import cluster_workers
from gampen_ray.engine.retrain import retrain, retraining
from gampen_ray.engine.search import search
from gampen_ray.engine.session import ray_session
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, bundle_digest, load_bundle
from gampen_ray.provenance import check_output, claim_output
from gampen_ray.report.tune_page import PAGE, tune_page
from gampen_ray.training.run import BUNDLE, prepare
from gampen_ray.training.tracking import check_tracking
from gampen_ray.tuning.dropout_scan import rates, scanned_run, trained_config
from gampen_ray.tuning.ledger import Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import BEST, TRIALS, best, pareto_front, trials_table

logger = logging.getLogger(__name__)

BEST_TRAINED = "best-trained"
"""Folder in the study that best.toml names as output; `train` makes it."""


def tune(config: TuneConfig) -> Bundle:
    """Find the best training config, and return its bundle, which is written to ``<output>/bundle``.

    An unfinished study of the same config goes on and repeats no finished trial; a finished one is returned as it is.

    Raises
    ------
    UserError
        If space, dataset or bundle do not fit, the output holds another study, the cluster is too small, or no trial is
        complete in the end.
    """
    config = dataclasses.replace(config, dataset=storage.absolute(config.dataset), output=storage.absolute(config.output))
    check_tracking(config.mlflow)
    study = _dropout_by_coverage if config.stage == "dropout-by-coverage" else _search
    return study(config, SearchSpace.of(config))


def _search(config: TuneConfig, space: SearchSpace) -> Bundle:
    if config.fine_tune.bundle:
        config = _starting_from(config, storage.absolute(config.fine_tune.bundle))
        space = SearchSpace.of(config)
    run = prepare(space.base)
    # The bundle to start from is named by its content, wherever it lies.
    owner = _starting_from(config, run.start.digest) if run.start else config
    if _is_complete(config, owner, run.inputs):
        return load_bundle(config.output)
    with ray_session():
        workers = cluster_workers(config.resources, gpus_per_worker=config.resources.gpus_per_worker)
        claim_output(config.output, owner, run.inputs)
        for line in run.images.conversions(**run.units):
            logger.info(line)
        trials = search(config, space, run, workers)
    table, ledger = trials_table(trials, space), Ledger(config.output)
    number = best(table, config.judged_by)
    for other in {trial.number for trial in trials} - {number, *pareto_front(table, config.judged_by)}:
        storage.delete(storage.join(ledger.folder(other), BUNDLE))
    values = next(trial.values for trial in trials if trial.number == number)
    return _finish(config, table, space.train_config(values, config.output), load_bundle(ledger.folder(number)))


def _starting_from(config: TuneConfig, bundle: str) -> TuneConfig:
    return dataclasses.replace(config, fine_tune=dataclasses.replace(config.fine_tune, bundle=bundle))


def _dropout_by_coverage(config: TuneConfig, space: SearchSpace) -> Bundle:
    config = dataclasses.replace(config, bundle=storage.absolute(config.bundle))
    bundle = load_bundle(config.bundle)
    run = scanned_run(trained_config(config, bundle), bundle)
    rates(config)
    inputs = {"dataset": run.info.fingerprint, "bundle": bundle_digest(config.bundle)}
    if _is_complete(config, config, inputs):
        return load_bundle(config.output)
    with ray_session():
        one = dataclasses.replace(config.resources, num_workers=1, min_workers=0)
        workers = cluster_workers(one)
        claim_output(config.output, config, inputs)
        trials = retrain(config, run, bundle, workers, train)
    table = trials_table(trials, space)
    chosen = retraining(config, run.config, trials[best(table, config.judged_by)].values[DROPOUT_RATE])
    return _finish(config, table, chosen, load_bundle(chosen.output))


def _is_complete(config: TuneConfig, owner: TuneConfig, inputs: dict[str, str]) -> bool:
    check_output(config.output, owner, inputs)
    complete = storage.exists(storage.join(config.output, BUNDLE, CHECKSUMS))
    if complete:
        logger.info("%s is complete; nothing to do", config.output)
    return complete


def _finish(config: TuneConfig, table: pa.Table, chosen: TrainConfig, bundle: Bundle) -> Bundle:
    """Write the outcome of a study; the bundle, whose checksums say that the study is complete, comes last."""
    with storage.open_output(storage.join(config.output, TRIALS)) as file:
        pq.write_table(table, file)
    # Of the study's resources some are those of several trials.
    chosen = dataclasses.replace(chosen, output=storage.join(config.output, BEST_TRAINED), resources=ResourcesConfig())
    outcome = {"config": BEST, "page": PAGE, "bundle": BUNDLE}
    storage.write_bytes_atomic(storage.join(config.output, BEST), to_toml(chosen).encode())
    storage.write_bytes_atomic(storage.join(config.output, PAGE), tune_page(config).encode())
    bundle.save(storage.join(config.output, BUNDLE))
    for name, file in outcome.items():
        logger.info("%-7s %s", f"{name}:", storage.join(config.output, file))
    return bundle

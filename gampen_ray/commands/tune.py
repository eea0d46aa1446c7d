"""The `tune` verb: searches for the best training config."""

import logging
from typing import TYPE_CHECKING

from gampen_ray.commands.registry import then_infer, verb
from gampen_ray.config import ScanDropoutConfig, TrainConfig, TrainResources, TuneConfig
from gampen_ray.config.base import replace, to_toml

if TYPE_CHECKING:
    import pyarrow as pa

    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.run_folder import RunFolder

logger = logging.getLogger(__name__)

BEST_TRAINED = "best-trained"
"""Output folder in best.toml, below the study; `train` creates it."""


@verb("tune", positional="dataset", then=then_infer)
def tune(config: TuneConfig) -> "Bundle":
    """Find the best training config, and return its bundle, which is written to ``<output>/bundle``.

    An unfinished study of the same config is resumed and repeats no finished trial; the bundle of a finished one is returned.

    Raises
    ------
    UserError
        If search space, dataset or bundle do not fit, the output holds another study, the cluster is too small, or no trial
        completes.
    """
    from gampen_ray import storage
    from gampen_ray.engine.cluster import cluster_workers
    from gampen_ray.engine.search import search
    from gampen_ray.engine.session import ray_session
    from gampen_ray.inference.bundle import CHECKSUMS, load_bundle
    from gampen_ray.run_folder import RunFolder
    from gampen_ray.training.execute import BUNDLE
    from gampen_ray.training.run import prepare
    from gampen_ray.training.tracking import check_tracking
    from gampen_ray.tuning.ledger import Ledger
    from gampen_ray.tuning.space import SearchSpace
    from gampen_ray.tuning.trials import best, pareto_front, trials_table

    config = replace(config, dataset=storage.absolute(config.dataset), output=storage.absolute(config.output))
    check_tracking(config.mlflow)
    if config.fine_tune.bundle:
        config = replace(config, **{"fine_tune.bundle": storage.absolute(config.fine_tune.bundle)})
    space = SearchSpace.of(config)
    run = prepare(space.base)
    # The bundle to start from is identified by its content, wherever it lies.
    owner = replace(config, **{"fine_tune.bundle": run.start.digest}) if run.start else config
    claim = (config.output, "tune", owner, run.inputs)
    complete = storage.join(BUNDLE, CHECKSUMS)
    if RunFolder.check(*claim, complete=complete) == "complete":
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    with ray_session():
        workers = cluster_workers(config.resources, gpus_per_worker=config.resources.gpus_per_worker)
        with RunFolder.open(*claim, complete=complete) as folder:
            if not folder.is_complete:
                for line in run.images.conversions(**run.cutout_units):
                    logger.info(line)
                trials = search(config, space, run, workers)
                table, ledger = trials_table(trials, space), Ledger(config.output, space)
                number = best(table, config.objectives)
                for other in {trial.number for trial in trials} - {number, *pareto_front(table, config.objectives)}:
                    storage.delete(storage.join(ledger.folder(other), BUNDLE))
                values = next(trial.values for trial in trials if trial.number == number)
                finish_study(folder, config, table, space.train_config(values, ledger.folder(number)))
    return load_bundle(config.output)


def finish_study(folder: "RunFolder", config: TuneConfig | ScanDropoutConfig, table: "pa.Table", chosen: TrainConfig) -> None:
    """Write the results of a study; the bundle of the chosen training comes last, as its checksums mark a complete study."""
    import pyarrow.parquet as pq

    from gampen_ray import storage
    from gampen_ray.inference.bundle import load_bundle
    from gampen_ray.reports.tune_page import PAGE, tune_page
    from gampen_ray.training.execute import BUNDLE
    from gampen_ray.tuning.trials import BEST, TRIALS

    folder.check_lock()
    with storage.open_output(folder.path(TRIALS)) as file:
        pq.write_table(table, file)
    # The study's resources may be those of several trials.
    best = replace(chosen, output=folder.path(BEST_TRAINED), resources=TrainResources())
    storage.write_bytes_atomic(folder.path(BEST), to_toml(best).encode())
    storage.write_bytes_atomic(folder.path(PAGE), tune_page(config).encode())
    load_bundle(chosen.output).save(folder.path(BUNDLE))
    for name, file in {"config": BEST, "page": PAGE, "bundle": BUNDLE}.items():
        logger.info("%-7s %s", f"{name}:", folder.path(file))

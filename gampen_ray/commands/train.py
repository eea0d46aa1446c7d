"""The `train` verb: trains a network on this machine or a Ray cluster, and writes a model bundle into a run folder."""

import logging
from typing import TYPE_CHECKING

from gampen_ray.commands.registry import then_infer, verb
from gampen_ray.config import TrainConfig
from gampen_ray.config.base import replace
from gampen_ray.errors import UserError

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.training.run import Run

logger = logging.getLogger(__name__)


@verb("train", positional="dataset", then=then_infer)
def train(config: TrainConfig) -> "Bundle":
    """Train a network and return its bundle, which is written to ``<output>/bundle``.

    An unfinished run of the same config resumes from its last checkpoint; the bundle of a finished one is returned.

    Raises
    ------
    UserError
        If the dataset does not fit the config, the output holds another run, or the cluster is too small.
    """
    from gampen_ray import storage
    from gampen_ray.dry_run import is_dry
    from gampen_ray.engine.trainers import check_trainers, trainers
    from gampen_ray.inference.bundle import CHECKSUMS, load_bundle
    from gampen_ray.run_folder import RunFolder
    from gampen_ray.training.execute import BUNDLE, log_verdicts, warn_of_unusable
    from gampen_ray.training.loop import check_device
    from gampen_ray.training.run import prepare
    from gampen_ray.training.tracking import check_tracking

    config = replace(config, dataset=storage.absolute(config.dataset), output=storage.absolute(config.output))
    if config.fine_tune.bundle:
        config = replace(config, **{"fine_tune.bundle": storage.absolute(config.fine_tune.bundle)})
    check_tracking(config.mlflow)
    run = prepare(config)
    # The bundle to start from is identified by its content, wherever it lies.
    owner = replace(config, **{"fine_tune.bundle": run.start.digest}) if run.start else config
    claim = (config.output, "train", owner, run.inputs)
    complete = storage.join(BUNDLE, CHECKSUMS)
    if is_dry():
        check_trainers(config.resources)
    rows = ", ".join(f"{run.info.num_rows[split]:,} {split}" for split in ("train", "val"))
    if RunFolder.check(*claim, complete=complete, work=f"galaxies: {rows}") == "complete":
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    resources = config.resources
    _check_enough(run, resources.num_workers)
    with trainers(resources) as (workers, run_training):
        _check_enough(run, workers.count)
        check_device(config.optimizer, "cuda" if workers.gpus else "cpu")
        with RunFolder.open(*claim, complete=complete) as folder:
            if not folder.is_complete:
                for line in run.images.conversions(**run.cutout_units):
                    logger.info(line)
                run_training(run, workers)
    bundle = load_bundle(config.output)
    warn_of_unusable(bundle)
    log_verdicts(bundle)
    logger.info("wrote %s", storage.join(config.output, BUNDLE))
    return bundle


def _check_enough(run: "Run", num_workers: int) -> None:
    config = run.config
    if config.optimizer.batch_size < num_workers:
        raise UserError(
            f"optimizer.batch_size: {config.optimizer.batch_size} is too small to give each of {num_workers} workers a galaxy; "
            "raise it or lower resources.num_workers"
        )
    for split in ("train", "val"):
        rows = run.info.num_rows[split]
        if rows < num_workers:
            raise UserError(
                f"dataset: {config.dataset} has {rows} galaxies in split {split!r} for {num_workers} workers; "
                "lower resources.num_workers or add galaxies"
            )

"""The `scan-dropout` verb: chooses the dropout rate of a trained bundle by coverage, as in GaMPEN."""

import logging
from typing import TYPE_CHECKING

from gampen_ray.commands.registry import then_infer, verb
from gampen_ray.commands.train import train
from gampen_ray.commands.tune import finish_study
from gampen_ray.config import ScanDropoutConfig, TrainConfig
from gampen_ray.config.base import replace
from gampen_ray.config.tuning import DROPOUT_RATE

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.tuning.trials import Trial

logger = logging.getLogger(__name__)


@verb("scan-dropout", positional="bundle", then=then_infer)
def scan_dropout(config: ScanDropoutConfig) -> "Bundle":
    """Scan the dropout rates of a bundle, retrain with the best ones, and return the best bundle, as ``<output>/bundle``.

    An unfinished study of the same config is resumed without repeating finished work; the bundle of a finished one is returned.

    Raises
    ------
    UserError
        If the bundle has no dropout or no training config, the dataset does not fit it, the output holds another study, or the
        cluster is too small.
    """
    from gampen_ray import storage
    from gampen_ray.engine.rate_scan import scan_rates
    from gampen_ray.engine.trainers import trainers, trains_here
    from gampen_ray.inference.bundle import CHECKSUMS, bundle_digest, load_bundle
    from gampen_ray.run_folder import RunFolder
    from gampen_ray.training.execute import BUNDLE
    from gampen_ray.training.tracking import check_tracking
    from gampen_ray.tuning.dropout_scan import SCAN, rates, scan_space, scanned_run, shortlisted, trained_config, with_rate
    from gampen_ray.tuning.trials import best, trials_table

    config = replace(config, **{name: storage.absolute(getattr(config, name)) for name in ("bundle", "dataset", "output")})
    check_tracking(config.mlflow)
    digest = bundle_digest(config.bundle)
    bundle = load_bundle(config.bundle, digest)
    run = scanned_run(trained_config(config, bundle), bundle)
    inputs = run.inputs | {"bundle": digest}
    claim = (config.output, "scan-dropout", config, inputs)
    complete = storage.join(BUNDLE, CHECKSUMS)
    if RunFolder.check(*claim, complete=complete) == "complete":
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    here = trains_here(config.resources)
    alone = replace(config.resources, engine="local" if here else "ray", num_workers=1, min_workers=0)
    with trainers(alone) as (worker, _), RunFolder.open(*claim, complete=complete) as folder:
        if not folder.is_complete:
            scanned = scan_rates(folder.path(SCAN), rates(config), run, bundle.network, worker, here=here)
            chosen = shortlisted(scanned, config.shortlist)
            configs = [with_rate(run.config, rate, folder.path(f"retrained-{rate:g}")) for rate in chosen]
            trials = [_retrained(number, one, run.info.num_rows["train"]) for number, one in enumerate(configs)]
            table = trials_table(trials, scan_space(config))
            finish_study(folder, config, table, configs[best(table, config.objectives)])
    return load_bundle(config.output)


def _retrained(number: int, config: TrainConfig, num_galaxies: int) -> "Trial":
    from gampen_ray import storage
    from gampen_ray.training.history import HISTORY, read_history
    from gampen_ray.tuning.trials import Trial, objectives

    bundle = train(config)
    history = read_history(storage.join(config.output, HISTORY))
    return Trial(
        number=number,
        state="complete",
        epochs=int(history[-1]["epoch"]),
        seconds=sum(num_galaxies / row["galaxies_per_s"] for row in history),
        objectives=objectives(bundle, config.calibration.num_passes),
        values={DROPOUT_RATE: bundle.config.backbone.dropout_rate},
    )

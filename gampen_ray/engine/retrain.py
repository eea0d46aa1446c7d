"""Stage dropout-by-coverage of `tune`: a scan of dropout rates on a trained bundle, then a training with each of the best."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch

from gampen_ray import storage
from gampen_ray.config import TrainConfig, TuneConfig
from gampen_ray.config.tuning import DROPOUT_RATE
from gampen_ray.engine.resources import Workers
from gampen_ray.inference.bundle import Bundle
from gampen_ray.model.network import Network
from gampen_ray.progress import Progress
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import HISTORY, Run
from gampen_ray.tuning.dropout_scan import SCAN, ScannedRate, rates, scan, shortlisted, with_rate
from gampen_ray.tuning.trials import Trial, objectives


def retrain(
    config: TuneConfig, run: Run, bundle: Bundle, workers: Workers, train: Callable[[TrainConfig], Bundle]
) -> list[Trial]:
    """Scan the rates of a bundle, train it anew with the best ones, and return these trainings; what is done is not repeated.

    Parameters
    ----------
    config
        Of the study.
    run
        How the bundle was trained, and the validation split.
    bundle
        What is scanned.
    workers
        One, which scans.
    train
        The verb.
    """
    scanned = _scanned(config, run, bundle.network, workers)
    return [
        _trained(number, rate, retraining(config, run.config, rate), run.info.num_rows["train"], train)
        for number, rate in enumerate(shortlisted(scanned, config.shortlist))
    ]


def retraining(config: TuneConfig, trained: TrainConfig, rate: float) -> TrainConfig:
    """Return the config of a training with a rate of the shortlist."""
    return with_rate(trained, rate, storage.join(config.output, f"retrained-{rate:.3g}"))


def _scanned(config: TuneConfig, run: Run, network: Network, workers: Workers) -> list[ScannedRate]:
    uri = storage.join(config.output, SCAN)
    if storage.exists(uri):
        return [ScannedRate(**row) for row in storage.read_json(uri)]
    values = [float(rate) for rate in rates(config)]
    rows: Any = _scan.options(num_cpus=workers.cpus, num_gpus=workers.gpus).remote(run, network, values, workers)
    found = []
    with Progress("scan", len(values), "rates") as progress:
        for row in rows:
            found.append(ray.get(row))
            note = f"rate {found[-1].rate:.3g}: calibration error {found[-1].calibration_error:.4f}"
            progress.advance(1, note, always=True)
    storage.write_json(uri, [dataclasses.asdict(row) for row in found])
    return found


@ray.remote
def _scan(run: Run, network: Network, values: list[float], workers: Workers) -> Iterator[ScannedRate]:
    torch.set_num_threads(workers.threads)
    worker = LocalWorker.read(run)
    worker.device = torch.device("cuda" if workers.gpus else "cpu")
    yield from scan(worker, run, network.to(worker.device), values)


def _trained(number: int, rate: float, config: TrainConfig, num_galaxies: int, train: Callable[[TrainConfig], Bundle]) -> Trial:
    bundle = train(config)
    history = storage.read_json(storage.join(config.output, HISTORY))
    return Trial(
        number=number,
        state="complete",
        epochs=len(history),
        seconds=sum(num_galaxies / row["galaxies_per_s"] for row in history),
        objectives=objectives(bundle, config.calibration.num_passes),
        values={DROPOUT_RATE: rate},
    )

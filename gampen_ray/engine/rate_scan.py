"""The scan of the dropout rates of a trained network, in this process or on one worker of the cluster."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch

from gampen_ray import storage
from gampen_ray.engine.interrupts import interrupts
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.units import threads_kept
from gampen_ray.model.network import Network
from gampen_ray.progress import Progress
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import Run
from gampen_ray.tuning.dropout_scan import ScannedRate, read_scan, scan

logger = logging.getLogger(__name__)


def scan_rates(uri: str, rates: list[float], run: Run, network: Network, workers: Workers, *, here: bool) -> list[ScannedRate]:
    """Return the quality of a trained network at several dropout rates; a finished scan is read from its file.

    Parameters
    ----------
    uri
        File of the scan.
    rates
        See `gampen_ray.tuning.dropout_scan.rates`.
    run, network
        Training of the network, with the validation split; and the network.
    workers
        The worker that scans.
    here
        Whether that is this process; otherwise there is a session of Ray.
    """
    if storage.exists(uri):
        return read_scan(uri)
    job = run, network, rates, workers
    found: list[ScannedRate] = []
    with Progress("scan", len(rates), "rates") as progress, threads_kept(), interrupts():
        for row in _scan(*job) if here else _on_ray(*job):
            found.append(row)
            logger.info("rate %.3g: calibration error %.4f", found[-1].rate, found[-1].calibration_error)
            progress.advance(1)
    storage.write_json(uri, [dataclasses.asdict(row) for row in found])
    return found


def _on_ray(run: Run, network: Network, rates: list[float], workers: Workers) -> Iterator[ScannedRate]:
    import ray

    task: Any = ray.remote(_scan).options(num_cpus=workers.cpus, num_gpus=workers.gpus)
    return map(ray.get, task.remote(run, network, rates, workers))


def _scan(run: Run, network: Network, rates: list[float], workers: Workers) -> Iterator[ScannedRate]:
    torch.set_num_threads(workers.threads)
    worker = LocalWorker.read(run)
    worker.device = torch.device("cuda" if workers.gpus else "cpu")
    yield from scan(worker, run, network.to(worker.device), rates)

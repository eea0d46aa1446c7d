"""The dropout rate of a trained network, chosen last and by coverage, as GaMPEN's is (Ghosh et al. 2022).

The rate acts in each Monte Carlo pass, and the more it drops the wider the posterior. A scan changes it in a trained network,
which costs predictions of the validation split alone; the few best rates are then worth a training with them.
Shape legend: N galaxies, K passes, D targets.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from gampen_ray.config import TuneConfig, default_search
from gampen_ray.config.tune import DROPOUT_RATE
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.model.network import Network
from gampen_ray.posterior.bundle import Bundle
from gampen_ray.posterior.calibration import coverage
from gampen_ray.posterior.evaluation import negative_log_density
from gampen_ray.training.loop import Worker
from gampen_ray.training.run import Run, validation_posterior
from gampen_ray.training.trials import calibration_error

SCAN = "scan.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScannedRate:
    """What a trained network is worth with another dropout rate, on the validation split and without calibration.

    Parameters
    ----------
    rate
        Of every dropout layer.
    coverage
        Rows of `gampen_ray.posterior.calibration.Coverage` as plain values.
    calibration_error
        Mean |coverage - nominal| over targets and levels.
    val_nll
        Mean negative log density of the mixture of all passes at the truth, standardised target space.
    """

    rate: float
    coverage: list[dict[str, Any]]
    calibration_error: float
    val_nll: float


def rates(config: TuneConfig) -> np.ndarray:
    """Return the rates to scan, ascending, evenly in the logarithm if the config does not say otherwise.

    Raises
    ------
    UserError
        If one of them drops nothing.
    """
    given = (config.search or default_search(config))[DROPOUT_RATE]
    if given.choices:
        values = np.array(sorted(given.choices), dtype=np.float64)
    else:
        values = (np.geomspace if given.log else np.linspace)(given.low, given.high, config.num_rates)  # type: ignore[arg-type]
    if not values.min() > 0:
        raise UserError(
            f"search.{DROPOUT_RATE}: {values.min():g} is among the rates, at which all passes are equal; start above 0"
        )
    return values


def scanned_run(config: TuneConfig, bundle: Bundle) -> Run:
    """Return the run whose validation posteriors a scan computes: the bundle's network and preprocessing on the config's data.

    Raises
    ------
    UserError
        If the bundle's network cannot drop anything, or the dataset lacks the validation split, bands or a target.
    """
    if not list(_dropout_layers(bundle.network)):
        raise UserError(
            f"bundle: {config.bundle} has no dropout layer; train one with dropout in its classifier or convolutions"
        )
    info = shards.read_dataset_info(config.dataset)
    if not info.num_rows.get("val"):
        raise UserError(f"dataset: {config.dataset} has no galaxies in split 'val'; make it with split.val above 0")
    missing = [name for name in bundle.targets.names if name not in info.target_units]
    if missing:
        raise UserError(f"dataset: {config.dataset} lacks the bundle's target {missing[0]!r}; give the one it was trained on")
    if len(info.bands) != len(bundle.images.bands):
        bands = f"bands {', '.join(info.bands)}, and the bundle was trained on {', '.join(bundle.images.bands)}"
        raise UserError(f"dataset: {config.dataset} has {bands}; give a dataset with these")
    return Run(config=config, info=info, network=bundle.config, targets=bundle.targets, images=bundle.images, start=None)


def scan(worker: Worker, run: Run, network: Network, rates: Sequence[float] | np.ndarray) -> Iterator[ScannedRate]:
    """Yield what a trained network is worth at each of some dropout rates; the passes of one rate differ in their masks alone.

    Parameters
    ----------
    worker
        View of the world of this worker, which has the validation split; all workers get the same.
    run
        See `scanned_run`; ``calibration.num_passes`` passes with masks of its seed.
    network
        Trained; a copy of it is used.
    rates
        Probabilities to drop an activation, above 0.
    """
    network = copy.deepcopy(network)
    for rate in rates:
        for layer in _dropout_layers(network):
            layer.p = float(rate)
        mixture, truths_ND = validation_posterior(worker, run, network)
        rows = [dataclasses.asdict(row) for row in coverage(mixture, truths_ND)]
        yield ScannedRate(
            rate=float(rate),
            coverage=rows,
            calibration_error=calibration_error(rows),
            val_nll=negative_log_density(mixture, truths_ND)["standardised"],
        )


def shortlisted(scanned: Sequence[ScannedRate], count: int) -> list[float]:
    """Return the rates of least calibration error, best first; equal ones in the order of their likelihood."""
    ordered = sorted(scanned, key=lambda row: (row.calibration_error, row.val_nll))
    return [row.rate for row in ordered[:count]]


def _dropout_layers(network: Network) -> Iterator[nn.Dropout]:
    return (layer for layer in network.modules() if isinstance(layer, nn.Dropout))

"""Choice of the dropout rate of a trained network by coverage, as in GaMPEN (Ghosh et al. 2022).

A higher rate widens the posterior. A scan changes the rate of a trained network, which costs only predictions of the validation
split; the network is then retrained with the few best rates.
Shape legend: N galaxies, K passes, D targets.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic
from torch import nn

from gampen_ray import documents
from gampen_ray.config import ScanDropoutConfig, SearchRange, TrainConfig
from gampen_ray.config.base import build, replace
from gampen_ray.config.tuning import DROPOUT_RATE
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.model.network import Network
from gampen_ray.posterior.calibration import Coverage, coverage
from gampen_ray.training.reading import split_units
from gampen_ray.training.run import Run
from gampen_ray.training.validation import validation_posterior
from gampen_ray.training.worker import Worker
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import calibration_error

SCAN = "scan.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Covered(Coverage):
    __pydantic_config__: ClassVar = documents.STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScannedRate:
    """Quality of a trained network at another dropout rate, on the validation split and without calibration.

    Parameters
    ----------
    rate
        Rate of every dropout layer.
    coverage
        Rows of `gampen_ray.posterior.calibration.Coverage` as plain values.
    calibration_error
        Mean |coverage - nominal| over targets and levels.
    val_nll
        Mean negative log density of the mixture of all passes at the truth, standardised target space.
    """

    __pydantic_config__: ClassVar = documents.STRICT

    rate: float
    coverage: list[Annotated[dict[str, Any], documents.holds(_Covered)]]
    calibration_error: float
    val_nll: float


def read_scan(uri: str) -> list[ScannedRate]:
    """Return the rates of a finished scan from its file; a `UserError` if it is damaged."""
    kind = Annotated[list[ScannedRate], pydantic.Field(min_length=1)]
    return documents.read(kind, uri, "delete it: the rates are scanned again")


def rates(config: ScanDropoutConfig) -> list[float]:
    """Return the rates to scan, ascending."""
    evenly = np.geomspace(config.lowest_rate, config.highest_rate, config.num_rates).tolist()
    return sorted(config.rates or evenly)


def scan_space(config: ScanDropoutConfig) -> SearchSpace:
    """Return the scan as a search of the dropout rate alone."""
    even = SearchRange(low=config.lowest_rate, high=config.highest_rate, log=True)
    range_ = SearchRange(choices=config.rates) if config.rates else even
    return SearchSpace(TrainConfig(dataset=config.dataset, output=config.output), {DROPOUT_RATE: range_})


def trained_config(config: ScanDropoutConfig, bundle: Bundle) -> TrainConfig:
    """Return the config that the bundle was trained with, but with dataset, output, tracking and resources of the study.

    Raises
    ------
    UserError
        If the bundle holds no training config.
    """
    if not (trained := bundle.provenance.get("train")):
        raise UserError(f"bundle: {config.bundle} does not say how it was trained, so it cannot be retrained; give another")
    study = {"dataset": config.dataset, "output": config.output, "mlflow": config.mlflow}
    found = build(TrainConfig, trained | study | {"resources": {}}, recorded=True)
    return replace(found, resources=config.resources)


def with_rate(trained: TrainConfig, rate: float, output: str) -> TrainConfig:
    """Return the config of a training with another dropout rate, in another run folder."""
    field = "fine_tune.dropout_rate" if trained.fine_tune.bundle else DROPOUT_RATE
    return replace(trained, **{"output": output, field: rate})


def scanned_run(trained: TrainConfig, bundle: Bundle) -> Run:
    """Return the run whose validation posteriors a scan computes: the bundle's network and preprocessing on the config's data.

    Raises
    ------
    UserError
        If the bundle's network has no dropout, or the dataset lacks the validation split, a band or a target.
    """
    if not list(_dropout_layers(bundle.network)):
        raise UserError("bundle: its network has no dropout layer; give one with dropout in its classifier or convolutions")
    info = shards.read_dataset_info(trained.dataset)
    if not info.num_rows.get("val"):
        raise UserError(f"dataset: {trained.dataset} has no galaxies in split 'val'; make it with split.val above 0")
    missing = [name for name in bundle.targets.names if name not in info.target_units]
    if missing:
        raise UserError(f"dataset: {trained.dataset} lacks the bundle's target {missing[0]!r}; give the one it was trained on")
    there = shards.columns(trained.dataset, "val", info).names
    if missing := [name for name in bundle.images.condition_names if name not in there]:
        raise UserError(
            f"dataset: {trained.dataset} lacks the bundle's condition {missing[0]!r}; give the one it was trained on"
        )
    if len(info.bands) != len(bundle.images.bands):
        bands = f"bands {', '.join(info.bands)}, and the bundle was trained on {', '.join(bundle.images.bands)}"
        raise UserError(f"dataset: {trained.dataset} has {bands}; give a dataset with these")
    if bundle.images.noise_planes:
        shards.require_noise_planes(trained.dataset, info)
    return Run(
        config=trained,
        info=info,
        network=bundle.config,
        targets=bundle.targets,
        images=bundle.images,
        known_conditions=bundle.known_conditions,
        prior=bundle.prior,
        start=None,
        splits={"train": (), "val": split_units(trained.dataset, "val", info)},
    )


def scan(worker: Worker, run: Run, network: Network, rates: Sequence[float] | np.ndarray) -> Iterator[ScannedRate]:
    """Yield the quality of a trained network at each of several dropout rates.

    Parameters
    ----------
    worker
        This worker, which has the validation split; all workers yield the same.
    run
        See `scanned_run`; its config sets the number of passes and the seed of their masks.
    network
        Trained; a copy of it is used.
    rates
        Dropout rates, above 0.
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
            val_nll=float(-mixture.standardised_log_prob(mixture.targets.standardise(truths_ND)[:, None]).mean()),
        )


def shortlisted(scanned: Sequence[ScannedRate], count: int) -> list[float]:
    """Return the rates of lowest calibration error, best first; ties are ordered by likelihood."""
    ordered = sorted(scanned, key=lambda row: (row.calibration_error, row.val_nll))
    return [row.rate for row in ordered[:count]]


def _dropout_layers(network: Network) -> Iterator[nn.Dropout]:
    return (layer for layer in network.modules() if isinstance(layer, nn.Dropout))

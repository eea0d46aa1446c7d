"""What a trained network makes of galaxies that it was not trained on, and what those galaxies are like.

Shape legend: N galaxies, M those with finite features, K passes, D targets, P outputs, F features, Q numbers, C bands.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gampen_ray.errors import UserError
from gampen_ray.inference.crop_statistics import CropMonitor, CropSample, CropStatistics
from gampen_ray.inference.mc_dropout import Passes, ThinnedNetworks
from gampen_ray.inference.out_of_distribution import OutOfDistribution, features
from gampen_ray.inference.ranges import Ranges
from gampen_ray.inference.verdicts import radius_target
from gampen_ray.model.network import Network
from gampen_ray.posterior.mixture import Mixture, proper
from gampen_ray.training.batches import Batch
from gampen_ray.training.run import Run
from gampen_ray.training.worker import Worker, one_sweep

__all__ = ["Validation", "fit_out_of_distribution", "validate", "validation_posterior"]

_SAMPLE, _TRAINING_SAMPLE, _SEED_IMAGES = 10_000, 4_000, 1_000
"""Galaxies of all workers: whose images are looked at, in the validation and in the training split, and that are predicted with
another seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """The validation split, uncalibrated."""

    mixture: Mixture
    """Posteriors of the galaxies whose posterior is finite."""
    truths_ND: np.ndarray
    """Their true values, physical."""
    unusable: list[str]
    """Identifiers of the others."""
    seeds: list[Mixture]
    """Posteriors of up to 1,000 galaxies under the config's seed and under the next."""
    features_MF: np.ndarray
    """Finite features of up to 10,000 galaxies."""
    ranges: Ranges | None
    """Of the numbers measured in the same galaxies; None: those of no galaxy are finite."""
    crop: CropStatistics | None
    """Of their crops; None: the network has no spatial transformer, or its crops are not finite."""


@torch.inference_mode()
def validate(worker: Worker, run: Run, network: Network) -> Validation:
    """Return what a network makes of the galaxies for calibration; the validation split is read once.

    Raises
    ------
    UserError
        On all workers, if no galaxy has a finite posterior, or none of those that are predicted with two seeds.
    """
    network.eval()
    config, size = run.config.calibration, worker.world_size
    thinned, other = (ThinnedNetworks(network, config.num_passes, run.config.seed + i) for i in range(2))
    monitor = CropMonitor(thinned.network) if network.transformer else None
    own = _Parts()
    for batch in _evenly_spaced(worker, run):
        count = size * own.count
        inputs, plain_NQC = run.inputs_and_plain_numbers(batch) if count < _SAMPLE else (run.network_inputs(batch), None)
        with monitor if monitor and count < _SAMPLE else contextlib.nullcontext():
            passes = thinned(*inputs)
        own.add(batch, passes)
        if count < _SEED_IMAGES:
            own.others.append(other(*inputs).outputs_NKP.cpu())
        if plain_NQC is not None:
            own.features.append(features(passes.activations))
            own.numbers.append(plain_NQC.cpu().numpy())
    own.crops = monitor.sample if monitor else None
    parts = worker.gather(own)
    mixture, truths_ND, unusable = _posterior(run, network, parts)
    features_NF, numbers_NQC = (
        np.concatenate(list(itertools.chain(*(getattr(part, name) for part in parts)))) for name in ("features", "numbers")
    )
    numbers_NQC = numbers_NQC[np.isfinite(numbers_NQC).all(axis=(1, 2))]
    return Validation(
        mixture=mixture,
        truths_ND=truths_ND,
        unusable=unusable,
        seeds=_seeds(run, network, parts),
        features_MF=features_NF[np.isfinite(features_NF).all(axis=1)],
        ranges=Ranges.fit(numbers_NQC) if len(numbers_NQC) else None,
        crop=_crop(run, parts),
    )


@torch.inference_mode()
def validation_posterior(worker: Worker, run: Run, network: Network) -> tuple[Mixture, np.ndarray]:
    """Return the uncalibrated posteriors of the galaxies for calibration, where they are finite, and the true values.

    Raises
    ------
    UserError
        On all workers, if no galaxy has a finite posterior.
    """
    thinned = ThinnedNetworks(network, run.config.calibration.num_passes, run.config.seed)
    own = _Parts()
    for batch in _evenly_spaced(worker, run):
        own.add(batch, thinned(*run.network_inputs(batch)))
    mixture, truths_ND, _ = _posterior(run, network, worker.gather(own))
    return mixture, truths_ND


@torch.inference_mode()
def fit_out_of_distribution(worker: Worker, run: Run, network: Network, held_out_MF: np.ndarray) -> OutOfDistribution | None:
    """Return the detector of unusual images, with its threshold from features of the validation split.

    It is fitted on up to 4,000 galaxies of the training split. None if the features of no image are finite.
    """
    thinned, parts, count = ThinnedNetworks(network, 1, run.config.seed), [], 0
    for batch in one_sweep(worker, "train"):
        parts.append(features(thinned.activations(*run.network_inputs(batch))))
        count += len(parts[-1])
        if count * worker.world_size >= _TRAINING_SAMPLE:
            break
    features_NF = np.concatenate(worker.gather(np.concatenate(parts)))
    features_NF = features_NF[np.isfinite(features_NF).all(axis=1)]
    return OutOfDistribution.fit(features_NF, held_out_MF) if len(features_NF) and len(held_out_MF) else None


def _evenly_spaced(worker: Worker, run: Run) -> Iterator[Batch]:
    """Yield those of this worker's validation galaxies that calibration looks at; see `CalibrationConfig.num_galaxies`."""
    stride = math.ceil(run.info.num_rows["val"] / run.config.calibration.num_galaxies)
    behind = 0
    for batch in one_sweep(worker, "val"):
        count = len(batch.object_id_N)
        if behind < count:
            yield batch.every(stride, behind)
        behind = (behind - count) % stride


# --- from the batches of all workers -------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Parts:
    """What one worker saw, a part a batch."""

    ids: list[np.ndarray] = dataclasses.field(default_factory=list)
    outputs: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """N x K x P."""
    targets: list[torch.Tensor] = dataclasses.field(default_factory=list)
    others: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """Outputs with another seed, of the first batches."""
    features: list[np.ndarray] = dataclasses.field(default_factory=list)
    numbers: list[np.ndarray] = dataclasses.field(default_factory=list)
    crops: CropSample | None = None

    def add(self, batch: Batch, passes: Passes) -> None:
        """Keep what a network makes of a batch."""
        self.ids.append(batch.object_id_N)
        self.outputs.append(passes.outputs_NKP.cpu())
        self.targets.append(batch.target_ND.cpu())

    @property
    def count(self) -> int:
        """Number of galaxies."""
        return sum(map(len, self.targets))


def _posterior(run: Run, network: Network, parts: Sequence[_Parts]) -> tuple[Mixture, np.ndarray, list[str]]:
    ids, outputs, targets = (
        list(itertools.chain(*(getattr(part, name) for part in parts))) for name in ("ids", "outputs", "targets")
    )
    mean_NKD, scale_tril_NKDD = network.likelihood.components(torch.cat(outputs).double())
    usable_N = proper(mean_NKD, scale_tril_NKDD)
    if not usable_N.any():
        raise UserError(
            f"dataset: {run.config.dataset}: none of the {len(usable_N)} galaxies in split 'val' has a finite posterior; lower "
            "optimizer.learning_rate, or look for extreme pixels"
        )
    mixture = Mixture(mean_NKD[usable_N], scale_tril_NKDD[usable_N], run.targets)
    truths_ND = run.targets.physical(torch.cat(targets)[usable_N].double().numpy())
    return mixture, truths_ND, [str(name) for name in np.concatenate(ids)[~usable_N.numpy()]]


def _seeds(run: Run, network: Network, parts: Sequence[_Parts]) -> list[Mixture]:
    first = torch.cat(list(itertools.chain(*(part.outputs[: len(part.others)] for part in parts))))[:_SEED_IMAGES]
    second = torch.cat(list(itertools.chain(*(part.others for part in parts))))[:_SEED_IMAGES]
    components = [network.likelihood.components(outputs_NKP.double()) for outputs_NKP in (first, second)]
    usable_N = proper(*components[0]) & proper(*components[1])
    if not usable_N.any():
        raise UserError(
            f"dataset: {run.config.dataset}: none of the first {len(usable_N)} galaxies in split 'val' has a finite posterior"
        )
    return [Mixture(mean_NKD[usable_N], tril_NKDD[usable_N], run.targets) for mean_NKD, tril_NKDD in components]


def _crop(run: Run, parts: Sequence[_Parts]) -> CropStatistics | None:
    crops = [part.crops for part in parts if part.crops is not None]
    if not crops:
        return None
    sample = CropSample.joined(crops)
    # Standardised radii have the order of the radii.
    seen = [target_ND for part in parts for target_ND in part.targets[: len(part.numbers)]]
    d, target_ND = radius_target(run.targets.names), torch.cat(seen).double().numpy()
    radius_N = None if d is None or len(target_ND) != len(sample.scale_N) else target_ND[:, d]
    return sample.statistics(radius_N) if np.isfinite(sample.scale_N).all() else None

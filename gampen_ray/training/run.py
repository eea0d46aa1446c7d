"""A training run from dataset to model bundle, as each worker executes it.

Shape legend: N galaxies, K passes, D targets, P outputs, C bands, H x W pixels.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gampen_ray import storage
from gampen_ray.config import NetworkConfig, TrainConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import shards
from gampen_ray.data.sources import Unit
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.crop_statistics import CropMonitor, CropSample, CropStatistics
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.inference.out_of_distribution import OutOfDistribution, features
from gampen_ray.inference.ranges import Ranges
from gampen_ray.inference.verdicts import coverage_verdict, crop_verdict, radius_target, seed_verdict, training_verdict
from gampen_ray.model.images import Condition, ImagePreprocessing, Inputs
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.mixture import Mixture, proper
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.provenance import provenance
from gampen_ray.training.batches import Batch
from gampen_ray.training.fine_tune import Start, start_from
from gampen_ray.training.loop import Plan, Worker, fit, one_pass
from gampen_ray.training.order import Order
from gampen_ray.training.reading import split_units

BUNDLE, HISTORY = "bundle", "history.json"
UNCALIBRATED = "uncalibrated"
"""Folder below a run folder for the weights of a network that gives no finite posterior."""
_SAMPLE_IMAGES, _SAMPLE_UNITS = 2_000, 20
# Of each split and worker.
_NOVELTY_IMAGES = 10_000
_SEED_IMAGES = 1_000
_NAMED = 10

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A config, completed from the training data and the bundle to start from; equal on all workers.

    Parameters
    ----------
    config
        The user's config.
    info
        Description of the dataset.
    network
        Architecture.
    targets, images
        Fitted on the training split, or taken over from the bundle to start from.
    start
        What fine-tuning starts from; None: random weights.
    splits
        Units of ``train`` and ``val``.
    """

    config: TrainConfig
    info: shards.DatasetInfo
    network: NetworkConfig
    targets: TargetSchema
    images: ImagePreprocessing
    start: Start | None
    splits: dict[str, tuple[Unit, ...]]

    def orders(self, rank: int = 0, world_size: int = 1) -> dict[str, Order]:
        """Return the order of each split for a worker."""
        seeds = {"train": self.config.seed, "val": None}
        return {
            split: Order(
                units=self.splits[split],
                batch_size=self.config.optimizer.batch_size,
                seed=seed,
                rank=rank,
                world_size=world_size,
            )
            for split, seed in seeds.items()
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprint of each input's content by the name of its config field."""
        inputs = {"dataset": self.info.fingerprint}
        return inputs | {"fine_tune.bundle": self.start.digest} if self.start else inputs

    def network_inputs(self, batch: Batch) -> Inputs:
        """Return what the network is given of galaxies of the dataset."""
        return self.images.inputs(self.images.match(batch.cutout_NCHW, **self.units), batch.condition_NJ)

    def numbers(self, batch: Batch) -> torch.Tensor | None:
        """Return the numbers of `network_inputs` alone."""
        return self.images.numbers(self.images.match(batch.cutout_NCHW, **self.units), batch.condition_NJ)

    @property
    def units(self) -> dict[str, float | None]:
        """Zero point and pixel scale of the dataset's cutouts."""
        return {"zero_point_mag": self.info.zero_point_mag, "pixel_scale_arcsec": self.info.pixel_scale_arcsec}


def prepare(config: TrainConfig) -> Run:
    """Read the dataset's description, targets and a sample of its images, and check them against the config.

    Raises
    ------
    UserError
        If the dataset lacks a split, a target or a condition, a value lies outside the domain of its transform or is not
        finite, or the network or the bundle to start from does not fit.
    """
    info = shards.read_dataset_info(config.dataset)
    for split in ("train", "val"):
        if not info.num_rows.get(split):
            raise UserError(f"dataset: {config.dataset} has no galaxies in split {split!r}; make it with split.{split} above 0")
    start = Start.read(config, info) if config.fine_tune.bundle else None
    columns = shards.column_names(config.dataset, "train", info)
    targets = _targets(config, info, start.targets if start else None, columns)
    splits = {split: split_units(config.dataset, split, info) for split in ("train", "val")}
    conditions = _conditions(config, info, start.images.condition_names if start else config.conditions, columns, targets)
    if start:
        network, images = start.network, dataclasses.replace(start.images, conditions=conditions)
    else:
        network = config.network
        images = _fitted_images(config, info, splits["train"], conditions)
    run = Run(
        config=config,
        info=info,
        network=network,
        targets=targets,
        images=images,
        start=start,
        splits=splits,
    )
    _check_dropout(run)
    return run


def with_config(run: Run, config: TrainConfig) -> Run:
    """Return the run of a config that differs from that of a prepared one in images, network, fine_tune and optimizer alone.

    Raises
    ------
    UserError
        As `prepare`.
    """
    changed = dataclasses.replace(run, config=config)
    if not run.start:
        images = run.images
        if config.images != run.config.images:
            images = _fitted_images(config, run.info, run.splits["train"], run.images.conditions)
        changed = dataclasses.replace(changed, network=config.network, images=images)
    _check_dropout(changed)
    return changed


def _conditions(
    config: TrainConfig, info: shards.DatasetInfo, names: Sequence[str], columns: list[str], targets: TargetSchema
) -> tuple[Condition, ...]:
    """Return the conditions of the training split, and check those of both splits."""
    _check_columns(config, columns, [f"conditions.{name}" for name in names])
    if both := set(names) & set(targets.names):
        raise UserError(f"conditions: {', '.join(sorted(both))} is a target too; leave it out of one of them")
    values = {split: [column_values(config.dataset, split, [name], info)[:, 0] for name in names] for split in ("val", "train")}
    for name, value_N in zip(names, values["val"], strict=True):
        Condition.check(name, value_N)
    return tuple(Condition.fit(name, value_N) for name, value_N in zip(names, values["train"], strict=True))


def _fitted_images(
    config: TrainConfig, info: shards.DatasetInfo, units: Sequence[Unit], conditions: tuple[Condition, ...]
) -> ImagePreprocessing:
    return ImagePreprocessing.fit(
        config.images,
        info.bands,
        sample_images(units),
        zero_point_mag=info.zero_point_mag,
        pixel_scale_arcsec=info.pixel_scale_arcsec,
        conditions=conditions,
    )


def sample_images(units: Sequence[Unit]) -> np.ndarray:
    """Return up to 2,000 images (N x C x H x W) from the first rows of up to 20 units, evenly spaced over a split."""
    chosen = [units[i] for i in sorted({round(i) for i in np.linspace(0, len(units) - 1, _SAMPLE_UNITS)})]
    share = math.ceil(_SAMPLE_IMAGES / len(chosen))
    pieces = (next(shards.stream_shard(unit.uri, range(unit.start, unit.stop), ["image"], share)) for unit in chosen)
    return np.concatenate([shards.images(table) for table, _ in pieces])[:_SAMPLE_IMAGES]


def _check_dropout(run: Run) -> None:
    config = run.config
    dropout = [layer for layer in build_network(run).modules() if isinstance(layer, nn.Dropout) and layer.p > 0]
    if not dropout and config.calibration.num_passes > 1:
        rate = "fine_tune.dropout_rate" if run.start else "network.backbone.dropout_rate"
        raise UserError(
            f"calibration.num_passes: {config.calibration.num_passes}, but {rate} is 0, so that all passes are the same; "
            "give 1, or a dropout rate above 0"
        )


def _targets(config: TrainConfig, info: shards.DatasetInfo, kept: TargetSchema | None, columns: list[str]) -> TargetSchema:
    """Return the kept schema, or one fitted on the training split, and check it against both splits."""
    names = kept.names if kept else tuple(config.targets)
    if not names:
        raise UserError("targets: none given; name at least one column of the dataset")
    _check_columns(config, columns, [f"targets.{name}" for name in names])
    split = "train"
    try:
        values_ND = column_values(config.dataset, split, names, info)
        targets = kept or TargetSchema.fit(config.targets, values_ND, info.target_units)
        targets.standardise(values_ND)
        split = "val"
        targets.standardise(column_values(config.dataset, split, names, info))
    except UserError as error:
        raise UserError(f"dataset: {config.dataset}, split {split!r}: {error}") from None
    return targets


def _check_columns(config: TrainConfig, columns: list[str], fields: Sequence[str]) -> None:
    """Raise a UserError for a field that ends in the name of a column that is not there."""
    for field in fields:
        if field.partition(".")[2] not in columns:
            there = ", ".join(column for column in columns if column not in ("object_id", "image"))
            raise UserError(f"{field}: {config.dataset} has no such column; name one of its columns: {there}")


def column_values(dataset: str, split: str, names: Sequence[str], info: shards.DatasetInfo) -> np.ndarray:
    """Return the values of columns of a split, N x number of names."""
    tables = [shards.read_shard(uri, list(names), info=info) for uri in shards.shard_uris(dataset, split)]
    return np.concatenate([np.stack([table[name].to_numpy() for name in names], axis=1) for table in tables])


def build_network(run: Run) -> Network:
    """Return the network before training; its random weights depend on the seed alone.

    Raises
    ------
    UserError
        If the architecture does not fit the images, or a block cannot be frozen.
    """
    torch.manual_seed(run.config.seed)
    network = Network.of(run.network, run.images, len(run.targets))
    if run.start:
        start_from(network, load_bundle(run.start.uri), run.config.fine_tune)
    return network


def execute(worker: Worker, run: Run) -> Bundle | None:
    """Train, calibrate, and let worker 0 write history and bundle into the run folder.

    Parameters
    ----------
    worker
        This worker's view of the world.
    run
        The training.

    Returns
    -------
    Bundle or None
        The bundle, on worker 0.
    """
    config = run.config
    network = build_network(run)
    plan = Plan(
        network=network,
        inputs=run.network_inputs,
        numbers=run.numbers,
        numbers_first=bool(network.merge and not run.start),
        optimizer=config.optimizer,
        seed=config.seed,
        learning_rate_decay=config.fine_tune.learning_rate_decay,
        report_steps=config.checkpoint_steps,
    )
    history = fit(worker, plan)
    bundle = trained_bundle(run, network.state_dict())
    try:
        mixture, truths_ND, unusable = validation_posterior(worker, run, bundle.network)
        seeds = validation_seeds(worker, run, bundle.network)
    except UserError as error:
        saved = storage.join(config.output, UNCALIBRATED)
        if worker.rank == 0:
            bundle.save(saved)
        # The first worker that raises ends the others: not before the weights are written.
        worker.gather(None)
        raise UserError(f"{error}; the trained weights are in {saved}") from None
    novelty = fit_out_of_distribution(worker, run, bundle.network)
    ranges, crop = validation_cutouts(worker, run, bundle.network)
    if worker.rank != 0:
        return None
    fitted, metrics = calibrate(mixture, truths_ND)
    calibration = fitted if config.calibration.enabled else Calibration.constant(np.ones(len(run.targets)))
    agreement = seed_agreement(*map(calibration, seeds)).to_dict(run.network.backbone.dropout_rate)
    # An early validation loss may be infinite, which JSON cannot hold.
    finite = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in history]
    covered = metrics["coverage"]["calibrated" if config.calibration.enabled else "uncalibrated"]
    verdicts = {
        "training": training_verdict(finite, len(run.targets)),
        **({"crop": crop_verdict(crop)} if crop else {}),
        "coverage": coverage_verdict(covered),
        "seeds": seed_verdict(agreement),
    }
    bundle = dataclasses.replace(
        bundle,
        network=bundle.network.cpu(),
        calibration=calibration,
        metrics={
            "val_loss": min(row["val_loss"] for row in history),
            "val_without_posterior": {"count": len(unusable), "object_id": unusable[:_NAMED]},
            "fitted_calibration": fitted.to_dict(),
            "seeds": agreement,
            "crop": crop.to_dict() if crop else None,
            "verdicts": {name: verdict.to_dict() for name, verdict in verdicts.items()},
            **metrics,
        },
        novelty=novelty,
        ranges=ranges,
    )
    storage.write_json(storage.join(config.output, HISTORY), finite)
    bundle.save(storage.join(config.output, BUNDLE))
    return bundle


def trained_bundle(run: Run, weights: dict[str, torch.Tensor]) -> Bundle:
    """Return a bundle of trained weights, on their device, which is neither calibrated nor evaluated."""
    with torch.device("meta"):
        network = Network.of(run.network, run.images, len(run.targets))
    network.load_state_dict(weights, assign=True)
    return Bundle(
        network=network.eval(),
        config=run.network,
        targets=run.targets,
        images=run.images,
        calibration=Calibration.constant(np.ones(len(run.targets))),
        metrics={},
        provenance={
            **provenance(),
            "dataset_fingerprint": run.info.fingerprint,
            "dataset": {"survey": run.info.survey, "num_rows": run.info.num_rows, "made_by": run.info.source},
            "train": to_dict(run.config),
            **({"fine_tuned_from": run.start.origin} if run.start else {}),
        },
    )


def warn_of_unusable(bundle: Bundle) -> None:
    """Log which validation galaxies `execute` left out of calibration and coverage, if any."""
    if (unusable := bundle.metrics["val_without_posterior"])["count"]:
        logger.warning(
            "%s validation galaxies have no finite posterior and are left out of calibration and coverage: object_id %s",
            unusable["count"],
            ", ".join(unusable["object_id"]) + (", ..." if unusable["count"] > _NAMED else ""),
        )


def tell_verdicts(bundle: Bundle) -> None:
    """Log the verdicts of `execute`; one that fails is a warning, and so is a crop that is only marginal for dead units."""
    for name, row in bundle.metrics.get("verdicts", {}).items():
        dead = name == "crop" and (bundle.metrics["crop"]["dead_fraction"] or 0) > 0
        level = logging.WARNING if row["verdict"] == "fails" or dead else logging.INFO
        logger.log(level, "verdict on %s: %s: %s", name, row["verdict"], row["text"])


def validation_posterior(worker: Worker, run: Run, network: Network) -> tuple[Mixture, np.ndarray, list[str]]:
    """Return the uncalibrated posteriors of the validation split, its true values, and the galaxies without a posterior.

    Returns
    -------
    Mixture, ndarray, list of str
        Posteriors and physical true values (N x D) of the galaxies whose posterior is finite; identifiers of the others.

    Raises
    ------
    UserError
        On all workers, if no galaxy has a finite posterior.
    """
    thinned = ThinnedNetworks(network, run.config.calibration.num_passes, run.config.seed)
    own = [
        (b.object_id_N, thinned(*run.network_inputs(b)).outputs_NKP.cpu(), b.target_ND.cpu()) for b in one_pass(worker, "val")
    ]
    ids, outputs, targets = zip(*itertools.chain(*worker.gather(own)), strict=True)
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


def validation_seeds(worker: Worker, run: Run, network: Network) -> list[Mixture]:
    """Return the uncalibrated posteriors of up to 1,000 validation galaxies with the config's seed, and with the next one.

    Raises
    ------
    UserError
        On all workers, if none of them has a finite posterior.
    """
    config = run.config
    thinned = [ThinnedNetworks(network, config.calibration.num_passes, config.seed + i) for i in range(2)]
    own, count = [], 0
    for batch in one_pass(worker, "val"):
        inputs = run.network_inputs(batch)
        own.append(torch.stack([passes(*inputs).outputs_NKP.cpu() for passes in thinned]))
        count += len(inputs.image_NCHW)
        if count * worker.world_size >= _SEED_IMAGES:
            break
    # 2 x N x K x P
    outputs = torch.cat(list(itertools.chain(*worker.gather(own))), dim=1)[:, :_SEED_IMAGES]
    components = [network.likelihood.components(outputs_NKP.double()) for outputs_NKP in outputs]
    usable_N = proper(*components[0]) & proper(*components[1])
    if not usable_N.any():
        raise UserError(
            f"dataset: {config.dataset}: none of the first {len(usable_N)} galaxies in split 'val' has a finite posterior"
        )
    return [Mixture(mean_NKD[usable_N], tril_NKDD[usable_N], run.targets) for mean_NKD, tril_NKDD in components]


def fit_out_of_distribution(worker: Worker, run: Run, network: Network) -> OutOfDistribution | None:
    """Return the detector of unusual images, fitted on a sample of the training split, its threshold on the validation split.

    Images whose features are not finite are left out; None if no others are left in a split.
    """
    network.eval()

    @torch.inference_mode()
    def sample(split: str) -> np.ndarray:
        parts, count = [], 0
        for batch in one_pass(worker, split):
            parts.append(features(network.prefix(*run.network_inputs(batch))[0]))
            count += len(parts[-1])
            if count >= _NOVELTY_IMAGES:
                break
        features_NF = np.concatenate(worker.gather(np.concatenate(parts)))
        return features_NF[np.isfinite(features_NF).all(axis=1)]

    held_out_MF, features_NF = sample("val"), sample("train")
    return OutOfDistribution.fit(features_NF, held_out_MF) if len(features_NF) and len(held_out_MF) else None


@torch.inference_mode()
def validation_cutouts(worker: Worker, run: Run, network: Network) -> tuple[Ranges | None, CropStatistics | None]:
    """Return the ranges of what is measured in validation cutouts, and the statistics of their crops, of up to 10,000 a worker.

    Ranges are None if no galaxy has finite numbers, the crop's statistics in a network without a spatial transformer.
    """
    network.eval()
    d, monitor = radius_target(run.targets.names), CropMonitor(network) if network.transformer else None
    numbers, targets, count = [], [], 0
    with monitor or contextlib.nullcontext():
        for batch in one_pass(worker, "val"):
            matched_NCHW = run.images.match(batch.cutout_NCHW, **run.units)
            numbers.append(run.images.plain_numbers(matched_NCHW).cpu().numpy())
            targets.append(batch.target_ND.double().cpu().numpy())
            if monitor:
                network.crop(*run.images.inputs(matched_NCHW, batch.condition_NJ))
            count += len(numbers[-1])
            if count >= _NOVELTY_IMAGES:
                break
    numbers_MQC = np.concatenate(worker.gather(np.concatenate(numbers)))
    numbers_MQC = numbers_MQC[np.isfinite(numbers_MQC).all(axis=(1, 2))]
    crop = None
    if monitor:
        # The order of standardised radii is that of the radii.
        target_ND = np.concatenate(worker.gather(np.concatenate(targets)))
        sample = CropSample.joined(worker.gather(monitor.sample))
        radius_N = None if d is None or len(target_ND) != len(sample.scale_N) else target_ND[:, d]
        crop = sample.statistics(radius_N) if np.isfinite(sample.scale_N).all() else None
    return Ranges.fit(numbers_MQC) if len(numbers_MQC) else None, crop


def calibrate(mixture: Mixture, truths_ND: np.ndarray) -> tuple[Calibration, dict[str, Any]]:
    """Return the fitted calibration and the coverage on the same galaxies before and after, as plain values."""
    calibration = Calibration.fit(mixture, truths_ND)
    return calibration, {
        "coverage": {
            "uncalibrated": [dataclasses.asdict(row) for row in coverage(mixture, truths_ND)],
            "calibrated": [dataclasses.asdict(row) for row in coverage(calibration(mixture), truths_ND)],
        }
    }

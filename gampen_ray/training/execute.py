"""From a prepared run to a model bundle: training, calibration and verdicts, as each worker executes them.

Shape legend: N galaxies, K passes, D targets, P outputs, C bands, H x W pixels.
"""

import contextlib
import dataclasses
import itertools
import logging
from typing import Any

import numpy as np
import torch

from gampen_ray import storage
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.crop_statistics import CropMonitor, CropSample, CropStatistics
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.inference.out_of_distribution import OutOfDistribution, features
from gampen_ray.inference.ranges import Ranges
from gampen_ray.inference.verdicts import coverage_verdict, crop_verdict, radius_target, seed_verdict, training_verdict
from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network
from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.mixture import Mixture, proper
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.provenance import provenance
from gampen_ray.training.history import finite, write_history
from gampen_ray.training.loop import fit
from gampen_ray.training.run import Run, build_network
from gampen_ray.training.worker import Plan, Worker, one_sweep

BUNDLE = "bundle"
UNCALIBRATED = "uncalibrated"
"""Subfolder of a run folder, for the weights of a network without any finite posterior."""
# Per split and worker.
_NOVELTY_IMAGES = 10_000
_SEED_IMAGES = 1_000
_NAMED = 10

logger = logging.getLogger(__name__)


def execute(worker: Worker, run: Run) -> Bundle | None:
    """Train and calibrate; worker 0 writes history and bundle into the run folder.

    Parameters
    ----------
    worker
        This worker.
    run
        The prepared run.

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
        worker.phase(f"calibrating on {run.info.num_rows['val']:,} galaxies")
        mixture, truths_ND, unusable = validation_posterior(worker, run, bundle.network)
        worker.phase("predicting with another seed")
        seeds = validation_seeds(worker, run, bundle.network)
    except UserError as error:
        saved = storage.join(config.output, UNCALIBRATED)
        if worker.rank == 0:
            bundle.save(saved)
        # The first worker to raise ends the others, so all wait until the weights are written.
        worker.gather(None)
        raise UserError(f"{error}; the trained weights are in {saved}") from None
    worker.phase("measuring the training's ranges")
    novelty = fit_out_of_distribution(worker, run, bundle.network)
    ranges, crop = validation_cutouts(worker, run, bundle.network)
    if worker.rank != 0:
        return None
    worker.phase("judging the posteriors")
    calibration, metrics = judged(run, mixture, truths_ND, seeds, finite(history), crop)
    metrics["val_without_posterior"] = {"count": len(unusable), "object_id": unusable[:_NAMED]}
    bundle = dataclasses.replace(
        bundle,
        network=bundle.network.cpu(),
        calibration=calibration,
        metrics=metrics,
        novelty=novelty,
        ranges=ranges,
    )
    write_history(config.output, history)
    bundle.save(storage.join(config.output, BUNDLE))
    return bundle


def judged(
    run: Run,
    mixture: Mixture,
    truths_ND: np.ndarray,
    seeds: list[Mixture],
    history: list[dict[str, Any]],
    crop: CropStatistics | None,
) -> tuple[Calibration, dict[str, Any]]:
    """Return the calibration of a training, and its results on the validation split with the verdicts on them."""
    config = run.config
    fitted, metrics = calibrate(mixture, truths_ND)
    calibration = fitted if config.calibration.enabled else Calibration.constant(np.ones(len(run.targets)))
    agreement = seed_agreement(*map(calibration, seeds)).to_dict(run.network.backbone.dropout_rate)
    covered = metrics["coverage"]["calibrated" if config.calibration.enabled else "uncalibrated"]
    verdicts = {
        "training": training_verdict(history, len(run.targets)),
        **({"crop": crop_verdict(crop)} if crop else {}),
        "coverage": coverage_verdict(covered),
        "seeds": seed_verdict(agreement),
    }
    return calibration, {
        "val_loss": min((row["val_loss"] for row in history if row["val_loss"] is not None), default=None),
        "fitted_calibration": fitted.to_dict(),
        "seeds": agreement,
        "crop": crop.to_dict() if crop else None,
        "verdicts": {name: verdict.to_dict() for name, verdict in verdicts.items()},
        **metrics,
    }


def trained_bundle(run: Run, weights: dict[str, torch.Tensor]) -> Bundle:
    """Return a bundle of trained weights, on their device, neither calibrated nor evaluated."""
    with without_weights():
        network = Network.of(run.network, run.images, len(run.targets))
    network.load_state_dict(weights, assign=True)
    return Bundle(
        network=network.eval(),
        config=run.network,
        targets=run.targets,
        images=run.images,
        calibration=Calibration.constant(np.ones(len(run.targets))),
        known_conditions=run.known_conditions,
        prior=run.prior,
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
    """Warn of the validation galaxies that `execute` left out of calibration and coverage, if any."""
    if (unusable := bundle.metrics["val_without_posterior"])["count"]:
        logger.warning(
            "%s validation galaxies have no finite posterior and are left out of calibration and coverage: object_id %s",
            unusable["count"],
            ", ".join(unusable["object_id"]) + (", ..." if unusable["count"] > _NAMED else ""),
        )


def log_verdicts(bundle: Bundle) -> None:
    """Log the verdicts of `execute`; one that fails is a warning, and so is a crop with dead hidden units."""
    for name, row in bundle.metrics.get("verdicts", {}).items():
        dead = name == "crop" and (bundle.metrics["crop"]["dead_fraction"] or 0) > 0
        level = logging.WARNING if row["verdict"] == "fails" or dead else logging.INFO
        logger.log(level, "verdict on %s: %s: %s", name, row["verdict"], row["text"])


def validation_posterior(worker: Worker, run: Run, network: Network) -> tuple[Mixture, np.ndarray, list[str]]:
    """Return the uncalibrated posteriors of the validation split and its true values.

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
        (b.object_id_N, thinned(*run.network_inputs(b)).outputs_NKP.cpu(), b.target_ND.cpu()) for b in one_sweep(worker, "val")
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
    """Return the uncalibrated posteriors of up to 1,000 validation galaxies under the config's seed and under the next.

    Raises
    ------
    UserError
        On all workers, if none of them has a finite posterior.
    """
    config = run.config
    thinned = [ThinnedNetworks(network, config.calibration.num_passes, config.seed + i) for i in range(2)]
    own, count = [], 0
    for batch in one_sweep(worker, "val"):
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
    """Return the detector of unusual images, with its threshold from the validation split.

    It is fitted on a sample of the training split. Images whose features are not finite are left out; None if a split has no
    others.
    """
    network.eval()

    @torch.inference_mode()
    def sample(split: str) -> np.ndarray:
        parts, count = [], 0
        for batch in one_sweep(worker, split):
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
    """Return the ranges of the numbers measured in validation cutouts, and the statistics of their crops.

    From up to 10,000 galaxies per worker. Ranges are None if no galaxy has finite numbers; the statistics are None if the
    network has no spatial transformer.
    """
    network.eval()
    d, monitor = radius_target(run.targets.names), CropMonitor(network) if network.transformer else None
    numbers, targets, count = [], [], 0
    with monitor or contextlib.nullcontext():
        for batch in one_sweep(worker, "val"):
            numbers.append(run.plain_numbers(batch).cpu().numpy())
            targets.append(batch.target_ND.double().cpu().numpy())
            if monitor:
                network.crop(*run.network_inputs(batch))
            count += len(numbers[-1])
            if count >= _NOVELTY_IMAGES:
                break
    numbers_MQC = np.concatenate(worker.gather(np.concatenate(numbers)))
    numbers_MQC = numbers_MQC[np.isfinite(numbers_MQC).all(axis=(1, 2))]
    crop = None
    if monitor:
        # Standardised radii have the order of the radii.
        target_ND = np.concatenate(worker.gather(np.concatenate(targets)))
        sample = CropSample.joined(worker.gather(monitor.sample))
        radius_N = None if d is None or len(target_ND) != len(sample.scale_N) else target_ND[:, d]
        crop = sample.statistics(radius_N) if np.isfinite(sample.scale_N).all() else None
    return Ranges.fit(numbers_MQC) if len(numbers_MQC) else None, crop


def calibrate(mixture: Mixture, truths_ND: np.ndarray) -> tuple[Calibration, dict[str, Any]]:
    """Return the fitted calibration, and the coverage of the same galaxies before and after it, as plain values."""
    calibration = Calibration.fit(mixture, truths_ND)
    return calibration, {
        "coverage": {
            "uncalibrated": [dataclasses.asdict(row) for row in coverage(mixture, truths_ND)],
            "calibrated": [dataclasses.asdict(row) for row in coverage(calibration(mixture), truths_ND)],
        }
    }

"""From a prepared run to a model bundle: training, calibration and verdicts, as each worker executes them.

Shape legend: N galaxies, K passes, D targets, P outputs, C bands, H x W pixels.
"""

import dataclasses
import functools
import logging
from typing import Any

import numpy as np
import torch

from gampen_ray import storage
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.verdicts import coverage_verdict, crop_verdict, seed_verdict, training_verdict
from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network
from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.provenance import provenance
from gampen_ray.training.history import finite, write_history
from gampen_ray.training.loop import fit
from gampen_ray.training.run import Run, build_network
from gampen_ray.training.validation import Validation, fit_out_of_distribution, validate
from gampen_ray.training.worker import Plan, Worker, mapped

BUNDLE = "bundle"
UNCALIBRATED = "uncalibrated"
"""Subfolder of a run folder, for the weights of a network without any finite posterior."""
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
        number_noise=run.images.number_noise,
        numbers_first=bool(network.merge and not run.start),
        optimizer=config.optimizer,
        seed=config.seed,
        learning_rate_decay=config.fine_tune.learning_rate_decay,
        report_steps=config.checkpoint_steps,
    )
    history = fit(worker, plan)
    bundle = trained_bundle(run, network.state_dict())
    try:
        worker.phase(f"calibrating on {min(run.info.num_rows['val'], config.calibration.num_galaxies):,} galaxies")
        validation = validate(worker, run, bundle.network)
    except UserError as error:
        saved = storage.join(config.output, UNCALIBRATED)
        if worker.rank == 0:
            bundle.save(saved)
        # The first worker to raise ends the others, so all wait until the weights are written.
        worker.gather(None)
        raise UserError(f"{error}; the trained weights are in {saved}") from None
    worker.phase("looking at training images")
    novelty = fit_out_of_distribution(worker, run, bundle.network, validation.features_MF)
    worker.phase("judging the posteriors")
    calibration, metrics = judged(worker, run, validation, finite(history))
    if worker.rank != 0:
        return None
    metrics["val_without_posterior"] = {"count": len(validation.unusable), "object_id": validation.unusable[:_NAMED]}
    bundle = dataclasses.replace(
        bundle,
        network=bundle.network.cpu(),
        calibration=calibration,
        metrics=metrics,
        novelty=novelty,
        ranges=validation.ranges,
    )
    write_history(config.output, history)
    bundle.save(storage.join(config.output, BUNDLE))
    return bundle


def judged(
    worker: Worker, run: Run, validation: Validation, history: list[dict[str, Any]]
) -> tuple[Calibration, dict[str, Any]]:
    """Return the calibration of a training, and its results on the validation split with the verdicts on them.

    It is the same on all workers, who share the work.
    """
    config, crop, mixture, truths_ND = run.config, validation.crop, validation.mixture, validation.truths_ND
    shared = functools.partial(mapped, worker)
    fitted = Calibration.fit(mixture, truths_ND, shared)
    calibration = fitted if config.calibration.enabled else Calibration.constant(np.ones(len(run.targets)))
    by_calibration = {
        name: [dataclasses.asdict(row) for row in coverage(posterior, truths_ND, mapped=shared)]
        for name, posterior in (("uncalibrated", mixture), ("calibrated", fitted(mixture)))
    }
    first, second = map(calibration, validation.seeds)
    agreement = seed_agreement(first, second, shared).to_dict(run.network.backbone.dropout_rate)
    covered = by_calibration["calibrated" if config.calibration.enabled else "uncalibrated"]
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
        "coverage": by_calibration,
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

"""Gather the content of the report of a model and its evaluated catalogue.

Shape legend: N galaxies, D targets, G grid points, C bands, H x W pixels.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.catalog.other_prior import predicted_again
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.predictor import Predictor
from gampen_ray.inference.rotation import RotationStability, rotation_stability
from gampen_ray.messages import counted, rounded
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.progress import Phase
from gampen_ray.reports.card import training_text
from gampen_ray.reports.evaluated import EVALUATION, EvaluatedCatalog, load_evaluated_catalog, read_evaluation
from gampen_ray.reports.page import Example, ReportData, render
from gampen_ray.training.history import HISTORY, read_history

_GRID = 256
_SHOWN = ("median", "lo68", "hi68")


def report_page(evaluation_folder: str, *, num_examples: int, num_angles: int | None) -> str:
    """Return the page of an evaluated catalogue as HTML.

    Parameters
    ----------
    evaluation_folder
        Output folder of ``evaluate``.
    num_examples
        Galaxies shown with their crop and posterior.
    num_angles
        Angles at which each of them is predicted; None: chosen by the size of the network.

    Raises
    ------
    UserError
        If there is no evaluation, or its catalogue, dataset or bundle is missing or has changed.
    """
    uri = storage.join(evaluation_folder, EVALUATION)
    if not storage.exists(uri):
        raise UserError(f"evaluation: {evaluation_folder} has no {EVALUATION}; give the output folder of `evaluate`")
    evaluation = read_evaluation(uri)
    how = {name: evaluation[name] for name in ("where", "truth", "id_column") if name in evaluation}
    shown = dict.fromkeys((f"{name}_{key}" for name in evaluation["accuracy"] for key in _SHOWN), "evaluation")
    judged = load_evaluated_catalog(evaluation["catalog"], columns=shown, **how)
    bundle, catalog = judged.bundle, judged.catalog
    if list(evaluation["accuracy"]) != list(bundle.targets.names):
        raise UserError(f"evaluation: {uri} is not one of {', '.join(bundle.targets.names)}; run evaluate again")
    if len(catalog) != evaluation["num_galaxies"]:
        there = f"{evaluation['num_galaxies']:,} galaxies, but there are {len(catalog):,}"
        raise UserError(f"evaluation: {uri} is one of {there} with true values; run evaluate again")
    rows = _example_rows(catalog, num_examples) if judged.has_cutouts else np.zeros(0, int)
    image_NCHW, side_N = judged.images(rows) if len(rows) else (np.zeros((0, 1, 1, 1)), rows)
    no_transformer = bundle.config.spatial_transformer.family == "none"
    data = ReportData(
        title="Galaxy structural parameters",
        origin=_origin(judged, evaluation),
        targets=bundle.targets,
        object_id_N=catalog["object_id"].to_numpy(),
        truth_ND=judged.truths_ND,
        **{f"{key}_ND": _columns(catalog, bundle, key) for key in _SHOWN},
        coverage=evaluation["coverage"],
        accuracy=evaluation["accuracy"],
        crop_scale_N=None if no_transformer else catalog["crop_scale"].to_numpy(),
        examples=_examples(judged, rows, image_NCHW, side_N) if len(rows) else [],
        seeds=evaluation.get("seeds"),
        verdicts=evaluation.get("verdicts", {}),
        diagnostics=evaluation.get("diagnostics"),
        columns=evaluation.get("columns"),
        sky=evaluation.get("sky"),
        rotation=_rotation(judged, rows, image_NCHW, num_angles) if len(rows) else None,
        history=_history(judged.manifest["config"]["bundle"]),
        facts=_facts(judged, evaluation),
    )
    return render(data)


def _columns(catalog: pa.Table, bundle: Bundle, key: str) -> np.ndarray:
    return np.stack([catalog[f"{name}_{key}"].to_numpy() for name in bundle.targets.names], axis=1)


def _example_rows(catalog: pa.Table, count: int) -> np.ndarray:
    """Return rows evenly spread in order of the size of the learned crop."""
    order = np.argsort(catalog["crop_scale"].to_numpy(), kind="stable")
    return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def _rotation(
    judged: EvaluatedCatalog, rows: np.ndarray, image_NCHW: np.ndarray, num_angles: int | None
) -> RotationStability | None:
    if num_angles is None:
        # The quarter turns alone.
        num_angles = 36 if judged.is_light else 4
    if num_angles == 0:
        return None
    options, num_bands = judged.prediction_options(), len(judged.bundle.images.bands)
    if judged.bundle.images.noise_planes:
        options["noise_planes"] = image_NCHW[:, num_bands:]
    conditions = judged.conditions(rows)
    options |= {"conditions": conditions, "num_angles": num_angles}
    with Phase(f"rotating {counted(len(image_NCHW), 'cutout')} to {counted(num_angles, 'angle')}"), judged.threads():
        return rotation_stability(judged.bundle, image_NCHW[:, :num_bands], **options)


def _range(scales: list[float]) -> str:
    return f"{min(scales):.3f}" if len(set(scales)) == 1 else f"{min(scales):.3f} to {max(scales):.3f}"


def _speed(rates: dict[str, Any]) -> dict[str, str]:
    # A run that found all of its work done has none.
    return {"inference": f"{rounded(rates['galaxies_per_second'])} galaxies/s on {rates['workers']} workers"} if rates else {}


def _examples(judged: EvaluatedCatalog, rows: np.ndarray, image_NCHW: np.ndarray, side_N: np.ndarray) -> list[Example]:
    """Return rows of the catalogue, predicted again for their curves and crops."""
    predictor = Predictor(judged.bundle, **judged.prediction_options())
    with judged.threads():
        prediction = predictor(image_NCHW, judged.bundle.condition_values(judged.conditions(rows), len(rows)), side_N)
    mixture = predicted_again(judged.manifest, judged.bundle, prediction.mixture)
    interval_N2D = mixture.credible_interval(LEVELS["68"])
    ends_NQD = mixture.quantile(np.array([1e-3, 1 - 1e-3]))
    seen = predictor.seen(image_NCHW, prediction)
    examples, names = [], judged.bundle.targets.names
    for i, row in enumerate(rows):
        curves = {}
        for d, name in enumerate(names):
            truth = judged.truths_ND[row, d]
            y_G = np.linspace(min(ends_NQD[i, 0, d], truth), max(ends_NQD[i, 1, d], truth), _GRID)
            curves[name] = (y_G, mixture[i].marginal_density(d, y_G)[0])
        examples.append(
            Example(
                object_id=judged.catalog["object_id"][int(row)].as_py(),
                image_HW=seen.image_NCHW[i, 0],
                crop_HW=seen.crop_NCHW[i, 0],
                crop_corners=seen.corner_N42[i],
                curves=curves,
                truth={name: float(judged.truths_ND[row, d]) for d, name in enumerate(names)},
                interval={name: tuple(interval_N2D[i, :, d].tolist()) for d, name in enumerate(names)},
            )
        )
    return examples


def _history(bundle_uri: str) -> list[dict[str, Any]]:
    """Return the training history if the bundle is in its run folder, else an empty list."""
    for uri in (storage.join(bundle_uri, HISTORY), storage.join(bundle_uri, "..", HISTORY)):
        if storage.exists(uri):
            return read_history(uri)
    return []


def _origin(judged: EvaluatedCatalog, evaluation: dict[str, Any]) -> str:
    """Return a line that says of which bundle, survey, bands and day a report is."""
    bundle, inference = judged.bundle, judged.manifest["config"]
    survey = bundle.provenance.get("dataset", {}).get("survey") or "survey unknown"
    made = judged.manifest["provenance"].get("date", "unknown date")[:10]
    about = f"{survey}, {', '.join(bundle.images.bands)}"
    return f"Model {inference['bundle']} ({about}), catalogue {evaluation['catalog']} of {made}."


def _facts(judged: EvaluatedCatalog, evaluation: dict[str, Any]) -> dict[str, str]:
    manifest, inference, rates = judged.manifest, judged.manifest["config"], judged.manifest["rates"]
    info = shards.read_dataset_info(inference["dataset"]) if judged.has_cutouts else None
    return {
        "dataset": inference["dataset"] + (f" ({info.survey or 'survey unknown'}, {', '.join(info.bands)})" if info else ""),
        **{name: evaluation[name] for name in ("truth", "where") if evaluation.get(name)},
        "split": inference["split"] or "all",
        "galaxies": f"{manifest['num_galaxies']:,}, and {manifest['num_quarantined']:,} in quarantine",
        "dataset fingerprint": manifest["inputs"]["dataset"],
        "bundle": f"{inference['bundle']} (made {judged.bundle.provenance['date']})",
        "training": training_text(judged.bundle.provenance, numbers=bool(judged.bundle.images.number_names)),
        "parameters of the network": f"{judged.num_parameters:,}",
        "likelihood": judged.bundle.config.likelihood,
        "Monte Carlo dropout": f"{inference['num_passes']} passes at rate {judged.bundle.config.backbone.dropout_rate:g}",
        "calibration factors": "; ".join(_range(scales) for scales in judged.bundle.calibration.scale_DB.tolist()),
        **_speed(rates),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["provenance"].items() if k not in ("date", "git_revision")),
        "git revision": manifest["provenance"]["git_revision"] or "unknown",
    }

"""The report: one self-contained HTML page, which loads nothing from the network.

Shape legend: N galaxies, D targets, G grid points, H x W pixels.
"""

import dataclasses
import math
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from gampen_ray.errors import UserError
from gampen_ray.inference.rotation import RotationStability
from gampen_ray.inference.verdicts import radius_target
from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.seeds import LIMITS
from gampen_ray.reports import figures
from gampen_ray.reports.diagnostics_section import diagnostics_section
from gampen_ray.reports.groups_section import columns_section, sky_section
from gampen_ray.reports.rotation_section import rotation_section
from gampen_ray.reports.shown import magnitude_of, shown
from gampen_ray.reports.svg import PALETTE

__all__ = ["Example", "ReportData", "render"]

MARK = "gampen_ray report"
"""Identifies our pages."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded, and no script runs."""
WORDS = {"holds": "holds", "marginal": "holds marginally", "fails": "fails"}
KINDS = {"uncalibrated": "before", "calibrated": "after"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One galaxy shown with its learned crop and its posterior.

    Parameters
    ----------
    object_id
        Identifier.
    image_HW, crop_HW
        Cutout and learned crop, one band, in flux units (they are stretched here).
    crop_corners
        Corners of the crop on the cutout, in order around it: 4 x (x, y) in pixels, (0, 0) the centre of ``image_HW[0, 0]``.
    curves
        By target: grid of physical values, and the posterior density per unit of the physical value.
    truth
        True physical value by target.
    interval
        Ends of the 68 % credible interval by target.
    """

    object_id: int | str
    image_HW: np.ndarray
    crop_HW: np.ndarray
    crop_corners: np.ndarray
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    truth: dict[str, float]
    interval: dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """Content of the report.

    Parameters
    ----------
    title
        Heading of the page.
    origin
        Of which model and galaxies it is, in a line.
    targets
        Schema of the D targets.
    object_id_N
        Identifiers, int64 or str.
    truth_ND, median_ND, lo68_ND, hi68_ND
        True values, posterior medians and ends of the 68 % interval, physical units, finite.
    coverage
        ``"uncalibrated"`` and ``"calibrated"``: rows with ``target`` (a name or "joint"), ``level``, ``coverage`` and its
        binomial ``error``, all as fractions. Either list may be empty.
    accuracy
        By target: ``unit``, ``median_absolute_relative_error``, ``mean_absolute_error``, ``bias``, ``rmse``; a number that is
        None or not finite, as a relative error at a true value of 0, is shown as a dash.
    crop_scale_N
        Side of the learned crop over that of the cutout; None without a spatial transformer.
    examples
        Galaxies to show.
    seeds
        How far the posteriors depend on the seed of the dropout masks (`gampen_ray.posterior.seeds.SeedAgreement.to_dict`);
        None if that was not measured.
    verdicts
        By name, such as crop: ``verdict`` and ``text`` (`gampen_ray.inference.verdicts.Verdict.to_dict`); may be empty.
    diagnostics
        What `gampen_ray.posterior.diagnostics.evaluate` gives under this name; None for an evaluation of an older release.
    columns, sky
        The same; None if no column was asked for, or there is no map.
    rotation
        Posteriors of the examples, in their order, for rotated cutouts; None if not tested.
    history
        Per epoch: ``epoch``, ``train_loss``, ``val_loss``, ``learning_rate``; empty if unknown.
    facts
        Facts about the run, shown as they are.
    """

    title: str
    origin: str
    targets: TargetSchema
    object_id_N: np.ndarray
    truth_ND: np.ndarray
    median_ND: np.ndarray
    lo68_ND: np.ndarray
    hi68_ND: np.ndarray
    coverage: dict[str, list[dict[str, Any]]]
    accuracy: dict[str, dict[str, Any]]
    crop_scale_N: np.ndarray | None
    examples: list[Example]
    seeds: dict[str, Any] | None
    verdicts: dict[str, dict[str, str]]
    diagnostics: dict[str, Any] | None
    columns: dict[str, Any] | None
    sky: dict[str, Any] | None
    rotation: RotationStability | None
    history: list[dict[str, Any]]
    facts: dict[str, str]

    def __post_init__(self) -> None:
        shape = (len(self.object_id_N), len(self.targets))
        if 0 in shape:
            raise UserError(f"report: {shape[0]} galaxies and {shape[1]} targets; it needs at least one of each")
        for name in ("truth_ND", "median_ND", "lo68_ND", "hi68_ND"):
            values = getattr(self, name)
            if values.shape != shape:
                raise UserError(f"report: {name} has shape {values.shape}, not {shape}, galaxies x targets")
            if not np.isfinite(values).all():
                raise UserError(f"report: {name} holds values that are not finite; leave these galaxies out")
            for d, target in enumerate(self.targets):
                if target.transform == "log" and not (values[:, d] > 0).all():
                    raise UserError(f"report: {name} of {target.name} holds values at or below 0, but its transform is log")


def environment(*packages: str, policy: str = POLICY) -> jinja2.Environment:
    """Return the environment of the pages' templates, which escapes all text.

    Parameters
    ----------
    packages
        Packages with further templates.
    policy
        Content security policy of the pages.
    """
    result = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in ("gampen_ray.reports", *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters["datum"] = _datum
    result.globals |= {"palette": PALETTE, "mark": MARK, "policy": Markup(policy)}
    return result


def render(data: ReportData) -> str:
    """Return the report as HTML: self-contained, without script, all text from the data escaped.

    The same data give the same page, byte for byte.
    """
    data = shown(data)
    columns = (data.truth_ND, data.median_ND, data.lo68_ND, data.hi68_ND)
    ids = [example.object_id for example in data.examples]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            data=data,
            num_galaxies=len(data.object_id_N),
            headlines=[_headline(target, data.accuracy[target.name]) for target in data.targets],
            worst=_worst_coverage(data.coverage),
            examples=[_example(f"example{i}", example, data.targets) for i, example in enumerate(data.examples)],
            predictions=[
                Markup(figures.predicted_and_true(f"prediction{d}", target, *(column[:, d] for column in columns)))
                for d, target in enumerate(data.targets)
            ],
            residuals=[
                Markup(figures.residuals(f"residual{d}", target, data.truth_ND[:, d], data.median_ND[:, d]))
                for d, target in enumerate(data.targets)
            ],
            coverage_plots=_coverage_plots(data.coverage),
            coverage_table=_coverage_table(data.coverage),
            levels=sorted({row["level"] for rows in data.coverage.values() for row in rows}),
            kinds=KINDS,
            words=WORDS,
            diagnostics=diagnostics_section(data.diagnostics) if data.diagnostics else None,
            columns=columns_section(data.columns) if data.columns else None,
            sky=sky_section(data.sky) if data.sky else None,
            units={target.name: target.unit for target in data.targets},
            crop=_crop(data),
            seeds=_seeds(data.seeds),
            rotation=rotation_section(data.targets, ids, data.rotation) if data.rotation else None,
            training=_training(data.history),
        )
    )


def _datum(value: float | None, *, factor: float = 1, decimals: int | None = None) -> Markup:
    """Return a number as HTML: ``factor`` times its value as text, and the value as data; a dash if it is not finite.

    The text has so many ``decimals``, or three significant digits.
    """
    if value is None or not math.isfinite(value):
        return Markup("–")
    text = figures.number(factor * value) if decimals is None else f"{factor * value:.{decimals}f}".replace("-", "−")
    return Markup('<data value="{}">{}</data>').format(value, text)


def _headline(target: Target, accuracy: dict[str, Any]) -> dict[str, Any]:
    """One summary tile: the relative error of a log target, the absolute error of any other."""
    tile = {"name": target.name, "what": "mean absolute error", "unit": accuracy["unit"]}
    if target.transform != "log":
        return tile | {"value": _datum(accuracy["mean_absolute_error"])}
    value = _datum(accuracy["median_absolute_relative_error"], factor=100)
    return tile | {"what": "median absolute relative error", "unit": "%", "value": value}


def _worst_coverage(coverage: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    for kind in ("calibrated", "uncalibrated"):
        if coverage.get(kind):
            row = max(coverage[kind], key=lambda row: abs(row["coverage"] - row["level"]))
            return {**row, "deviation": row["coverage"] - row["level"], "calibrated": kind == "calibrated"}
    return None


def _example(key: str, example: Example, targets: TargetSchema) -> dict[str, Any]:
    height, width = example.image_HW.shape
    corners = np.asarray(example.crop_corners, dtype=np.float64)
    side = float(np.linalg.norm(np.diff(corners, axis=0, append=corners[:1]), axis=1).mean())
    return {
        "object_id": example.object_id,
        "image": Markup(
            figures.cutout(example.image_HW, corners_42=corners, alt="Cutout of the galaxy with the learned crop's outline")
        ),
        "crop": Markup(figures.cutout(example.crop_HW, alt="The learned crop, as the convolutional network sees it")),
        "size": f"{width} × {height} px",
        "side": f"{side:.0f} px",
        "curves": [
            {
                "target": target,
                "truth": example.truth[target.name],
                "interval": example.interval[target.name],
                # The brightest end first.
                "magnitudes": [magnitude_of(flux, target.unit) for flux in example.interval[target.name][::-1]],
                "true_magnitude": magnitude_of(example.truth[target.name], target.unit),
                "plot": Markup(
                    figures.posterior_curve(
                        f"{key}-{d}",
                        target,
                        *example.curves[target.name],
                        truth=example.truth[target.name],
                        interval=example.interval[target.name],
                    )
                ),
            }
            for d, target in enumerate(targets)
        ],
    }


def _coverage_table(coverage: dict[str, list[dict[str, Any]]]) -> dict[str, dict[tuple[str, float], dict[str, Any]]]:
    """Return the rows by target, then by (kind, level); targets in order of appearance."""
    table: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for kind in KINDS:
        for row in coverage.get(kind, []):
            table.setdefault(row["target"], {})[kind, row["level"]] = row
    return table


def _coverage_plots(coverage: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = [row for rows in coverage.values() for row in rows]
    # One vertical range for all, so that panels can be compared.
    extent = max([8.0, *(108 * abs(row["coverage"] - row["level"]) + 100 * row["error"] for row in rows)])
    return [
        {
            "name": name,
            "plot": Markup(
                figures.coverage(
                    f"coverage{i}",
                    name,
                    {kind: [row for row in coverage.get(kind, []) if row["target"] == name] for kind in KINDS},
                    extent,
                )
            ),
        }
        for i, name in enumerate(_coverage_table(coverage))
    ]


def _crop(data: ReportData) -> dict[str, Any] | None:
    """The learned crop against the first target with "radius" in its name, else against the first target."""
    if data.crop_scale_N is None:
        return None
    d = radius_target(data.targets.names) or 0
    target = data.targets.targets[d]
    return {
        "target": target,
        "plot": Markup(figures.crop_scale("crop", target, data.truth_ND[:, d], data.crop_scale_N)),
        "median": float(np.median(data.crop_scale_N)),
        "low": float(np.percentile(data.crop_scale_N, 5)),
        "high": float(np.percentile(data.crop_scale_N, 95)),
    }


def _seeds(seeds: dict[str, Any] | None) -> dict[str, Any] | None:
    """The differences between two seeds by target, then by figure, with their limits, all in % or in sigma."""
    if seeds is None:
        return None
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in seeds["differences"]:
        factor = 1 if row["figure"] == "mean" else 100
        within = all(row[key] <= limit for key, limit in zip(("median", "largest"), LIMITS[row["figure"]], strict=True))
        table.setdefault(row["target"], {})[row["figure"]] = {**row, "factor": factor, "within": within}
    return {**seeds, "table": table, "limits": LIMITS}


def _training(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not history:
        return None
    losses = {"train_loss": "training", "val_loss": "validation"}
    val_loss = np.array([row["val_loss"] for row in history], dtype=np.float64)
    finite = np.isfinite(val_loss)
    return {
        "epochs": int(history[-1]["epoch"]),
        "best": history[int(np.argmin(np.where(finite, val_loss, np.inf)))] if finite.any() else None,
        "plots": [
            Markup(figures.training_curve("loss", history, losses, "Loss")),
            Markup(figures.training_curve("rate", history, {"learning_rate": ""}, "Learning rate")),
        ],
    }

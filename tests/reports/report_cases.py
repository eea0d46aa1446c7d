"""A report's data with synthetic posteriors of known error, for the tests of this folder, and a parser of pages."""

import html.parser

import numpy as np
import torch
from scipy.stats import norm

from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.rotation import RotationStability
from gampen_ray.inference.verdicts import crop_verdict
from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.posterior.diagnostics import evaluate, measure
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.reports.page import Example, ReportData

LEVELS = (0.6827, 0.9545, 0.9973)


def make_data(
    num_galaxies: int = 1200,
    num_targets: int = 3,
    num_examples: int = 6,
    size: int = 64,
    seed_difference: float = 0.0,
    groups: bool = False,
) -> ReportData:
    """Galaxies whose posteriors are exact Gaussians in transformed space, over-confident by a fifth before calibration.

    ``groups``: with bins of columns and maps.
    """
    rng = np.random.default_rng(0)
    targets = TargetSchema(
        (
            _target("bulge_to_total", "", "logit", 0.0, 1.2),
            _target("effective_radius_arcsec", "arcsec", "log", 0.3, 0.6),
            _target("flux", "ADU", "log", 6.5, 1.3),
        )[:num_targets]
    )
    sigma_D = np.array([0.4, 0.12, 0.08])[:num_targets]
    mean_ND = rng.normal(size=(num_galaxies, num_targets))
    z_ND = mean_ND + rng.normal(size=mean_ND.shape) * sigma_D
    truth_ND = targets.physical(z_ND)
    median_ND = targets.physical(mean_ND)
    lo68_ND, hi68_ND = targets.physical(mean_ND - sigma_D), targets.physical(mean_ND + sigma_D)
    radius_N = truth_ND[:, min(1, num_targets - 1)]
    crop_scale_N = np.clip(0.25 + 0.22 * np.log1p(radius_N) + rng.normal(size=num_galaxies) * 0.02, 0.2, 1.1)
    examples = []
    for i in range(num_examples):
        curves, truth, interval = {}, {}, {}
        for d, target in enumerate(targets):
            z = np.linspace(mean_ND[i, d] - 5 * sigma_D[d], mean_ND[i, d] + 5 * sigma_D[d], 400)
            y = target.physical(z)
            curves[target.name] = (y, norm.pdf(z, mean_ND[i, d], sigma_D[d]) / np.gradient(y, z))
            truth[target.name] = float(truth_ND[i, d])
            interval[target.name] = (float(lo68_ND[i, d]), float(hi68_ND[i, d]))
        image = _galaxy(rng, size, radius_pixels=2 + 1.5 * float(radius_N[i]))
        half = 0.5 * size * crop_scale_N[i]
        corners = (size - 1) / 2 + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        inner = slice(max(0, round(size / 2 - half)), round(size / 2 + half))
        examples.append(
            Example(
                object_id=1_000_000 + i,
                image_HW=image,
                crop_HW=image[inner, inner],
                crop_corners=corners,
                curves=curves,
                truth=truth,
                interval=interval,
            )
        )
    epochs = np.arange(1, 41)
    return ReportData(
        origin="Model of a test.",
        title="GaMPEN compact network on simulated KiDS galaxies",
        targets=targets,
        object_id_N=np.arange(num_galaxies) + 1_000_000,
        truth_ND=truth_ND,
        median_ND=median_ND,
        lo68_ND=lo68_ND,
        hi68_ND=hi68_ND,
        coverage={
            "uncalibrated": _coverage(targets.names, (z_ND - mean_ND) / (0.8 * sigma_D)),
            "calibrated": _coverage(targets.names, (z_ND - mean_ND) / sigma_D),
        },
        accuracy={target.name: _accuracy(target, truth_ND[:, d], median_ND[:, d]) for d, target in enumerate(targets)},
        crop_scale_N=crop_scale_N,
        examples=examples,
        seeds=_seeds(targets, seed_difference),
        verdicts={
            "training": {"verdict": "holds", "text": "least validation loss -2.1, at epoch 38 of 40"},
            "crop": crop_verdict(CropStatistics.of(crop_scale_N, dead_fraction=0.0, radius_N=radius_N)).to_dict(),
        },
        **_evaluated(targets, mean_ND, sigma_D, truth_ND, groups),
        rotation=_rotation(num_examples, sigma_D) if num_examples else None,
        history=[
            {
                "epoch": int(epoch),
                "train_loss": float(3 * np.exp(-epoch / 6) - 1.5 - epoch / 80),
                "val_loss": float(3 * np.exp(-epoch / 6) - 1.4 - epoch / 100 + 0.05 * rng.normal()),
                "learning_rate": float(1e-3 * (1 + np.cos(np.pi * epoch / 40))),
            }
            for epoch in epochs
        ],
        facts={
            "dataset": "simulated kids-r, 12,000 galaxies, seed 0",
            "dataset fingerprint": "sha256:" + "9f86d081884c7d659a2feaa0c55ad015" * 2,
            "network": "compact, full covariance, 212,345 parameters",
            "Monte Carlo passes": "32",
            "versions": "gampen_ray 0.1.0, torch 2.9.1, ray 2.60.0",
            "date": "2026-01-31",
        },
    )


def _seeds(targets: TargetSchema, difference: float) -> dict:
    """Of ten galaxies, whose widths differ by a share between the seeds."""
    mean = torch.zeros(10, 1, len(targets), dtype=torch.float64)
    tril = 0.1 * torch.eye(len(targets), dtype=torch.float64).expand(10, 1, -1, -1)
    first, second = (Mixture(mean, factor * tril, targets) for factor in (1.0, 1.0 + difference))
    return seed_agreement(first, second).to_dict(0.1)


def _evaluated(targets: TargetSchema, mean_ND: np.ndarray, sigma_D: np.ndarray, truth_ND: np.ndarray, groups: bool) -> dict:
    """Diagnostics and, if asked for, bins of two columns and maps about the origin of right ascension."""
    count, rng = len(mean_ND), np.random.default_rng(1)
    tril = torch.diag(torch.from_numpy(sigma_D)).expand(count, 1, -1, -1)
    mixture = Mixture(torch.from_numpy(mean_ND)[:, None], tril, targets)
    calibration, rows = Calibration.constant(np.ones(len(targets))), np.arange(min(200, count))
    position_N2 = np.stack([rng.uniform(-8, 8, count) % 360, rng.uniform(-4, 6, count)], axis=1)
    known = {"psf": mean_ND[:, 0] ** 2}
    by = {"psf_fwhm_arcsec": known["psf"], "tile": np.array([f"tile {i % 8:04d}" for i in range(count)])} if groups else {}
    found = measure([mixture], calibration, truth_ND, rows)
    result = evaluate(found, calibration, columns=known, by=by, position_N2=position_N2 if groups else None)
    return {name: result.get(name) for name in ("diagnostics", "columns", "sky")}


def _target(name: str, unit: str, transform, location: float, scale: float) -> Target:
    return Target(
        name=name,
        unit=unit,
        transform=transform,
        clip_low=0.01,
        clip_high=0.99,
        location=location,
        scale=scale,
        low=0.0,
        high=1.0,
    )


def _rotation(num_galaxies: int, sigma_D: np.ndarray) -> RotationStability:
    """Posterior means that go up and down once, by an amplitude that grows with galaxy and target."""
    angle_A = np.arange(12) * 30.0
    amplitude_N1D = 0.1 * np.arange(1, num_galaxies + 1)[:, None, None] * np.arange(1, len(sigma_D) + 1) * sigma_D
    mean_NAD = amplitude_N1D * np.sin(np.radians(angle_A))[:, None]
    return RotationStability(
        angle_A=angle_A,
        median_NAD=mean_NAD,
        mean_NAD=mean_NAD,
        std_NAD=np.broadcast_to(sigma_D, mean_NAD.shape),
        interval_N2D=np.broadcast_to(np.stack([-sigma_D, sigma_D]), (num_galaxies, 2, len(sigma_D))),
    )


def _galaxy(rng: np.random.Generator, size: int, radius_pixels: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x * np.cos(0.5) + y * np.sin(0.5), 1.6 * (y * np.cos(0.5) - x * np.sin(0.5)))
    return (40 * np.exp(-1.68 * radius / radius_pixels) + rng.normal(size=(size, size))).astype(np.float32)


def _coverage(names: tuple[str, ...], pull_ND: np.ndarray) -> list[dict]:
    rows = []
    for level in LEVELS:
        shares = {name: float((np.abs(pull_ND[:, d]) < norm.ppf((1 + level) / 2)).mean()) for d, name in enumerate(names)}
        shares["joint"] = min(1.0, float(np.mean(list(shares.values()))))
        for name, share in shares.items():
            error = float(np.sqrt(share * (1 - share) / len(pull_ND)))
            rows.append({"target": name, "level": level, "coverage": share, "error": error})
    return rows


def _accuracy(target: Target, truth_N: np.ndarray, median_N: np.ndarray) -> dict:
    error_N = median_N - truth_N
    return {
        "unit": target.unit,
        "median_absolute_relative_error": float(np.median(np.abs(error_N / truth_N))),
        "mean_absolute_error": float(np.abs(error_N).mean()),
        "bias": float(error_N.mean()),
        "rmse": float(np.sqrt((error_N**2).mean())),
    }


class Page(html.parser.HTMLParser):
    """A parsed page: elements with attributes, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def values(self) -> list[float]:
        return [float(attributes["value"]) for tag, attributes in self.elements if tag == "data"]

    @property
    def plots(self) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == "svg"]

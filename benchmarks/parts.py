"""Models, cutouts and predictions for the benchmarks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gampen_ray.config import NetworkConfig, TargetConfig, TrainConfig
from gampen_ray.data import shards
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.inference.flags import REMARKS, Flag, posterior_flags
from gampen_ray.inference.predictor import Prediction, Predictor
from gampen_ray.inference.psf_sizes import seen_sizes
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.posterior.summary import Statistics, summary_columns
from gampen_ray.posterior.threads import one_thread
from gampen_ray.training.execute import BUNDLE, execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import prepare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = dataclasses.replace(
    NetworkConfig(), spatial_transformer=dataclasses.replace(NetworkConfig().spatial_transformer, output_size=20, downsample=1)
)
"""The compact network for cutouts of 32 pixels."""


def model(config: NetworkConfig, size: int) -> Bundle:
    """Return an untrained model of the demo's targets; GaMPEN's network takes three copies of a band."""
    names = ("bulge_to_total", "effective_radius_arcsec", "flux")
    values_ND = np.random.default_rng(0).uniform(0.1, 0.9, (1000, 3))
    targets = TargetSchema.fit({name: TargetConfig(transform="log") for name in names}, values_ND, {})
    channels = 3 if len(config.backbone.plan) > 10 else 1
    torch.manual_seed(0)
    return Bundle(
        network=Network(config, channels=channels, size=size, num_targets=3).eval(),
        config=config,
        targets=targets,
        images=ImagePreprocessing(bands=("r",), size=size, softening=1.0, channels=channels),
        calibration=Calibration.constant(np.ones(3)),
        metrics={},
        provenance={"date": "", "train": {}},
    )


def save(bundle: Bundle, folder: Path) -> None:
    """Save a bundle unless it exists."""
    if not folder.exists():
        bundle.save(str(folder))


def trained_metrics(config: TrainConfig) -> dict[str, Any]:
    """Train, unless that is done, and return the bundle's metrics."""
    if not Path(config.output, BUNDLE, CHECKSUMS).exists():
        run = prepare(config)
        execute(LocalWorker.read(run), run)
    return load_bundle(config.output).metrics


def blobs(count: int, size: int) -> np.ndarray:
    """Return round galaxies with noise, N x 1 x size x size."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    width_N11 = rng.uniform(0.05, 0.15, (count, 1, 1)) * size
    image_NHW = rng.lognormal(2, 1, (count, 1, 1)) * np.exp(-(x**2 + y**2) / 2 / width_N11**2)
    return (image_NHW + rng.normal(0, 0.3, (count, size, size)))[:, None].astype(np.float32)


def cutouts(folder: Path, size: int, count: int, per_shard: int) -> np.ndarray:
    """Write a dataset unless it exists, with the same images in each shard under other ids; return the images of one."""
    image_NCHW = blobs(per_shard, size)
    if not (folder / shards.DATASET_JSON).exists():
        info = shards.DatasetInfo(bands=("r",), cutout_size=size, num_rows={shards.ALL: count}, fingerprint=f"{size}-{count}")
        for part, start in enumerate(range(0, count, per_shard)):
            columns = {"object_id": start + np.arange(per_shard), "image": image_NCHW}
            shards.write_shard(shards.part_uri(str(folder), shards.ALL, part), columns, info)
        shards.write_dataset_info(str(folder), info)
    return image_NCHW


@one_thread()
def predicted(
    bundle: Bundle,
    columns: Mapping[str, np.ndarray],
    *,
    num_passes: int,
    seed: int,
    zero_point_mag: float | None = None,
    pixel_scale_arcsec: float | None = None,
) -> Prediction:
    """Return the posteriors of ``image``, with all flags that a catalogue has, given the columns of the bundle's conditions."""
    predict = Predictor(
        bundle, num_passes=num_passes, seed=seed, zero_point_mag=zero_point_mag, pixel_scale_arcsec=pixel_scale_arcsec
    )
    prediction = predict(columns["image"], bundle.condition_values(columns, len(columns["image"])))
    statistics = Statistics(prediction.mixture)
    # Modes and correlations, which take long, decide no flag.
    used = [c for c in summary_columns(bundle.targets) if not (c.name.endswith("_mode") or c.name.startswith("corr_"))]
    flags_N = posterior_flags({column.name: column.value(statistics) for column in used}, bundle.targets)
    return dataclasses.replace(prediction, flags_N=prediction.flags_N | np.where(prediction.usable_N, flags_N, 0))


def resampled_sizes(bundle: Bundle, star_NHW: np.ndarray, pixel_scale_arcsec: float) -> dict[str, np.ndarray]:
    """Return the columns of the PSF's sizes, as measured on stars in the pixels to which the bundle resamples their images."""
    sizes = [dataclasses.asdict(seen_sizes(star, pixel_scale_arcsec, bundle.images)) for star in star_NHW]
    return {f"psf_{name}": np.array([size[name] for size in sizes]) for name in sizes[0]}


def warned(prediction: Prediction) -> np.ndarray:
    """Return for each galaxy whether a flag warns that its posterior may be wrong, or it has none."""
    return ((prediction.flags_N & ~REMARKS.value) != 0) | ~prediction.usable_N


def flag_shares(prediction: Prediction) -> dict[str, float]:
    """Return the share of galaxies with each flag."""
    return {str(flag.name): float(((prediction.flags_N & flag.value) != 0).mean()) for flag in Flag}


def flag_names(prediction: Prediction, index: int = 0) -> list[str]:
    """Return the names of one galaxy's flags."""
    return [str(flag.name) for flag in Flag if prediction.flags_N[index] & flag.value]

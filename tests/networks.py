"""A network small enough to train in a second, and galaxies it can learn: round Gaussians of varying flux and width."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gampen_ray.config import (
    BackboneConfig,
    CalibrationConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    SpatialTransformerConfig,
    TargetConfig,
    TrainConfig,
)
from gampen_ray.config.base import build
from gampen_ray.data import shards
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.card import Card
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.posterior.prior import Prior
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.training import run

SIZE = 20
PLAIN = ImagesConfig(sky="none", measure=False)
"""Images alone, as they are."""
TARGETS = {"flux": TargetConfig(transform="log"), "concentration": TargetConfig(transform="logit")}
NETWORK = NetworkConfig(
    spatial_transformer=SpatialTransformerConfig(
        scale="linear", convolutions=((4, 5),), hidden=8, downsample=1, initial_scale=0.8, output_size=0
    ),
    backbone=BackboneConfig(
        plan=(8, "M", 16, "M"),
        stem_kernel=3,
        stem_stride=1,
        pool_size=2,
        classifier=(16,),
        dropout_rate=0.05,
        dropout_placement="every_conv",
    ),
)
WITH_NUMBERS = dataclasses.replace(
    NETWORK,
    spatial_transformer=dataclasses.replace(
        NETWORK.spatial_transformer, scale="exponential", initial_radii=3.0, output_size=12
    ),
    backbone=dataclasses.replace(NETWORK.backbone, dropout_placement="classifier", numbers_width=16),
)
"""A network that is given numbers."""


def galaxies(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return object_id, image (N x 1 x 20 x 20), flux and concentration (in [0, 1], falling with the width)."""
    rng = np.random.default_rng(seed)
    flux, concentration = rng.lognormal(4, 0.5, count), rng.uniform(0.05, 0.95, count)
    width = 1.0 + 2.5 * (1 - concentration)[:, None, None]
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    image = flux[:, None, None] * np.exp(-(x**2 + y**2) / 2 / width**2) / (2 * np.pi * width**2)
    image += rng.normal(0, 0.1, image.shape)
    return {
        "object_id": np.arange(count) + 10**9 * seed,
        "image": image[:, None].astype(np.float32),
        "flux": flux,
        "concentration": concentration,
    }


def dataset(root: str, counts: dict[str, int], rows_per_shard: int = 100) -> str:
    """Write a dataset of `galaxies`; ``counts`` by split, or under ``"all"``."""
    units = {} if shards.ALL in counts else {"flux": "Jy", "concentration": ""}
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, target_units=units, num_rows=counts, fingerprint="f")
    for seed, (split, count) in enumerate(counts.items()):
        columns = galaxies(count, seed)
        for part, start in enumerate(range(0, count, rows_per_shard)):
            rows = {name: values[start : start + rows_per_shard] for name, values in columns.items()}
            shards.write_shard(shards.part_uri(root, split, part), rows, info)
    shards.write_dataset_info(root, info)
    return root


def damaged_dataset(root: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Write a `dataset` with a shard that is damaged among its pixels, which workers of a training read first; return both."""
    data = dataset(root, {"train": 200, "val": 50})
    # The softening comes from the first unit.
    monkeypatch.setattr(run, "_SAMPLE_UNITS", 1)
    damaged = shards.shard_uris(data, "train")[1]
    content = bytearray(Path(damaged).read_bytes())
    content[len(content) // 2] ^= 1
    Path(damaged).write_bytes(content)
    return data, damaged


def train_config(dataset_uri: str, output: str, **optimizer: object) -> TrainConfig:
    """Return a config that trains on `dataset` in seconds."""
    return TrainConfig(
        dataset=dataset_uri,
        output=output,
        targets=TARGETS,
        images=PLAIN,
        network=NETWORK,
        optimizer=OptimizerConfig(**({"epochs": 2, "batch_size": 32, "learning_rate": 3e-3} | optimizer)),
        calibration=CalibrationConfig(num_passes=4),
    )


def numbers_config(dataset_uri: str, output: str, **optimizer: object) -> TrainConfig:
    """Return a config of `train_config` whose network is given what is measured in the images."""
    few = {"numbers_epochs": 3, "numbers_learning_rate": 1e-2}
    config = train_config(dataset_uri, output, **(few | optimizer))
    return dataclasses.replace(config, images=ImagesConfig(), network=WITH_NUMBERS)


def bundle(config: NetworkConfig = NETWORK, bands: tuple[str, ...] = ("r",)) -> Bundle:
    """Return an untrained model of `galaxies`, the same in all bands."""
    columns = galaxies(200)
    targets = TargetSchema.fit(TARGETS, np.stack([columns[name] for name in TARGETS], axis=1), {"flux": "Jy"})
    images = ImagePreprocessing.fit(PLAIN, bands, np.repeat(columns["image"], len(bands), axis=1))
    torch.manual_seed(0)
    network = Network(config, channels=len(bands), size=SIZE, num_targets=2)
    for parameter in network.parameters():
        # So that neither the crops nor the outputs are those of an untrained network.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return Bundle(
        network=network.eval(),
        config=config,
        targets=targets,
        images=images,
        calibration=Calibration.constant(np.array([1.2, 0.8])),
        metrics={"val_loss": 0.5},
        provenance={"date": "2026-11-22", "train": {}},
    )


def with_prior() -> Bundle:
    """Return `bundle` with the prior of its galaxies."""
    columns, made = galaxies(200), bundle()
    values_ND = np.stack([columns[name] for name in made.targets.names], axis=1)
    return dataclasses.replace(made, prior=Prior.fit(values_ND, made.targets))


def card() -> Card:
    """Return an evaluation of `bundle` with invented numbers."""

    def coverage(*shares: float) -> list[dict[str, object]]:
        rows = zip(("flux", "concentration"), (shares[:3], shares[3:]), strict=True)
        return [
            {"target": target, "level": level, "coverage": share, "error": 0.01}
            for target, three in rows
            for level, share in zip(LEVELS.values(), three, strict=True)
        ]

    return build(
        Card,
        {
            "date": "2026-11-29",
            "galaxies": "round Gaussians",
            "num_galaxies": 1000,
            "num_passes": 4,
            "coverage": {
                "all": {"all": coverage(0.68, 0.95, 0.99, 0.69, 0.96, 0.995)},
                "magnitude": {"18-19": coverage(0.67, 0.95, 0.995, 0.701, 0.96, 0.996)},
            },
            "width": {"18-19": {"ln_flux": 0.03, "concentration": 0.1}},
            "width_over_limit": {"psf_known": {"18-19": {"ln_flux": 1.5, "concentration": 2.25}}},
            "shifts": [
                {"name": "seeing +20 %", "coverage": {"flux": 0.7, "concentration": 0.4}, "flagged": 0.97},
                {"name": "sky +0.3 sigma", "coverage": {"flux": 0.5, "concentration": 0.68}, "flagged": 0.03},
            ],
            "known_failures": ["Not for spirals."],
        },
    )

"""The config of `gampen-ray train`, which is also the base of every trial of `tune`."""

import dataclasses
from typing import Annotated

import pydantic

from gampen_ray.config.base import Advanced, Needs, config_class, default
from gampen_ray.config.parts import (
    CalibrationConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    TargetConfig,
    TrainResources,
    default_targets,
)

# Given values are compared with those of the bundle to start from.
_IfReplaced = Needs("fine_tune.brings_targets", False, refused=False)
_IfNew = Needs("fine_tune.bundle", "", refused=False)


@config_class
class TrainConfig:
    """Train a network on a dataset with targets; writes a run folder with the model bundle in it."""

    dataset: str
    """Dataset with the splits train and val: a folder or s3:// URI."""
    output: str
    """Run folder: holds bundle/, history.json and checkpoints. An unfinished run with the same config is resumed."""
    targets: Annotated[dict[str, TargetConfig], _IfReplaced] = dataclasses.field(default_factory=default_targets)
    """Target columns and their transforms."""
    conditions: Annotated[tuple[str, ...], _IfNew] = ()
    """Columns of the dataset whose values the network is given for each galaxy beside the image, such as psf_fwhm_arcsec; the
    galaxies to predict must have them too."""
    images: Annotated[ImagesConfig, _IfNew] = default(ImagesConfig)
    """Image preprocessing."""
    network: Annotated[NetworkConfig, _IfNew] = default(NetworkConfig)
    """The network."""
    fine_tune: FineTuneConfig = default(FineTuneConfig)
    """Start from a trained bundle."""
    optimizer: OptimizerConfig = default(OptimizerConfig)
    """Optimisation of the weights."""
    calibration: CalibrationConfig = default(CalibrationConfig)
    """Post-hoc calibration."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of initial weights, shuffling, augmentation and dropout."""
    checkpoint_steps: Annotated[int, Advanced()] = pydantic.Field(default=0, ge=0)
    """Optimiser steps between checkpoints within an epoch; 0: checkpoints at the end of each epoch only."""
    mlflow: Annotated[str, Advanced()] = ""
    """MLflow tracking URI, such as sqlite:///mlflow.db or a server's (needs `pip install "gampen_ray[mlflow]"`); empty: metrics
    only go to tensorboard/ in the run folder."""
    resources: TrainResources = default(TrainResources)
    """Resources requested from Ray."""

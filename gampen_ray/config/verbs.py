"""One config class per verb of the command line."""

import dataclasses
from typing import Literal

import pydantic

from gampen_ray.config.base import config_class, default
from gampen_ray.config.parts import (
    CalibrationConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    ResourcesConfig,
    TargetConfig,
    default_targets,
)


@config_class
class SplitTablesConfig:
    """Write the train, devel and test tables of a GaMPEN data folder: GaMPEN's 42, stratified ones, or by sky region."""

    images: str
    """GaMPEN data folder: its info.csv is split, and below it `ingest --split-slug` looks for the tables."""
    catalog: str = ""
    """CSV table to split instead of info.csv."""
    output: str = ""
    """Folder for the tables; files of other content are never overwritten. Empty: splits/ in `images`."""
    scheme: Literal["gampen", "stratified", "sky"] = "gampen"
    """gampen: balanced-* and unbalanced-*, row for row those of GaMPEN; both are random draws, as the balanced ones are not
    balanced in GaMPEN either. stratified: every part has the same distribution of the target. sky: galaxies of one region of
    the sky are in one part (columns ra and dec, degrees). Each for the train/devel/test shares xs .027/.003/.970, sm
    .045/.005/.950, md .09/.01/.90, lg .20/.05/.75, xl .45/.05/.50, dev .70/.15/.15 and dev2 .70/.05/.25."""
    target: str = "bt_g"
    """Column that the balanced and the stratified splits look at, a finite number in every row."""
    num_strata: int = pydantic.Field(default=20, ge=1)
    """Stratified only: groups of equal size from the lowest to the highest target, each of which is divided by the shares."""
    cell_size_deg: float = pydantic.Field(default=1.0, ge=0.001, le=58.0)
    """Sky only: side of the HEALPix cells that are kept whole, degrees; the nearest that HEALPix has."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the stratified and the sky splits; GaMPEN's are always the same."""


@config_class
class TrainConfig:
    """Train a network on a dataset with targets; writes a run folder with the model bundle in it."""

    dataset: str
    """Dataset with the splits train and val: a folder or s3:// URI."""
    output: str
    """Run folder: holds bundle/, history.json and checkpoints. An unfinished run with the same config goes on."""
    targets: dict[str, TargetConfig] = dataclasses.field(default_factory=default_targets)
    """Target columns and their transforms."""
    images: ImagesConfig = default(ImagesConfig)
    """From cutouts to network inputs."""
    network: NetworkConfig = default(NetworkConfig)
    """The network."""
    fine_tune: FineTuneConfig = default(FineTuneConfig)
    """Start from a trained bundle."""
    optimizer: OptimizerConfig = default(OptimizerConfig)
    """How the weights are fitted."""
    calibration: CalibrationConfig = default(CalibrationConfig)
    """Post-hoc calibration."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of initial weights, shuffling, augmentation and dropout."""
    checkpoint_steps: int = pydantic.Field(default=0, ge=0)
    """Optimiser steps from one checkpoint to the next, beside that at the end of each epoch; 0: that alone."""
    mlflow: str = ""
    """MLflow tracking URI, such as sqlite:///mlflow.db or a server's (needs `pip install "gampen_ray[mlflow]"`); empty: metrics
    go to tensorboard/ in the run folder alone."""
    resources: ResourcesConfig = default(ResourcesConfig)
    """What the job asks of Ray."""


@config_class
class EvaluateConfig:
    """Compare a catalogue with the true values in its dataset: accuracy and coverage, before and after calibration."""

    catalog: str
    """Output folder of `infer`, made with `--posterior mixture`."""
    output: str
    """Folder to create: evaluation.json."""


@config_class
class ReportConfig:
    """Write one self-contained HTML page about a trained model and its evaluated catalogue."""

    evaluation: str
    """Output folder of `evaluate`."""
    output: str
    """HTML file to write."""
    num_examples: int = pydantic.Field(default=6, ge=1)
    """Galaxies shown with their crop and posterior."""
    num_angles: int | None = pydantic.Field(default=None, ge=0)
    """Angles at which each of them is predicted once more, evenly spaced over 360 degrees, to show how stable the posterior is;
    0: none; left out: 36, or the 4 quarter turns for a network of more than ten million parameters."""


@config_class
class DemoConfig:
    """Simulate, train, infer, evaluate and report, in minutes on a laptop."""

    output: str = "demo"
    """Folder to create."""
    num_galaxies: int = pydantic.Field(default=20_000, ge=200)
    """Simulated galaxies: 60 % to train, 20 % to validate, 20 % to test."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of simulation, training and inference."""


@config_class
class ImportGampenConfig:
    """Turn a trained GaMPEN network (a .pt state dict) into a model bundle; nothing pickled is executed."""

    model: str
    """State dict of a vgg16, vgg16_w_stn or vgg16_w_stn_*_drp network, saved by GaMPEN's train.py."""
    scaling: str
    """CSV of the training split, from which the label scaler is computed once (GaMPEN: splits/SLUG-train.csv). Where it holds
    bt beside custom_logit_bt, the values that stand for B/T of 0 and 1 come from it."""
    output: str
    """Bundle to create: a folder or s3:// URI."""
    preset: Literal["", "g_0_025", "r_025_050", "i_050_075", "sim_g_0_025", "sim_r_025_050", "sim_i_050_075"] = ""
    """Public HSC model: sets what is left out below. g_0_025, r_025_050 and i_050_075 are the real-data models of z < 0.25,
    0.25 to 0.50 and 0.50 to 0.75, sim_* those trained on simulations."""
    targets: tuple[str, ...] = ()
    """Label columns in the order of GaMPEN's --target_metrics; ln_* and custom_logit_* are logarithms and logits of physical
    targets. Left out: the preset's."""
    cutout_size: int = pydantic.Field(default=0, ge=0)
    """Side of the network's input, pixels (GaMPEN: --cutout_size). 0: the preset's."""
    dropout_rate: float | None = pydantic.Field(default=None, ge=0, lt=1)
    """Rate of every dropout layer (GaMPEN: --dropout_rate; 0.5 where it was left out in training). Left out: the preset's."""
    label_scaling: Literal["std", "minmax"] = "std"
    """GaMPEN's --label_scaling."""
    bands: tuple[str, ...] = ()
    """Names of the bands of the cutouts; a single band is repeated over the network's channels, as GaMPEN does. Left out: the
    preset's, or one band called unknown."""
    pixel_scale_arcsec: float | None = pydantic.Field(default=None, gt=0)
    """Pixel scale of the training cutouts, arcsec. Left out: the preset's, or unknown."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux of the training cutouts. Left out: the preset's, or unknown."""

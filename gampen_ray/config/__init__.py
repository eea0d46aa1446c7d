"""Configs that several layers share: frozen dataclasses, read and written by `gampen_ray.config.base`.

The config of any other verb is beside its function in `gampen_ray.commands`. The docstring under a field is its help text: it
states the unit and the meaning of a sentinel value.
"""

from gampen_ray.config.inputs import CatalogConfig, CutoutsConfig, ReaderConfig, SourcesConfig, SplitConfig, TilesConfig
from gampen_ray.config.parts import (
    ActorResources,
    BackboneConfig,
    CalibrationConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    SpatialTransformerConfig,
    Split,
    TargetConfig,
    TaskResources,
    TrainResources,
    Transform,
    TuneResources,
    WorkerResources,
    gampen_vgg16,
)
from gampen_ray.config.training import TrainConfig
from gampen_ray.config.tuning import Objective, ScanDropoutConfig, SearchRange, TuneConfig, default_search

__all__ = [
    "ActorResources",
    "BackboneConfig",
    "CalibrationConfig",
    "CatalogConfig",
    "CutoutsConfig",
    "FineTuneConfig",
    "ImagesConfig",
    "NetworkConfig",
    "Objective",
    "OptimizerConfig",
    "ReaderConfig",
    "ScanDropoutConfig",
    "SearchRange",
    "SourcesConfig",
    "SpatialTransformerConfig",
    "Split",
    "SplitConfig",
    "TargetConfig",
    "TaskResources",
    "TilesConfig",
    "TrainConfig",
    "TrainResources",
    "Transform",
    "TuneConfig",
    "TuneResources",
    "WorkerResources",
    "default_search",
    "gampen_vgg16",
]

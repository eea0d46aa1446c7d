"""Every knob of gampen_ray: frozen dataclasses, read and written by `gampen_ray.config.base`.

The configs that several layers share are here; any other verb's config stands with its function in `gampen_ray.commands`. The
docstring under a field is its help text: it states the unit and what a sentinel value means.
"""

from gampen_ray.config.parts import (
    ActorResources,
    BackboneConfig,
    CalibrationConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    ResourcesConfig,
    SpatialTransformerConfig,
    Split,
    SplitConfig,
    TargetConfig,
    TaskResources,
    TrainResources,
    Transform,
    TuneResources,
    gampen_vgg16,
)
from gampen_ray.config.training import TrainConfig
from gampen_ray.config.tuning import Objective, ScanDropoutConfig, SearchRange, TuneConfig, default_search
from gampen_ray.config.verbs import CropConfig, InferConfig, IngestConfig, SimulateConfig

__all__ = [
    "ActorResources",
    "BackboneConfig",
    "CalibrationConfig",
    "CropConfig",
    "FineTuneConfig",
    "ImagesConfig",
    "InferConfig",
    "IngestConfig",
    "NetworkConfig",
    "Objective",
    "OptimizerConfig",
    "ResourcesConfig",
    "ScanDropoutConfig",
    "SearchRange",
    "SimulateConfig",
    "SpatialTransformerConfig",
    "Split",
    "SplitConfig",
    "TargetConfig",
    "TaskResources",
    "TrainConfig",
    "TrainResources",
    "Transform",
    "TuneConfig",
    "TuneResources",
    "default_search",
    "gampen_vgg16",
]

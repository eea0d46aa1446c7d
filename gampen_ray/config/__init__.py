"""Every knob of gampen_ray: frozen dataclasses, read and written by `gampen_ray.config.base`.

A verb of the command line takes one of the classes of `gampen_ray.config.verbs`, which are made of those of
`gampen_ray.config.parts`. The docstring under a field is its help text: it states the unit and what a sentinel value means.
"""

from gampen_ray.config.parts import (
    BackboneConfig,
    CalibrationConfig,
    CutoutsConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    ReaderConfig,
    ResourcesConfig,
    SpatialTransformerConfig,
    Split,
    SplitConfig,
    TargetConfig,
    Transform,
    gampen_vgg16,
)
from gampen_ray.config.tuning import Objective, SearchRange, TuneConfig, default_search
from gampen_ray.config.verbs import (
    DemoConfig,
    EvaluateConfig,
    ImportGampenConfig,
    ReportConfig,
    SplitTablesConfig,
    TrainConfig,
)

__all__ = [
    "BackboneConfig",
    "CalibrationConfig",
    "CutoutsConfig",
    "DemoConfig",
    "EvaluateConfig",
    "FineTuneConfig",
    "ImagesConfig",
    "ImportGampenConfig",
    "NetworkConfig",
    "Objective",
    "OptimizerConfig",
    "ReaderConfig",
    "ReportConfig",
    "ResourcesConfig",
    "SearchRange",
    "SpatialTransformerConfig",
    "Split",
    "SplitConfig",
    "SplitTablesConfig",
    "TargetConfig",
    "TrainConfig",
    "Transform",
    "TuneConfig",
    "default_search",
    "gampen_vgg16",
]

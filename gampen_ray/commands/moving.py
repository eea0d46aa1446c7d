"""Verbs whose functions still lie in `gampen_ray.engine`."""

from typing import Any

from gampen_ray.commands.registry import verb
from gampen_ray.config import CropConfig, InferConfig, IngestConfig, SimulateConfig, TrainConfig


@verb("simulate")
def simulate(config: SimulateConfig) -> Any:
    from gampen_ray.engine.simulate import simulate as run

    return run(config)


@verb("ingest")
def ingest(config: IngestConfig) -> Any:
    from gampen_ray.engine.ingest import ingest as run

    return run(config)


@verb("train")
def train(config: TrainConfig) -> Any:
    from gampen_ray.engine.train import train as run

    return run(config)


@verb("infer")
def infer(config: InferConfig) -> Any:
    from gampen_ray.engine.infer import infer as run

    return run(config)


@verb("crop")
def crop(config: CropConfig) -> Any:
    from gampen_ray.engine.crop import crop as run

    return run(config)

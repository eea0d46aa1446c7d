"""Verbs whose functions still lie in `gampen_ray.engine`."""

from typing import Any

from gampen_ray.commands.registry import verb
from gampen_ray.config import TrainConfig


@verb("train")
def train(config: TrainConfig) -> Any:
    from gampen_ray.engine.train import train as run

    return run(config)

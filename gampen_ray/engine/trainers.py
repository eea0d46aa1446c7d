"""Who does a training: processes of this machine, or workers of Ray Train."""

import contextlib
from collections.abc import Callable, Iterator

from gampen_ray.config import TrainResources
from gampen_ray.engine.resources import Workers, has_gpu, wants_ray
from gampen_ray.engine.train_processes import local_trainers, run_processes
from gampen_ray.training.run import Run

__all__ = ["check_trainers", "trainers", "trains_here"]


@contextlib.contextmanager
def trainers(resources: TrainResources) -> Iterator[tuple[Workers, Callable[[Run, Workers], None]]]:
    """Yield the workers of a training, and the function that trains with them, within a session of Ray if they are Ray's.

    Raises
    ------
    UserError
        If this machine or the cluster has no room for them.
    """
    if trains_here(resources):
        yield local_trainers(resources), run_processes
        return
    from gampen_ray.engine.cluster import cluster_workers
    from gampen_ray.engine.session import ray_session
    from gampen_ray.engine.train_workers import run_workers

    with ray_session():
        yield cluster_workers(resources, least=resources.min_workers or resources.num_workers or 1), run_workers


def trains_here(resources: TrainResources) -> bool:
    """Return whether a training is done in processes of this machine: as the user says, or where nothing speaks for Ray."""
    if resources.engine != "auto":
        return resources.engine == "local"
    return not wants_ray(resources) and not has_gpu()


def check_trainers(resources: TrainResources) -> None:
    """Raise what `trainers` would, as far as this machine alone decides it."""
    if trains_here(resources):
        local_trainers(resources)

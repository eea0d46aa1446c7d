"""The workers of a job on the cluster at hand, which may have to grow for them first."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from gampen_ray.config import ActorResources, TaskResources, TrainResources
from gampen_ray.engine.resources import Node, Workers, plan_workers
from gampen_ray.errors import UserError

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 1800
"""For new nodes: clouds take minutes to start one, and may have none at first."""
_POLL_S, _TELL_S = 1.0, 60.0
# An autoscaler that sees no way may have nodes on their way out, which make room for others.
_NO_WAY_S = 10.0


def cluster_workers(config: ActorResources, *, least: int = 1, gpus_per_worker: float = 1.0) -> Workers:
    """Return the workers of a job on the cluster at hand, of which ``least`` have room, now or after a wait.

    A cluster that does not grow gets those that have room, but an elastic job, as nodes may come back; on another the job asks
    for the rest while it runs.

    Parameters
    ----------
    config
        What the user asks for.
    least
        Workers without which the job cannot begin.
    gpus_per_worker
        Share of a GPU that each worker takes, if the job uses GPUs.

    Raises
    ------
    UserError
        If the cluster has no room for ``least`` workers, and does not grow until it has.
    """
    workers = plan_workers(config, _nodes(), gpus_per_worker=gpus_per_worker)
    if workers.room < least:
        workers = _grown(config, workers, least, gpus_per_worker)
    if workers.room < workers.count and grows():
        logger.info("the cluster has room for %s of %s workers now, and is asked for the others", workers.room, workers.count)
    elif workers.room < workers.count and not _min_workers(config):
        logger.info("the cluster has room for %s of %s workers: it gets no more", workers.room, workers.count)
        workers = dataclasses.replace(workers, count=workers.room)
    return workers


def uses_gpus(config: ActorResources) -> bool:
    """Return whether the workers of a job get GPUs."""
    return any(node.gpus for node in _nodes()) if config.use_gpu is None else config.use_gpu


def task_cpus(config: TaskResources, usual: float) -> float:
    """Return what each task of a job without workers takes; there is room for one, now or after a wait.

    Parameters
    ----------
    config
        What the user asks for.
    usual
        What a task takes if nothing is asked for.

    Raises
    ------
    UserError
        If the cluster has no room for a task, and does not grow until it has.
    """
    cpus = config.cpus_per_worker or usual
    return cluster_workers(ActorResources(num_workers=1, cpus_per_worker=cpus, use_gpu=False)).cpus


def _min_workers(config: ActorResources) -> int:
    return config.min_workers if isinstance(config, TrainResources) else 0


def _nodes() -> list[Node]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0)) for resources in alive]


def _grown(config: ActorResources, workers: Workers, least: int, gpus_per_worker: float) -> Workers:
    """Ask the autoscaler for room, wait for it, and return the workers on the nodes of then."""
    if not grows():
        raise _too_small(config, workers, least)
    began = hoped = time.monotonic()
    told = -math.inf
    with _asked(workers, least) as group:
        while workers.room < least:
            now = time.monotonic()
            if not (group.wait(0) or _sees_no_way(group)):
                hoped = now
            if now - hoped > _NO_WAY_S or now - began > LONGEST_WAIT_S:
                raise _too_small(config, workers, least)
            if now - told >= _TELL_S:
                told = now
                logger.info(
                    "the cluster has room for %s of %s workers to begin with, and is asked to grow", workers.room, least
                )
            time.sleep(_POLL_S)
            workers = plan_workers(config, _nodes(), gpus_per_worker=gpus_per_worker)
    return workers


@contextlib.contextmanager
def _asked(workers: Workers, count: int) -> Iterator[PlacementGroup]:
    """Let the autoscaler know that room for so many workers is wanted at once."""
    each = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    group = placement_group([each] * count)
    try:
        yield group
    finally:
        remove_placement_group(group)


def grows() -> bool:
    """Return whether somebody starts nodes when they are asked for.

    Ray runs an autoscaler in any case, which only looks on if it has no config. Its first version then makes up the types of
    nodes from their ids. Of the second nothing tells that, but it has none in Kubernetes alone, which replaces lost nodes.
    """
    if _autoscaling_state() is not None:
        return True
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    return any(not kind.startswith("node_") for kind in report.get("active_nodes", {}))


def _autoscaling_state() -> AutoscalingState | None:
    """Return what the second version of Ray's autoscaler tells, if it runs."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply.autoscaling_state if reply.HasField("autoscaling_state") else None


def _sees_no_way(group: PlacementGroup) -> bool:
    """Return whether the autoscaler knows that it cannot make room for a group."""
    state = _autoscaling_state()
    return state is not None and any(group.id.hex() in str(request) for request in state.infeasible_gang_resource_requests)


def _too_small(config: ActorResources, workers: Workers, least: int) -> UserError:
    name = "min_workers" if _min_workers(config) else "num_workers"
    each = _number(workers.cpus, "CPU")
    remedies = [f"lower resources.{name}"] if least > 1 else []
    if config.cpus_per_worker:
        remedies.append("lower resources.cpus_per_worker")
    if workers.gpus:
        each += f" and {'a GPU' if workers.gpus == 1 else f'{workers.gpus:g} of a GPU'}"
        remedies.append("set resources.use_gpu to false")
    sizes = Counter((_number(node.cpus, "CPU"), _number(node.gpus, "GPU")) for node in _nodes() if node.cpus or node.gpus)
    has = ", ".join(f"{number} of {cpus} and {gpus}" for (cpus, gpus), number in sizes.items()) or "none yet"
    return UserError(
        f"resources.{name}: {_number(least, 'worker')} with {each} needed, but the cluster has room for "
        f"{workers.room} (nodes: {has}) and does not grow enough; {' or '.join(remedies) or 'add nodes'}"
    )


def _number(count: float, what: str) -> str:
    return f"{count:g} {what}" + ("" if count == 1 else "s")

"""The workers of a job on a cluster, which may first have to grow for them."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from gampen_ray.config import TaskResources, TrainResources, WorkerResources
from gampen_ray.engine.resources import Node, Workers, plan_workers
from gampen_ray.errors import UserError

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 1800
"""Longest wait for new nodes: clouds take minutes to start one, and may have none at first."""
_POLL_S, _LOG_S = 1.0, 60.0
# How long a request may be infeasible: nodes that are being stopped still count against the largest cluster.
_INFEASIBLE_S = 10.0


def cluster_workers(config: WorkerResources, *, least: int = 1, gpus_per_worker: float = 1.0) -> Workers:
    """Return the workers of a job, with room for ``least`` of them on the cluster, now or after a wait.

    On a cluster that cannot autoscale, the job gets no more workers than fit, unless it is elastic, as lost nodes may come
    back; on one that can, the job requests the others while it runs.

    Parameters
    ----------
    config
        The user's request.
    least
        Workers without which the job cannot start.
    gpus_per_worker
        Share of a GPU that each worker takes, if the job uses GPUs.

    Raises
    ------
    UserError
        If the cluster has no room for ``least`` workers, and cannot grow until it has.
    """
    workers = plan_workers(config, _nodes(), gpus_per_worker=gpus_per_worker)
    if workers.room < least:
        workers = _wait_for_room(config, workers, least, gpus_per_worker)
    if workers.room < workers.count and can_autoscale():
        logger.info("the cluster has room for %s of %s workers now, and is asked for the others", workers.room, workers.count)
    elif workers.room < workers.count and not _min_workers(config):
        logger.info("the cluster has room for %s of %s workers: the job gets no more", workers.room, workers.count)
        workers = dataclasses.replace(workers, count=workers.room)
    return workers


def uses_gpus(config: WorkerResources) -> bool:
    """Return whether the workers of a job get GPUs."""
    return any(node.gpus for node in _nodes()) if config.use_gpu is None else config.use_gpu


def task_cpus(config: TaskResources | WorkerResources, usual: float) -> float:
    """Return the CPUs of each task of a job without workers, once the cluster has room for one task.

    Parameters
    ----------
    config
        The user's request.
    usual
        CPUs of a task where the user gives none.

    Raises
    ------
    UserError
        If the cluster has no room for a task, and cannot grow until it has.
    """
    cpus = config.cpus_per_worker or usual
    return cluster_workers(WorkerResources(num_workers=1, cpus_per_worker=cpus, use_gpu=False)).cpus


def _min_workers(config: WorkerResources) -> int:
    return config.min_workers if isinstance(config, TrainResources) else 0


def _nodes() -> list[Node]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0)) for resources in alive]


def _wait_for_room(config: WorkerResources, workers: Workers, least: int, gpus_per_worker: float) -> Workers:
    """Request room from the autoscaler, wait for it, and return the workers for the grown cluster."""
    if not can_autoscale():
        raise _too_small(config, workers, least)
    start = feasible = time.monotonic()
    logged = -math.inf
    with _requested(workers, least) as group:
        while workers.room < least:
            now = time.monotonic()
            if group.wait(0) or not _is_infeasible(group):
                feasible = now
            if now - feasible > _INFEASIBLE_S or now - start > LONGEST_WAIT_S:
                raise _too_small(config, workers, least)
            if now - logged >= _LOG_S:
                logged = now
                logger.info(
                    "the cluster has room for %s of %s workers to begin with, and is asked to grow", workers.room, least
                )
            time.sleep(_POLL_S)
            workers = plan_workers(config, _nodes(), gpus_per_worker=gpus_per_worker)
    return workers


@contextlib.contextmanager
def _requested(workers: Workers, count: int) -> Iterator[PlacementGroup]:
    """Request room for ``count`` workers at once from the autoscaler.

    A placement group belongs to this job, whereas the cluster has a single `ray.autoscaler.sdk.request_resources`, which every
    job overwrites, as Ray Data and Ray Train do.
    """
    each = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    group = placement_group([each] * count)
    try:
        yield group
    finally:
        remove_placement_group(group)


def can_autoscale() -> bool:
    """Return whether the cluster can autoscale."""
    return _autoscaler()[0]


def _is_infeasible(group: PlacementGroup) -> bool:
    """Return whether the autoscaler cannot make room for a placement group; version 1 never reports this."""
    return any(group.id.hex() in str(request) for request in _autoscaler()[1])


def _autoscaler() -> tuple[bool, list[Any]]:
    """Return whether the cluster can autoscale, and its infeasible requests for placement groups.

    Ray's public interfaces offer neither. Version 2 of the autoscaler reports a state if it runs. Version 1 runs on every
    cluster, and without a config it derives the types of nodes from their ids, as ``node_...``.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import _internal_kv_get

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status())
    if reply.HasField("autoscaling_state"):
        return True, list(reply.autoscaling_state.infeasible_gang_resource_requests)
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    return any(not kind.startswith("node_") for kind in report.get("active_nodes", {})), []


def _too_small(config: WorkerResources, workers: Workers, least: int) -> UserError:
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
        f"{workers.room} (nodes: {has}) and cannot grow enough; {' or '.join(remedies) or 'add nodes'}"
    )


def _number(count: float, what: str) -> str:
    return f"{count:g} {what}" + ("" if count == 1 else "s")

"""Number of workers of a job, the resources of each and the variables of their processes: plain values, without Ray."""

import dataclasses
import math
import os
import socket
import sys
from collections.abc import Sequence

from gampen_ray.config import TaskResources, WorkerResources
from gampen_ray.errors import UserError

# CPUs of a node left for other tasks: fraction, maximum, and minimum on GPU nodes (for a task that writes predictions).
_SPARE, _MOST_SPARE, _SPARE_FOR_GPUS = 0.1, 1.1, 0.25
# CPUs of a worker if the cluster has no nodes yet.
_CPUS_OF_UNKNOWN_NODES = 1.0
_EPSILON = 1e-9
LOCAL_CPUS = max(2, os.cpu_count() or 1)
"""Logical CPUs of this machine: at least two, as reading and computing must be able to run side by side."""
MAX_FAILURES = 3
"""Deaths of training workers after which a training resumes from its last checkpoint."""
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Variables by which workers keep the memory of one step for the next. Otherwise glibc returns every large tensor to the
kernel, which then spends a tenth of the time of CPU training on clearing the same pages."""


def loopback_only() -> dict[str, str]:
    """Return the variables by which PyTorch's workers meet on the loopback interface."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def wants_ray(resources: TaskResources | WorkerResources) -> bool:
    """Return whether a job that leaves its engine open belongs on Ray.

    It does on a cluster that is given or connected, or where the user says which workers it gets.
    """
    connected = os.environ.get("RAY_ADDRESS") or ("ray" in sys.modules and sys.modules["ray"].is_initialized())
    return bool(connected) or resources != type(resources)()


def has_gpu() -> bool:
    """Return whether PyTorch can use a GPU here."""
    import torch

    return torch.cuda.is_available()


@dataclasses.dataclass(frozen=True)
class Node:
    """Size of a node of the cluster, whether in use or not.

    Parameters
    ----------
    cpus, gpus
        Logical CPUs and GPUs, as Ray counts them.
    """

    cpus: float
    gpus: float = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers of a job.

    Parameters
    ----------
    count
        Number of workers.
    room
        Workers that fit on the present nodes; the others need new nodes.
    cpus, gpus
        CPUs and GPUs that each reserves.
    threads
        Threads of each.
    """

    count: int
    room: int
    cpus: float
    gpus: float
    threads: int


def plan_workers(config: WorkerResources, nodes: Sequence[Node], *, gpus_per_worker: float = 1.0) -> Workers:
    """Return the workers for a cluster; no worker is spread over several nodes.

    Parameters
    ----------
    config
        The user's request; zeros are replaced here.
    nodes
        The present nodes.
    gpus_per_worker
        Share of a GPU that each worker takes, if the job uses GPUs.

    Raises
    ------
    UserError
        If the number of workers is left to the cluster, and none fits.
    """
    use_gpu = any(node.gpus for node in nodes) if config.use_gpu is None else config.use_gpu
    nodes = [node for node in nodes if node.cpus and (node.gpus or not use_gpu)]
    # A share of a GPU lies on one GPU: 0.4 fits twice, not two and a half times.
    usual = [int(node.gpus) * int(1 / gpus_per_worker + _EPSILON) if use_gpu else _usual(node.cpus) for node in nodes]
    count = config.num_workers or sum(usual)
    if not count:
        raise UserError(
            f"resources.num_workers: 0, as many as the cluster holds, which has no node with {'GPUs' if use_gpu else 'CPUs'}; "
            "give their number if it can autoscale, " + ("or set resources.use_gpu to false" if use_gpu else "or add nodes")
        )
    spare = [max(min(_SPARE * node.cpus, _MOST_SPARE), _SPARE_FOR_GPUS if use_gpu else 0) for node in nodes]
    free = [node.cpus - spare_ for node, spare_ in zip(nodes, spare, strict=True)]
    most = usual if use_gpu else [max(1, int(node.cpus)) for node in nodes]
    cpus = config.cpus_per_worker or _share(free, most, min(count, sum(most)))
    if not use_gpu:
        # As many as Ray can place there.
        free, most = [node.cpus for node in nodes], [count] * len(nodes)
    fit = [min(int(free_ / cpus + _EPSILON), most_, count) for free_, most_ in zip(free, most, strict=True)]
    threads = [int(node.cpus / fit_) for node, fit_ in zip(nodes, fit, strict=True) if fit_]
    if not config.num_workers:
        count = max(1, min(count, sum(fit)))
    return Workers(
        count=count,
        room=min(sum(fit), count),
        cpus=cpus,
        gpus=gpus_per_worker if use_gpu else 0,
        threads=max(1, min(threads, default=int(cpus))),
    )


def _usual(cpus: float) -> int:
    """Return the default number of workers of a node without GPUs: one per two CPUs, and two if it has two or three."""
    return max(min(2, int(cpus)), int(cpus) // 2)


def _share(free: Sequence[float], most: Sequence[int], count: int) -> float:
    """Return the most CPUs that each of ``count`` workers can have on nodes with these free CPUs."""
    shares = {free_ / k for free_, most_ in zip(free, most, strict=True) for k in range(1, min(most_, count) + 1)}
    for share in sorted(shares, reverse=True):
        if sum(min(int(free_ / share + _EPSILON), most_) for free_, most_ in zip(free, most, strict=True)) >= count:
            return math.floor(share) if share > 1 else math.floor(100 * share) / 100
    return _CPUS_OF_UNKNOWN_NODES

"""How many workers a job gets and what each reserves: arithmetic on the sizes of the nodes, without Ray."""

import dataclasses
import math
from collections.abc import Sequence

from gampen_ray.config import ActorResources
from gampen_ray.errors import UserError

# Share of a node's CPUs left to whatever runs beside the workers, CPUs at most, and beside GPUs at least: those of a task that
# writes what they predict.
_SPARE, _MOST_SPARE, _SPARE_FOR_GPUS = 0.1, 1.1, 0.25
# Where no node shows what a worker may have.
_CPUS_OF_UNKNOWN_NODES = 1.0
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class Node:
    """What a node of the cluster has, in use or not.

    Parameters
    ----------
    cpus, gpus
        As Ray counts them.
    """

    cpus: float
    gpus: float = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers of a job.

    Parameters
    ----------
    count
        How many are asked for.
    room
        How many of them the nodes hold that are there; the others need new ones.
    cpus, gpus
        What each reserves.
    threads
        Computing threads of each.
    """

    count: int
    room: int
    cpus: float
    gpus: float
    threads: int


def plan_workers(config: ActorResources, nodes: Sequence[Node], *, gpus_per_worker: float = 1.0) -> Workers:
    """Return the workers for a cluster; no worker is spread over several nodes.

    Parameters
    ----------
    config
        What the user asks for; zeros are settled here.
    nodes
        Those that are there.
    gpus_per_worker
        Share of a GPU that each worker takes, if the job uses GPUs.

    Raises
    ------
    UserError
        If the number of workers is left to the cluster, and that holds none.
    """
    use_gpu = any(node.gpus for node in nodes) if config.use_gpu is None else config.use_gpu
    nodes = [node for node in nodes if node.cpus and (node.gpus or not use_gpu)]
    # Of one GPU each: a share of 0.4 does not reach over two of them.
    usual = [int(node.gpus) * int(1 / gpus_per_worker + _EPSILON) if use_gpu else _usual(node.cpus) for node in nodes]
    count = config.num_workers or sum(usual)
    if not count:
        raise UserError(
            f"resources.num_workers: 0, as many as the cluster holds, which has no node with {'GPUs' if use_gpu else 'CPUs'}; "
            "give their number if it grows, " + ("or set resources.use_gpu to false" if use_gpu else "or add nodes")
        )
    spare = [max(min(_SPARE * node.cpus, _MOST_SPARE), _SPARE_FOR_GPUS if use_gpu else 0) for node in nodes]
    free = [node.cpus - spare_ for node, spare_ in zip(nodes, spare, strict=True)]
    most = usual if use_gpu else [max(1, int(node.cpus)) for node in nodes]
    cpus = config.cpus_per_worker or _share(free, most, min(count, sum(most)))
    if not use_gpu:
        # As many as Ray places there.
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
    """Return how many workers a node gets that is asked for no number: one per two CPUs, and two if it can."""
    return max(min(2, int(cpus)), int(cpus) // 2)


def _share(free: Sequence[float], most: Sequence[int], count: int) -> float:
    """Return the most CPUs that each of ``count`` workers can have on nodes with so many of them free."""
    shares = {free_ / k for free_, most_ in zip(free, most, strict=True) for k in range(1, min(most_, count) + 1)}
    for share in sorted(shares, reverse=True):
        if sum(min(int(free_ / share + _EPSILON), most_) for free_, most_ in zip(free, most, strict=True)) >= count:
            return math.floor(share) if share > 1 else math.floor(100 * share) / 100
    return _CPUS_OF_UNKNOWN_NODES

"""How many workers a job gets and what each reserves: arithmetic on the cluster's size, without Ray."""

import dataclasses
import math

from gampen_ray.config import ResourcesConfig
from gampen_ray.errors import UserError

# Left to Ray Data for listing, reading and writing; a smaller margin deadlocks (listing alone takes one CPU).
_DATA_CPUS = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers of a job.

    Parameters
    ----------
    count
        How many.
    cpus, gpus
        What each reserves.
    threads
        Computing threads of each on a machine that the workers share evenly.
    """

    count: int
    cpus: float
    gpus: float
    threads: int


def plan_workers(config: ResourcesConfig, *, num_cpus: int, num_gpus: int, gpus_per_worker: float = 1.0) -> Workers:
    """Return the workers for a cluster.

    Parameters
    ----------
    config
        What the user asks for; zeros are settled here.
    num_cpus, num_gpus
        What the cluster has.
    gpus_per_worker
        Share of a GPU that each worker takes, if the job uses GPUs.

    Raises
    ------
    UserError
        If the cluster cannot hold them.
    """
    use_gpu = num_gpus > 0 if config.use_gpu is None else config.use_gpu
    # Of one GPU each: a share of 0.4 does not reach over two of them.
    most = num_gpus * int(1 / gpus_per_worker + 1e-9)
    count = config.num_workers or (max(1, most) if use_gpu else max(2, num_cpus // 2))
    # An elastic job starts with what there is.
    needed, name = (config.min_workers, "min_workers") if config.min_workers else (count, "num_workers")
    if use_gpu and needed > most:
        share = "a GPU" if gpus_per_worker == 1 else f"{gpus_per_worker:g} of a GPU"
        raise UserError(
            f"resources.{name}: {needed} workers with {share} each, but the cluster has {num_gpus} GPUs; "
            f"lower resources.{name} or set resources.use_gpu to false"
        )
    available = num_cpus - _DATA_CPUS
    cpus = config.cpus_per_worker or math.floor(100 * available / count) / 100
    if cpus <= 0 or cpus * needed > available + 1e-9:
        raise UserError(
            f"resources.{name}: {needed} workers with {config.cpus_per_worker or 'a share of the'} CPUs each do not fit "
            f"into {num_cpus} CPUs, of which reading takes {_DATA_CPUS}; lower resources.{name} or cpus_per_worker"
        )
    if not config.cpus_per_worker and cpus > 1:
        cpus = math.floor(cpus)
    return Workers(count=count, cpus=cpus, gpus=gpus_per_worker if use_gpu else 0, threads=max(1, num_cpus // count))

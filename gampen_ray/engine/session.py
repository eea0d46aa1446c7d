"""Ray for the length of one job: the cluster at hand, or a local Ray that is started and stopped."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray
import ray.data

logger = logging.getLogger(__name__)

# Read by Ray when it starts and by the workers that inherit it; a user's own setting wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The default of 32 footer-reading processes is made for large clusters.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # A report from a training worker waits for the controller's next poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
_LOCAL_OBJECT_STORE_BYTES = 1 << 30


@contextlib.contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray, and leave nothing behind.

    A connection that is already there is used and kept. Inside a job or with ``RAY_ADDRESS`` set, that cluster is used. Else a
    local Ray is started, and stopped at the end, also after an error or Ctrl-C.

    Parameters
    ----------
    dashboard
        Whether a local Ray runs the dashboard and the state API.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            # At least two logical CPUs: reading and computing must be able to run side by side.
            num_cpus=max(2, os.cpu_count() or 1),
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        yield
    finally:
        ray.shutdown()


def num_cpus() -> int:
    """Return the number of CPUs of the cluster."""
    return int(ray.cluster_resources().get("CPU", 1))


def num_gpus() -> int:
    """Return the number of GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))

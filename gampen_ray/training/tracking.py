"""Live metrics of a training run: TensorBoard event files, and MLflow on request."""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tensorboardX import SummaryWriter

from gampen_ray import storage
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError
from gampen_ray.training.run import Run

TENSORBOARD = "tensorboard"
"""Folder of the event files in a run folder."""
logger = logging.getLogger(__name__)

_EXPERIMENT = "gampen_ray"
Track = Callable[[dict[str, float]], None]
"""Receives the metrics of an epoch, including ``epoch``."""


def check_tracking(uri: str) -> None:
    """Check that MLflow is installed if an MLflow URI is given.

    Raises
    ------
    UserError
        If it is not installed.
    """
    if uri and importlib.util.find_spec("mlflow") is None:
        raise UserError(f'mlflow: {uri}, but MLflow is not installed; pip install "gampen_ray[mlflow]", or leave mlflow out')


@contextlib.contextmanager
def tracking(run: Run) -> Iterator[Track]:
    """Yield a function that sends each epoch's metrics to the trackers.

    Raises
    ------
    UserError
        If MLflow cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        tracks = [stack.enter_context(_tensorboard(run.config.output))]
        if run.config.mlflow:
            tracks.append(stack.enter_context(_mlflow(run)))

        def track(metrics: dict[str, float]) -> None:
            for one in list(tracks):
                try:
                    one(metrics)
                except Exception as error:
                    # A training of several days must not fail because of its log.
                    logger.warning("metrics are no longer tracked: %s", str(error).partition("\n")[0])
                    tracks.remove(one)

        yield track


@contextlib.contextmanager
def _tensorboard(output: str) -> Iterator[Track]:
    """Write event files into the run folder; on S3 they are rewritten after each epoch."""
    target = storage.join(output, TENSORBOARD)
    with contextlib.ExitStack() as stack:
        local = storage.is_local(target)
        folder = target if local else stack.enter_context(TemporaryDirectory())
        writer = stack.enter_context(SummaryWriter(folder))

        def track(metrics: dict[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, int(metrics["epoch"]))
            writer.flush()
            for file in () if local else Path(folder).iterdir():
                storage.write_bytes_atomic(storage.join(target, file.name), file.read_bytes())

        yield track


@contextlib.contextmanager
def _mlflow(run: Run) -> Iterator[Track]:
    """Log to the MLflow run of this run folder; an interrupted training resumes it."""
    import mlflow  # type: ignore[import-not-found]

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    output, uri = run.config.output, run.config.mlflow
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(_EXPERIMENT)
        found = mlflow.search_runs(filter_string=f"tags.output = '{output}'", output_format="list", max_results=1)
        active = mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=output, tags={"output": output})
        params = dict(_flat(to_dict(run.config))) | {"dataset_fingerprint": run.info.fingerprint}
        # MLflow refuses to change a logged value, and a resumed training may differ, for instance in its resources.
        mlflow.log_params({name: value for name, value in params.items() if name not in active.data.params})
    except Exception as error:
        raise UserError(
            f"mlflow: {uri} cannot be used: {str(error).partition(chr(10))[0]}; correct it or leave mlflow out"
        ) from None
    with active:

        def track(metrics: dict[str, float]) -> None:
            # The active run differs by thread.
            mlflow.log_metrics(metrics, step=int(metrics["epoch"]), run_id=active.info.run_id)

        yield track


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

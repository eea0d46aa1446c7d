"""What a driver does with the messages of a training's workers: it shows progress, and tracks the metrics of each epoch."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from gampen_ray.config import OptimizerConfig
from gampen_ray.messages import counted
from gampen_ray.progress import Phase, Progress
from gampen_ray.training.run import Run
from gampen_ray.training.tracking import Track, tracking

__all__ = ["Shown", "shown"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def shown(run: Run, num_workers: int) -> "Iterator[Shown]":
    """Yield what receives the messages of a training's worker 0.

    Raises
    ------
    UserError
        If MLflow cannot be reached.
    """
    per_epoch = run.orders(0, num_workers)["train"].rows_per_epoch
    with tracking(run) as track, Shown(run.config.optimizer, per_epoch, num_workers, track) as receive:
        yield receive


class Shown:
    """The progress of a training, a counter for each of its parts (measure, train on numbers, train), and its other phases.

    Parameters
    ----------
    config
        Numbers of epochs.
    per_epoch
        Galaxies of an epoch.
    num_workers
        Number of workers.
    track
        Receives the metrics of each epoch.
    """

    def __init__(self, config: OptimizerConfig, per_epoch: int, num_workers: int, track: Track) -> None:
        self._per_epoch, self._num_workers, self._track = per_epoch, num_workers, track
        self._epochs = {"measure": 1, "train on numbers": config.numbers_epochs, "train": config.epochs}
        self._part, self._galaxies, self._open = "", 0, contextlib.ExitStack()

    def __enter__(self) -> "Shown":
        self._open.enter_context(Phase(f"starting {counted(self._num_workers, 'worker')}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Show a worker's message."""
        if "phase" in message:
            self._open.close()
            self._part = message["phase"]
            self._open.enter_context(Phase(message["phase"]))
        elif "restored" in message:
            # Also after the death of a worker: what followed its last checkpoint is repeated.
            if message["restored"]:
                self._begin("train").skip(int(message["restored"]) - self._galaxies)
                self._galaxies = int(message["restored"])
        elif "val_loss" in message:
            self._track(dict(message))
            part = "train" if message["epoch"] else "train on numbers"
            epoch = int(message["epoch"]) or self._epochs[part]
            self._advance(part, epoch * self._per_epoch)
            logger.info("%s: epoch %s/%s, %s", part, epoch, self._epochs[part], _losses(message))
        else:
            numbers = "train on numbers" if "loss" in message else "measure"
            note = f"loss {message['loss']:.3f}" if "loss" in message else ""
            self._advance("train" if message["epoch"] else numbers, int(message["galaxies"]), note)

    def _advance(self, part: str, galaxies: int, note: str = "") -> None:
        # After the death of a worker, what followed its last checkpoint comes again.
        self._begin(part).advance(max(galaxies - self._galaxies, 0), note)
        self._galaxies = max(galaxies, self._galaxies)

    def _begin(self, part: str) -> Progress:
        """Return the counter of a part, a new one if another part was shown."""
        if part != self._part:
            self._open.close()
            self._part, self._galaxies = part, 0
            progress = Progress(part, self._per_epoch, "galaxies", epochs=self._epochs[part])
            self._progress = self._open.enter_context(progress)
        return self._progress


def _losses(metrics: Mapping[str, float]) -> str:
    text = f"loss {metrics['train_loss']:.3f}, validation {metrics['val_loss']:.3f}"
    if "crop_scale_p05" in metrics:
        text += f", crop {metrics['crop_scale_p05']:.3f} to {metrics['crop_scale_p95']:.3f}"
        if dead := metrics["crop_dead_fraction"]:
            text += f", {dead:.0%} of its units dead"
    return text

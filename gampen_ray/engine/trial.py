"""One trial of a search, in a process of Ray Tune: trains, reports its losses, and resumes from its own state after a kill."""

import functools
import io
import itertools
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray import tune

from gampen_ray import storage
from gampen_ray.data.sources import Unit
from gampen_ray.engine.resources import Workers
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.training.execute import BUNDLE, execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.reading import Rows, read_unit
from gampen_ray.training.run import Run, with_config
from gampen_ray.training.tracking import Track, tracking
from gampen_ray.training.worker import State
from gampen_ray.tuning.ledger import Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import PENALTY, objectives

Data = Mapping[Unit, "ray.ObjectRef[Rows]"]


def run_trial(drawn: dict[str, Any], *, run: Run, space: SearchSpace, ledger: Ledger, data: Data, workers: Workers) -> None:
    """Train a trial to its end, and report its objectives; Ray Tune may stop it after any epoch.

    Each report has ``epoch``, ``val_loss`` (the least so far), ``val_losses`` (the least so far after each epoch on images) and
    ``seconds``; if the values of the trial are incompatible, also ``failed`` with the reason.

    Parameters
    ----------
    drawn
        Number and values.
    run
        Training with the study's own config.
    space
        Turns the values into the trial's config.
    ledger
        Locates the trial's run folder.
    data
        Decoded units that all trials share; other units are read from the dataset.
    workers
        Threads and share of a GPU.
    """
    torch.set_num_threads(workers.threads)
    torch.backends.cudnn.benchmark = True
    state = _State(ledger.state(drawn["number"]))
    try:
        config = space.train_config(drawn["values"], ledger.folder(drawn["number"]))
        bundle = _trained(with_config(run, config), state, data, "cuda" if workers.gpus else "cpu")
    except UserError as error:
        if not space.blames(error):
            raise
        tune.report(state.metrics() | {"failed": str(error)})
        return
    found = objectives(bundle, config.calibration.num_passes)
    tune.report(state.metrics() | {"epoch": config.optimizer.epochs} | found)


class _State:
    """The state of a trial, in a file."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.training: State | None = None
        before = 0.0
        if storage.exists(self._uri):
            kept = torch.load(io.BytesIO(storage.read_bytes(self._uri)), map_location="cpu", weights_only=True)
            self.training, before = kept["training"], kept["seconds"]
        self._start = time.monotonic() - before

    def keep(self, training: State) -> None:
        """Write the state of the training."""
        self.training = training
        content = io.BytesIO()
        torch.save({"training": training, "seconds": time.monotonic() - self._start}, content)
        storage.write_bytes_atomic(self._uri, content.getbuffer())

    def metrics(self) -> dict[str, Any]:
        """Return what is reported to the driver."""
        history = self.training["history"] if self.training else []
        # An early loss may be infinite.
        least = list(itertools.accumulate((row["val_loss"] for row in history), min, initial=PENALTY))[1:]
        # The epoch on numbers counts in the loss, but is none of the epochs after which trials are compared.
        losses = [loss for loss, row in zip(least, history, strict=True) if row["epoch"] > 0]
        known = {"epoch": len(losses), "val_losses": losses, "seconds": time.monotonic() - self._start}
        return known | ({"val_loss": losses[-1]} if losses else {})


def _trained(run: Run, state: _State, data: Data, device: str) -> Bundle:
    """Return the bundle of a run, which exists already if the trial was killed at its very end."""
    if not storage.exists(storage.join(run.config.output, BUNDLE, CHECKSUMS)):
        with tracking(run) as track:
            execute(TrialWorker(run, state, track, data=data, device=device), run)
    return load_bundle(run.config.output)


class TrialWorker(LocalWorker):
    """A `gampen_ray.training.worker.Worker` alone in a trial.

    Parameters
    ----------
    run
        The training.
    state
        Restored at the start, and saved with each report.
    track
        Receives the metrics of each epoch.
    data
        Decoded units that all trials share.
    device
        Device of the network.
    """

    def __init__(self, run: Run, state: _State, track: Track, *, data: Data, device: str) -> None:
        super().__init__(run.orders(), functools.partial(_read, run, data), device=device)
        self._epochs, self._state, self._track = run.config.optimizer.epochs, state, track

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Save the state and report to Ray Tune, which may end the process here; the last epoch comes with the bundle."""
        self._state.keep(state)
        if metrics:
            self._track(metrics)
        if metrics and 0 < metrics["epoch"] < self._epochs:
            tune.report(self._state.metrics())

    def restore(self) -> State | None:
        """Return the state that the trial's folder holds."""
        return self._state.training


def _read(run: Run, data: Data, unit: Unit) -> Rows:
    """Return the rows of a unit: from the object store without a copy, or from the dataset."""
    return ray.get(data[unit]) if unit in data else read_unit(run.columns, unit)

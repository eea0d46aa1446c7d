"""The record of a study's trials, from which it resumes after a kill without repeating a finished trial."""

import dataclasses
from typing import Any

from gampen_ray import storage
from gampen_ray.tuning.trials import Trial

_VALUES, _STATE, _ENDED = "values.json", "state.pt", "trial.json"


@dataclasses.dataclass(frozen=True)
class FinishedTrial:
    """A trial that will not run again, and its validation losses by epoch."""

    trial: Trial
    losses: list[float]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The folder ``trials`` of a study: a folder for each trial, which is its run folder too.

    A trial's drawn values are written before it starts, so that they keep their number after a kill; its outcome is written
    when it ends.

    Parameters
    ----------
    output
        The study folder.
    """

    output: str

    def folder(self, number: int) -> str:
        """Return the run folder of a trial."""
        return storage.join(self.output, "trials", f"{number:04d}")

    def state(self, number: int) -> str:
        """Return the file from which a trial resumes."""
        return storage.join(self.folder(number), _STATE)

    def begin(self, number: int, values: dict[str, Any]) -> None:
        """Record a trial's values."""
        storage.write_json(storage.join(self.folder(number), _VALUES), values)

    def end(self, trial: Trial, losses: list[float]) -> None:
        """Record the outcome of a trial, and delete its state, which takes three times the space of its weights."""
        row = dataclasses.asdict(trial) | {"losses": losses}
        storage.write_json(storage.join(self.folder(trial.number), _ENDED), row)
        storage.delete(self.state(trial.number))

    def begun(self) -> dict[int, dict[str, Any]]:
        """Return the values of all trials that were ever begun, by number, in order."""
        return {int(uri.split("/")[-2]): storage.read_json(uri) for uri in self._files(_VALUES)}

    def ended(self) -> list[FinishedTrial]:
        """Return the trials that have ended, in the order of their numbers."""
        rows = [storage.read_json(uri) for uri in self._files(_ENDED)]
        return [FinishedTrial(losses=row.pop("losses"), trial=Trial(**row)) for row in rows]

    def _files(self, name: str) -> list[str]:
        return storage.list_files(storage.join(self.output, "trials"), name)

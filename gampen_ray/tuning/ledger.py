"""What a study has written down about its trials: enough to go on after any kill, and to repeat no finished trial."""

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

    Before a trial starts its drawn values are written, so that its number stands for them whatever is killed afterwards; once
    it has ended, what became of it.

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
        """Return the file from which a trial goes on."""
        return storage.join(self.folder(number), _STATE)

    def begin(self, number: int, values: dict[str, Any]) -> None:
        """Write down a trial's values."""
        storage.write_json(storage.join(self.folder(number), _VALUES), values)

    def end(self, trial: Trial, losses: list[float]) -> None:
        """Write down what became of a trial, and delete what it would have gone on from: three times its weights."""
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

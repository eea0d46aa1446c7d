"""The record of a study's trials, from which it resumes after a kill without repeating a finished trial."""

import dataclasses
from typing import Any, ClassVar

from gampen_ray import documents, storage
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import OBJECTIVES, Trial

_VALUES, _STATE, _ENDED = "values.json", "state.pt", "trial.json"
_REMEDY = "delete the folder of this trial, which is then trained again, or restore the file"


@dataclasses.dataclass(frozen=True)
class FinishedTrial:
    """A trial that will not run again, and its validation losses by epoch."""

    trial: Trial
    losses: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row(Trial):
    """The content of the file of a trial that has ended."""

    __pydantic_config__: ClassVar = documents.STRICT

    losses: list[float]

    def __post_init__(self) -> None:
        names = {"complete": OBJECTIVES, "stopped early": ("val_loss",), "failed": ()}[self.state]
        if set(self.objectives) != set(names):
            raise ValueError(f"objectives: a trial that is {self.state} has {', '.join(names) or 'none'}")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The folder ``trials`` of a study: a folder for each trial, which is its run folder too.

    A trial's drawn values are written before it starts, so that they keep their number after a kill; its outcome is written
    when it ends.

    Parameters
    ----------
    output
        The study folder.
    space
        From which the trials' values are drawn.
    """

    output: str
    space: SearchSpace

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
        """Return the values of all trials that were ever begun, by number, in order; a `UserError` if a file is damaged."""
        found = {}
        for number, uri in self._files(_VALUES):
            found[number] = documents.read(dict[str, Any], uri, _REMEDY)
            with documents.refused(f"{uri} is damaged", _REMEDY):
                self.space.check(found[number])
        return found

    def ended(self) -> list[FinishedTrial]:
        """Return the trials that have ended, in the order of their numbers; a `UserError` if the record of one is damaged."""
        found = []
        for number, uri in self._files(_ENDED):
            row = vars(documents.read(_Row, uri, _REMEDY)) | {"number": number}
            with documents.refused(f"{uri} is damaged", _REMEDY):
                self.space.check(row["values"])
            found.append(FinishedTrial(losses=row.pop("losses"), trial=Trial(**row)))
        return found

    def _files(self, name: str) -> list[tuple[int, str]]:
        return [(int(uri.split("/")[-2]), uri) for uri in storage.list_files(storage.join(self.output, "trials"), name)]

"""Checkpoints of a training: all that it needs to resume, in this process or on a cluster."""

import io

import torch

from gampen_ray import storage
from gampen_ray.inference.bundle import CHECKSUMS, load_bundle
from gampen_ray.training.execute import trained_bundle
from gampen_ray.training.run import Run
from gampen_ray.training.worker import State

CHECKPOINTS = "checkpoints"
"""Folder in a run folder: its subfolders are numbered, and the last that is complete counts."""
_STATE, _BEST = "state.pt", "bundle"


class Checkpoints:
    """The checkpoints of a run, each with the state of the training, and the best network so far as an uncalibrated bundle.

    Parameters
    ----------
    run
        The training.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._folder = run, storage.join(run.config.output, CHECKPOINTS)

    def keep(self, state: State) -> None:
        """Write the state, and delete those of before."""
        before = self._complete()
        folder = self._path(max(before, default=0) + 1)
        content = io.BytesIO()
        torch.save({key: value for key, value in state.items() if key != "best_network"}, content)
        storage.write_bytes_atomic(storage.join(folder, _STATE), content.getbuffer())
        # The bundle's checksums come last.
        trained_bundle(self._run, state["best_network"]).save(storage.join(folder, _BEST))
        for number in before:
            storage.delete(self._path(number))

    def last(self) -> State | None:
        """Return the state of the last checkpoint, on the CPU; None if there is none."""
        if not (complete := self._complete()):
            return None
        folder = self._path(max(complete))
        content = io.BytesIO(storage.read_bytes(storage.join(folder, _STATE)))
        state = torch.load(content, map_location="cpu", weights_only=True)
        return state | {"best_network": load_bundle(storage.join(folder, _BEST)).network.state_dict()}

    def _complete(self) -> list[int]:
        names = (uri.split("/")[-3] for uri in storage.list_files(self._folder, f"/{_BEST}/{CHECKSUMS}"))
        return [int(name) for name in names if name.isdecimal()]

    def _path(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06}")

"""``history.json`` of a run folder: what was measured in each epoch of the training."""

import dataclasses
import math
from typing import Annotated, Any, ClassVar

import pydantic

from gampen_ray import documents, storage

__all__ = ["HISTORY", "finite", "read_history", "write_history"]

HISTORY = "history.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Epoch:
    """What is read of an epoch again."""

    __pydantic_config__: ClassVar = documents.LENIENT

    epoch: Annotated[float, pydantic.Field(ge=0)]
    train_loss: float | None
    val_loss: float | None
    learning_rate: float
    galaxies_per_s: Annotated[float, pydantic.Field(gt=0)]


_History = Annotated[list[Annotated[dict[str, Any], documents.holds(_Epoch)]], pydantic.Field(min_length=1)]


def finite(history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the rows of a history with None for infinite values, such as an early loss, which JSON cannot hold."""
    return [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in history]


def write_history(output: str, history: list[dict[str, float]]) -> None:
    """Write the rows of a training so far, one an epoch, into its run folder."""
    storage.write_json(storage.join(output, HISTORY), finite(history))


def read_history(uri: str) -> list[dict[str, Any]]:
    """Return the rows of a file of history, one an epoch; see `gampen_ray.training.loop.fit` for their values.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    return documents.read(_History, uri, "train again, or restore the file")

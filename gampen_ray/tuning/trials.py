"""Objectives of the trials of a search, and the table of all trials.

Shape legend: N trials, O objectives.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow as pa
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection

from gampen_ray.config import Objective
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.posterior.calibration import JOINT
from gampen_ray.tuning.space import SearchSpace

TRIALS, BEST = "trials.parquet", "best.toml"
OBJECTIVES: tuple[Objective, ...] = typing.get_args(Objective)
State = Literal["complete", "stopped early", "failed"]
PENALTY = 1e9
"""Value of each objective of a failed trial for the search: finite, and worse than any other."""


def objectives(bundle: Bundle, num_passes: int) -> dict[str, float]:
    """Return the objectives of a trial; lower is better.

    The calibration error is that before calibration, which is fitted on the same galaxies.

    Parameters
    ----------
    bundle
        Trained model.
    num_passes
        Monte Carlo passes over which ``flops`` counts a galaxy's posterior.

    Returns
    -------
    dict
        ``val_loss``: least negative log-likelihood of the validation split; ``calibration_error``: see `calibration_error`;
        ``flops``: floating point operations of the posterior of one galaxy.
    """
    return {
        "val_loss": bundle.metrics["val_loss"],
        "calibration_error": calibration_error(bundle.metrics["coverage"]["uncalibrated"]),
        "flops": float(bundle.flops(num_passes)),
    }


def calibration_error(coverage: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean of |coverage - level| over levels and single targets, rows as of `gampen_ray.posterior.calibration`."""
    return float(np.mean([abs(row["coverage"] - row["level"]) for row in coverage if row["target"] != JOINT]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Outcome of one trial.

    Parameters
    ----------
    number
        From 0, in the order in which they started.
    state
        Whether it was trained to its end, was stopped as others were better, or failed.
    reason
        Reason of a failure, one line.
    epochs, seconds
        Epochs trained, and the time they took.
    objectives
        By name; a trial that was stopped has its last ``val_loss`` alone.
    values
        Drawn values by field, as in Optuna's ``params``; fields that were not drawn are left out.
    """

    number: int
    state: State
    reason: str = ""
    epochs: int
    seconds: float
    objectives: Mapping[str, float]
    values: Mapping[str, Any]


def trials_table(trials: Sequence[Trial], space: SearchSpace) -> pa.Table:
    """Return trials as a table: a row for each in the order of its number, a column for each objective and searched field.

    A field has the Arrow type of its values, with lists as JSON text, and is null where it was not drawn.
    """
    schema = pa.schema(
        [
            ("number", pa.int64()),
            ("state", pa.string()),
            ("reason", pa.string()),
            ("epochs", pa.int64()),
            ("seconds", pa.float64()),
            *((name, pa.float64()) for name in OBJECTIVES),
            *((name, _arrow_type(distribution)) for name, distribution in space.distributions.items()),
        ]
    )
    rows = [
        {**dataclasses.asdict(trial), **trial.objectives, **trial.values} for trial in sorted(trials, key=lambda t: t.number)
    ]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def _arrow_type(distribution: BaseDistribution) -> pa.DataType:
    if isinstance(distribution, CategoricalDistribution):
        return pa.array(distribution.choices).type
    return pa.int64() if isinstance(distribution, IntDistribution) else pa.float64()


def study(table: pa.Table, space: SearchSpace, names: Sequence[Objective]) -> optuna.Study:
    """Return the trials of a table as an Optuna study of some objectives, in memory.

    A trial that was stopped counts with its last loss, as it did in the search, if the loss is the only objective.
    """
    result = empty_study(len(names))
    for row in table.to_pylist():
        params = {name: row[name] for name in space.ranges if row[name] is not None}
        values = [row[name] for name in names]
        known = row["state"] != "failed" and None not in values
        result.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if known else optuna.trial.TrialState.FAIL,
                values=values if known else None,
                params=params,
                distributions={name: space.distributions[name] for name in params},
                user_attrs={"number": row["number"], "state": row["state"]},
            )
        )
    return result


def heard(trial: Trial, space: SearchSpace, names: Sequence[Objective]) -> optuna.trial.FrozenTrial:
    """Return a trial as the search saw it: a failed one with its penalty, a stopped one with its last loss."""
    return optuna.trial.create_trial(
        values=[PENALTY if trial.state == "failed" else trial.objectives[name] for name in names],
        params=dict(trial.values),
        distributions={name: space.distributions[name] for name in trial.values},
    )


def empty_study(num_objectives: int) -> optuna.Study:
    """Return a study in memory without trials."""
    with quiet_optuna():
        return optuna.create_study(directions=[StudyDirection.MINIMIZE] * num_objectives)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def pareto_front(table: pa.Table, names: Sequence[Objective]) -> list[int]:
    """Return the numbers of the complete trials that no other dominates."""
    complete = [row for row in table.to_pylist() if row["state"] == "complete"]
    values_NO = np.array([[row[name] for name in names] for row in complete]).reshape(len(complete), len(names))
    bettered_N = [bool(((values_NO <= values).all(axis=1) & (values_NO < values).any(axis=1)).any()) for values in values_NO]
    return [row["number"] for row, bettered in zip(complete, bettered_N, strict=True) if not bettered]


def best(table: pa.Table, names: Sequence[Objective]) -> int:
    """Return the number of the best complete trial: with several objectives, that of lowest loss on the Pareto front.

    Raises
    ------
    UserError
        If no trial is complete.
    """
    front = set(pareto_front(table, names))
    if not front:
        reasons = [row["reason"] for row in table.to_pylist() if row["reason"]]
        raise UserError(
            f"search: none of {len(table)} trials is complete; "
            + (f"the last reason: {reasons[-1]}" if reasons else "give more num_trials or hours")
        )
    return min((row for row in table.to_pylist() if row["number"] in front), key=lambda row: row["val_loss"])["number"]

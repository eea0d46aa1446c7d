"""Ray Tune runs the trials of a study side by side, and Optuna proposes them.

A search resumes from the study's folder (`gampen_ray.tuning.ledger`), not from Ray Tune's own state. A new Ray Tune experiment
knows all trials that have ended, and starts with the unfinished ones, under their old numbers.
"""

import contextlib
import logging
import math
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from gampen_ray.config import TuneConfig
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import known_cause
from gampen_ray.engine.trial import Data, run_trial
from gampen_ray.progress import Progress
from gampen_ray.training.reading import read_unit
from gampen_ray.training.run import Run
from gampen_ray.tuning.ledger import FinishedTrial, Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import OBJECTIVES, PENALTY, Trial, heard, quiet_optuna

logger = logging.getLogger(__name__)

# Share of a node's object store for the decoded data; the rest is for Ray's own objects.
_SHARED_PART = 0.4
_READ_THREADS = 4
# Times that a trial which raises or dies is resumed from its last epoch.
_MAX_FAILURES = 1


def search(config: TuneConfig, space: SearchSpace, run: Run, workers: Workers) -> list[Trial]:
    """Run the missing trials of a study, and return all; each has a run folder, with a bundle if it is complete.

    Parameters
    ----------
    config
        The study.
    space
        The search space.
    run
        The training of the study's own config.
    workers
        Number of trials at a time, and the resources of each.

    Raises
    ------
    UserError, StorageError
        For an error that every trial would meet; finished trials are kept.
    """
    ledger = Ledger(config.output, space)
    ended = ledger.ended()
    if len(ended) < config.num_trials:
        _run_trials(config, space, run, ended, workers)
    return [one.trial for one in ledger.ended()]


def _run_trials(config: TuneConfig, space: SearchSpace, run: Run, ended: list[FinishedTrial], workers: Workers) -> None:
    ledger = Ledger(config.output, space)
    ends = _Ends(config, ledger, len(ended))
    with TemporaryDirectory() as folder, quiet_optuna(), contextlib.closing(ends):
        trainable = tune.with_parameters(run_trial, run=run, space=space, ledger=ledger, data=_shared(run), workers=workers)
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": workers.cpus, "gpu": workers.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=Search(config, space, ledger, ended, workers.count),
                scheduler=Scheduler(config, ended) if config.stops_early else None,
                num_samples=config.num_trials - len(ended),
                max_concurrent_trials=workers.count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                callbacks=[ends],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                verbose=0,
            ),
        ).fit()


def _shared(run: Run) -> Data:
    """Put the decoded data into the object store if they fit; all trials on a node then share one copy."""
    units = [unit for split in run.splits.values() for unit in split]
    size = sum(unit.num_rows for unit in units) * 4 * math.prod(run.info.planes_shape)
    room = _SHARED_PART * min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"])
    if size > room:
        logger.info(
            "the decoded data (%.1f GiB) exceed their share of the object store (%.1f GiB): each trial reads them by itself",
            size / 2**30,
            room / 2**30,
        )
        return {}
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return dict(
            zip(
                units,
                pool.map(lambda unit: ray.put(read_unit(run.columns, unit)), units),
                strict=True,
            )
        )


class Scheduler(ASHAScheduler):
    """Stops poor trials early; it knows all their losses, including those before an interruption.

    Parameters
    ----------
    config
        The study.
    ended
        Finished trials.
    """

    def __init__(self, config: TuneConfig, ended: list[FinishedTrial]) -> None:
        super().__init__(
            time_attr="epoch",
            metric="val_loss",
            mode="min",
            max_t=config.optimizer.epochs,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        )
        for one in ended:
            known: Any = SimpleNamespace(trial_id=f"ended-{one.trial.number}")
            controller: Any = None
            self.on_trial_add(controller, known)
            self._learn(controller, known, one.losses)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial is stopped.

        A resumed trial first reports a late epoch, whose loss must not count as that of an early one.
        """
        self._learn(tune_controller, trial, result["val_losses"][:-1])
        return super().on_trial_result(tune_controller, trial, result)

    def _learn(self, controller: Any, trial: Any, losses: list[float]) -> None:
        for epoch in range(1, len(losses) + 1):
            super().on_trial_result(controller, trial, {"epoch": epoch, "val_loss": min(losses[:epoch])})


class Search(OptunaSearch):
    """Optuna's search: proposes the config's own values first, records each proposal, and starts no trial after the time limit.

    Parameters
    ----------
    config
        The study.
    space
        The search space.
    ledger
        Records proposed values, and holds those of earlier trials.
    ended
        Finished trials.
    at_a_time
        Number of trials that run side by side.
    """

    def __init__(
        self, config: TuneConfig, space: SearchSpace, ledger: Ledger, ended: list[FinishedTrial], at_a_time: int
    ) -> None:
        names = config.objectives
        begun = ledger.begun()
        # A resumed search needs another seed, or it would repeat its first proposals.
        seed = int(np.random.SeedSequence([config.seed, len(begun)]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, seed=seed, n_startup_trials=config.startup_trials
            )
        one = len(names) == 1
        super().__init__(
            space, metric=names[0] if one else list(names), mode="min" if one else ["min"] * len(names), sampler=sampler
        )
        self._names, self._ledger = names, ledger
        used = sum(one.trial.seconds for one in ended) / at_a_time
        self._end = time.monotonic() + 3600 * config.hours - used if config.hours else math.inf
        known = {one.trial.number: one.trial for one in ended}
        assert self._ot_study is not None
        if not begun and (start := space.start):
            self._ot_study.enqueue_trial(start)
        for number, values in begun.items():
            # In order: Optuna numbers them itself.
            if number in known:
                self._ot_study.add_trial(heard(known[number], space, names))
            else:
                self._ot_study.enqueue_trial(values)

    def suggest(self, trial_id: str) -> Any:
        """Return number and values of a new trial, or of one that was started before and is unfinished."""
        if time.monotonic() > self._end:
            return Searcher.FINISHED
        values = super().suggest(trial_id)
        assert values is not None
        number = self._ot_trials[trial_id].number
        self._ledger.begin(number, values)
        return {"number": number, "values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: only the last result counts."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the result of a trial; a failed one is worse than all others."""
        if error or (result and "failed" in result):
            result = dict.fromkeys(self._names, PENALTY)
        super().on_trial_complete(trial_id, result)


class _Ends(tune.Callback):
    """Records the outcome of each trial, and shows progress."""

    def __init__(self, config: TuneConfig, ledger: Ledger, num_ended: int) -> None:
        self._config, self._ledger, self._num_ended = config, ledger, num_ended
        self._shown = contextlib.ExitStack()

    def setup(self, **info: Any) -> None:
        """Start to show progress."""
        self._progress = self._shown.enter_context(Progress("tune", self._config.num_trials, "trials"))
        self._progress.skip(self._num_ended)
        self._best = min((self._judged(one.trial) for one in self._ledger.ended()), default=(math.inf, -1))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that was trained or stopped early, or whose values are incompatible."""
        metrics = trial.last_result
        if "failed" in metrics:
            self._end(trial, Trial(state="failed", reason=metrics["failed"], objectives={}, **self._facts(trial)))
        elif set(OBJECTIVES) <= set(metrics):
            found = {name: metrics[name] for name in OBJECTIVES}
            self._end(trial, Trial(state="complete", objectives=found, **self._facts(trial)))
        else:
            found = {"val_loss": metrics["val_loss"]}
            self._end(trial, Trial(state="stopped early", objectives=found, **self._facts(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that raised in each attempt; raise an error that every other trial would meet."""
        error = trial.get_pickled_error()
        if error and (known := known_cause(error)):
            raise known
        reason = str(trial.get_error()).strip().splitlines()[-1]
        self._end(trial, Trial(state="failed", reason=reason, objectives={}, **self._facts(trial)))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the progress."""
        self.close()

    def close(self) -> None:
        """End the progress, also after an error."""
        self._shown.close()

    def _facts(self, trial: Any) -> dict[str, Any]:
        metrics = trial.last_result or {}
        return {**trial.config, "epochs": metrics.get("epoch", 0), "seconds": metrics.get("seconds", 0.0)}

    def _judged(self, trial: Trial) -> tuple[float, int]:
        objective = trial.objectives[self._config.objectives[0]] if trial.state == "complete" else math.inf
        return objective, trial.number

    def _end(self, ray_trial: Any, trial: Trial) -> None:
        self._ledger.end(trial, (ray_trial.last_result or {}).get("val_losses", []))
        self._best = min(self._best, self._judged(trial))
        note = f"trial {trial.number} {trial.state}"
        if trial.state == "stopped early":
            note += f" at epoch {trial.epochs}"
        name = self._config.objectives[0]
        note += f": {trial.reason}" if trial.reason else f", {name} {trial.objectives.get(name, math.nan):.4g}"
        if math.isfinite(self._best[0]):
            note += f"; best is trial {self._best[1]}, {self._best[0]:.4g}"
        logger.info(note)
        self._progress.advance(1)

"""Ray Tune runs the trials of a study side by side, and Optuna draws them.

The study's folder, not Ray Tune's own state, is what a search goes on from: `gampen_ray.tuning.ledger`. A new Ray Tune
experiment is told all trials that have ended, and begins with those that have not, under their old numbers.
"""

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
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
from gampen_ray.engine.session import told_in
from gampen_ray.engine.trial import Data, run_trial
from gampen_ray.progress import Progress
from gampen_ray.training.reading import read_unit
from gampen_ray.training.run import Run
from gampen_ray.tuning.ledger import FinishedTrial, Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import OBJECTIVES, PENALTY, Trial, heard

logger = logging.getLogger(__name__)

# Of a node's object store, for the decoded data; the rest is room for what Ray itself keeps there.
_SHARED_PART = 0.4
_READ_THREADS = 4
# Of a trial that raises or dies, once more from its last epoch.
_MAX_FAILURES = 1


def search(config: TuneConfig, space: SearchSpace, run: Run, workers: Workers) -> list[Trial]:
    """Run the trials of a study that are missing, and return all: each has a run folder, with a bundle if it is complete.

    Parameters
    ----------
    config
        Of the study.
    space
        What is drawn.
    run
        Of the study's own config.
    workers
        Trials at a time, and what each takes.

    Raises
    ------
    UserError, StorageError
        If something went wrong that would befall every trial; what has ended stays.
    """
    ledger = Ledger(config.output)
    ended = ledger.ended()
    if len(ended) < config.num_trials:
        _run_trials(config, space, run, ended, workers)
    return [one.trial for one in ledger.ended()]


def _run_trials(config: TuneConfig, space: SearchSpace, run: Run, ended: list[FinishedTrial], workers: Workers) -> None:
    ledger = Ledger(config.output)
    with TemporaryDirectory() as folder, _quiet():
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
                callbacks=[_Ends(config, ledger, len(ended))],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                verbose=0,
            ),
        ).fit()


def _shared(run: Run) -> Data:
    """Return the decoded data in the object store, where all trials on a node read it without a copy, if there is room."""
    units = [unit for split in run.splits.values() for unit in split]
    size = sum(unit.num_rows for unit in units) * 4 * math.prod(run.info.image_shape)
    room = _SHARED_PART * min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"])
    if size > room:
        logger.info(
            "the decoded data take %.1f GiB, and %.1f GiB of the object store are for them: every trial reads its own",
            size / 2**30,
            room / 2**30,
        )
        return {}
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return dict(zip(units, pool.map(lambda unit: ray.put(read_unit(run.targets, unit)), units), strict=True))


class Scheduler(ASHAScheduler):
    """Stops poor trials, of which it knows all losses, also those before an interruption.

    Parameters
    ----------
    config
        Of the study.
    ended
        Trials that have ended.
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

        The first report of a resumed trial is of a late epoch, and would count as its loss at an early decision.
        """
        self._learn(tune_controller, trial, result["val_losses"][:-1])
        return super().on_trial_result(tune_controller, trial, result)

    def _learn(self, controller: Any, trial: Any, losses: list[float]) -> None:
        for epoch in range(1, len(losses) + 1):
            super().on_trial_result(controller, trial, {"epoch": epoch, "val_loss": min(losses[:epoch])})


class Search(OptunaSearch):
    """Optuna's search, the config's own values first; notes what it draws before a trial starts; none starts after its time.

    Parameters
    ----------
    config
        Of the study.
    space
        What is drawn.
    ledger
        Takes the drawn values, and knows those of trials that were begun before.
    ended
        What the search knows from the start.
    at_a_time
        Trials that run side by side.
    """

    def __init__(
        self, config: TuneConfig, space: SearchSpace, ledger: Ledger, ended: list[FinishedTrial], at_a_time: int
    ) -> None:
        names = config.objectives
        begun = ledger.begun()
        # Another seed than before the interruption: the first draws would be the same again.
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
        self._end = time.time() + 3600 * config.hours - used if config.hours else math.inf
        known = {one.trial.number: one.trial for one in ended}
        assert self._ot_study is not None
        if not begun and (start := space.start):
            self._ot_study.enqueue_trial(start)
        for number, values in begun.items():
            # In the order of their numbers, which are Optuna's own.
            if number in known:
                self._ot_study.add_trial(heard(known[number], space, names))
            else:
                self._ot_study.enqueue_trial(values)

    def suggest(self, trial_id: str) -> Any:
        """Return number and values of a new trial; those that were begun before come first."""
        if time.time() > self._end:
            return Searcher.FINISHED
        values = super().suggest(trial_id)
        assert values is not None
        number = self._ot_trials[trial_id].number
        self._ledger.begin(number, values)
        return {"number": number, "values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take no note: what counts is the last result."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hear of the end of a trial; a failed one is worse than all others."""
        if error or (result and "failed" in result):
            result = dict.fromkeys(self._names, PENALTY)
        super().on_trial_complete(trial_id, result)


class _Ends(tune.Callback):
    """Writes down what becomes of each trial, and shows it."""

    def __init__(self, config: TuneConfig, ledger: Ledger, num_ended: int) -> None:
        self._config, self._ledger, self._num_ended = config, ledger, num_ended

    def setup(self, **info: Any) -> None:
        """Start to show progress."""
        self._progress = Progress("tune", self._config.num_trials, "trials")
        self._progress.skip(self._num_ended)
        self._progress.__enter__()
        self._best = min((self._judged(one.trial) for one in self._ledger.ended()), default=(math.inf, -1))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take a trial that was trained or stopped, or whose fields do not go together."""
        told = trial.last_result
        if "failed" in told:
            self._end(trial, Trial(state="failed", reason=told["failed"], objectives={}, **self._facts(trial)))
        elif set(OBJECTIVES) <= set(told):
            found = {name: told[name] for name in OBJECTIVES}
            self._end(trial, Trial(state="complete", objectives=found, **self._facts(trial)))
        else:
            found = {"val_loss": told["val_loss"]}
            self._end(trial, Trial(state="stopped early", objectives=found, **self._facts(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take a trial that raised again and again; what would befall every other one ends the study for now."""
        traceback = str(trial.get_error())
        if told := told_in(traceback):
            raise told
        reason = traceback.strip().splitlines()[-1]
        self._end(trial, Trial(state="failed", reason=reason, objectives={}, **self._facts(trial)))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the line of progress."""
        self._progress.__exit__()

    def _facts(self, trial: Any) -> dict[str, Any]:
        told = trial.last_result or {}
        return {**trial.config, "epochs": told.get("epoch", 0), "seconds": told.get("seconds", 0.0)}

    def _judged(self, trial: Trial) -> tuple[float, int]:
        objective = trial.objectives[self._config.objectives[0]] if trial.state == "complete" else math.inf
        return objective, trial.number

    def _end(self, told: Any, trial: Trial) -> None:
        self._ledger.end(trial, (told.last_result or {}).get("val_losses", []))
        self._best = min(self._best, self._judged(trial))
        note = f"trial {trial.number} {trial.state}"
        if trial.state == "stopped early":
            note += f" at epoch {trial.epochs}"
        name = self._config.objectives[0]
        note += f": {trial.reason}" if trial.reason else f", {name} {trial.objectives.get(name, math.nan):.4g}"
        if math.isfinite(self._best[0]):
            note += f"; best is trial {self._best[1]}, {self._best[0]:.4g}"
        self._progress.advance(1, note, always=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from ray.tune.search import Searcher

from gampen_ray.commands.tune import tune
from gampen_ray.config import SearchRange, TrainConfig, TuneConfig, TuneResources
from gampen_ray.config.base import build, load_toml, to_toml
from gampen_ray.engine.search import Scheduler, Search
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.tuning.ledger import Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import Trial
from tests.networks import dataset, train_config

NUM_TRIALS = 7
IMPOSSIBLE = [8, "M", "M", "M", "M", "M", 8]


def config(data: str, output: str, **changes: Any) -> TuneConfig:
    """Return a study of small networks, one of whose plans pools the images away."""
    base = train_config(data, output, epochs=4)
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name != "resources"}
    study = {
        "num_trials": NUM_TRIALS,
        "grace_epochs": 1,
        "reduction_factor": 2.0,
        "startup_trials": 3,
        "search": {
            "network.backbone.dropout_rate": SearchRange(low=1e-3, high=0.3, log=True),
            "network.backbone.plan": SearchRange(choices=([8, "M", 16], [8, "M", 16, "M"], IMPOSSIBLE)),
            "optimizer.learning_rate": SearchRange(low=1e-4, high=1e-2, log=True),
        },
    }
    return TuneConfig(**(fields | study | changes))


def written(study: Path, pattern: str) -> dict[Path, int]:
    """Return when files of the trials were written."""
    return {path: path.stat().st_mtime_ns for path in study.glob(f"trials/*/{pattern}")}


def killed_half_way(study: TuneConfig, folder: Path) -> None:
    """Run the command on a Ray of its own, and kill it without warning once three trials have ended."""
    toml = folder / "tune.toml"
    toml.write_text(to_toml(study))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen([sys.executable, "-m", "gampen_ray", "tune", str(toml)], env=environment) as process:
        while len(written(Path(study.output), "trial.json")) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.kill)])
def test_study_goes_on_also_if_killed_and_repeats_no_finished_trial(ray_local: None, tmp_path: Path, killed: bool) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 300, "val": 100})
    study = config(data, str(tmp_path / "study"))
    if killed:
        killed_half_way(study, tmp_path)
    folder = tmp_path / "study"
    ended, begun, trained = (written(folder, name) for name in ("trial.json", "values.json", "bundle/SHA256SUMS"))
    assert (3 if killed else 0) <= len(ended) <= len(begun) < NUM_TRIALS

    bundle = tune(study)
    table = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["number"] for row in table] == list(range(NUM_TRIALS))
    # No finished trial was run again, and the best one's bundle alone is left.
    assert ended.items() <= written(folder, "trial.json").items()
    left = written(folder, "bundle/SHA256SUMS")
    assert all(left[path] == trained[path] for path in left.keys() & trained.keys())
    states = [row["state"] for row in table]
    assert "stopped early" in states
    for row in table:
        assert (row["state"] == "failed") == (row["network.backbone.plan"] == '[8, "M", "M", "M", "M", "M", 8]')
        assert ("pools the image away" in row["reason"]) == (row["state"] == "failed")
        assert (row["flops"] is not None) == (row["state"] == "complete")
        assert {"complete": row["epochs"] == 4, "stopped early": 1 <= row["epochs"] < 4, "failed": True}[row["state"]]
    best = min((row for row in table if row["state"] == "complete"), key=lambda row: row["val_loss"])
    assert [path.parts[-3] for path in left] == [f"{best['number']:04d}"]

    assert bundle.metrics["val_loss"] == load_bundle(study.output).metrics["val_loss"] == best["val_loss"]
    text = (folder / "best.toml").read_bytes()
    trains = build(TrainConfig, load_toml(text, "best.toml"))
    assert (trains.dataset, trains.output) == (data, str(folder / "best-trained"))
    assert trains.optimizer.learning_rate == best["optimizer.learning_rate"]
    assert trains.network == bundle.config
    assert "Hyperparameter search" in (folder / "tune.html").read_text()
    assert tune(study).metrics == bundle.metrics
    with pytest.raises(UserError, match=r"holds a run with another grace_epochs \(1, not 2\)"):
        tune(dataclasses.replace(study, grace_epochs=2))


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})

    def fails(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            tune(dataclasses.replace(config(data, str(tmp_path / "study")), **changes))
        assert not (tmp_path / "study").exists()

    fails(r"search\.optimizer\.rate: unknown field", search={"optimizer.rate": SearchRange(low=1, high=2)})
    fails(r"dataset .*nowhere does not exist", dataset=str(tmp_path / "nowhere"))
    fails(r"targets: none given", targets={})
    (tmp_path / "file").write_text("")
    fails(r"file/study(/run.json)?: Not a directory", output=str(tmp_path / "file" / "study"))


def test_search_goes_on_where_the_study_was_and_starts_no_trial_after_its_hours(tmp_path: Path) -> None:
    study = config("data", str(tmp_path), hours=1.0)
    space = SearchSpace.of(study)
    ledger = Ledger(str(tmp_path), space)
    search = Search(study, space, ledger, [], at_a_time=2)
    drawn = [search.suggest(name) for name in "abcd"]
    assert [one["number"] for one in drawn] == [0, 1, 2, 3]
    assert drawn[0]["values"] == space.start
    found = {"val_loss": 0.5, "calibration_error": 0.1, "flops": 1e6}
    ended = Trial(number=1, state="complete", epochs=4, seconds=7000.0, objectives=found, values=drawn[1]["values"])
    ledger.end(ended, [0.7, 0.5])
    again = Search(study, space, ledger, ledger.ended(), at_a_time=2)
    # Those that were begun come first, as they were; then other ones than before.
    assert [again.suggest(name) for name in "efg"] == [drawn[0], drawn[2], drawn[3]]
    fresh = again.suggest("h")
    assert fresh["number"] == 4
    assert fresh["values"] not in [one["values"] for one in drawn]
    ledger.end(dataclasses.replace(ended, number=0, seconds=300.0), [])
    # Two trials at a time have run for 7300 s.
    assert Search(study, space, ledger, ledger.ended(), at_a_time=2).suggest("i") == Searcher.FINISHED


def test_a_trial_that_goes_on_is_compared_at_the_epoch_of_the_others(tmp_path: Path) -> None:
    study = config("data", str(tmp_path), grace_epochs=2, reduction_factor=4.0)
    study = dataclasses.replace(study, optimizer=dataclasses.replace(study.optimizer, epochs=8))

    def decisions(*trials: tuple[str, list[float]]) -> list[str]:
        scheduler, controller = Scheduler(study, []), cast(Any, None)
        found = []
        for name, losses in trials:
            trial = cast(Any, SimpleNamespace(trial_id=name))
            scheduler.on_trial_add(controller, trial)
            result = {"epoch": len(losses), "val_loss": min(losses), "val_losses": losses}
            found.append(scheduler.on_trial_result(controller, trial, result))
        return found

    # The first was interrupted behind epoch 5, where it is far better than the second at epoch 2; then it was not.
    resumed, better, worse = ("resumed", [0.5, -1.8, -2.3, -2.7, -3.6]), ("better", [-1.0, -2.5]), ("worse", [0.9, -1.0])
    assert decisions(resumed, better, worse) == ["CONTINUE", "CONTINUE", "STOP"]


@pytest.mark.ray
def test_trials_that_no_node_holds_are_refused(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})
    resources = TuneResources(num_workers=3, cpus_per_worker=2.5)
    with pytest.raises(
        UserError,
        match=r"resources\.num_workers: 1 worker with 2\.5 CPUs needed, but the cluster has room for 0 \(nodes: 1 of 2 CPUs",
    ):
        tune(config(data, str(tmp_path / "study"), resources=resources))
    assert not (tmp_path / "study").exists()

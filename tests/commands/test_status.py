"""What `status` says of runs that are running, finished, dead or unfinished, on local disks and S3."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray import cli, lock, storage
from gampen_ray.commands.status import StatusConfig, status
from gampen_ray.errors import UserError
from gampen_ray.progress import Phase
from gampen_ray.training.history import write_history
from tests.test_run_folder import opened, write_lock

HERE = {"host": socket.gethostname(), "namespace": lock._namespace()}


def labels(output: str) -> dict[str, str]:
    return status(StatusConfig(run=output))


def write_rows(uri: str, count: int) -> None:
    with storage.open_output(uri) as file:
        pq.write_table(pa.table({"object_id": range(count)}), file)


def epoch(number: int, loss: float) -> dict[str, float]:
    return {"epoch": number, "train_loss": loss + 1, "val_loss": loss, "learning_rate": 0.1, "galaxies_per_s": 9.5}


def test_a_run_is_running_then_unfinished_then_finished(output: str) -> None:
    with Phase("calibrating on 20 galaxies"), opened(output):
        found = labels(output)
        assert found["run"].startswith("infer, begun 20")
        assert found["state"].startswith(f"running: process {os.getpid()} on {socket.gethostname()} (since 20")
        assert found["now"].startswith("calibrating on 20 galaxies")
        assert "next" not in found
    write_rows(storage.join(output, "catalog", "a.parquet"), 3)
    write_rows(storage.join(output, "catalog", "b.parquet"), 4)
    write_rows(storage.join(output, "quarantine", "a.parquet"), 1)
    found = labels(output)
    assert found["state"] == "unfinished: it failed, or was stopped"
    assert found["wrote"] == "7 rows of 2 files in catalog/, 1 row of 1 file in quarantine/"
    assert found["next"] == "run the same command again: it resumes"
    manifest = {"num_in_hats": 6, "num_galaxies": 7, "num_quarantined": 1}
    storage.write_json(storage.join(output, "sub", "manifest.json"), manifest)
    found = labels(output)
    assert found["state"] == "finished"
    assert found["wrote"] == "7 galaxies, 6 in hats, 1 quarantined"


def test_a_run_of_an_older_release_is_not_called_unfinished(tmp_path: Path) -> None:
    with opened(str(tmp_path / "run")):
        pass
    record = storage.read_json(str(tmp_path / "run" / "run.json"))
    del record["complete"]
    storage.write_json(str(tmp_path / "run" / "run.json"), record)
    found = labels(str(tmp_path / "run"))
    assert found["state"] == "not running; made by an older release, which did not note how a finished run is known"
    assert "next" not in found


def test_a_run_whose_process_is_gone_or_silent_is_dead(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(output):
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    write_lock(output, **HERE, pid=ended.pid, doing="infer: 3/9 galaxies")
    found = labels(output)
    assert found["state"] == f"dead: process {ended.pid} on {socket.gethostname()} (since noon) is gone"
    assert found["at the end"] == "infer: 3/9 galaxies"
    # On another machine only its heartbeat is known.
    write_lock(output)
    assert labels(output)["state"].startswith("running: process 7 on elsewhere (since noon), last heartbeat ")
    monkeypatch.setattr(lock, "EXPIRY_SECONDS", -1.0)
    state = labels(output)["state"]
    assert re.fullmatch(r"dead: process 7 on elsewhere \(since noon\) has been silent for \d+ s", state)


def test_epochs_and_trials_are_told_with_their_losses(tmp_path: Path) -> None:
    output = str(tmp_path / "o")
    with opened(output):
        pass
    write_history(output, [epoch(1, math.inf), epoch(2, -2.5), epoch(3, -2.0)])
    for number, state in enumerate(("complete", "stopped early", "complete")):
        storage.write_json(storage.join(output, "trials", f"{number:04d}", "trial.json"), {"state": state})
    found = labels(output)
    assert found["epochs"] == "3, loss -1.000, validation -2.000 (least -2.500 in epoch 2)"
    assert found["trials"] == "2 complete, 1 stopped early"
    write_history(output, [epoch(1, math.inf)])
    assert labels(output)["epochs"] == "1, loss not finite, validation not finite"


def test_rows_of_very_many_files_are_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gampen_ray.commands import status as module

    monkeypatch.setattr(module, "_MOST_READ", 2)
    output = str(tmp_path / "o")
    with opened(output):
        pass
    for number in range(6):
        write_rows(storage.join(output, "catalog", f"{number}.parquet"), 5)
    assert labels(output)["wrote"] == "about 30 rows of 6 files in catalog/"


def test_a_simulated_dataset_is_finished_and_training_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "my data")
    simulate = ["simulate", "--output", output, "--num-galaxies", "12", "--cutout-size", "16"]
    assert cli.main([*simulate, "--split.train", "0.5", "--split.val", "0.25"]) == 0
    following = f"next: gampen-ray train --dataset '{output}' --output RUN"
    assert following in capsys.readouterr().err
    assert cli.main(["status", output]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("run: simulate, begun 20")
    assert lines[1] == "state: finished"
    assert lines[2].startswith("wrote: ") and lines[2].endswith(" 0 quarantined")
    assert lines[-1] == following
    assert cli.main(["status", output, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"


def test_a_folder_without_a_run_is_a_mistake_that_names_the_runs_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("holds no run (no run.json); give the output folder of a verb\n")
    with opened(str(tmp_path / "a")), opened(str(tmp_path / "b" / "c")):
        pass
    with pytest.raises(UserError, match=r"holds no run \(no run.json\); give one of the runs below it: a, b/c"):
        labels(str(tmp_path))


def test_it_changes_nothing_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    output = str(tmp_path / "o")
    with opened(output):
        pass
    write_lock(output)
    before = storage.stamps(storage.list_files(output))
    program = (
        "import sys\nfrom gampen_ray.cli import main\nassert main(['status', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'ray', 'galsim', 'astropy'} & set(sys.modules), 'slow import'\n"
    )
    subprocess.run([sys.executable, "-c", program, output], check=True, capture_output=True)
    assert storage.stamps(storage.list_files(output)) == before

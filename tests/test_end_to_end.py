"""The whole way, with real parts: the demo in small, and real survey cutouts among broken files."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from gampen_ray import cli
from gampen_ray.commands.demo import DemoConfig, demo
from gampen_ray.commands.train import train
from gampen_ray.config import TrainResources
from gampen_ray.config.base import to_toml
from gampen_ray.engine import death_watch
from gampen_ray.inference.bundle import load_bundle
from tests.clusters import wait_until
from tests.networks import dataset, train_config
from tests.processes import assert_none_left, driver, listening, marked, variables, wait_for

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "demo"
    demo(DemoConfig(output=str(output), num_galaxies=1200, seed=1))
    return output


@pytest.mark.ray
@pytest.mark.slow
def test_demo_writes_a_catalogue_an_evaluation_and_a_page(demo_folder: Path) -> None:
    catalog = Table.read(demo_folder / "inference" / "catalog" / "part-000000-0000.parquet")
    assert str(catalog["effective_radius_arcsec_median"].unit) == "arcsec"
    evaluation = json.loads((demo_folder / "evaluation" / "evaluation.json").read_text())
    galaxies = pq.read_table(demo_folder / "inference" / "catalog")
    assert evaluation["num_galaxies"] == len(galaxies) == pytest.approx(120, abs=40)
    for target in ("bulge_to_total", "effective_radius_arcsec", "flux"):
        ends = [galaxies[f"{target}_{key}"].to_numpy() for key in ("lo997", "lo95", "lo68", "median", "hi68", "hi95", "hi997")]
        assert (np.diff(ends, axis=0) > 0).all()
    # Trained on 960 galaxies for seconds, it knows flux and radius far better than their priors do.
    assert evaluation["accuracy"]["flux"]["median_absolute_relative_error"] < 0.3
    assert evaluation["accuracy"]["effective_radius_arcsec"]["median_absolute_relative_error"] < 0.25
    # 1,200 galaxies are few, but the seed of the masks is not what limits them.
    assert evaluation["seeds"]["num_galaxies"] == len(galaxies)
    assert evaluation["seeds"]["verdict"] != "fails"
    trained = load_bundle(str(demo_folder / "run")).metrics["seeds"]
    assert trained["num_passes"] == evaluation["seeds"]["num_passes"]
    page = (demo_folder / "report.html").read_text()
    for name in ("ranks", "levels", "joint", "tarp", "bins", "local", "scores"):
        assert evaluation["verdicts"][name]["verdict"] in ("holds", "marginal", "fails")
    assert '<section id="diagnostics">' in page
    assert evaluation["seeds"]["worst"] in " ".join(page.split())
    assert page.count("<svg") >= 10
    assert f"{len(galaxies):,}" in page
    assert (demo_folder / "run" / "history.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_demo_again_finds_all_done(demo_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gampen_ray"):
        demo(DemoConfig(output=str(demo_folder), num_galaxies=1200, seed=1))
    assert caplog.text.count("is complete; nothing to do") == 3


@pytest.mark.ray
@pytest.mark.slow
def test_report_replaces_a_report_and_nothing_else(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["report", "--evaluation", str(demo_folder / "evaluation"), "--output"]
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    assert cli.main([*report, str(tmp_path / "thesis.tex")]) == 2
    assert "exists and is not a gampen_ray report; nothing was changed" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"
    assert cli.main([*report, str(tmp_path / "page.html")]) == 0
    assert cli.main([*report, str(tmp_path / "page.html"), "--num-examples", "2"]) == 0
    assert (tmp_path / "page.html").read_text().count("object_id") == 2


@pytest.mark.ray
@pytest.mark.slow
def test_evaluate_needs_the_mixture(demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--bundle", str(demo_folder / "run"), "--dataset", str(demo_folder / "dataset"), "--split", "val"]
    assert cli.main(["infer", *flags, "--output", str(tmp_path / "c"), "--num-passes", "2"]) == 0
    assert cli.main(["evaluate", "--catalog", str(tmp_path / "c"), "--output", str(tmp_path / "e")]) == 2
    assert "run infer with --posterior mixture" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def predict(demo_folder: Path, folder: Path) -> None:
    """Predict the dataset ``d`` of a folder with the demo's bundle, its PSF unknown, into ``o``."""
    inputs = ["--bundle", str(demo_folder / "run"), "--dataset", str(folder / "d"), "--output", str(folder / "o")]
    assert cli.main(["infer", *inputs, "--num-passes", "4", "--missing-conditions", "marginalise"]) == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="the real KiDS and SDSS cutouts are not beside this checkout")
@pytest.mark.parametrize(("folder", "pattern", "count"), [("kids", "*fitim.fits", 5), ("sdss_cutouts", "*.fits", 2)])
def test_real_cutouts_all_get_a_catalogue_row(demo_folder: Path, tmp_path: Path, folder: str, pattern: str, count: int) -> None:
    ingest = ["ingest", "--images", str(DATA / folder), "--pattern", pattern, "--output", str(tmp_path / "d")]
    assert cli.main([*ingest, "--cutout-size", "96", "--reader.bands", "r"]) == 0
    predict(demo_folder, tmp_path)
    catalog = pq.read_table(tmp_path / "o" / "catalog")
    stems = {path.name.split(".")[0] for path in (DATA / folder).glob(pattern)}
    assert set(catalog["object_id"].to_pylist()) == stems
    assert len(catalog) == count
    for target in load_bundle(str(demo_folder / "run")).targets.names:
        assert np.isfinite(catalog[f"{target}_median"].to_numpy()).all()
        assert (catalog[f"{target}_lo68"].to_numpy() < catalog[f"{target}_hi68"].to_numpy()).all()


@pytest.mark.ray
@pytest.mark.slow
def test_broken_files_are_quarantined_and_the_rest_predicted(demo_folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("good", "twin", "cut", "nan", "cube"):
        data = rng.normal(0, 1, (3, 70, 80) if name == "cube" else (70, 80)).astype(np.float32)
        data[...] = np.nan if name == "nan" else data
        fits.PrimaryHDU(data).writeto(images / f"{name}.fits")
    (images / "cut.fits").write_bytes((images / "cut.fits").read_bytes()[:9000])
    (images / "text.fits").write_text("Dear colleague, the image is on the other disk.")
    (images / "empty.fits").touch()
    names = ["good", "twin", "cut", "nan", "cube", "text", "empty", "absent"]
    table = {"object_id": [1, 1, 3, 4, 5, 6, 7, 8], "file_name": [f"{name}.fits" for name in names]}
    Table(table).write(tmp_path / "catalog.csv")
    ingest = ["ingest", "--images", str(images), "--catalog", str(tmp_path / "catalog.csv"), "--output", str(tmp_path / "d")]
    assert cli.main(ingest) == 0
    quarantine = pq.read_table(tmp_path / "d" / "quarantine").to_pylist()
    reasons = {row["source"].rpartition("/")[2].removesuffix(".fits"): row["reason"] for row in quarantine}
    words = {
        "twin": "duplicate object_id",
        "cut": "truncated: 22,400 bytes of pixels declared",
        "nan": "all pixels are without a value",
        "cube": "3-dimensional with shape (3, 70, 80)",
        "text": "not a file of a known format",
        "empty": "the file is empty (0 bytes)",
        "absent": "no such file",
    }
    assert set(reasons) == set(words)
    for name, word in words.items():
        assert word in reasons[name], reasons[name]
    predict(demo_folder, tmp_path)
    assert pq.read_table(tmp_path / "o" / "catalog")["object_id"].to_pylist() == [1]


def ray_folder(mark: str) -> Path:
    """Return the folder of a driver's Ray."""
    (raylet,) = (pid for pid, command in marked(mark).items() if "/raylet/raylet" in command)
    return Path(variables(raylet)["RAY_AUTH_TOKEN_PATH"]).parent


# A client that knows where Ray is, with another token than Ray's or with none.
STRANGER = """
import os, sys
wrong = sys.argv[2] == "wrong"
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64} if wrong else {"RAY_AUTH_MODE": "disabled"}
from ray._raylet import GcsClient
print(GcsClient(sys.argv[1]).get_all_node_info(timeout=5))
"""


def assert_closed_to_others(mark: str) -> Path:
    """Check that only this user, on this machine and with the token, reaches a driver's Ray; return its folder."""
    folder = ray_folder(mark)
    assert (folder.stat().st_mode & 0o777, (folder / "token").stat().st_mode & 0o777) == (0o700, 0o600)
    processes = marked(mark)
    addresses = listening(processes)
    assert len(addresses) >= 4
    assert all(address.is_loopback for address, _ in addresses), addresses
    assert (folder / "token").read_text() not in " ".join(processes.values())
    (gcs,) = (port for _, port in listening(pid for pid, command in processes.items() if "/gcs/gcs_server" in command))
    for token in ("none", "wrong"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-c", STRANGER, f"127.0.0.1:{gcs}", token]
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 1
        assert "Unauthenticated" in refused.stderr or "authentication token" in refused.stderr, refused.stderr
    if os.getuid() == 0:
        read = subprocess.run(["cat", folder / "token"], user=65534, capture_output=True, text=True, check=False)
        assert (read.stdout, "Permission denied" in read.stderr) == ("", True)
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.kill)])
def test_ctrl_c_and_the_end_of_a_job_leave_no_process_behind(tmp_path: Path, stop: signal.Signals) -> None:
    with driver("simulate", f"--output={tmp_path}/d", "--num-galaxies=100000", "--galaxies-per-shard=50") as (process, mark):
        wait_for(process, "0 galaxies, ")
        assert len(marked(mark)) > 3
        folder = assert_closed_to_others(mark)
        process.send_signal(stop)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(60) == 1
    assert "interrupted; run the same command again to resume" in rest
    assert "Traceback" not in rest
    assert_none_left(mark)
    assert not folder.exists()
    assert not (tmp_path / "d" / "dataset.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_on_ray_is_out_of_reach_and_goes_on_without_ray_behind_its_killed_driver(tmp_path: Path) -> None:
    dataset(str(tmp_path / "data"), {"train": 200, "val": 50})
    config = train_config(str(tmp_path / "data"), str(tmp_path / "run"), epochs=16, learning_rate=1e-3)
    here = dataclasses.replace(config, resources=TrainResources(engine="local"))
    (tmp_path / "train.toml").write_text(to_toml(dataclasses.replace(config, resources=TrainResources(engine="ray"))))
    with driver("train", str(tmp_path / "train.toml")) as (process, mark):
        wait_for(process, "epoch 2/16, loss")
        folder = ray_folder(mark)
        processes = death_watch._processes(str(folder))
        titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
        assert sum("RayTrainWorker" in title for title in titles) == 2
        addresses = listening(processes)
        assert all(address.is_loopback for address, _ in addresses), addresses
        process.kill()
        assert process.stderr is not None
        assert "gampen-ray: killed, by somebody or by Ray; run the same command again" in process.stderr.read()
    # Ray's own agents would live for a minute. On a quiet machine it takes two seconds.
    assert_none_left(mark, seconds=45)
    assert wait_until(lambda: not folder.exists(), seconds=20)
    assert not (tmp_path / "run" / "bundle").exists()
    states = (tmp_path / "run").glob("checkpoints/*/state.pt")
    before = max(len(torch.load(state, weights_only=True)["history"]) for state in states)
    assert 0 < before < 16

    resumed, unbroken = train(here), train(dataclasses.replace(here, output=str(tmp_path / "unbroken")))
    for name, weights in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weights)
    histories = [json.loads((tmp_path / run / "history.json").read_text()) for run in ("run", "unbroken")]
    assert [row["epoch"] for row in histories[0]] == list(range(1, 17))
    for name in ("train_loss", "val_loss"):
        assert [row[name] for row in histories[0]] == [row[name] for row in histories[1]]

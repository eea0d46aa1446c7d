"""`ray job submit` against a real cluster of several nodes on this machine, as a user gives the commands."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from gampen_ray.commands.registry import load_verbs
from gampen_ray.config.base import to_toml
from tests.clusters import RAY, ROOT, running_cluster, submit, wait_until
from tests.engine.test_tune import config as tune_config
from tests.networks import bundle, dataset, galaxies, train_config
from tests.processes import listening, marked

JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Variables for speaking to a head and two nodes of one CPU each."""
    with running_cluster() as found:
        yield found


def answer(cluster: dict[str, str], path: str, token: str | None) -> int:
    """Return the status with which the job server answers."""
    request = urllib.request.Request(cluster["RAY_API_SERVER_ADDRESS"] + path)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_every_verb_is_a_job_of_a_few_lines() -> None:
    # These need no cluster, and jobs/inspect.py would hide Python's own module.
    assert sorted(name.replace("-", "_") for name in load_verbs() if name not in ("inspect", "status", "view")) == JOBS
    for name in JOBS:
        lines = (ROOT / "jobs" / f"{name}.py").read_text().splitlines()
        assert len(lines) < 8
        assert lines[-1].strip() == f'run_job("{name.replace("_", "-")}")'


@pytest.mark.parametrize("verb", ["train", "scan-dropout"])
def test_a_job_is_its_verb(verb: str) -> None:
    path = ROOT / "jobs" / f"{verb.replace('-', '_')}.py"
    shown = subprocess.run([sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"gampen-ray {verb}" in shown
    # Exit code and message of the verb.
    wrong = subprocess.run([sys.executable, path, "--nonsense", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("gampen-ray: error: ")


SECRETS = [
    ".env",
    ".env.local",
    "prod.env",
    ".envrc",
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
    "known_hosts",
    "deploy_key",
    "key.pem",
    "server.key",
    "cert.p12",
    "store.jks",
    "store.pfx",
    "login.kdbx",
    ".netrc",
    "_netrc",
    ".pypirc",
    ".npmrc",
    "pip.conf",
    ".condarc",
    ".git-credentials",
    ".gitconfig",
    ".pgpass",
    ".my.cnf",
    ".htpasswd",
    ".vault_pass",
    "secrets.yaml",
    "secrets.yml",
    "secrets.json",
    "secrets.toml",
    "secret.txt",
    "passwords.txt",
    "aws-",
    "credentials.json",
    "credentials",
    "credentials.csv",
    "service-account.json",
    "gcp-key.json",
    "client_secret.json",
    "kubeconfig",
    "terraform.tfstate",
    "terraform.tfvars",
    "token",
    "auth_token",
    "token.txt",
    "rclone.conf",
    "s3.json",
    "s3cfg",
    ".s3cfg",
    ".boto",
    "settings.local",
    ".bash_history",
    ".python_history",
    "dump.sql",
]
FOLDERS = [
    ".aws/config",
    ".ray/auth_token",
    ".ssh/id_rsa",
    ".kube/config",
    ".docker/config.json",
    ".gnupg/x.gpg",
    ".git/config",
]
DATA = ["data/split=train/part-0.parquet", "demo/run.json", "cutouts/1.fits", "model.safetensors", ".venv/bin/python"]


def test_what_is_shipped_is_the_package_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    needed = {name for name in tracked if name.startswith(("gampen_ray/", "jobs/")) or name == "pyproject.toml"}
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    # Where somebody would leave them, and where the package is; those of its own kinds would have to be named like its files.
    kinds = ("gampen_ray", "gampen_ray/data", "gampen_ray/reports", "gampen_ray/bundles", "gampen_ray/bundles/kids-r", "jobs")
    planted = [*SECRETS, *FOLDERS, *DATA]
    planted += [f"{folder}/{name}" for folder in kinds for name in (*SECRETS, *FOLDERS)]
    planted += [f"jobs/configs/{name}" for name in SECRETS if not name.endswith(".toml")]
    for name in planted:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("SECRET")
    create_package(str(tree), tmp_path / "package.zip", True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        shipped = {name for name in package.namelist() if not name.endswith("/")}
        code = [one for one in package.infolist() if not one.filename.startswith("gampen_ray/bundles/")]
        assert sum(one.file_size for one in code) < 4 << 20
    assert shipped == needed


@pytest.mark.cluster
def test_every_job_runs_on_the_cluster_and_its_log_is_read(cluster: dict[str, str], tmp_path: Path) -> None:
    def runs(verb: str, *arguments: str) -> str:
        done = submit(cluster, verb, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout + done.stderr
        # A token belongs into no log.
        assert Path(cluster["RAY_AUTH_TOKEN_PATH"]).read_text() not in done.stdout + done.stderr
        return done.stdout + done.stderr

    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    runs("simulate", f"--output={tmp_path}/simulated", "--num-galaxies=40", "--galaxies-per-shard=20")
    assert (tmp_path / "simulated" / "dataset.json").exists()
    dataset(data, {"train": 200, "val": 50, "test": 50})
    (tmp_path / "train.toml").write_text(to_toml(train_config(data, run, epochs=1)))
    assert "wrote" in runs("train", str(tmp_path / "train.toml"))
    infer = [f"--bundle={run}", f"--dataset={data}", "--split=test", f"--output={tmp_path}/catalog", "--posterior=mixture"]
    assert "infer: " in runs("infer", *infer)
    assert pq.read_table(tmp_path / "catalog" / "catalog").num_rows == 50
    runs("evaluate", f"--catalog={tmp_path}/catalog", f"--output={tmp_path}/evaluation")
    (tmp_path / "tune.toml").write_text(to_toml(tune_config(data, str(tmp_path / "study"), num_trials=2)))
    runs("tune", str(tmp_path / "tune.toml"))
    assert (tmp_path / "study" / "best.toml").exists()
    cutouts = tmp_path / "cutouts"
    cutouts.mkdir()
    for i, image in enumerate(galaxies(8)["image"]):
        fits.writeto(cutouts / f"{i}.fits", image[0])
    runs("ingest", f"--images={cutouts}", f"--output={tmp_path}/ingested", "--reader.bands=r")
    assert json.loads((tmp_path / "ingested" / "dataset.json").read_text())["num_rows"] == {"all": 8}
    refused = submit(cluster, "infer", f"--bundle={tmp_path}/none", f"--dataset={data}", f"--output={tmp_path}/o")
    assert refused.returncode != 0
    assert "gampen-ray: error: " in refused.stdout + refused.stderr
    many = submit(cluster, "tune", str(tmp_path / "tune.toml"), f"--output={tmp_path}/more", "--resources.cpus-per-worker=2")
    assert many.returncode != 0
    assert "1 worker with 2 CPUs needed, but the cluster has room for 0 (nodes: 2 of 1 CPU and 0 GPUs)" in many.stdout


@pytest.mark.cluster
def test_nobody_comes_in_without_the_token(cluster: dict[str, str]) -> None:
    token = Path(cluster["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    addresses = listening(marked(str(token)))
    assert len(addresses) >= 5
    assert all(address.is_loopback for address, _ in addresses), addresses
    assert answer(cluster, "/api/jobs/", token.read_text()) == 200
    assert answer(cluster, "/api/jobs/", None) == 401
    assert answer(cluster, "/api/jobs/", "wrong") == 403
    assert cluster["RAY_API_SERVER_ADDRESS"].startswith("http://127.0.0.1:")
    stranger = {name: value for name, value in cluster.items() if name != "RAY_AUTH_TOKEN_PATH"} | {"RAY_AUTH_TOKEN": "wrong"}
    refused = submit(stranger, "simulate", "--help")
    assert refused.returncode != 0
    assert "Invalid authentication token" in refused.stderr


@pytest.mark.cluster
def test_a_stopped_inference_goes_on_when_it_is_submitted_again(cluster: dict[str, str], tmp_path: Path) -> None:
    data, model, output = str(tmp_path / "data"), str(tmp_path / "model"), tmp_path / "catalog"
    count, num_files = 12_000, 120
    dataset(data, {"all": count})
    bundle().save(model)
    arguments = [f"--bundle={model}", f"--dataset={data}", f"--output={output}", "--galaxies-per-file=100", "--num-passes=400"]
    started = submit(cluster, "infer", *arguments, wait=False, name="stopped-half-way")
    assert started.returncode == 0, started.stderr
    assert wait_until(lambda: len(list((output / "catalog").glob("*.parquet"))) >= 2)
    stop = subprocess.run([RAY, "job", "stop", "stopped-half-way"], env=cluster, capture_output=True, text=True, check=True)
    assert "was stopped" in stop.stdout + stop.stderr
    written = {path: path.stat().st_mtime_ns for path in (output / "catalog").glob("*.parquet")}
    assert 2 <= len(written) < num_files
    assert not (output / "manifest.json").exists()
    again = submit(cluster, "infer", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert pq.read_table(output / "catalog").num_rows == count
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in written.items())
    assert json.loads((output / "manifest.json").read_text())["num_galaxies"] == count

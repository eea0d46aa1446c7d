"""Clusters of several nodes on this machine (`cluster/local.py`), and jobs submitted to them as a user gives the commands."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
JOB_SECONDS = 240
# A dead node is noticed in seconds, a slow one is left alone.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}


@contextlib.contextmanager
def running_cluster(*options: str, **variables: str) -> Iterator[dict[str, str]]:
    """Start a cluster, whose processes get ``variables`` too, and yield the variables for speaking to it."""
    program = [sys.executable, str(ROOT / "cluster" / "local.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | HEALTH_CHECKS | variables
    # Sockets below it have paths of 107 bytes at most.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            up = subprocess.run([*program, "up", "--folder", folder, *options], env=environment, capture_output=True, text=True)
            assert up.returncode == 0, up.stderr
            yield environment | dict(re.findall(r"^export (\w+)=(.*)$", up.stdout, re.MULTILINE))
        finally:
            subprocess.run([*program, "down", "--folder", folder], check=False)


def submit(
    cluster: dict[str, str], verb: str, *arguments: str, wait: bool = True, name: str = ""
) -> subprocess.CompletedProcess:
    """Give the command of the README."""
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), *([] if wait else ["--no-wait"])]
    command += ["--submission-id", name] if name else []
    command += ["--", "python", f"jobs/{verb}.py", *arguments]
    return subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)


def told(cluster: dict[str, str], path: str) -> Any:
    """Return what the head answers to somebody with the token."""
    request = urllib.request.Request(cluster["RAY_API_SERVER_ADDRESS"] + path)
    request.add_header("Authorization", f"Bearer {Path(cluster['RAY_AUTH_TOKEN_PATH']).read_text()}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def ended(cluster: dict[str, str], name: str) -> str:
    """Return how a job ended, empty while it runs."""
    status = told(cluster, f"/api/jobs/{name}")["status"]
    return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else ""


def log(cluster: dict[str, str], name: str) -> str:
    """Return what a job has printed."""
    return told(cluster, f"/api/jobs/{name}/logs")["logs"]


def num_nodes(cluster: dict[str, str]) -> int:
    """Return how many nodes are alive, the head among them."""
    return sum(node["raylet"].get("state") == "ALIVE" for node in told(cluster, "/nodes?view=summary")["data"]["summary"])


def raylets(cluster: dict[str, str]) -> list[int]:
    """Return the process ids of the nodes but the head."""
    found = []
    nodes = f"--raylet_socket_name={Path(cluster['RAY_AUTH_TOKEN_PATH']).parent}/node"
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(word.startswith(nodes) for word in (folder / "cmdline").read_text().split("\0")):
                found.append(int(folder.name))
    return sorted(found)


def wait_until(true: Callable[[], bool], seconds: float = JOB_SECONDS) -> bool:
    """Return whether something becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.3)
    return False

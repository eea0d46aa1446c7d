"""A Ray cluster of several nodes on this machine, for trying every job as on a real one.

python cluster/local.py up [--workers 2] [--cpus 1]     a head without CPUs, and nodes that work
python cluster/local.py up --grow [--workers 3] ...     a head alone, whose autoscaler starts such nodes when jobs ask for them
eval "$(python cluster/local.py env)"                   connects this shell: `ray job submit`, `gampen-ray`, `ray status`
python cluster/local.py down
"""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

# Short: Ray puts sockets below it, whose paths may have 107 bytes.
_FOLDER = Path(tempfile.gettempdir()) / f"gampen-ray-{os.getuid()}"
_START_SECONDS, _STOP_SECONDS = 60, 20
_OBJECT_STORE_BYTES = 200 << 20
_IDLE_MINUTES = 0.2

# Ray itself puts the machine's address in the place of the loopback's, but where clusters are switched off, and there no node
# can join: nodes start with clusters on, and whatever they start, and clients, have them off.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_RAY = f"""
import os
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
os.environ["{_CLUSTERS}"] = "0"
from ray.scripts.scripts import main
main()
"""

# The head's autoscaler looks every second; by this name it knows the head.
_HEAD_ID = "f" * 51 + "00000"
_AUTOSCALER = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
}


def main() -> int:
    """Start or stop the cluster, or print its environment variables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "env", "down"])
    parser.add_argument("--workers", type=int, default=2, help="nodes beside the head, with --grow at most [2]")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each, as Ray counts them [1]")
    parser.add_argument("--grow", action="store_true", help="nodes come when jobs ask for them, and go when they are idle")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"holds token, logs and process ids [{_FOLDER}]")
    options = parser.parse_args()
    cluster = Cluster(options.folder)
    try:
        if options.action == "up":
            cluster.up(options.workers, options.cpus, grow=options.grow)
        if options.action != "down":
            sys.stdout.write("".join(f"export {name}={shlex.quote(value)}\n" for name, value in cluster.environment().items()))
        else:
            cluster.down()
    except ClusterError as error:
        sys.stderr.write(f"local.py: error: {error}\n")
        return 2
    return 0


class ClusterError(Exception):
    """A failure that is reported to the user in one line."""


class Cluster:
    """Nodes as processes of their own, in a folder with a token that this user alone can read."""

    def __init__(self, folder: Path) -> None:
        folder = folder.absolute()
        self._folder, self._state, self._token = folder, folder / "cluster.json", folder / "token"

    def _check_owner(self) -> None:
        """Refuse a folder in which another user may have put what is run here: addresses, variables, links."""
        there = self._folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o077:
            raise ClusterError(f"{self._folder} must be a folder of yours, closed to others (mode 0700); give another --folder")

    def up(self, num_workers: int, cpus: int, *, grow: bool = False) -> None:
        """Start the head, then the others, and wait until all are there; with ``grow`` they come and go by themselves."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=True)
        self._check_owner()
        if self._state.exists():
            raise ClusterError(f"{self._folder} holds a cluster; `down` first, or another --folder")
        self._token.unlink(missing_ok=True)
        self._token.touch(mode=0o600)
        self._token.write_text(secrets.token_hex(32))
        gcs, dashboard = _free_ports(2)
        self._write({"gcs": f"127.0.0.1:{gcs}", "dashboard": f"http://127.0.0.1:{dashboard}", "grows": grow, "nodes": {}})
        head = ["--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=0", "--num-gpus=0"]
        head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        if grow:
            config = self._folder / "autoscaling.json"
            config.write_text(json.dumps(_autoscaling(self._folder, num_workers, cpus)))
            head += [f"--autoscaling-config={config}"]
        self._start("head", head, _AUTOSCALER if grow else {})
        self._wait(nodes=1)
        if not grow:
            for number in range(1, num_workers + 1):
                self.add(f"node{number}", cpus, {})
            self._wait(nodes=1 + num_workers)

    def add(self, name: str, cpus: int, variables: dict[str, str]) -> None:
        """Start a node beside the head."""
        options = [f"--address={self._read()['gcs']}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"]
        self._start(name, options, variables)

    def environment(self) -> dict[str, str]:
        """Return the variables with which programs find the cluster and authenticate."""
        state = self._read()
        return {
            "RAY_ADDRESS": state["gcs"],
            "RAY_API_SERVER_ADDRESS": state["dashboard"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            _CLUSTERS: "0",
        }

    def down(self) -> None:
        """End the nodes, the head last, but first where it would start others in their place."""
        if self._read()["grows"]:
            self.end("head")
        for name in reversed(self._read()["nodes"]):
            self.end(name)
        self._state.unlink()
        self._token.unlink()

    def end(self, name: str) -> None:
        """End a node; a process that is not this cluster's is left alone."""
        pid = self._read()["nodes"][name]
        if str(self._folder / name) not in _command(pid):
            return
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + _STOP_SECONDS
        while _command(pid) and time.monotonic() < end:
            time.sleep(0.2)

    def _start(self, name: str, options: list[str], variables: dict[str, str]) -> None:
        agent, metrics, environments = _free_ports(3)
        command = [sys.executable, "-c", _RAY, "start", "--block", "--disable-usage-stats", *options]
        command += [f"--temp-dir={self._folder / name}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--runtime-env-agent-port={environments}"]
        environment = os.environ | self.environment() | variables | {_CLUSTERS: "1"}
        del environment["RAY_ADDRESS"]
        # A job's `python` is this one.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        with (self._folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        state = self._read()
        state["nodes"][name] = process.pid
        self._write(state)

    def _wait(self, nodes: int) -> None:
        state = self._read()
        request = urllib.request.Request(f"{state['dashboard']}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self._token.read_text()}")
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            time.sleep(0.5)
            for name, pid in state["nodes"].items():
                if not _command(pid):
                    raise ClusterError(f"{name} did not start; see {self._folder / name}.log, and `down` ends the others")
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    summary = json.load(answer)["data"]["summary"]
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                continue
            if sum(node["raylet"].get("state") == "ALIVE" for node in summary) >= nodes:
                return
        raise ClusterError(
            f"some nodes are missing after {_START_SECONDS} s; see the logs in {self._folder}, and `down` ends all"
        )

    def _read(self) -> dict:
        if os.path.lexists(self._folder):
            self._check_owner()
        if not self._state.exists():
            raise ClusterError(f"{self._folder} holds no cluster; `up` starts one")
        return json.loads(self._state.read_text())

    def _write(self, state: dict) -> None:
        # Whole or not at all: `down` and the autoscaler read and write it too.
        draft = self._state.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(state))
        draft.replace(self._state)


def _autoscaling(folder: Path, num_workers: int, cpus: int) -> dict:
    """Return the autoscaler's config: as `ray up` has it, but its nodes are processes."""
    resources = {"CPU": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    steps = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    commands = [f"{step}_commands" for step in steps]
    return {
        "cluster_name": "local",
        "max_workers": num_workers,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "local_nodes.LocalNodes",
            "folder": str(folder),
            "head_node_id": _HEAD_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "launch_multiple": True,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": num_workers},
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", *commands)},
    }


def _command(pid: int) -> str:
    """Return a process's command line, empty if it has ended."""
    told = subprocess.run(["ps", "-o", "stat=,args=", "-ww", "-p", str(pid)], capture_output=True, text=True).stdout
    return "" if told.startswith("Z") else told


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    sys.exit(main())

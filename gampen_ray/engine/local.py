"""A Ray on this machine for the length of one job: out of reach of other users and of the network, and gone with its driver.

Ray itself listens on all interfaces, reads one token for all its sessions, and keeps its files in a folder open to everyone.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

from gampen_ray.engine import death_watch
from gampen_ray.engine.resources import LOCAL_CPUS, loopback_only

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 1 << 30


@contextlib.contextmanager
def local_ray() -> Iterator[dict[str, Any]]:
    """Yield the options with which `ray.init` starts a Ray of this process's own; afterwards nothing of it is left.

    It has a folder that this user alone can enter, with a fresh token without which Ray refuses every call. All its ports are
    on the loopback interface. If this process is killed, another one ends Ray and deletes the folder (`death_watch`).
    """
    # Short: Ray puts sockets below it, whose paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=get_default_system_temp_dir()))
    watch = [sys.executable, "-I", "-S", death_watch.__file__, str(folder)]
    with (
        # Without our variables, by one of which it finds Ray's processes, and out of reach of Ctrl-C.
        subprocess.Popen(watch, stdin=subprocess.PIPE, env={}, start_new_session=True) as watcher,
        contextlib.ExitStack() as stack,
    ):
        assert watcher.stdin is not None
        # Also after an error, which this process reports itself.
        stack.callback(watcher.stdin.write, b".")
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        stack.enter_context(
            _variables(
                RAY_AUTH_MODE="token",
                # It would win over the file.
                RAY_AUTH_TOKEN=None,
                RAY_AUTH_TOKEN_PATH=str(token),
                **loopback_only(),
            )
        )
        stack.enter_context(_loopback_allowed())
        yield {
            "address": "local",
            "_node_ip_address": _LOOPBACK,
            # Ray opens its folder to everyone: ours is around it.
            "_temp_dir": str(folder / "r"),
            "num_cpus": LOCAL_CPUS,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }


@contextlib.contextmanager
def _variables(**values: str | None) -> Iterator[None]:
    """Set variables, None: unset, for this process, which Ray's inherit, and restore them."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray has read them when it was imported or last used.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _loopback_allowed() -> Iterator[None]:
    """Let Ray take the loopback address: for the sake of clusters, it puts the machine's in its place, but not on macOS."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before

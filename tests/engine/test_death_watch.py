"""Which processes end with a local Ray."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gampen_ray.engine import death_watch

_WATCH = [sys.executable, "-I", "-S", death_watch.__file__]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found on Linux alone")
def test_every_process_of_the_folder_ends_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "ray-1"
    folder.mkdir()
    with ExitStack() as stack, (folder / "log").open("w") as log:

        def sleep(name: str, **options: Any) -> subprocess.Popen[bytes]:
            process = stack.enter_context(subprocess.Popen([name, "60"], executable="/bin/sleep", **({"env": {}} | options)))
            stack.callback(process.kill)
            return process

        started = sleep("raylet", env={"RAY_AUTH_TOKEN_PATH": f"{folder}/token"})
        # Ray's agents overwrite their variables, as setproctitle needs the room.
        agent = sleep("ray::DashboardAgent", stdout=log)
        reader = sleep("tail", stdout=log)
        other = sleep("raylet", env={"RAY_AUTH_TOKEN_PATH": f"{folder}2/token"})

        subprocess.run([*_WATCH, str(folder)], stdin=subprocess.DEVNULL, check=True, timeout=30)

        assert started.wait(5) == agent.wait(5) == -9
        assert reader.poll() is other.poll() is None
        assert not folder.exists()


@pytest.mark.parametrize(("last_word", "told"), [(b".", b""), (b"", b"gampen-ray: killed, by somebody or by Ray; ")])
def test_a_driver_that_could_not_say_why_it_ended(last_word: bytes, told: bytes, tmp_path: Path) -> None:
    done = subprocess.run([*_WATCH, str(tmp_path / "ray-1")], input=last_word, stderr=subprocess.PIPE, check=True, timeout=30)
    assert done.stderr.startswith(told)
    assert bool(done.stderr) == bool(told)

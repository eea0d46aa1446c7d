"""Drivers as processes of their own: started, watched, killed, and looked for when they should be gone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def driver(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command line as a process of its own, which ends at the end; yield it and the mark of all that it starts."""
    mark = f"gampen-ray-test-{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "gampen_ray", *arguments]
    environment = {**os.environ, "GAMPEN_RAY_MARK": mark}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A suite in a shell's background ignores Ctrl-C, and its children would too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process, mark
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], what: str) -> None:
    """Wait for a line of the log."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if what in line:
            return
        lines.append(line)
    raise AssertionError(f"the job ended with {process.wait()} before it wrote {what!r}:\n{''.join(lines)}")


def assert_none_left(mark: str, kind: str = "") -> None:
    """Wait a minute for the end of all processes, or of those of a kind."""
    deadline = time.monotonic() + 60
    while (left := [name for name in marked(mark) if kind in name]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def marked(mark: str) -> list[str]:
    """Return the command lines of the processes that inherited the mark from a driver."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile
    return found

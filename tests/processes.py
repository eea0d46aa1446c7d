"""Drivers as processes of their own: started, watched, killed, and looked for when they should be gone."""

import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def driver(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command line as a process of its own, which ends at the end; yield it and the mark of all that it starts."""
    mark = f"gampen-ray-test-{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "gampen_ray", *arguments]
    environment = {**os.environ, "GAMPEN_RAY_MARK": mark}
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


def assert_none_left(mark: str, seconds: float = 60) -> None:
    """Wait for the end of all processes."""
    deadline = time.monotonic() + seconds
    while (left := list(marked(mark).values())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == [], left


def marked(mark: str) -> dict[int, str]:
    """Return ids and command lines of the processes that inherited the mark from a driver."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
    return found


def variables(pid: int) -> dict[str, str]:
    """Return the variables with which a process was started."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def peak_memory_gb() -> float:
    """Return the largest memory that this process had; that of `getrusage` is at least what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def listening(pids: Iterable[int]) -> set[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Return addresses and ports at which processes wait for connections."""
    own = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                own.add(str(file.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                address, port = local.split(":")
                # Words of four bytes in the order of this machine, which is little-endian.
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                one = ipaddress.ip_address(b"".join(words))
                found.add((getattr(one, "ipv4_mapped", None) or one, int(port, 16)))
    return found

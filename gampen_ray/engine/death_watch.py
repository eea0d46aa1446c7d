"""The end of a local Ray: a program that outlives its driver by a moment, also if that is killed.

Left alone, Ray's agents live on for a minute after the death of their driver, and its folder for ever. The program waits until
nobody holds the other end of its standard input any more, kills each process of the folder, and deletes the folder. A driver
writes a byte before it ends; one that does not was killed, or ended by Ray's own code, and could not say so itself. The program
uses the standard library alone, so that it starts at once.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PAUSE_S, _LONGEST_S = 0.1, 30


def main(folder: str) -> None:
    """Wait for the end of the driver, and leave nothing of the folder behind."""
    if not os.read(0, 1):
        sys.stderr.write("gampen-ray: killed, by somebody or by Ray; run the same command again to resume\n")
        sys.stderr.flush()
    end = time.monotonic() + _LONGEST_S
    # A process may have started another in the meantime; one that waits for a disk cannot be killed.
    while (found := _processes(folder)) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: str) -> list[int]:
    """Return the processes that Ray started in the folder; none but on Linux.

    They have it in a variable. Ray's agents write their titles over their variables: they have a log open in it.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # It may belong to somebody else, or have ended.
        with contextlib.suppress(OSError):
            variables, title = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            if f"={folder}/".encode() in variables or (title.startswith(b"ray::") and _has_open(process, folder)):
                found.append(int(process.name))
    return found


def _has_open(process: Path, folder: str) -> bool:
    for file in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(file.readlink()).startswith(f"{folder}/"):
                return True
    return False


if __name__ == "__main__":
    main(sys.argv[1])

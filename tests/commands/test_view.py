"""The verb `view` as a process: it prints its address, and Ctrl-C ends it."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from gampen_ray import cli
from tests.commands.test_evaluate import UNITS, predicted


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    root = predicted(tmp_path, **UNITS)
    program = [sys.executable, "-m", "gampen_ray", "view", str(root / "catalog"), "--no-browser"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"300 galaxies" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1].endswith("ended") and "Traceback" not in err


def test_an_unfinished_catalogue_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(" has no manifest.json; give the output folder of a finished `infer`\n")

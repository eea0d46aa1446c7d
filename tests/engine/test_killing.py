import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.kill
@pytest.mark.parametrize("tiles", [False, True], ids=["shards", "tiles"])
def test_every_row_comes_out_once_whatever_is_killed(tmp_path: Path, tiles: bool) -> None:
    size = ["--galaxies=800", "--passes=100", *(["--tiles=16"] if tiles else ["--shards=16", "--reference=library"])]
    command = [sys.executable, "-m", "tests.engine.killing", *size, "--kills=actor,driver,node"]
    log = tmp_path / "log"
    with log.open("wb") as errors:
        done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=errors, timeout=800)
    assert done.returncode == 0, log.read_text()[-3000:]
    seen = json.loads(done.stdout)
    assert [kill["kind"] for kill in seen["kills"]] == ["actor", "driver", "node"]
    assert (seen["ids"], seen["duplicates"]) == (800, 0)
    assert seen["in_catalogue"] + seen["in_quarantine"] == 800
    assert seen["in_quarantine"] > 0 if tiles else seen["in_quarantine"] == 9
    assert seen["same_ids"]
    assert seen["largest_relative_difference"] < (1e-12 if tiles else 1e-4)
    # Of the four units that actors have in hand, some may be written without the driver knowing yet.
    assert seen["finished_files_written_again"] <= 4
    assert seen["same_command_says_complete"]

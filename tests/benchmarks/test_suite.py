import json
from pathlib import Path

import pytest
import suite

from gampen_ray.errors import UserError


def test_ratios_are_kept_by_commit_and_shown_beside_the_last_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "cost.py"
    script.write_text("import json; print(json.dumps({'a': {'ratio': 1.25, 'ms': 3}, 'ratio_by_epoch': [1, 2, 9]}))")
    monkeypatch.setattr(suite, "BENCHMARKS", {"cost": suite.Benchmark(str(script), (), is_quick=True)})
    monkeypatch.setattr(suite, "HISTORY", tmp_path / "history.jsonl")
    caplog.set_level("INFO")
    for turn in range(2):
        suite.main(suite.parsed(["--history", str(suite.HISTORY)]))
        assert json.loads(capsys.readouterr().out)["results"]["cost"]["a"] == {"ratio": 1.25, "ms": 3}
        assert ("before 1.250" in caplog.text) == bool(turn)
    lines = [json.loads(line) for line in suite.HISTORY.read_text().splitlines()]
    assert [line["ratios"] for line in lines] == [{"cost.a.ratio": 1.25, "cost.ratio_by_epoch": 2}] * 2
    # A machine of another kind compares with nothing.
    suite.HISTORY.write_text(json.dumps(lines[0] | {"cores": 10**6}) + "\n")
    assert suite.last(suite.HISTORY) == {}


def test_what_cannot_be_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="only: speed is unknown; there are summaries"):
        suite.main(suite.parsed(["--only", "speed"]))
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"broken\.py ended with status 3"):
        suite.run(suite.Benchmark(str(script), (), is_quick=True))


def test_the_scripts_are_there() -> None:
    for benchmark in suite.BENCHMARKS.values():
        assert (suite.FOLDER / benchmark.script).exists()

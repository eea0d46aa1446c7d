"""The page of a study with synthetic trials: what it shows, hostile text, too few trials, and stored files."""

import html
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import optuna
import pyarrow.parquet as pq
import pytest

from gampen_ray.config import ScanDropoutConfig, SearchRange, TuneConfig
from gampen_ray.config.tuning import DROPOUT_RATE
from gampen_ray.reports.figures import number
from gampen_ray.reports.tune_page import StudyData, render, tune_page
from gampen_ray.tuning.dropout_scan import scan_space
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import Trial, best, trials_table
from tests.reports.report_cases import Page

HOSTILE = "</pre><script>alert(1)</script>{{ 7 * 7 }}"
SEARCH = {
    DROPOUT_RATE: SearchRange(low=1e-4, high=0.3, log=True),
    "network.backbone.plan": SearchRange(choices=([24, 48, "M", 96], [24, 48, "M", 64, 64, "M", 128])),
    "network.backbone.pool_size": SearchRange(low=1, high=5, step=2),
    "network.spatial_transformer.family": SearchRange(choices=("scale", "none")),
    "network.spatial_transformer.hidden": SearchRange(low=8, high=64, when={"network.spatial_transformer.family": "scale"}),
}


def study_data(num_trials: int, objectives: tuple = ("val_loss",), **config: Any) -> StudyData:
    """Random trials: of one objective, most are stopped; the last one fails."""
    built = TuneConfig(dataset="d", output="o", objectives=objectives, search=SEARCH, **config)
    space = SearchSpace.of(built)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for i in range(num_trials):
        drawn = study.ask()
        space(drawn)
        loss = -2 + 0.3 * abs(math.log10(drawn.params[DROPOUT_RATE] / 3e-3))
        full = {"val_loss": loss, "calibration_error": 0.05 + loss / 100, "flops": 1e7 * 2 ** (i % 4)}
        stopped = len(objectives) == 1 and i % 3 > 0
        trials.append(
            Trial(
                number=i,
                state="stopped early" if stopped else "complete",
                epochs=3 if stopped else 12,
                seconds=30.0,
                objectives={"val_loss": loss + 0.5} if stopped else full,
                values=drawn.params,
            )
        )
    drawn = study.ask()
    space(drawn)
    failed = Trial(number=num_trials, state="failed", reason=HOSTILE, epochs=0, seconds=1.0, objectives={}, values=drawn.params)
    table = trials_table([*trials, failed], space)
    return StudyData(config=built, table=table, scanned=[], best_toml=f"# {HOSTILE}")


@pytest.fixture(scope="module")
def data() -> StudyData:
    return study_data(24)


@pytest.fixture(scope="module")
def text(data: StudyData) -> str:
    return render(data)


def test_same_data_give_the_same_page_and_leave_matplotlib_as_it_was(data: StudyData, text: str) -> None:
    plt.figure()
    with matplotlib.rc_context({"font.size": 33}):
        before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
        assert render(data) == text
        assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (before, backend)
    assert len(plt.get_fignums()) == 1
    plt.close("all")


def test_page_shows_the_best_trial_and_its_config(data: StudyData, text: str) -> None:
    page = Page(text)
    row = data.table.to_pylist()[best(data.table, ("val_loss",))]
    assert {row["val_loss"], row["calibration_error"], row["flops"]} <= set(page.values)
    marked = text[text.index('<tr class="best">') :]
    assert marked.startswith(f'<tr class="best"><th scope="row">{row["number"]}</th>')
    assert text.count('<tr class="best">') == 1
    # Ten trials of 25, without the failed one, whose reason is shown.
    assert text[text.index('id="trials"') : text.index('id="config"')].count('<th scope="row">') == 10
    assert html.escape(HOSTILE) in text


def test_hostile_text_stays_text_and_nothing_is_loaded(text: str) -> None:
    assert "<script" not in text
    assert "http://" not in text and "https://" not in text
    assert "49" not in text[text.index('id="config"') : text.index('id="space"')]
    assert "url(" not in text.replace("url(#", "")


def test_figures_have_alternative_texts(data: StudyData, text: str) -> None:
    labels = [plot["aria-label"] for plot in Page(text).plots]
    least = min(value for value in data.table["val_loss"].to_pylist() if value is not None)
    assert len(labels) == 3
    assert labels[0] == f"Validation loss of 24 trials; the lowest is {number(least)}"
    assert labels[1].startswith("Importance for validation loss, ascending: ")
    assert all(f"{name} " in labels[1] for name in ("dropout_rate", "spatial_transformer.family", "plan"))
    assert labels[2] == "24 trials as lines through their values of 5 fields"
    texts = Page(text).texts
    assert {"24 48 M 96", "pool_size", "None", "0.001"} <= set(texts)


def test_several_objectives_have_a_front(data: StudyData) -> None:
    several = study_data(40, ("val_loss", "calibration_error", "flops"))
    page = render(several)
    labels = [plot["aria-label"] for plot in Page(page).plots]
    assert len(labels) == 3 + 3 + 3 + 1
    assert labels[7] == "Operations per galaxy against validation loss of 40 trials"
    # The dropout rate alone makes the synthetic loss.
    assert labels[3].rpartition(", ")[2].startswith("dropout_rate ")
    assert "complete, front" in page and "the best of the Pareto front by its loss" in page
    assert 'id="pareto"' not in render(data)


@pytest.mark.parametrize("num_trials", [0, 1, 5])
def test_too_few_trials_are_reported(num_trials: int) -> None:
    page = render(study_data(num_trials))
    assert "too few for reliable importances" in page
    assert ("Fewer than two trials have a result" in page) == (num_trials < 2)
    assert ("No trial has a result yet" in page) == (num_trials == 0)


def test_page_of_a_scan_from_its_files(tmp_path: Path) -> None:
    config = ScanDropoutConfig(bundle="b", dataset="d", output=str(tmp_path), shortlist=1)
    scanned = [
        {
            "rate": rate,
            "coverage": [
                {"target": target, "level": level, "coverage": level - error, "error": 0.01}
                for target in ("flux", "joint")
                for level in (0.6827, 0.9545, 0.9973)
            ],
            "calibration_error": error,
            "val_nll": -1.0 - error,
        }
        for rate, error in [(1e-3, 0.0512), (1e-2, 0.0123), (1e-1, 0.0345)]
    ]
    retrained = Trial(
        number=0,
        state="complete",
        epochs=12,
        seconds=60.0,
        objectives={"val_loss": -1.2, "calibration_error": 0.011, "flops": 1e7},
        values={DROPOUT_RATE: 1e-2},
    )
    pq.write_table(trials_table([retrained], scan_space(config)), tmp_path / "trials.parquet")
    (tmp_path / "scan.json").write_text(json.dumps(scanned))
    (tmp_path / "best.toml").write_text("seed = 0")
    text = tune_page(config)
    page = Page(text)
    assert next(plot["aria-label"] for plot in page.plots) == (
        "Empirical − nominal (pp) of flux at 3 dropout rates from 0.001 to 0.1"
    )
    assert len(page.plots) == 4
    assert {0.0512, 0.0123, 0.0345} <= set(page.values)
    rows = text[text.index("Scanned rates") : text.index('id="trials"')].split("<tr>")[2:]
    assert ["yes" in row for row in rows] == [True, False, False]
    assert '<pre tabindex="0">seed = 0</pre>' in text

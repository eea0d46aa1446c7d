"""The page of a study: progress, importances, the best trials, and the config of the best one."""

import collections
import dataclasses
import itertools
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from gampen_ray import storage
from gampen_ray.config import ScanDropoutConfig, SearchRange, TuneConfig
from gampen_ray.posterior.calibration import JOINT
from gampen_ray.reports import tune_figures as figures
from gampen_ray.reports.figures import number
from gampen_ray.reports.page import environment
from gampen_ray.tuning.dropout_scan import SCAN, ScannedRate, read_scan, scan_space, shortlisted
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import BEST, OBJECTIVES, TRIALS, best, pareto_front, study

PAGE = "tune.html"
_SHOWN_TRIALS = 10
# With fewer, importances are noise.
_MIN_TRIALS_FOR_IMPORTANCES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyData:
    """Content of the page.

    Parameters
    ----------
    config
        Config of the study.
    table
        Trials so far, from `gampen_ray.tuning.trials.trials_table`.
    scanned
        Scan of the dropout rates; empty for a search.
    best_toml
        The best trial's config; None if no trial is complete.
    """

    config: TuneConfig | ScanDropoutConfig
    table: pa.Table
    scanned: list[ScannedRate]
    best_toml: str | None


def tune_page(config: TuneConfig | ScanDropoutConfig) -> str:
    """Return the page of a study from the files of its output folder: one self-contained HTML file."""
    scan, toml = storage.join(config.output, SCAN), storage.join(config.output, BEST)
    with storage.open_input(storage.join(config.output, TRIALS)) as file:
        table = pq.read_table(file)
    return render(
        StudyData(
            config=config,
            table=table,
            scanned=read_scan(scan) if storage.exists(scan) else [],
            best_toml=storage.read_bytes(toml).decode() if storage.exists(toml) else None,
        )
    )


def render(data: StudyData) -> str:
    """Return the page as HTML: self-contained, without script; the same data give the same page, byte for byte."""
    config, rows = data.config, data.table.to_pylist()
    space = scan_space(config) if isinstance(config, ScanDropoutConfig) else SearchSpace.of(config)
    counts = collections.Counter(row["state"] for row in rows)
    number_of_best = best(data.table, config.objectives) if counts["complete"] else None
    objective, *others = config.objectives
    front = pareto_front(data.table, config.objectives) if others else []
    return (
        environment()
        .get_template("tune.html.jinja")
        .render(
            title="Dropout rate by coverage" if data.scanned else "Hyperparameter search",
            config=config,
            counts=counts,
            best=next((row for row in rows if row["number"] == number_of_best), None),
            minutes=sum(row["seconds"] for row in rows) / 60,
            names=figures.NAMES,
            figures=_figures(data, space),
            scan=_scan(data),
            fields=list(space.ranges),
            shown=_shown_trials(rows, objective, front),
            front=front,
            objectives=OBJECTIVES,
            failures=collections.Counter(row["reason"] for row in rows if row["state"] == "failed").most_common(),
            space={name: _described(range_) for name, range_ in space.ranges.items()},
            best_toml=data.best_toml,
            cell=_cell,
            facts=_facts(config),
        )
    )


def _figures(data: StudyData, space: SearchSpace) -> dict[str, Any]:
    """Return Optuna's plots of a search; none for a scan, whose few trials differ in one field."""
    names = data.config.objectives
    shown = figures.shortened(study(data.table, space, names))
    known = figures.known(shown)
    if data.scanned or len(known) < 2:
        return {"history": [], "importances": [], "pareto": [], "parallel": None, "parallel_width": 0}
    enough = len(known) >= _MIN_TRIALS_FOR_IMPORTANCES
    return {
        "history": [Markup(figures.history(f"history{i}", shown, i, name)) for i, name in enumerate(names)],
        "importances": [
            Markup(figures.importances(f"importances{i}", shown, i, name)) for i, name in enumerate(names) if enough
        ],
        "pareto": [
            Markup(figures.pareto(f"pareto{i}", shown, pair, names))
            for i, pair in enumerate(itertools.combinations(range(len(names)), 2))
        ],
        "parallel": Markup(figures.parallel("parallel", shown, names[0])),
        "parallel_width": figures.parallel_width(len({name for trial in known for name in trial.params})),
    }


def _scan(data: StudyData) -> dict[str, Any] | None:
    if not data.scanned:
        return None
    rows = sorted(data.scanned, key=lambda row: row.rate)
    assert isinstance(data.config, ScanDropoutConfig)
    shortlist = shortlisted(rows, data.config.shortlist)
    rates = [row.rate for row in rows]
    levels = sorted({row["level"] for row in rows[0].coverage})
    panels = []
    for name in dict.fromkeys(row["target"] for row in rows[0].coverage):
        deviations = {
            f"{100 * level:.2f} %": [
                100 * (one["coverage"] - level)
                for row in rows
                for one in row.coverage
                if (one["target"], one["level"]) == (name, level)
            ]
            for level in levels
        }
        panels.append(
            (name, figures.scan(f"scan{len(panels)}", name, rates, deviations, "Empirical − nominal (pp)", shortlist))
        )
    measures = {"calibration_error": "Calibration error", "val_nll": "Negative log density"}
    for key, label in measures.items():
        values = {"": [getattr(row, key) for row in rows]}
        panels.append((label.lower(), figures.scan(f"scan{len(panels)}", "all targets", rates, values, label, shortlist)))
    return {"panels": [(name, Markup(plot)) for name, plot in panels], "rows": rows, "shortlist": shortlist, "joint": JOINT}


def _shown_trials(rows: list[dict[str, Any]], objective: str, front: list[int]) -> list[dict[str, Any]]:
    """Return the best trials, those of the Pareto front first and unfinished ones last."""
    order = {"complete": 0, "stopped early": 1}
    known = [row for row in rows if row["state"] in order and row[objective] is not None]
    known.sort(key=lambda row: (row["number"] not in front, order[row["state"]], row[objective]))
    return known[: max(_SHOWN_TRIALS, len(front))]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value) if isinstance(value, int) else number(value)
    return figures.category(value)


def _described(range_: SearchRange) -> str:
    """Return a range in words."""
    if range_.choices:
        text = "; ".join(figures.category(choice) for choice in range_.choices)
    else:
        text = f"{number(range_.low)} to {number(range_.high)}"
        text += ", even in the logarithm" if range_.log else ""
        text += f", in steps of {number(range_.step)}" if range_.step else ""
    conditions = [f"{name} is {figures.category(value)}" for name, value in range_.when.items()]
    return text + (f" (where {' and '.join(conditions)})" if conditions else "")


def _facts(config: TuneConfig | ScanDropoutConfig) -> dict[str, str]:
    facts = {"dataset": config.dataset, "objectives": ", ".join(config.objectives)}
    if isinstance(config, ScanDropoutConfig):
        # The bundle determines everything else.
        return facts | {"scanned bundle": config.bundle}
    asha = f"from epoch {config.grace_epochs} on, one of {config.reduction_factor:g} trials continues"
    return facts | {
        "targets": f"of {config.fine_tune.bundle}" if config.fine_tune.bundle else ", ".join(config.targets),
        "epochs of a trial": str(config.optimizer.epochs),
        "early stopping": asha if config.stops_early else "none",
        "Monte Carlo passes": str(config.calibration.num_passes),
        "seed": str(config.seed),
    }

"""The figures of a study's page: Optuna's plots in the page's colours and sizes, and the scan of dropout rates.

Shape legend: R rates.
"""

import contextlib
import json
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial
from optuna.visualization import matplotlib as plots

from gampen_ray.reports.axes import Axis, axes, figure
from gampen_ray.reports.figures import number
from gampen_ray.reports.svg import ACCENT, GROUND, INK, MUTED, RULE, TRUTH, styled, to_svg
from gampen_ray.tuning.trials import empty_study

NAMES = {"val_loss": "Validation loss", "calibration_error": "Calibration error", "flops": "Operations per galaxy"}


def shortened(study: optuna.Study) -> optuna.Study:
    """Return a study whose parameters have short names, and categories as `category` shows them."""
    short = {name: _short(name) for trial in study.trials for name in trial.params}
    result = empty_study(len(study.directions))
    for trial in study.trials:
        params, distributions = {}, {}
        for name, distribution in trial.distributions.items():
            params[short[name]], distributions[short[name]] = trial.params[name], distribution
            if isinstance(distribution, CategoricalDistribution):
                params[short[name]] = _wrapped(trial.params[name])
                distributions[short[name]] = CategoricalDistribution([_wrapped(choice) for choice in distribution.choices])
        result.add_trial(
            optuna.trial.create_trial(
                state=trial.state, values=trial.values, params=params, distributions=distributions, user_attrs=trial.user_attrs
            )
        )
    return result


def _short(name: str) -> str:
    *sections, field = name.split(".")
    return field if sections[-1] in ("backbone", "optimizer") and field != "name" else f"{sections[-1]}.\n{field}"


def category(choice: Any) -> str:
    """Return a choice as text, a list as its items separated by spaces."""
    if isinstance(choice, str) and choice.startswith("["):
        return " ".join(str(item) for item in json.loads(choice))
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _wrapped(choice: Any) -> str:
    return textwrap.fill(category(choice), 16)


@styled
def history(key: str, study: optuna.Study, index: int, name: str) -> str:
    """Return an objective of each trial in order of start, and the lowest value so far."""
    with _optuna_plots():
        ax = plots.plot_optimization_history(study, target=_value(index), target_name=NAMES[name])
        trials = known(study)
        values = np.array([trial.values[index] for trial in trials])
        fig = _size(ax, 360, 250, left=_left(name))
        stopped = [trial.user_attrs["state"] == "stopped early" for trial in trials]
        fills = [GROUND if is_stopped else ACCENT for is_stopped in stopped]
        ax.collections[0].set(sizes=[34], facecolors=fills, edgecolors=[ACCENT], linewidths=[1.3], zorder=3)
        numbers = [trial.number for trial in trials]
        ax.plot(numbers, np.minimum.accumulate(values), color=TRUTH, linewidth=1.6, drawstyle="steps-post", zorder=2)
        Axis.of(np.array(numbers, dtype=np.float64), pad=0.04).on_x(ax, "Trial", integer=True)
        Axis.of(values, pad=0.08).on_y(ax, NAMES[name])
        return to_svg(fig, key, f"{NAMES[name]} of {len(trials)} trials; the lowest is {number(float(values.min()))}")


@styled
def importances(key: str, study: optuna.Study, index: int, name: str) -> str:
    """Return the importance of each field for the difference between the best and all trials (PED-ANOVA)."""
    with _optuna_plots():
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
        ax = plots.plot_param_importances(study, evaluator, target=_value(index), target_name=NAMES[name])
        bars: list[Any] = list(ax.patches)
        fig = _size(ax, 360, 60 + 26 * len(bars), left=140, right=44)
        for bar in bars:
            bar.set(color=ACCENT)
        for text in ax.texts:
            text.set(color=MUTED, fontsize=11, x=text.get_position()[0] + 0.006)
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, 1.02 * max(0.01, *(bar.get_width() for bar in bars)))
        ax.set_xlabel("Share of importance")
        ax.set_ylabel("")
        found = ", ".join(
            f"{tick.get_text()} {text.get_text().strip()}".replace("\n", "")
            for tick, text in zip(ax.get_yticklabels(), ax.texts, strict=True)
        )
        return to_svg(fig, key, f"Importance for {NAMES[name].lower()}, ascending: {found}")


@styled
def pareto(key: str, study: optuna.Study, pair: tuple[int, int], names: Sequence[str]) -> str:
    """Return two objectives of all trials against each other; those of the Pareto front of all objectives are highlighted."""
    with _optuna_plots():
        shown = [names[i] for i in pair]
        ax = plots.plot_pareto_front(
            study, targets=lambda trial: [trial.values[i] for i in pair], target_names=[NAMES[name] for name in shown]
        )
        fig = _size(ax, 360, 300, left=_left(shown[1]))
        for dots in ax.collections:
            color = TRUTH if dots.get_label() == "Best Trial" else ACCENT
            dots.set(sizes=[38], facecolors=[color], edgecolors=[GROUND], linewidths=[0.8], zorder=3)
        for i, name, axis in zip(pair, shown, (ax.xaxis, ax.yaxis), strict=True):
            values = np.array([trial.values[i] for trial in known(study)])
            _ticks(axis, Axis.of(values, log=name == "flops", pad=0.06))
        return to_svg(fig, key, f"{NAMES[shown[1]]} against {NAMES[shown[0]].lower()} of {len(known(study))} trials")


@styled
def parallel(key: str, study: optuna.Study, name: str) -> str:
    """Return each trial as a line through its values of all fields, stronger for a lower first objective."""
    with _optuna_plots():
        ax = plots.plot_parallel_coordinate(study, target=_value(0), target_name=NAMES[name])
        next(axis for axis in ax.figure.axes if axis.get_label() == "<colorbar>").remove()
        columns = [axis for axis in ax.figure.axes if axis is not ax]
        fig = _size(ax, parallel_width(len(columns)), 400, left=64, right=126, top=40, bottom=14)
        (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
        # Best last, above the others.
        segments = sorted(lines.get_segments(), key=lambda segment: -segment[0, 1])
        shade = np.linspace(0.15, 0.9, len(segments))[:-1]
        lines.set_array(None)
        colors = [*((*to_rgb(ACCENT), alpha) for alpha in shade), TRUTH]
        lines.set(segments=segments, colors=colors, linewidths=[*[1.2] * len(shade), 2.4])
        ax.spines[:].set_visible(False)
        ax.spines["left"].set(visible=True, color=MUTED)
        ax.grid(visible=False)
        ax.xaxis.tick_top()
        ax.tick_params(axis="x", labelrotation=0, labelcolor=INK, pad=12, length=0)
        _ticks(ax.yaxis, Axis(*ax.get_ylim()))
        for column in columns:
            column.set_position(ax.get_position())
            column.grid(visible=False)
            column.spines[:].set_visible(False)
            column.spines["right"].set(visible=True, color=MUTED)
            column.minorticks_off()
            if column.get_yscale() == "log":
                _ticks(column.yaxis, Axis(*np.log10(column.get_ylim()), log=True))
            elif not isinstance(column.yaxis.get_major_formatter(), FixedFormatter | FuncFormatter):
                _ticks(column.yaxis, Axis(*column.get_ylim()))
        return to_svg(fig, key, f"{len(segments)} trials as lines through their values of {len(columns)} fields")


@styled
def scan(
    key: str, name: str, rate_R: Sequence[float], lines: Mapping[str, Sequence[float]], label: str, shortlist: Sequence[float]
) -> str:
    """Return measures of a trained network against its dropout rate, with the shortlisted rates marked.

    Parameters
    ----------
    name
        What is measured, for the alternative text.
    lines
        Values (R) by legend text; several lines are deviations from zero, in percentage points.
    label
        Label of the vertical axis.
    """
    axis = Axis.of(np.asarray(rate_R), log=True, pad=0.04)
    values = np.concatenate([np.asarray(values_R) for values_R in lines.values()])
    fig = figure(360, 270)
    ax = axes(fig)
    for rate in shortlist:
        ax.axvline(float(axis.to(rate)), color=TRUTH, linewidth=1.4, zorder=1)
    if len(lines) > 1:
        ax.axhspan(-5, 5, color=ACCENT, alpha=0.1, linewidth=0, zorder=0)
        ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
        values = np.append(values, [-8, 8])
    for (text, values_R), style in zip(lines.items(), ("-", "--", ":"), strict=False):
        ax.plot(axis.to(rate_R), values_R, color=ACCENT, linestyle=style, linewidth=1.6, marker="o", markersize=3.5, label=text)
    axis.on_x(ax, "Dropout rate")
    Axis.of(values, pad=0.06).on_y(ax, label)
    if len(lines) > 1:
        ax.legend(loc="best", handlelength=2.6, borderaxespad=0.2)
    return to_svg(fig, key, f"{label} of {name} at {len(rate_R)} dropout rates from {rate_R[0]:g} to {rate_R[-1]:g}")


def parallel_width(num_fields: int) -> int:
    """Return the width of `parallel`, px."""
    return 130 * (num_fields + 1) + 60


def _left(name: str) -> int:
    """Return the left margin that the numbers of an objective need, px."""
    return 74 if name == "flops" else 58


def _value(index: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[index]


def known(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials, whose objectives are known."""
    return [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]


def _ticks(on: Any, axis: Axis) -> None:
    """Give an axis of one of Optuna's plots a range with round ticks; its scale is logarithmic if the range is."""
    limits, (positions, labels) = np.array([axis.low, axis.high]), axis.ticks()
    if axis.log:
        on._set_axes_scale("log")
        limits, positions = 10**limits, 10**positions
    on.set_view_interval(*limits, ignore=True)
    on.set_ticks(positions, labels)
    on.set_ticks([], minor=True)


def _size(ax: Axes, width: int, height: int, *, left: int = 58, right: int = 8, top: int = 10, bottom: int = 44) -> Figure:
    """Give one of Optuna's plots a size in px with margins, and the page's look in place of its own; return its figure."""
    fig = ax.figure
    assert isinstance(fig, Figure)
    fig.set_layout_engine("none")
    fig.set_size_inches(width / 72, height / 72)
    fig.set_facecolor("none")
    ax.set_position((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    for axis in fig.axes:
        axis.set_title("")
        axis.set_title("", loc="left")
        axis.set_facecolor("none")
        axis.spines[:].set_color(RULE)
        axis.tick_params(colors=RULE, labelcolor=MUTED, labelsize=11, length=0, pad=5)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(color=MUTED, fontsize=11)
        axis.xaxis.labelpad = axis.yaxis.labelpad = 6
        axis.grid(visible=True, color=RULE, linewidth=0.6)
        axis.set_axisbelow(True)
        if legend := axis.get_legend():
            legend.remove()
    ax.spines[["top", "right"]].set_visible(False)
    return fig


@contextlib.contextmanager
def _optuna_plots() -> Iterator[None]:
    """Draw without a display and without Optuna's warnings of experimental features, and close the figures."""
    backend, before = matplotlib.get_backend(), plt.get_fignums()
    plt.switch_backend("agg")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
            yield
    finally:
        for drawn in set(plt.get_fignums()) - set(before):
            plt.close(drawn)
        plt.switch_backend(backend)

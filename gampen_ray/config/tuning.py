"""The configs of `gampen-ray tune`, a training config and what is searched in it, and of `gampen-ray scan-dropout`."""

import dataclasses
from typing import Annotated, Any, Literal

import pydantic

from gampen_ray.config.base import Needs, config_class, default
from gampen_ray.config.parts import TrainResources, TuneResources
from gampen_ray.config.training import TrainConfig

Objective = Literal["val_loss", "calibration_error", "flops"]
DROPOUT_RATE = "network.backbone.dropout_rate"
_IfLossAlone = Needs("objectives", ("val_loss",))


def _dotted(table: Any, is_leaf: Any) -> Any:
    """Flatten nested tables to one with dotted names as keys; other values are left to pydantic."""
    if not isinstance(table, dict):
        return table
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and not is_leaf(value):
            flat |= {f"{key}.{name}": inner for name, inner in _dotted(value, is_leaf).items()}
        else:
            flat[key] = value
    return flat


def _conditions(table: Any) -> Any:
    return _dotted(table, is_leaf=lambda _: False)


def _ranges(table: Any) -> Any:
    # A section holds only tables, none of them the condition of a range.
    return _dotted(
        table, is_leaf=lambda value: not value or "when" in value or not all(isinstance(v, dict) for v in value.values())
    )


@config_class
class SearchRange:
    """Search range of one field: an interval or a list of choices."""

    low: float | None = None
    """Smallest value; whole for a field of whole numbers."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = pydantic.Field(default=None, gt=0)
    """Only low, low + step, low + 2 step, ...; left out: all values (or whole numbers) in the interval."""
    choices: tuple[Any, ...] = pydantic.Field(default=(), strict=False)
    """Instead of low and high: the values themselves (numbers, strings, booleans or lists)."""
    when: Annotated[dict[str, Any], pydantic.BeforeValidator(_conditions)] = dataclasses.field(default_factory=dict)
    """Condition of drawing this field: other fields, each with the value or the list of values that it must have in the trial.
    Otherwise the field keeps its value in the config."""

    def __post_init__(self) -> None:
        if self.choices:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise ValueError("choices and low, high, log or step are both given; give one kind")
            if len({repr(choice) for choice in self.choices}) < 2:
                raise ValueError(f"choices are {list(self.choices)}; give at least two different ones")
            return
        if self.low is None or self.high is None:
            raise ValueError("neither choices nor both of low and high are given; give one kind")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be less")
        if self.log and self.low <= 0:
            raise ValueError(f"log with low {self.low:g}, which has no logarithm; give low above 0, or log = false")
        if self.step is not None:
            if self.log:
                raise ValueError(f"step {self.step:g} with log; leave one out")
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > 1e-9 * steps:
                raise ValueError(f"high {self.high:g} is not low {self.low:g} plus whole steps of {self.step:g}; change one")


@config_class
class TuneConfig(TrainConfig):
    """Search for the best training config (Ray Tune, Optuna); all fields of `train` are the base of every trial."""

    output: str
    """Study folder: holds trials.parquet, best.toml (which `train` takes as it is), bundle/ of the best trial and tune.html. An
    unfinished study with the same config is resumed, and repeats no finished trial."""
    search: Annotated[dict[str, SearchRange], pydantic.BeforeValidator(_ranges)] = dataclasses.field(default_factory=dict)
    """Ranges by field of the sections images, network, fine_tune and optimizer, such as network.backbone.dropout_rate. Empty:
    dropout, size and optimiser of the network (those in jobs/configs/tune.toml)."""
    objectives: tuple[Objective, ...] = ("val_loss",)
    """Objectives to minimise. val_loss: negative log-likelihood of the validation split; calibration_error: mean
    |coverage - nominal| of its posteriors at three levels, before calibration; flops: operations per posterior of a galaxy.
    Several give a Pareto front, whose trial of lowest val_loss is the best."""
    num_trials: int = pydantic.Field(default=16, ge=1)
    """Maximum number of trials. The first has the config's own values, if the ranges include them."""
    hours: float = pydantic.Field(default=0.0, ge=0)
    """Time after which no new trial starts, hours; interruptions of the study do not count. 0: no limit."""
    grace_epochs: Annotated[int, _IfLossAlone] = pydantic.Field(default=2, ge=1)
    """Epochs before a trial may be stopped for a poor loss (ASHA; Li et al. 2020), if val_loss is the only objective; otherwise
    no trial is stopped."""
    reduction_factor: Annotated[float, _IfLossAlone] = pydantic.Field(default=4.0, gt=1)
    """One in this many trials continues at each decision of ASHA, for this many times as many epochs."""
    startup_trials: int = pydantic.Field(default=6, ge=1)
    """Random trials before results guide the search (TPE; Bergstra et al. 2011)."""
    resources: TuneResources = default(TuneResources)

    @property
    def varied(self) -> frozenset[str]:
        """Fields that differ from trial to trial."""
        return frozenset(self.search or default_search(self))

    @property
    def stops_early(self) -> bool:
        """Whether poor trials are stopped: only the loss is known after each epoch."""
        return self.objectives == ("val_loss",)

    def __post_init__(self) -> None:
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives are {list(self.objectives)}; give at least one, and each once")
        if self.stops_early and self.grace_epochs > self.optimizer.epochs:
            raise ValueError(
                f"grace_epochs is {self.grace_epochs}, more than optimizer.epochs, {self.optimizer.epochs}; lower it"
            )


@config_class
class ScanDropoutConfig:
    """Choose the dropout rate of a trained bundle by coverage: scan rates without training, then retrain with the best ones."""

    bundle: str
    """Model bundle (or the run folder that holds it) whose dropout is scanned: a folder or s3:// URI."""
    dataset: str
    """Dataset with the splits train and val: a folder or s3:// URI."""
    output: str
    """Study folder: holds scan.json, trials.parquet, best.toml (which `train` takes as it is), bundle/ of the best retrained
    network and tune.html. An unfinished study with the same config is resumed."""
    rates: tuple[Annotated[float, pydantic.Field(gt=0, lt=1)], ...] = ()
    """Scanned rates; empty: num_rates of them, evenly spaced in the logarithm from lowest_rate to highest_rate."""
    num_rates: Annotated[int, Needs("rates", ())] = pydantic.Field(default=12, ge=2)
    """Number of scanned rates."""
    lowest_rate: Annotated[float, Needs("rates", ())] = pydantic.Field(default=1e-4, gt=0, lt=1)
    """Lowest scanned rate."""
    highest_rate: Annotated[float, Needs("rates", ())] = pydantic.Field(default=0.3, gt=0, lt=1)
    """Highest scanned rate."""
    shortlist: int = pydantic.Field(default=2, ge=1)
    """Number of rates of lowest calibration error at which the network is retrained, otherwise as the bundle was trained."""
    mlflow: str = ""
    """MLflow tracking URI for the trainings (needs `pip install "gampen_ray[mlflow]"`); empty: TensorBoard alone."""
    resources: TrainResources = default(TrainResources)
    """Resources of each training; the scan uses one worker, in this process where trainings need no Ray."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Objectives that rank the retrained networks."""
        return ("calibration_error",)

    def __post_init__(self) -> None:
        if len(self.rates) == 1:
            raise ValueError(f"rates is {list(self.rates)}; give at least two, or none")
        if not self.lowest_rate < self.highest_rate:
            raise ValueError(f"lowest_rate is {self.lowest_rate:g} and highest_rate {self.highest_rate:g}; lower lowest_rate")
        if self.shortlist > (count := len(self.rates) or self.num_rates):
            raise ValueError(f"shortlist is {self.shortlist}, more than the {count} scanned rates; lower it")


def default_search(config: TuneConfig) -> dict[str, SearchRange]:
    """Return the default search: the network's size and dropout, and the optimiser.

    Fine-tuning, where the network is given, searches dropout and optimiser only. Dropout has one place in a network that is
    given numbers.
    """
    rate = SearchRange(low=1e-4, high=0.3, log=True)
    optimizer = {
        "optimizer.learning_rate": SearchRange(low=3e-4, high=1e-2, log=True),
        "optimizer.batch_size": SearchRange(choices=(32, 64, 128)),
        "optimizer.weight_decay": SearchRange(low=1e-6, high=1e-2, log=True),
        "optimizer.momentum": SearchRange(low=0.8, high=0.99, when={"optimizer.name": "sgd"}),
    }
    if config.fine_tune.bundle:
        decay = SearchRange(low=0.4, high=1.0)
        return {"fine_tune.dropout_rate": rate, "fine_tune.learning_rate_decay": decay, **optimizer}
    plans = (
        [24, 48, "M", 96],
        [24, 48, "M", 64, 64, "M", 128],
        [24, 48, "M", 64, 64, "M", 96, 96, "M", 128],
    )
    placement = {"network.backbone.dropout_placement": SearchRange(choices=("every_conv", "last_block", "classifier"))}
    return {
        DROPOUT_RATE: rate,
        **({} if config.images.measure or config.conditions else placement),
        "network.backbone.plan": SearchRange(choices=plans),
        "network.backbone.width": SearchRange(low=0.5, high=1.25, log=True),
        "network.backbone.block": SearchRange(choices=("plain", "residual")),
        **optimizer,
    }

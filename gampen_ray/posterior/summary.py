"""Summarise a mixture in one catalogue row per galaxy: the summary columns with units, descriptions and values.

Shape legend: N galaxies, D targets, L levels, Q quantile levels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gampen_ray.data.units import quantity_ucd, standard_unit
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mode_centred import mode_centred_interval

if TYPE_CHECKING:
    from gampen_ray.posterior.mixture import Mixture

LEVELS = {"68": 0.6827, "95": 0.9545, "997": 0.9973}
"""Probabilities of the equal-tailed credible intervals by the suffix of their columns."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of N posteriors that several summary columns share, computed once.

    Parameters
    ----------
    mixture
        The posteriors.
    trained
        Those under the prior of the training, where ``mixture`` has another; None: it has that of the training.
    """

    mixture: "Mixture"
    trained: "Mixture | None" = dataclasses.field(default=None, kw_only=True)

    @functools.cached_property
    def quantile_NQD(self) -> np.ndarray:
        """Medians and the ends of the intervals, in this order."""
        return self.mixture.quantile(np.append(0.5, interval_levels()))

    @functools.cached_property
    def mode_ND(self) -> np.ndarray:
        """Modes of the marginal densities."""
        return self.mixture.mode()

    @functools.cached_property
    def correlation_NDD(self) -> np.ndarray:
        """Correlations between targets."""
        return self.mixture.correlation()

    @functools.cached_property
    def part_2ND(self) -> np.ndarray:
        """Aleatoric and epistemic parts of the standard deviations; under another prior in the proportion of before.

        The components of its mixture are no passes.
        """
        own = self.mixture if self.trained is None else self.trained
        part_2ND = np.stack([own.aleatoric_std(), own.epistemic_std()])
        return part_2ND if self.trained is None else part_2ND * (self.mixture.std() / own.std())

    @functools.cached_property
    def centred_NL2D(self) -> np.ndarray:
        """Ends of the mode-centred intervals."""
        return mode_centred_interval(self.mixture, list(LEVELS.values()))


@dataclasses.dataclass(frozen=True)
class Column:
    """A catalogue column.

    Parameters
    ----------
    name
        Name.
    unit
        Unit in astropy's notation; empty: dimensionless.
    description
        Meaning.
    value
        Function of `Statistics` (for other than summary columns, of `gampen_ray.catalog.columns.Rows`) to the N values.
    type
        Arrow type.
    ucd
        What the values are in the words of the Virtual Observatory (IVOA, UCD1+); empty: unknown.
    """

    name: str
    unit: str
    description: str
    value: Callable[[Any], Any]
    type: pa.DataType = dataclasses.field(default_factory=pa.float64)
    ucd: str = ""

    @property
    def field(self) -> pa.Field:
        """Arrow field that carries unit, description and UCD as metadata."""
        metadata = {"unit": standard_unit(self.unit), "description": self.description, "ucd": self.ucd}
        return pa.field(self.name, self.type, metadata=metadata)

    @property
    def __wrapped__(self) -> Callable[[Any], Any]:
        """The column's code, for `gampen_ray.plugins`."""
        return self.value


def summary_columns(targets: TargetSchema, *, mode_centred: bool = False) -> list[Column]:
    """Return the summary columns in the order of the catalogue, on request with GaMPEN's mode-centred intervals."""
    columns = [column for d in range(len(targets)) for column in _target_columns(targets, d, mode_centred)]
    kinds = [quantity_ucd(target.unit) for target in targets]
    for i, j in itertools.combinations(range(len(targets)), 2):
        a, b = targets.names[i], targets.names[j]
        text, ucd = f"posterior correlation of {a} and {b}", f"stat.correlation;{kinds[i]};{kinds[j]}"
        columns.append(Column(f"corr_{a}_{b}", "", text, lambda s, i=i, j=j: s.correlation_NDD[:, i, j], ucd=ucd))
    return columns


def _target_columns(targets: TargetSchema, d: int, mode_centred: bool) -> Iterator[Column]:
    name, unit = targets.names[d], targets.targets[d].unit
    kind = quantity_ucd(unit)

    def column(suffix: str, description: str, value: Callable[[Statistics], Any], ucd: str, unit: str = unit) -> Column:
        return Column(f"{name}_{suffix}", unit, description, value, ucd=ucd)

    yield column("mean", f"posterior mean of {name}", lambda s: s.mixture.mean()[:, d], f"{kind};stat.mean")
    yield column("median", f"posterior median of {name}", lambda s: s.quantile_NQD[:, 0, d], f"{kind};stat.median")
    text = f"value of {name} at which its marginal posterior density is highest"
    yield column("mode", text, lambda s: s.mode_ND[:, d], f"{kind};stat.value")
    text = f"posterior standard deviation of {name}"
    yield column("std", text, lambda s: s.mixture.std()[:, d], f"stat.error;{kind}")
    text = f"posterior skewness of {name}"
    yield column("skew", text, lambda s: s.mixture.skew()[:, d], f"stat.skewness;{kind}", "")
    text = f"posterior excess kurtosis of {name}, 0 for a Gaussian"
    yield column("kurtosis", text, lambda s: s.mixture.kurtosis()[:, d], f"stat.kurtosis;{kind}", "")
    low, high = f"{kind};stat.interval;stat.min", f"{kind};stat.interval;stat.max"
    for i, (suffix, level) in enumerate(LEVELS.items()):
        text = f"end of the equal-tailed {100 * level:g} % credible interval of {name}"
        yield column(f"lo{suffix}", f"lower {text}", lambda s, i=i: s.quantile_NQD[:, 1 + 2 * i, d], low)
        yield column(f"hi{suffix}", f"upper {text}", lambda s, i=i: s.quantile_NQD[:, 2 + 2 * i, d], high)
    for i, (suffix, level) in enumerate(LEVELS.items() if mode_centred else ()):
        text = f"end of the {100 * level:g} % credible interval of {name} that is centred on the mode"
        yield column(f"mode_lo{suffix}", f"lower {text}", lambda s, i=i: s.centred_NL2D[:, i, 0, d], low)
        yield column(f"mode_hi{suffix}", f"upper {text}", lambda s, i=i: s.centred_NL2D[:, i, 1, d], high)
    text = f"aleatoric part of {name}_std: root mean variance of the dropout passes"
    yield column("std_aleatoric", text, lambda s: s.part_2ND[0, :, d], f"stat.error;{kind}")
    text = f"epistemic part of {name}_std: standard deviation of the passes' means"
    yield column("std_epistemic", text, lambda s: s.part_2ND[1, :, d], f"stat.error;{kind}")


def interval_levels() -> np.ndarray:
    """Return the lower and upper quantile levels of each of `LEVELS`: lo, hi, lo, hi, ..."""
    return np.array([0.5 * (1 + sign * level) for level in LEVELS.values() for sign in (-1, 1)])


def summarise(mixture: "Mixture", *, mode_centred: bool = False) -> dict[str, np.ndarray]:
    """Return the summary columns (float64, N) by name, in physical units and catalogue order; see `summary_columns`."""
    statistics = Statistics(mixture)
    return {column.name: column.value(statistics) for column in summary_columns(mixture.targets, mode_centred=mode_centred)}


def summary_table(mixture: "Mixture") -> pa.Table:
    """Return `summarise` as a table whose fields carry ``unit`` and ``description`` metadata."""
    return pa.table(summarise(mixture), pa.schema([column.field for column in summary_columns(mixture.targets)]))

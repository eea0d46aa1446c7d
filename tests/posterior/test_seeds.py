import dataclasses
import json

import numpy as np
import pytest
import torch

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.seeds import Difference, SeedAgreement, seed_agreement
from tests.posterior.posterior_cases import mixture


def agreement(*rows: tuple[str, float, float], num_passes: int = 32) -> SeedAgreement:
    differences = tuple(Difference(target="flux", figure=figure, median=m, largest=x) for figure, m, x in rows)  # type: ignore
    return SeedAgreement(num_galaxies=100, num_passes=num_passes, differences=differences)


def test_equal_posteriors_agree_exactly() -> None:
    m = mixture("logit", "log", "identity")
    found = seed_agreement(m, m)
    assert [(row.median, row.largest) for row in found.differences] == [(0, 0)] * 9
    assert (found.verdict, found.passes_needed, found.num_passes, found.num_galaxies) == ("holds", 32, 32, 20)


def test_differences_are_those_that_were_made() -> None:
    m = mixture("identity", num_galaxies=101)
    # The widths of galaxy i, from 0 to 100, grow by i / 1,000, and the means by i / 100 standard deviations.
    grown_N = 1 + np.arange(101) / 1000
    shift = torch.from_numpy(m.standardised_std()[:, 0] * np.arange(101) / 100)[:, None, None]
    parts = [m[i].scaled(np.array([factor])) for i, factor in enumerate(grown_N)]
    other = Mixture.concatenate(parts)
    other = Mixture(other.mean_NKD + shift, other.scale_tril_NKDD, m.targets)
    rows = {row.figure: row for row in seed_agreement(m, other).differences}
    for figure in ("std", "width_95"):
        assert rows[figure].median == pytest.approx(0.05 / 1.025, rel=1e-6)
        assert rows[figure].largest == pytest.approx(0.099 / 1.0495, rel=1e-6)
    assert rows["mean"].median == pytest.approx(0.5 / np.sqrt((1 + 1.05**2) / 2), rel=1e-6)
    assert rows["mean"].largest == pytest.approx(0.99 / np.sqrt((1 + 1.099**2) / 2), rel=0.01)


@pytest.mark.parametrize(
    ("row", "verdict", "passes"),
    [
        (("std", 0.029, 0.099), "holds", 32),
        (("std", 0.031, 0.05), "marginal", 64),
        (("width_95", 0.01, 0.19), "marginal", 128),
        (("width_95", 0.061, 0.1), "fails", 160),
        (("mean", 0.01, 0.051), "marginal", 64),
        (("mean", 0.01, 0.5), "fails", 3200),
    ],
)
def test_the_worst_figure_decides(row: tuple[str, float, float], verdict: str, passes: int) -> None:
    found = agreement(("std", 0.02, 0.08), row, ("mean", 0.001, 0.002))
    assert (found.verdict, found.passes_needed) == (verdict, passes)


def test_advice_names_passes_and_a_rate() -> None:
    a_few = agreement(("std", 0.07, 0.1))
    assert a_few.advice(0.1) == "192 passes, or a dropout rate below 0.1"
    assert a_few.advice(0.002) == "192 passes, or a dropout rate of at least 0.031"
    assert agreement(("std", 0.3, 0.3)).advice(0.002) == "a dropout rate of at least 0.031, or 3,200 passes"
    assert agreement(("std", 0.07, 0.1), num_passes=1).advice(0.01) == "6 passes, or a dropout rate below 0.01"
    assert (
        a_few.text() == "standard deviation of flux differs by 7 % for the median galaxy and by up to 10 % for 99 % of galaxies"
    )
    assert agreement(("mean", 0.1, 0.2)).text().startswith("mean of flux differs by 0.1 sigma for the median galaxy")


def test_plain_values_hold_all_that_is_shown() -> None:
    found = agreement(("std", 0.07, 0.1))
    values = json.loads(json.dumps(found.to_dict(0.1)))
    assert values["differences"] == [dataclasses.asdict(found.differences[0])]
    assert (values["verdict"], values["worst"], values["advice"]) == ("fails", found.text(), found.advice(0.1))


def test_other_galaxies_or_passes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        seed_agreement(mixture("log", num_passes=8), mixture("log", num_passes=16))
    with pytest.raises(ValueError, match="shapes"):
        seed_agreement(mixture("log")[:0], mixture("log")[:0])

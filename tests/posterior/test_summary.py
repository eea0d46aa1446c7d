import numpy as np
import pytest

from gampen_ray.posterior.summary import LEVELS, interval_levels, summarise, summary_columns
from tests.posterior.posterior_cases import components_1d, mixture

STATISTICS = ["mean", "median", "mode", "std", "skew", "kurtosis"]
STATISTICS += ["lo68", "hi68", "lo95", "hi95", "lo997", "hi997", "std_aleatoric", "std_epistemic"]


def test_columns_are_the_contract():
    m = mixture("logit", "log", "identity")
    a, b, c = m.targets.names
    expected = [f"{name}_{statistic}" for name in (a, b, c) for statistic in STATISTICS]
    expected += [f"corr_{a}_{b}", f"corr_{a}_{c}", f"corr_{b}_{c}"]
    assert list(summarise(m)) == expected
    assert [column.name for column in summary_columns(m.targets)] == expected


def test_values_are_those_of_the_mixture():
    m = mixture("logit", "log", "identity")
    columns = summarise(m)
    for d, name in enumerate(m.targets.names):
        assert np.array_equal(columns[f"{name}_median"], m.quantile(0.5)[:, d])
        assert np.array_equal(columns[f"{name}_mode"], m.mode()[:, d])
        assert np.array_equal(columns[f"{name}_std_aleatoric"], m.aleatoric_std()[:, d])
        for suffix, level in LEVELS.items():
            low, high = m.credible_interval(level)[:, :, d].T
            assert columns[f"{name}_lo{suffix}"] == pytest.approx(low, rel=1e-12)
            assert columns[f"{name}_hi{suffix}"] == pytest.approx(high, rel=1e-12)
    assert np.array_equal(columns["corr_logit_0_identity_2"], m.correlation()[:, 0, 2])


def test_levels_are_equal_tailed():
    low, high = interval_levels().reshape(-1, 2).T
    assert low + high == pytest.approx(1)
    assert high - low == pytest.approx(list(LEVELS.values()))


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_one_galaxy_gives_the_numbers_of_a_large_batch(spread):
    m = mixture("logit", "log", "identity", num_galaxies=300, spread=spread)
    batch = summarise(m)
    for i in (0, 7, 255, 256, 299):
        for name, value in summarise(m[i]).items():
            assert value[0] == pytest.approx(batch[name][i], rel=1e-9, abs=1e-12), name


def test_single_target_has_no_correlations():
    assert not any(name.startswith("corr") for name in summarise(components_1d("log", [0.1], [0.2])))


def test_table_carries_units_and_descriptions():
    table = mixture("log").to_table()
    metadata = table.schema.field("log_0_lo95").metadata
    assert metadata == {
        b"unit": b"arcsec",
        b"description": b"lower end of the equal-tailed 95.45 % credible interval of log_0",
        b"ucd": b"phys.angSize;stat.interval;stat.min",
    }
    assert table.schema.field("log_0_skew").metadata[b"unit"] == b""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from gampen_ray.catalog.parquet import catalog_table
from gampen_ray.data.gampen_labels import expit_custom, magnitude
from gampen_ray.gampen.summary_files import gampen_summary, join_summaries, write_draws
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.mode_centred import mode_centred_interval
from tests.posterior.posterior_cases import mixture

NAMES = ("bulge_to_total", "effective_radius_arcsec", "flux")


def posterior(num_galaxies: int = 12, num_passes: int = 70, **target: float) -> Mixture:
    made = mixture("logit", "log", "log", num_galaxies=num_galaxies, num_passes=num_passes)
    renamed = [dataclasses.replace(t, name=name) for t, name in zip(made.targets, NAMES, strict=True)]
    renamed[0] = dataclasses.replace(renamed[0], **target)
    return Mixture(made.mean_NKD, made.scale_tril_NKDD, TargetSchema(tuple(renamed)))


def objects(count: int) -> pa.Table:
    return pa.table({"object_id": np.arange(count) + 2**60, "ra": np.linspace(0, 9, count), "dec": np.full(count, -1.0)})


def test_the_summary_has_the_columns_of_the_result_aggregator() -> None:
    summary = gampen_summary(objects(12), posterior(), zero_point_mag=30.0)
    statistics = ("mean", "median", "std", "skew", "kurtosis", "mode", "sig_ci", "twosig_ci", "threesig_ci")
    quantities = ("bt", "R_e_asec", "total_flux_adus", "total_mag")
    assert list(summary) == ["object_id", "ra", "dec", *(f"preds_{q}_{s}" for q in quantities for s in statistics)]
    assert summary["object_id"].tolist() == [2**60 + i for i in range(12)]


def test_an_id_is_no_formula_in_a_spreadsheet() -> None:
    harmless = ["J0123-0456", "-12.5", "+3e5", "a=b", "", "'x"]
    ids = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "-", *harmless]
    named = objects(12).set_column(0, "object_id", pa.array(ids))
    written = gampen_summary(named, posterior(), zero_point_mag=None)["object_id"].tolist()
    assert written == [f"'{i}" for i in ids[:6]] + harmless


def test_the_summary_is_that_of_the_mixture() -> None:
    made = posterior(low=0.2, high=0.8)
    summary = gampen_summary(objects(12), made, zero_point_mag=None)
    assert summary["preds_R_e_asec_mode"].to_numpy() == pytest.approx(made.mode()[:, 1], rel=1e-12)
    assert summary["preds_bt_std"].to_numpy() == pytest.approx(made.std()[:, 0], rel=1e-12)
    ends = np.array([eval(text) for text in summary["preds_bt_twosig_ci"]])
    assert ends == pytest.approx(mode_centred_interval(made, [0.9545])[:, 0, :, 0], rel=1e-12)
    assert not [name for name in summary if "mag" in name]


@pytest.mark.parametrize("gampen", [False, True])
def test_the_magnitude_is_that_of_the_flux(gampen: bool) -> None:
    made = posterior()
    summary = gampen_summary(objects(12), made, zero_point_mag=30.0, gampen_magnitudes=gampen)
    median = magnitude(made.quantile(0.5)[:, 2], 30.0, gampen=gampen)
    assert summary["preds_total_mag_median"].to_numpy() == pytest.approx(median, rel=1e-9)
    draws = magnitude(made.sample(100_000, seed=0)[:, :, 2], 30.0, gampen=gampen)
    assert summary["preds_total_mag_mean"].to_numpy() == pytest.approx(draws.mean(1), abs=0.02)
    assert summary["preds_total_mag_std"].to_numpy() == pytest.approx(draws.std(1), rel=0.02)
    assert summary["preds_total_mag_skew"].to_numpy() == pytest.approx(-_skew_of_log_flux(made), abs=1e-9)


def _skew_of_log_flux(made: Mixture) -> np.ndarray:
    mean, var = made.mean_NKD[:, :, 2].numpy(), made.scale_tril_NKDD[:, :, 2].square().sum(-1).numpy()
    offset = mean - mean.mean(1, keepdims=True)
    std = np.sqrt((offset**2 + var).mean(1))
    return (offset**3 + 3 * offset * var).mean(1) / std**3


def test_values_that_stand_for_zero_and_one_become_zero_and_one_only_if_these_were_in_the_training_data() -> None:
    limits = {"clip_low": 0.2, "clip_high": 0.8}
    plain = gampen_summary(objects(40), posterior(40, **limits, low=0.2, high=0.8), zero_point_mag=None)
    snapped = gampen_summary(objects(40), posterior(40, **limits, low=0.0, high=1.0), zero_point_mag=None)
    median = plain["preds_bt_median"].to_numpy()
    # Limits half-way between 0 and 0.4, and between 0.6 and 1.
    expected = expit_custom(np.log(median / (1 - median)), np.array([0.0, 0.6, 0.4, 1.0]))
    assert {0.0, 1.0} < set(expected)
    assert snapped["preds_bt_median"].to_numpy() == pytest.approx(expected, rel=1e-12)
    assert np.array_equal(snapped["preds_bt_mean"], plain["preds_bt_mean"])
    assert np.array_equal(snapped["preds_R_e_asec_mode"], plain["preds_R_e_asec_mode"])


def test_each_file_holds_one_draw_of_its_pass(tmp_path: Path) -> None:
    made = posterior(num_galaxies=4000, num_passes=3)
    apart_K1 = 3.0 * torch.arange(-1, 2)[:, None]
    made = Mixture(0.1 * made.mean_NKD + apart_K1, made.scale_tril_NKDD, made.targets)
    table = catalog_table(objects(4000), made, np.ones(4000), np.zeros(4000), store_mixture=True)
    parts = [table.slice(0, 1500), table.slice(1500)]
    write_draws(lambda: iter(parts), made.targets, str(tmp_path), 3, seed=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inf_1.csv", "inf_2.csv", "inf_3.csv"]
    files = [pd.read_csv(tmp_path / f"inf_{k}.csv") for k in (1, 2, 3)]
    labels = ["preds_custom_logit_bt", "preds_ln_R_e_asec", "preds_ln_total_flux_adus"]
    for k, frame in enumerate(files):
        assert list(frame) == ["object_id", "ra", "dec", *labels]
        assert frame["object_id"].tolist() == table["object_id"].to_pylist()
        for d, (label, target) in enumerate(zip(labels, made.targets, strict=True)):
            mean, tril = made.mean_NKD[:, k, d].numpy(), made.scale_tril_NKDD[:, k, d].numpy()
            z = (frame[label].to_numpy() - target.location) / target.scale
            whitened = (z - mean) / np.linalg.norm(tril, axis=-1)
            assert (whitened.mean(), whitened.std()) == pytest.approx((0.0, 1.0), abs=0.06)
    again = tmp_path / "again"
    write_draws(lambda: iter([table]), made.targets, str(again), 3, seed=5)
    assert (again / "inf_2.csv").read_bytes() == (tmp_path / "inf_2.csv").read_bytes()


def test_more_passes_than_files_open_at_once_are_written(tmp_path: Path) -> None:
    made = posterior(num_galaxies=2, num_passes=70)
    table = catalog_table(objects(2), made, np.ones(2), np.zeros(2), store_mixture=True)
    write_draws(lambda: iter([table]), made.targets, str(tmp_path), 70, seed=0)
    assert len(list(tmp_path.glob("inf_*.csv"))) == 70
    assert pd.read_csv(tmp_path / "inf_70.csv").shape == (2, 6)


def test_parts_of_a_summary_join_under_one_header(tmp_path: Path) -> None:
    for name, text in (("a", "x,y\n1,2\n"), ("b", "x,y\n"), ("c", 'x,y\n3,"(4, 5)"\n')):
        (tmp_path / name).write_text(text)
    join_summaries([str(tmp_path / name) for name in "abc"], str(tmp_path / "all.csv"))
    assert (tmp_path / "all.csv").read_text() == 'x,y\n1,2\n3,"(4, 5)"\n'

"""Targets of a catalogue: GaMPEN's labels, and values that a target cannot have."""

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table

from gampen_ray.config import ReaderConfig, TargetConfig
from gampen_ray.data.ingest_plan import plan
from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema
from tests.data.test_ingest_plan import _catalog, _config, _ingested


def test_labels_of_gampen_become_physical_targets(tmp_path: Path) -> None:
    bt = [0.0, 0.004, 0.3, 1.0, 0.9, 0.5]
    # 0 and 1 lie half-way to their neighbours before the logit.
    logits = [float(np.log(y / (1 - y))) for y in (0.002, 0.004, 0.3, 0.95, 0.9, 0.5)]
    rows = [
        f"{i},f{i}.fits,{b!r},{logit!r},{0.1 * i!r},{8.0 + i!r}" for i, (b, logit) in enumerate(zip(bt, logits, strict=True))
    ]
    catalog = _catalog(tmp_path, "object_id,file_name,bt,custom_logit_bt,ln_R_e_asec,ln_total_flux_adus", rows)
    targets = ("custom_logit_bt", "ln_R_e_asec", "ln_total_flux_adus")
    config = _config(tmp_path, catalog=catalog, targets=targets, reader=ReaderConfig(zero_point_mag=27.0))
    _, info = plan(config)
    units = {"bulge_to_total": "", "effective_radius_arcsec": "arcsec", "flux": "adu"}
    assert info.target_units == units
    _, good, _ = _ingested(config)
    ordered = [good[i] for i in range(6)]
    assert [row["bulge_to_total"] for row in ordered] == pytest.approx(bt, abs=1e-15)
    assert [row["effective_radius_arcsec"] for row in ordered] == pytest.approx(np.exp(0.1 * np.arange(6)), rel=1e-15)
    assert [row["flux"] for row in ordered] == pytest.approx(np.exp(8.0 + np.arange(6)), rel=1e-15)
    assert [row["magnitude"] for row in ordered] == pytest.approx(27 - 2.5 / np.log(10) * (8.0 + np.arange(6)), rel=1e-12)
    # Training standardises the same labels as GaMPEN.
    values = np.array([[row["bulge_to_total"], row["flux"]] for row in ordered])
    configs = {"bulge_to_total": TargetConfig(transform="logit", clip=0), "flux": TargetConfig(transform="log")}
    z = TargetSchema.fit(configs, values, {}).standardise(values)
    assert z[:, 0] == pytest.approx((logits - np.mean(logits)) / np.std(logits), rel=1e-12)
    assert z[:, 1] == pytest.approx((np.arange(6) - 2.5) / np.std(np.arange(6)), rel=1e-9)


def test_a_label_and_the_column_it_stands_for_are_not_both_taken(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, "object_id,file_name,flux,ln_total_flux_adus", ["0,0.fits,1.0,0.0"])
    with pytest.raises(UserError, match="targets: ln_total_flux_adus encodes flux, which is also a column"):
        plan(_config(tmp_path, catalog=catalog, targets=("ln_total_flux_adus",)))


def test_targets_out_of_their_domain_are_quarantined_by_row(tmp_path: Path) -> None:
    rows = [
        "a,f0.fits,0.3,1.5,20.5",
        "b,f1.fits,-999,1.5,20.5",
        "c,f2.fits,1.2,1.5,21.25",
        "d,f3.fits,0.3,0,20",
        "e,f4.fits,0.5,2.5,99",
    ]
    catalog = _catalog(tmp_path, "object_id,file_name,bulge_to_total,effective_radius_arcsec,magnitude", rows)
    targets = ("bulge_to_total", "effective_radius_arcsec", "magnitude")
    _, good, bad = _ingested(_config(tmp_path, catalog=catalog, targets=targets))
    assert list(good) == ["a"]
    assert sorted(bad) == [
        ("b", "target bulge_to_total is -999, which stands for no value"),
        ("c", "target bulge_to_total is 1.2: not within 0 to 1"),
        ("d", "target effective_radius_arcsec is 0: not positive"),
        ("e", "target magnitude is 99: not within -50 to 50"),
    ]


def test_a_magnitude_follows_the_unit_of_the_fluxes_not_that_of_the_pixels(tmp_path: Path) -> None:
    _catalog(tmp_path, "object_id,file_name,flux", [])
    table = Table({"object_id": [0, 1], "file_name": ["f0.fits", "f1.fits"], "flux": [1000.0, 1.0] * u.uJy})
    table.write(tmp_path / "in_uJy.ecsv")
    reader = ReaderConfig(zero_point_mag=30.0)
    config = _config(tmp_path, catalog=str(tmp_path / "in_uJy.ecsv"), targets=("flux",), reader=reader)
    assert plan(config)[1].target_units == {"flux": "uJy"}
    assert [row["magnitude"] for row in _ingested(config)[1].values()] == pytest.approx([16.4, 23.9], abs=1e-3)

"""A GaMPEN user comes with a trained network and a data folder: import, predict, and the files GaMPEN would have written."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits

from gampen_ray import cli
from gampen_ray.catalog.parquet import catalog_parts
from gampen_ray.config import gampen_vgg16
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.model.network import Network
from tests.gampen.test_weights import DROPOUT

LABELS = "custom_logit_bt,ln_R_e_asec,ln_total_flux_adus"
SIZE = 143


def state_dict() -> bytes:
    """Return a VGG-16 of random weights for 143-pixel cutouts, as GaMPEN saves it."""
    torch.manual_seed(0)
    network = Network(gampen_vgg16(), channels=3, size=SIZE, num_targets=3)
    layers = ["localization.0", "localization.3", "fc_loc.0", "fc_loc.2"]
    layers += [f"vgg.features.{i}" for i in DROPOUT] + [f"vgg.classifier.{i}" for i in (0, 3, 6)]
    names = (f"module.{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
    buffer = io.BytesIO()
    torch.save(dict(zip(names, network.state_dict().values(), strict=True)), buffer)
    return buffer.getvalue()


def data_folder(root: Path) -> None:
    """Write a GaMPEN data folder of two usable cutouts of 150 pixels and a broken one."""
    rng = np.random.default_rng(0)
    (root / "cutouts").mkdir(parents=True)
    y, x = np.mgrid[:150, :150] - 74.5
    for name, width in (("a", 5.0), ("b", 12.0)):
        image = 50 * np.exp(-(x**2 + y**2) / 2 / width**2) + rng.normal(0, 1, (150, 150))
        fits.PrimaryHDU(image.astype(np.float32)).writeto(root / "cutouts" / f"{name}.fits")
    (root / "cutouts" / "c.fits").write_bytes(b"SIMPLE  = broken")
    bt = np.array([0.0, 0.3, 1.0])
    logits = np.log(np.array([0.15, 0.3, 0.65]) / (1 - np.array([0.15, 0.3, 0.65])))
    table = {"object_id": [11, 12, 13], "file_name": ["a.fits", "b.fits", "c.fits"], "bt": bt, "custom_logit_bt": logits}
    table |= {"ln_R_e_asec": [0.0, 0.5, 1.0], "ln_total_flux_adus": [8.0, 9.0, 10.0]}
    pd.DataFrame(table).to_csv(root / "info.csv", index=False)


@pytest.mark.slow
def test_an_imported_network_predicts_fits_cutouts_with_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_folder(tmp_path / "data")
    (tmp_path / "m.pt").write_bytes(state_dict())
    bundle, output = str(tmp_path / "bundle"), tmp_path / "catalog"
    scaling = ["--scaling", str(tmp_path / "data" / "info.csv"), "--targets", LABELS]
    command = ["import-gampen", str(tmp_path / "m.pt"), *scaling, "--dropout-rate", "2e-4", "--output", bundle]
    assert cli.main([*command, "--cutout-size", "96"]) == 2
    assert "fc_loc.0.weight has shape (32, 75264)" in capsys.readouterr().err
    assert cli.main([*command, "--cutout-size", str(SIZE)]) == 0
    assert cli.main([*command, "--cutout-size", str(SIZE)]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().err
    # The other passes differ as little as the dropout rate is small; four keep the test short.
    wanted = [
        "infer",
        "--resources.engine",
        "local",
        "--bundle",
        bundle,
        "--dataset",
        str(tmp_path / "data"),
        "--output",
        str(output),
    ]
    assert cli.main([*wanted, "--catalog-format", "gampen", "--num-passes", "4"]) == 0

    (catalog,) = catalog_parts(str(output))
    assert catalog["object_id"].to_pylist() == [11, 12]
    quarantine = pq.read_table(output / "quarantine")
    assert quarantine["object_id"].to_pylist() == ["13"]
    images = np.stack([fits.getdata(tmp_path / "data" / "cutouts" / f"{name}.fits") for name in "ab"])[:, None]
    expected = load_bundle(bundle).predict(images, num_passes=4)
    for d, name in enumerate(("bulge_to_total", "effective_radius_arcsec", "flux")):
        assert catalog[f"{name}_median"].to_numpy() == pytest.approx(expected.quantile(0.5)[:, d], rel=1e-4)

    files = sorted(path.name for path in (output / "gampen").iterdir())
    assert files == ["inf_1.csv", "inf_2.csv", "inf_3.csv", "inf_4.csv", "summary.csv"]
    draws = pd.read_csv(output / "gampen" / "inf_4.csv")
    assert list(draws) == ["object_id", "ra", "dec", *(f"preds_{label}" for label in LABELS.split(","))]
    summary = pd.read_csv(output / "gampen" / "summary.csv")
    assert summary["object_id"].tolist() == [11, 12]
    assert summary["preds_R_e_asec_mean"].to_numpy() == pytest.approx(expected.mean()[:, 1], rel=1e-4)
    assert not [name for name in summary if "mag" in name], "without a zero point there are no magnitudes"

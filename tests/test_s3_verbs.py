"""Every verb with all that it reads and writes on a real S3 server, through the command line."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits

from gampen_ray import cli, storage
from gampen_ray.catalog.parquet import catalog_parts
from gampen_ray.config.base import to_toml
from gampen_ray.data import shards, validation
from gampen_ray.inference.bundle import load_bundle
from tests.networks import SIZE, bundle, galaxies, train_config

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

COUNT = 80


def _bytes(hdu: fits.PrimaryHDU) -> bytes:
    buffer = io.BytesIO()
    hdu.writeto(buffer)
    return buffer.getvalue()


def _gampen_folder(uri: str) -> dict[str, np.ndarray]:
    """Write a GaMPEN data folder of `galaxies` and return them."""
    columns = galaxies(COUNT)
    for object_id, image_CHW in zip(columns["object_id"], columns["image"], strict=True):
        storage.write_bytes_atomic(storage.join(uri, "cutouts", f"{object_id}.fits"), _bytes(fits.PrimaryHDU(image_CHW[0])))
    table = {name: values for name, values in columns.items() if name != "image"}
    table["file_name"] = [f"{object_id}.fits" for object_id in columns["object_id"]]
    storage.write_bytes_atomic(storage.join(uri, "info.csv"), pd.DataFrame(table).to_csv(index=False).encode())
    return columns


def _run(verb: str, *arguments: str, **flags: object) -> None:
    assert cli.main([verb, *arguments, *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]) == 0


def test_from_cutouts_to_a_report(s3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("hsc", "data", "run", "catalog", "evaluation", "report.html", "crops", "train.toml")
    hsc, data, run, catalog, evaluation, page, crops, toml = (storage.join(s3_folder, name) for name in names)
    columns = _gampen_folder(hsc)
    _run("split", images=hsc, scheme="stratified", target="concentration", num_strata=4)
    ingested = {"images": hsc, "split_slug": "stratified-dev", "targets": "flux,concentration", "output": data}
    _run("ingest", **ingested, cutout_size=SIZE, **{"reader.bands": "r"})
    assert validation.validate_dataset(data) == []
    assert shards.read_dataset_info(data).num_rows == {"train": 56, "val": 12, "test": 12}

    config = train_config(data, run, epochs=1, batch_size=16)
    storage.write_bytes_atomic(toml, to_toml(config).encode())
    # A second worker would only take its time to start.
    _run("train", toml, **{"resources.num_workers": 1})
    _run("infer", bundle=run, dataset=data, split="test", output=catalog, num_passes=4, posterior="mixture")
    found = pd.concat([part.to_pandas() for part in catalog_parts(catalog)]).sort_values("object_id")
    rows = found["object_id"].to_numpy().astype(int)
    assert len(rows) == 12
    expected = load_bundle(run).predict(columns["image"][rows], num_passes=4)
    assert found["flux_median"].to_numpy(float) == pytest.approx(expected.quantile(0.5)[:, 0], rel=1e-4)

    _run("evaluate", catalog=catalog, output=evaluation)
    _run("report", evaluation=evaluation, output=page, num_examples=2, num_angles=0)
    assert storage.read_bytes(page).startswith(b"<!doctype html>")
    _run("describe", run)
    assert run in capsys.readouterr().out
    _run("crop", bundle=run, images=hsc, output=crops)
    assert len(storage.list_files(crops, ".fits")) == COUNT
    capsys.readouterr()
    for verb, fields in (("infer", {"dataset": data, "split": "test", "num_passes": 4, "posterior": "mixture"}), ("crop", {})):
        output = {"infer": catalog, "crop": crops}[verb]
        _run(verb, bundle=run, output=output, **({"images": hsc} if verb == "crop" else fields))
        line, *more = capsys.readouterr().err.splitlines()
        assert line.endswith(f" {output} is complete; nothing to do")
        assert all(" next: gampen-ray " in other for other in more)


def test_simulate_and_predict_a_folder_of_fits_files(s3_folder: str) -> None:
    data, files = storage.join(s3_folder, "data"), storage.join(s3_folder, "files")
    _run("simulate", output=data, num_galaxies=20, cutout_size=16, galaxies_per_shard=10)
    assert validation.validate_dataset(data) == []
    bundle().save(storage.join(s3_folder, "model"))
    for i, image_CHW in enumerate(galaxies(3)["image"]):
        storage.write_bytes_atomic(storage.join(files, f"g{i}.fits"), _bytes(fits.PrimaryHDU(image_CHW[0])))
    output = storage.join(s3_folder, "catalog")
    _run("infer", bundle=storage.join(s3_folder, "model"), dataset=files, output=output, num_passes=2)
    assert pd.concat([part.to_pandas() for part in catalog_parts(output)])["object_id"].tolist() == ["g0", "g1", "g2"]


def test_import_gampen_reads_model_and_table(s3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, table = storage.join(s3_folder, "m.pt"), storage.join(s3_folder, "train.csv")
    buffer = io.BytesIO()
    torch.save({"module.localization.0.weight": torch.zeros(64, 3, 11, 11)}, buffer)
    storage.write_bytes_atomic(model, buffer.getvalue())
    labels = {"custom_logit_bt": [-1.0, 0.0], "ln_R_e_asec": [0.1, 0.2], "ln_total_flux_adus": [7.0, 8.0]}
    storage.write_bytes_atomic(table, pd.DataFrame(labels).to_csv(index=False).encode())
    command = ["import-gampen", model, "--scaling", table, "--preset", "g_0_025", "--output", storage.join(s3_folder, "bundle")]
    assert cli.main(command) == 2
    assert "error: model: fc_loc.2.bias is missing" in capsys.readouterr().err

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits

from gampen_ray.catalog.completeness import catalog_contents, id_sum
from gampen_ray.catalog.prediction import PredictedUnit, UnitPredictor, write_unit
from gampen_ray.config import CatalogConfig, CutoutsConfig, ImagesConfig, ReaderConfig
from gampen_ray.data import ingest_plan, packing, shards
from gampen_ray.data.sources import Source, Unit, open_source
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.flags import Flag, FlagCounts
from gampen_ray.inference.predictor import Predictor
from gampen_ray.inference.ranges import Ranges
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from tests.networks import NETWORK, SIZE, bundle, dataset, galaxies

PASSES = 2


def predicted(mean_ND: np.ndarray, sigma_N: np.ndarray, **columns: object) -> PredictedUnit:
    """A unit whose galaxies have these means and standard deviations in standardised space."""
    count = len(mean_ND)
    mean_NKD = np.repeat(mean_ND[:, None], PASSES, axis=1).astype(np.float32)
    tril_NKDD = np.broadcast_to(sigma_N[:, None, None, None] * np.eye(2), (count, PASSES, 2, 2)).astype(np.float32)
    tensors = {"mean": mean_NKD, "scale_tril": np.ascontiguousarray(tril_NKDD)}
    rows = {
        "object_id": np.arange(count),
        "source": np.full(count, "shard"),
        "reason": np.full(count, ""),
        "flags": np.zeros(count, np.int64),
        "crop_scale": np.ones(count),
        "centre_offset": np.zeros(count),
        **columns,
        **{name: pa.FixedShapeTensorArray.from_numpy_ndarray(values) for name, values in tensors.items()},
    }
    return PredictedUnit(name="part-0.parquet", rows=pa.table(rows), bytes_read=0, seconds=1.0, device_seconds=0.5)


def write(unit: PredictedUnit, output: Path, **options: object) -> pa.Table:
    settings = {"targets": bundle().targets, "store_mixture": True, "mode_centred": True} | options
    receipt = write_unit(unit, output=str(output), **settings)
    assert receipt.num_rows == len(unit.rows)
    table = pq.read_table(output / "catalog" / unit.name)
    assert receipt.num_quarantined == len(unit.rows) - len(table)
    assert catalog_contents(str(output)) == (
        {"num_galaxies": len(table), "num_quarantined": receipt.num_quarantined},
        receipt.id_sum,
        0,
        "",
        FlagCounts.of(table["flags"].to_numpy()),
    )
    return table


def test_a_summary_that_is_not_finite_goes_to_quarantine(tmp_path: Path) -> None:
    # exp(z): the mean of a log-normal overflows before its median does.
    mean_ND = np.array([[0, 0], [0, 0], [1e4, 0], [0, 0.5]])
    table = write(predicted(mean_ND, np.array([0.1, 500.0, 0.1, 0.1])), tmp_path)
    assert table["object_id"].to_pylist() == [0, 3]
    for name in table.column_names:
        values = table[name].combine_chunks()
        values = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
        assert values.null_count == (len(values) if name in ("ra", "dec") else 0)
        assert np.isfinite(values.drop_null().to_numpy()).all(), name
    quarantine = pq.read_table(tmp_path / "quarantine").to_pylist()
    assert [row["object_id"] for row in quarantine] == ["1", "2"]
    assert {row["reason"] for row in quarantine} == {"the posterior summary flux_mean is not finite"}


def test_refused_rows_of_a_unit_go_to_quarantine_and_leave_the_others_as_they_are(tmp_path: Path) -> None:
    model, data = bundle(), dataset(str(tmp_path / "data"), {shards.ALL: 20})
    source, (unit,) = open_source(data, split="", bands=("r",), size=SIZE)
    predict = Predictor(model, num_passes=PASSES, seed=0, device="cpu")
    predict.batch_size = 8
    whole = write(UnitPredictor(predict, source)(unit), tmp_path / "whole")
    for rows in ([3, 9, 19], range(20)):
        refusing = dataclasses.replace(unit, refused=dict.fromkeys(rows, "it kills"))
        table = write(UnitPredictor(predict, source)(refusing), tmp_path / str(len(rows)))
        left = whole.filter(pa.array([row not in rows for row in range(20)]))
        assert table.schema.equals(left.schema)
        assert table["object_id"].to_pylist() == left["object_id"].to_pylist()
        for name in left.column_names[3:]:
            np.testing.assert_allclose(np.array(table[name].to_pylist()), np.array(left[name].to_pylist()), rtol=1e-12)
        quarantine = pq.read_table(tmp_path / str(len(rows)) / "quarantine").to_pylist()
        assert {row["reason"] for row in quarantine} == {"it kills"}
        assert [row["object_id"] for row in quarantine] == [str(row) for row in rows]


def test_rows_with_a_reason_are_not_predicted_and_keep_it(tmp_path: Path) -> None:
    reasons, ids = np.array(["", "bad pixels", ""]), np.array(["a", "b", "c"])
    table = write(predicted(np.zeros((3, 2)), np.full(3, 0.1), reason=reasons, object_id=ids), tmp_path)
    assert table["object_id"].to_pylist() == ["a", "c"]
    assert pq.read_table(tmp_path / "quarantine").to_pylist() == [{"object_id": "b", "source": "shard", "reason": "bad pixels"}]


def test_an_infinite_position_is_unknown(tmp_path: Path) -> None:
    columns = {"ra": np.array([1.0, np.inf]), "dec": np.array([np.nan, 2.0])}
    table = write(predicted(np.zeros((2, 2)), np.full(2, 0.1), **columns), tmp_path)
    assert (table["ra"].to_pylist(), table["dec"].to_pylist()) == ([1.0, None], [None, 2.0])


def test_nothing_is_written_without_an_output() -> None:
    receipt = write_unit(
        predicted(np.zeros((3, 2)), np.full(3, 0.1)),
        output=None,
        targets=bundle().targets,
        store_mixture=False,
        mode_centred=False,
    )
    assert (receipt.num_rows, receipt.device_seconds) == (3, 0.5)
    assert receipt.bytes_written > 0


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_a_unit_is_predicted_whole_or_not_at_all_when_time_is_over(tmp_path: Path, seconds: float | None) -> None:
    model = bundle()
    data = dataset(str(tmp_path / "data"), {"all": 70})
    source, units = open_source(data, split="", bands=("r",), size=SIZE)
    counted = []
    predict = Predictor(model, num_passes=2, seed=0, device="cpu", batch_size=32)
    work = UnitPredictor(predict, source, seconds=seconds, count=lambda **amounts: counted.append(amounts["galaxies"]))
    unit = work(units[0])
    assert (unit.rows is None) == (seconds == 0.0)
    assert counted == ([] if seconds == 0.0 else [32, 32, 6])
    assert (unit.bytes_read > 0) == (seconds is None)


@pytest.mark.parametrize("as_shards", [False, True])
def test_a_saturated_or_masked_core_is_flagged(as_shards: bool, tmp_path: Path) -> None:
    columns = galaxies(40, seed=3)
    images = columns["image"][np.argsort(-columns["concentration"])[:4], 0]
    images[1] = np.minimum(images[1], 0.5 * images[1].max())
    images[2, 12, 9] = np.nan
    images[3, 1, 1] = np.nan
    unit, source = _unit(tmp_path, list(images), as_shards, nan_policy="interpolate")
    rows = UnitPredictor(Predictor(bundle(), num_passes=2, seed=0, device="cpu"), source)(unit).rows
    assert rows is not None
    flags = rows["flags"].to_numpy()
    assert (flags & Flag.CORE_SATURATED != 0).tolist() == [False, True, True, False]
    assert (flags & Flag.PIXELS_FILLED != 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("as_shards", [False, True])
def test_small_files_are_predicted_without_the_zeros_around_them(as_shards: bool, tmp_path: Path) -> None:
    model, sides = measured_bundle(), [SIZE, SIZE - 4, SIZE, SIZE - 5, SIZE - 4]
    pixels = galaxies(len(sides), seed=3)["image"][:, 0]
    images = [image[:side, :side].copy() for image, side in zip(pixels, sides, strict=True)]
    unit, source = _unit(tmp_path, images, as_shards)
    predict = Predictor(model, num_passes=2, seed=0, device="cpu")
    rows = UnitPredictor(predict, source)(unit).rows
    assert rows is not None
    assert list(map(int, rows["object_id"].to_pylist())) == list(range(5))
    padded = (rows["flags"].to_numpy() & Flag.INPUT_PADDED.value) > 0
    assert padded.tolist() == [side < SIZE for side in sides]
    mean_NKD = rows["mean"].combine_chunks().to_numpy_ndarray()
    for number, image in enumerate(images):
        alone = predict(image[np.newaxis, np.newaxis]).mixture.mean_NKD.numpy()
        np.testing.assert_allclose(mean_NKD[number], alone[0], rtol=1e-4, atol=1e-5)


def test_sum_of_identifiers_needs_no_order_and_sees_one_other_galaxy() -> None:
    ids = np.arange(1000) - 500
    assert id_sum(ids) == id_sum(ids[::-1]) == (id_sum(ids[:7]) + id_sum(pa.array(ids[7:]))) % 2**64
    assert id_sum(ids) != id_sum(np.append(ids[1:], ids[1]))
    texts = pa.chunked_array([["a", "b"], ["c"]])
    assert id_sum(texts) == id_sum(np.array(["c", "a", "b"])) != id_sum(np.array(["c", "a", "a"]))
    assert id_sum(np.array([], np.int64)) == 0


@pytest.mark.parametrize("measure", [False, True])
def test_no_row_of_extreme_cutouts_holds_a_number_that_is_not_finite(measure: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(SIZE, SIZE))
    hot = 0.1 * noise
    hot[SIZE // 2, SIZE // 2] = 1e37
    lone = np.zeros((SIZE, SIZE))
    lone[3, 3] = 3e38
    extreme = [1e38 * np.sign(noise), np.full((SIZE, SIZE), 1e38), 1e38 * noise.clip(-3, 3), np.zeros((SIZE, SIZE)), hot, lone]
    extreme += [1e-30 * noise, 1e-45 * noise, -1e20 * noise**2, np.full((SIZE, SIZE), -1.0)]
    columns = galaxies(len(extreme) + 1)
    columns["image"][:-1, 0] = extreme
    info = shards.DatasetInfo(
        bands=("r",), cutout_size=SIZE, target_units={}, num_rows={"all": len(extreme) + 1}, fingerprint="f"
    )
    data = str(tmp_path / "data")
    shards.write_shard(shards.part_uri(data, "all", 0), columns, info)
    shards.write_dataset_info(data, info)
    source, units = open_source(data, split="", bands=("r",), size=SIZE)
    model = measured_bundle() if measure else bundle()
    usual = model.images.plain_numbers(torch.from_numpy(galaxies(200, seed=1)["image"])).numpy()
    model = dataclasses.replace(model, ranges=Ranges.fit(usual))
    unit = UnitPredictor(Predictor(model, num_passes=PASSES, seed=0, device="cpu"), source)(units[0])
    table = write(unit, tmp_path / "out")
    for name in table.column_names:
        values = table[name].combine_chunks()
        values = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
        assert values.null_count == (len(values) if name in ("ra", "dec") else 0)
        assert np.isfinite(values.drop_null().to_numpy()).all(), name
    assert len(extreme) in table["object_id"].to_pylist()
    # What is not in quarantine is flagged.
    flags = dict(zip(table["object_id"].to_pylist(), table["flags"].to_pylist(), strict=True))
    assert all(
        value & Flag.BRIGHTNESS_OUT_OF_RANGE or value & Flag.NOISE_OUT_OF_RANGE
        for key, value in flags.items()
        if key < len(extreme)
    )
    if len(table) <= len(extreme):
        quarantine = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
        assert {row["object_id"] for row in quarantine} == {str(i) for i in range(len(extreme) + 1) if i not in flags}
        assert all(row["reason"] for row in quarantine)


def _unit(tmp_path: Path, images: list[np.ndarray], as_shards: bool, **reader: Any) -> tuple[Unit, Source]:
    """Return images as the only unit of a folder of files, or of the dataset that an ingest makes of them."""
    for number, image in enumerate(images):
        fits.writeto(tmp_path / f"{number}.fits", image)
    data, how = str(tmp_path), ReaderConfig(**reader)
    catalog = CatalogConfig(reader=how)
    if as_shards:
        rows, info = ingest_plan.plan(CutoutsConfig(images=data, cutout_size=SIZE, reader=how))
        data, catalog = str(tmp_path / "shards"), None
        packing.write_rows(packing.read_rows(rows, how, info), 0, output=data, info=info)
        shards.write_dataset_info(data, info)
    source, (unit,) = open_source(data, split="", bands=("r",), size=SIZE, catalog=catalog)
    return unit, source


def measured_bundle() -> Bundle:
    """A model that is given numbers of the cutout, and crops by the measured radius."""
    columns = galaxies(200)
    transformer = dataclasses.replace(NETWORK.spatial_transformer, scale="exponential")
    backbone = dataclasses.replace(NETWORK.backbone, dropout_placement="classifier", numbers_width=8)
    config = dataclasses.replace(NETWORK, spatial_transformer=transformer, backbone=backbone)
    images = ImagePreprocessing.fit(ImagesConfig(), ("r",), columns["image"])
    torch.manual_seed(0)
    network = Network.of(config, images, 2).eval()
    network.merge.fit(images.numbers(torch.from_numpy(columns["image"])))
    return dataclasses.replace(bundle(), network=network, config=config, images=images)

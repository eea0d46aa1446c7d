import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.model.measure import PLAIN_NUMBERS, plain_numbers
from gampen_ray.posterior.diagnostics import evaluate, measure
from gampen_ray.reports.evaluated import EvaluatedCatalog
from tests.networks import bundle, dataset, galaxies

GALAXIES = 400


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedCatalog:
    """A catalogue whose order is not that of its shards."""
    data = dataset(str(tmp_path_factory.mktemp("d")), {"test": GALAXIES}, rows_per_shard=150)
    columns, order = galaxies(GALAXIES), np.random.default_rng(0).permutation(GALAXIES)
    catalog = pa.table({"object_id": columns["object_id"][order], "crop_scale": np.linspace(0.2, 0.9, GALAXIES)})
    inference = {"dataset": data, "split": "test", "num_passes": 3, "seed": 0, "precision": "float32"}
    truths_ND = np.stack([columns[name] for name in ("flux", "concentration")], axis=1)[order]
    return EvaluatedCatalog(
        output="",
        manifest={"config": inference},
        digest="",
        bundle=bundle(),
        catalog=catalog,
        truths_ND=truths_ND,
        kept_R=np.ones(GALAXIES, bool),
        num_without_truth=0,
        has_cutouts=True,
    )


def test_cutouts_come_in_the_order_of_the_rows(judged: EvaluatedCatalog) -> None:
    rows = np.array([41, 3, 317, 258])
    ids = judged.catalog["object_id"].to_numpy()[rows]
    np.testing.assert_array_equal(judged.images(rows)[0], galaxies(GALAXIES)["image"][ids])


def test_an_identifier_may_stand_in_several_rows_and_shards(judged: EvaluatedCatalog, tmp_path: Path) -> None:
    columns = galaxies(4)
    columns["object_id"][:] = [7, 8, 7, 9]
    info = dataclasses.replace(shards.read_dataset_info(judged.manifest["config"]["dataset"]), num_rows={"test": 4})
    for part in range(2):
        rows = {name: values[2 * part : 2 * part + 2] for name, values in columns.items()}
        shards.write_shard(shards.part_uri(str(tmp_path), "test", part), rows, info)
    shards.write_dataset_info(str(tmp_path), info)
    manifest = {"config": judged.manifest["config"] | {"dataset": str(tmp_path)}}
    catalog = pa.table({"object_id": columns["object_id"], "crop_scale": np.ones(4)})
    repeated = dataclasses.replace(judged, manifest=manifest, catalog=catalog)
    image_NCHW, side_N = repeated.images(np.arange(4))
    assert len(image_NCHW) == len(side_N) == 4
    np.testing.assert_array_equal(image_NCHW[[1, 3]], columns["image"][[1, 3]])
    np.testing.assert_array_equal(image_NCHW[0], image_NCHW[2])
    assert all(np.isfinite(values).all() for values in repeated.features(np.arange(4)).values())


def test_features_of_some_rows_are_measured_in_their_own_cutouts(judged: EvaluatedCatalog) -> None:
    rows = judged.subset(7)
    found = judged.features(rows)
    assert list(found) == ["crop_scale", "measured_noise", "measured_brightness", "measured_size", "measured_stray_light"]
    numbers_NQ = plain_numbers(torch.from_numpy(judged.images(rows)[0]), judged.bundle.images.softening)[..., 0].numpy()
    for name, value_N in list(found.items())[1:]:
        expected_N = numbers_NQ[:, PLAIN_NUMBERS.index(name.removeprefix("measured_"))]
        np.testing.assert_allclose(value_N[rows], expected_N, rtol=1e-5)
        assert np.isnan(np.delete(value_N, rows)).all()
    flux_N = judged.truths_ND[rows, 0]
    assert np.corrcoef(found["measured_brightness"][rows], np.log(flux_N))[0, 1] > 0.95


def test_an_untrained_network_fails_every_test_of_its_posteriors(judged: EvaluatedCatalog) -> None:
    mixture = judged.bundle.predict(judged.images(judged.subset(GALAXIES))[0], num_passes=3)
    rows, calibration = judged.subset(300), judged.bundle.calibration
    measured = measure(mixture.chunks(150), calibration, judged.truths_ND, rows)
    found = evaluate(measured, calibration, columns=judged.features(rows))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["diagnostics"]["num_drawn"] == 300
    verdicts = judged.verdicts(found | {"seeds": judged.seed_agreement(measured, 10)})
    words = {name: verdicts[name]["verdict"] for name in ("ranks", "levels", "tarp", "bins", "local", "scores")}
    assert set(words.values()) == {"fails"}, words
    assert verdicts["joint"]["verdict"] != "holds"


def test_a_subset_is_random_and_of_many_galaxies_one_of_blocks(judged: EvaluatedCatalog) -> None:
    assert judged.subset(GALAXIES + 1).tolist() == list(range(GALAXIES))
    rows = judged.subset(100)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all() and np.diff(rows).max() > 1
    many = dataclasses.replace(judged, catalog=pa.table({"object_id": np.arange(100_000)}))
    blocks = many.subset(1_000).reshape(40, 25)
    assert (np.diff(blocks, axis=1) == 1).all() and blocks[-1, -1] < 100_000
    assert np.diff(blocks[:, 0]).min() >= 25 and np.diff(blocks[:, 0]).std() > 1_000


def test_columns_to_group_by_are_numbers_or_texts(judged: EvaluatedCatalog) -> None:
    columns = {
        "count": pa.array([None, *range(GALAXIES - 1)]),
        "good": pa.array([i % 2 == 0 for i in range(GALAXIES)]),
        "tile": pa.array(["a"] * 200 + [None] * 200).dictionary_encode(),
        "rare": pa.array([str(i) for i in range(GALAXIES)]),
        "nothing": pa.nulls(GALAXIES),
        "list": pa.array([[1.0]] * GALAXIES),
    }
    several = dataclasses.replace(judged, catalog=pa.table(columns))
    found = several.by(["count", "good", "tile"])
    assert np.isnan(found["count"][0]) and found["count"][1:].tolist() == list(range(GALAXIES - 1))
    assert (set(found["good"]), set(found["tile"])) == ({"true", "false"}, {"a", ""})
    for name in ("rare", "nothing"):
        with pytest.raises(UserError, match=f"^bins: {name}: no value is known of 25 galaxies; leave it out"):
            several.by([name])
    with pytest.raises(UserError, match=r"^bins: list is list<.*>, neither numbers nor texts; leave it out"):
        several.by(["list"])

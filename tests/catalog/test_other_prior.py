"""Priors from tables and bundles, and the posteriors of a catalogue under them."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from gampen_ray.catalog.other_prior import exchange, predicted_again, prior_digest, read_prior
from gampen_ray.catalog.parquet import catalog_schema
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.flags import Flag
from gampen_ray.posterior.prior import Prior
from tests.catalog.test_prediction import predicted, write
from tests.networks import bundle, with_prior


@pytest.fixture(scope="module")
def model() -> Bundle:
    return with_prior()


def values(model: Bundle, count: int = 400) -> dict[str, np.ndarray]:
    assert model.prior
    return dict(zip(model.targets.names, model.prior.sample(count, 1).T, strict=True))


@pytest.mark.parametrize("name", ["galaxies.csv", "galaxies.fits", "galaxies.parquet"])
def test_a_table_of_galaxies_gives_the_prior_of_its_values(name: str, model: Bundle, tmp_path: Path) -> None:
    columns = values(model)
    # In another order, and with another column.
    Table({"redshift": np.ones(400)} | dict(reversed(columns.items()))).write(tmp_path / name)
    found = read_prior(str(tmp_path / name), model)
    same = Prior.fit(np.stack([*columns.values()], axis=1), model.targets)
    assert prior_digest(found) == prior_digest(same)
    assert prior_digest(found) != prior_digest(model.prior or found)


def test_another_bundle_gives_the_prior_of_its_training(model: Bundle, tmp_path: Path) -> None:
    model.save(str(tmp_path / "run" / "bundle"))
    assert model.prior
    for place in ("run", "run/bundle"):
        assert prior_digest(read_prior(str(tmp_path / place), model)) == prior_digest(model.prior)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": None}, r"prior: catalog .*/t.fits has no column 'flux'; its columns: concentration"),
        ({"flux": np.r_[np.nan, np.inf, np.ones(398)]}, r"prior: .*/t.fits: flux is .* in 2 of 400 rows; leave them out"),
        ({"flux": np.r_[-1.0, np.linspace(1, 2, 399)]}, r"prior: .*/t.fits: targets.flux: 1 of 400 values lie outside .* -1;"),
        ({"concentration": np.full(400, 0.5)}, r"prior: .*/t.fits: concentration is 0.5 in all rows; give values that vary"),
    ],
)
def test_a_table_that_is_no_prior_is_refused(change: dict, message: str, model: Bundle, tmp_path: Path) -> None:
    columns = {name: column for name, column in (values(model) | change).items() if column is not None}
    Table(columns).write(tmp_path / "t.fits")
    with pytest.raises(UserError, match=message):
        read_prior(str(tmp_path / "t.fits"), model)


def test_few_galaxies_and_bundles_that_do_not_fit_are_refused(model: Bundle, tmp_path: Path) -> None:
    Table(values(model, 99)).write(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"prior: .*/t.csv has 99 rows; give 100 galaxies or more, better some 10,000"):
        read_prior(str(tmp_path / "t.csv"), model)
    with pytest.raises(UserError, match="prior: the bundle holds no prior of its training, which another could replace; train"):
        read_prior(str(tmp_path / "t.csv"), bundle())
    bundle().save(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"prior: .*/none holds no prior of its training; train it again, or give a table"):
        read_prior(str(tmp_path / "none"), model)
    with pytest.raises(
        UserError, match=r"prior: builtin:kids-r has the targets bulge_to_total, effective_.* mgy, not flux Jy, c"
    ):
        read_prior("builtin:kids-r", model)


def test_another_unit_is_told(model: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = values(model)
    Table(columns, units={"flux": "mJy"}).write(tmp_path / "t.fits")
    with caplog.at_level(logging.WARNING, "gampen_ray"):
        read_prior(str(tmp_path / "t.fits"), model)
    assert [line.getMessage() for line in caplog.records] == [
        f"prior: {tmp_path}/t.fits: flux is in 'mJy', but the model's is in 'Jy'"
    ]


def test_a_row_has_its_share_its_flag_and_both_parts_of_its_width(model: Bundle, tmp_path: Path) -> None:
    """Three galaxies, in the middle of a narrow prior, off it, and where it excludes all draws."""
    assert model.prior
    middle_D = model.targets.standardise(np.array([[np.median(column) for column in values(model).values()]]))[0]
    narrow = Prior.fit(model.targets.physical(middle_D + 0.1 * np.random.default_rng(0).normal(size=(4000, 2))), model.targets)
    mean_ND = middle_D + np.array([[0, 0], [0.45, 0], [1.2, 0]])
    unit = predicted(mean_ND, np.full(3, 0.1))
    change = exchange(model, narrow)
    table, before = (write(unit, tmp_path / name, exchange=one) for name, one in (("other", change), ("own", None)))
    assert table["object_id"].to_pylist() == [0, 1]
    assert pq.read_table(tmp_path / "other" / "quarantine").to_pylist() == [
        {
            "object_id": "2",
            "source": "shard",
            "reason": "no posterior: no draw of it lies where both the training and the prior that was asked for have galaxies",
        }
    ]
    share = table["effective_share"].to_pylist()
    assert share[0] > 0.5 and 0 < share[1] < 0.05
    conflict_N = (table["flags"].to_numpy() & Flag.PRIOR_CONFLICT.value) != 0
    assert conflict_N.tolist() == [False, True]
    assert not ((table["flags"].to_numpy() ^ before["flags"].to_numpy()[:2]) & ~Flag.PRIOR_CONFLICT.value).any()
    # Prior and likelihood are about equally wide.
    assert table["concentration_std"][0].as_py() / before["concentration_std"][0].as_py() == pytest.approx(2**-0.5, rel=0.15)
    for name in model.targets.names:
        std, parts = (
            table[f"{name}_std"].to_numpy(),
            [table[f"{name}_std_{part}"].to_numpy() for part in ("aleatoric", "epistemic")],
        )
        np.testing.assert_allclose(np.hypot(*parts), std)
    assert set(table.column_names) - set(before.column_names) == {"effective_share"}


def test_without_a_prior_the_columns_are_those_of_before(model: Bundle) -> None:
    schema = catalog_schema(model.targets, pa.int64())
    assert "PRIOR_CONFLICT" not in schema.field("flags").metadata[b"description"].decode()
    assert (
        "1048576 PRIOR_CONFLICT"
        in catalog_schema(model.targets, pa.int64(), prior=True).field("flags").metadata[b"description"].decode()
    )


def test_posteriors_predicted_again_are_under_the_prior_of_the_catalogue(model: Bundle) -> None:
    posterior = model.predict(np.random.default_rng(0).normal(size=(2, 1, 16, 16)), num_passes=2)
    assert model.prior
    assert predicted_again({}, model, posterior) is posterior
    change = exchange(model, model.prior)
    assert change
    found = predicted_again({"prior": model.prior.to_dict()}, model, posterior)
    np.testing.assert_array_equal(found.mean(), change(posterior)[0].mean())

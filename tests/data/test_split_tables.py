"""Split tables: GaMPEN's row for row, and the properties of the stratified and the sky splits."""

import csv
import itertools
import json
import math
from pathlib import Path

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix, pixel_resolution_to_nside

from gampen_ray.commands.split import SplitTablesConfig, split
from gampen_ray.data.split_tables import (
    PARTS,
    SHARES,
    gampen_split,
    listed_splits,
    part_sizes,
    sky_split,
    stratified_split,
)
from gampen_ray.errors import UserError
from tests.parity import FOLDER, golden, needs_parity


def _parts(rows: dict[str, np.ndarray], stem: str) -> list[np.ndarray]:
    return [rows[f"{stem}-{part}"] for part in PARTS]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _folder(tmp_path: Path, rows: list[str], header: str = "object_id,file_name,bt_g,ra,dec") -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "info.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def _galaxies(num_rows: int) -> list[str]:
    return [f"{row:03d},{row}.fits,{(row * 7 % 10) / 10},{row * 1.5},{row % 60 - 30.5}" for row in range(num_rows)]


@needs_parity
def test_gampen_scheme_writes_its_files_row_for_row(tmp_path: Path) -> None:
    expected, facts = golden("splits.npz"), json.loads((FOLDER / "splits.json").read_text())
    config = SplitTablesConfig(
        images="", catalog=str(FOLDER / "splits_info.csv"), output=str(tmp_path), scheme="gampen", target="bt"
    )
    sizes = split(config)
    assert len(sizes) == 42
    assert {path.name for path in tmp_path.iterdir()} == set(sizes) == {f"{name}.csv" for name in expected if "-" in name}
    for path in tmp_path.iterdir():
        rows = _read(path)
        assert [int(row["object_id"]) for row in rows] == expected[path.stem].tolist()
        kind = path.name.partition("-")[0]
        assert list(rows[0]) == facts[f"_columns_{kind}"]
        if kind == "balanced":
            in_bins = [sum(row["balance"] == name for row in rows) for name in facts["_bins"]]
            assert in_bins == facts[path.stem]["per_bin"]


def _interleaved(target: pd.Series) -> list[int]:
    """Rows of the balanced order by plain lists, as deduced from the golden files."""
    shuffled = target.sample(frac=1, random_state=0)
    bins: dict[object, list[int]] = {}
    for label, name in pd.cut(shuffled, 4).items():
        bins.setdefault(name, []).append(label)
    labels = [label for turn in itertools.zip_longest(*bins.values()) for label in turn if label is not None]
    return [shuffled.index[label] for label in labels]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 101, 333])
@pytest.mark.parametrize("kind", ["constant", "two bins", "ties", "skewed"])
def test_gampen_scheme_for_any_table(num_rows: int, kind: str) -> None:
    rng = np.random.default_rng(num_rows)
    target = {
        "constant": np.full(num_rows, 0.5),
        "two bins": rng.choice([0.0, 1.0], num_rows),
        "ties": rng.integers(0, 5, num_rows) / 4,
        "skewed": rng.exponential(size=num_rows),
    }[kind]
    rows, balance = gampen_split(target)
    shuffled = pd.Series(target).sample(frac=1, random_state=0).index.to_numpy()
    for slug, shares in SHARES.items():
        train, devel = math.ceil(shares[0] * num_rows), math.ceil(shares[1] * num_rows)
        for stem, order in ((f"unbalanced-{slug}", shuffled), (f"balanced-{slug}", np.array(_interleaved(pd.Series(target))))):
            wanted = order[:train], order[train : train + devel], order[train + devel :]
            for got, expected in zip(_parts(rows, stem), wanted, strict=True):
                np.testing.assert_array_equal(got, expected)
    assert len(set(balance)) == len(pd.cut(pd.Series(target), 4).unique())


def test_table_lines_stay_as_they_are(tmp_path: Path) -> None:
    rows = ['007,a.fits,0.10,"x, ""y""",1e0', "+8,b.fits,0.9,NA,", "9007199254740993,c.fits,5E-1,nan,0.1000000000000000055"]
    folder = _folder(tmp_path, rows, "object_id,file_name,bt_g,note,z")
    (folder / "info.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "info.csv").read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    for scheme in ("gampen", "stratified"):
        split(SplitTablesConfig(images=str(folder), scheme=scheme))
    lines = [line for part in PARTS for line in (folder / f"splits/stratified-dev-{part}.csv").read_text().splitlines()[1:]]
    assert sorted(lines) == sorted(rows)
    lines = [line for part in PARTS for line in (folder / f"splits/balanced-dev-{part}.csv").read_text().splitlines()]
    assert lines[0] == "object_id,file_name,bt_g,note,z,balance"
    assert {'007,a.fits,0.10,"x, ""y""",1e0,"(0.0992, 0.3]"', '+8,b.fits,0.9,NA,,"(0.7, 0.9]"'} < set(lines)


@pytest.mark.parametrize(("num_rows", "num_strata"), [(1, 5), (7, 20), (100, 20), (997, 13), (2000, 1)])
@pytest.mark.parametrize("constant", [False, True])
def test_stratified_parts_have_their_share_of_every_stratum(num_rows: int, num_strata: int, constant: bool) -> None:
    target = np.ones(num_rows) if constant else np.random.default_rng(3).permutation(num_rows).astype(float)
    rows = stratified_split(target, num_strata, seed=1)
    for slug, shares in SHARES.items():
        parts = _parts(rows, f"stratified-{slug}")
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_rows))
        assert tuple(map(len, parts)) == part_sizes(num_rows, shares)
        if not constant:
            # The target is a rank here: a stratum is a range of it.
            for stratum in np.array_split(np.arange(num_rows), num_strata):
                found = np.array([np.isin(target[part], stratum).sum() for part in parts])
                assert (np.abs(found - len(stratum) * np.array(list(map(len, parts))) / num_rows) < 1).all()


def test_stratified_quantiles_agree_where_random_ones_do_not() -> None:
    target = np.random.default_rng(0).exponential(size=4000)
    train, devel, test = (target[rows] for rows in _parts(stratified_split(target, 20, seed=0), "stratified-dev"))
    levels = np.arange(0.05, 1, 0.05)
    # 600 random rows would scatter by 0.02 about the median, stratified ones by their rounding alone.
    for part in (train, devel, test):
        np.testing.assert_allclose([(part <= q).mean() for q in np.quantile(target, levels)], levels, atol=0.003)


def test_seed_makes_the_split() -> None:
    target = np.random.default_rng(0).normal(size=200)
    first, again, other = (stratified_split(target, 10, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["stratified-dev-train"], other["stratified-dev-train"])


def _sky(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # A field over the pole and one over RA = 0, of uneven density.
    ra = np.concatenate([rng.uniform(0, 360, num_rows // 2), rng.normal(0, 5, num_rows - num_rows // 2)])
    dec = np.concatenate([rng.uniform(80, 90, num_rows // 2), rng.normal(-20, 3, num_rows - num_rows // 2)])
    return ra, dec


@pytest.mark.parametrize(("num_rows", "cell_size_deg"), [(300, 7.3), (3000, 1.0), (3000, 4.0)])
def test_sky_parts_share_no_cell_and_are_as_large_as_wanted(num_rows: int, cell_size_deg: float) -> None:
    ra, dec = _sky(num_rows, 5)
    rows = sky_split(ra, dec, cell_size_deg, seed=2)
    position = SkyCoord(ra * u.deg, dec * u.deg)
    healpix = HEALPix(pixel_resolution_to_nside(cell_size_deg * u.deg, round="nearest"), order="ring", frame="icrs")
    cell = healpix.skycoord_to_healpix(position)
    largest = np.bincount(cell).max()
    for slug, shares in SHARES.items():
        parts = _parts(rows, f"sky-{slug}")
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_rows))
        cells = [set(cell[part]) for part in parts]
        assert all(cells)
        assert sum(map(len, cells)) == len(set(cell))
        for part, wanted in zip(parts, part_sizes(num_rows, shares), strict=True):
            assert abs(len(part) - wanted) <= largest


def test_sky_cells_of_one_galaxy_give_the_exact_sizes() -> None:
    rows = sky_split(np.arange(0.0, 200.0, 2.0), np.zeros(100), 0.5, seed=0)
    for slug, shares in SHARES.items():
        assert tuple(map(len, _parts(rows, f"sky-{slug}"))) == part_sizes(100, shares)


def test_sky_with_a_cell_larger_than_a_part() -> None:
    # 60 galaxies in one cell and 40 elsewhere: 70/15/15 is possible only with the large cell in train.
    ra, dec = np.concatenate([np.full(60, 10.0), 20.0 + 2.0 * np.arange(40)]), np.zeros(100)
    for seed in range(5):
        assert tuple(map(len, _parts(sky_split(ra, dec, 0.5, seed), "sky-dev"))) == (70, 15, 15)


def test_other_content_is_never_overwritten(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _galaxies(50))
    config = SplitTablesConfig(images=str(folder), scheme="stratified")
    sizes = split(config)
    assert sizes["stratified-dev2-train.csv"] == 35
    before = {path: path.read_bytes() for path in (folder / "splits").iterdir()}
    (folder / "splits/stratified-xl-devel.csv").unlink()
    assert split(config) == sizes
    assert {path: path.read_bytes() for path in (folder / "splits").iterdir()} == before
    (folder / "splits/stratified-xl-devel.csv").unlink()
    with pytest.raises(UserError, match=r"output: .*stratified-.*csv has other content; nothing was written"):
        split(SplitTablesConfig(images=str(folder), scheme="stratified", seed=1))
    assert not (folder / "splits/stratified-xl-devel.csv").exists()
    split(SplitTablesConfig(images=str(folder), scheme="sky"))


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ("x,x.fits,,1,1", {}, r"target: catalog .*info.csv, row 4: bt_g is missing \(1 rows are not finite\); fix or remove"),
        ("x,x.fits,nan,1,1", {"scheme": "stratified"}, "row 4: bt_g is missing"),
        ("x,x.fits,inf,1,1", {"scheme": "stratified"}, "row 4: bt_g is 'inf', not a finite number"),
        ("x,x.fits,high,1,1", {}, "row 4: bt_g is 'high', not a finite number"),
        ("x,x.fits,1,1,91", {"scheme": "sky"}, "dec: catalog .* has 91; give degrees from -90 to 90"),
        ("x,x.fits,1,,1", {"scheme": "sky"}, "ra: catalog .*, row 4: ra is missing"),
        ("x,x.fits,1,1,1", {"scheme": "sky", "cell_size_deg": 58.0}, "cell_size_deg: 58: the galaxies lie in . cells"),
        ("x,x.fits,1,1,1", {"target": "bt"}, "target: catalog .* has no column 'bt'; its columns: object_id, file_name"),
        ("x,x.fits,1,1", {}, "catalog .*info.csv: cannot be read"),
        ('x,"x\n.fits",1,1,1', {}, "4 rows on 5 lines; write each row on a line of its own"),
        ("x,x.fits,1,1,1", {"images": "absent"}, "images: no info.csv in absent"),
        ("x,x.fits,1,1,1", {"catalog": "galaxies.parquet"}, "catalog: galaxies.parquet: the name must end in .csv"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, row: str, changes: dict, message: str) -> None:
    folder = _folder(tmp_path, [*_galaxies(3), row])
    with pytest.raises(UserError, match=message):
        split(SplitTablesConfig(**{"images": str(folder)} | changes))
    assert not (folder / "splits").exists()


def test_column_of_the_bins_is_not_replaced(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["1,0.5,x"], "object_id,bt_g,balance")
    with pytest.raises(UserError, match="add a column 'balance'; rename yours"):
        split(SplitTablesConfig(images=str(folder), scheme="gampen"))


def test_listed_splits(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    texts = {"train": "file_name\na.fits\nb.fits\n", "devel": "object_id\n007\n", "test": "file_name,object_id\n"}
    for part, text in texts.items():
        (tmp_path / "splits" / f"mine-{part}.csv").write_text(text)
    keys = {"file_name": ["a.fits", "b.fits", "c.fits", "d.fits"], "object_id": ["1", "007", "7", "007"]}
    splits, faults = listed_splits(str(tmp_path), "mine", keys)
    assert splits[[0, 3]].tolist() == ["train", "val"]
    assert faults.tolist() == ["", "in more than one table of the split: mine", "in no table of the split: mine", ""]


def test_mistakes_about_listed_splits_are_named(tmp_path: Path) -> None:
    keys = {"file_name": ["a"], "object_id": ["1"]}
    with pytest.raises(UserError, match=r"split_slug: mine: .*splits has no such split; there is none; make some with"):
        listed_splits(str(tmp_path), "mine", keys)
    (tmp_path / "splits").mkdir()
    for name in ("b-train", "b-devel", "b-test", "a-train", "a-devel", "a-test", "half-train"):
        (tmp_path / "splits" / f"{name}.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match=r"has no such split; there are: a, b$"):
        listed_splits(str(tmp_path), "half", keys)
    with pytest.raises(UserError, match=r"a-train\.csv has neither a column file_name nor object_id"):
        listed_splits(str(tmp_path), "a", keys)

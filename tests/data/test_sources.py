from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.data import shards
from gampen_ray.data.sources import open_source, shard_units
from gampen_ray.errors import UserError
from tests.networks import SIZE, galaxies


@pytest.mark.parametrize("image_bytes", [1, 1 << 20, 1 << 24, 1 << 30])
def test_units_cover_every_row_group_once(image_bytes: int, tmp_path: Path) -> None:
    columns = galaxies(600)
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE)
    uri = shards.part_uri(str(tmp_path), shards.ALL, 7)
    shards.write_shard(uri, columns, info)
    units = shard_units(uri, 7, info, image_bytes)
    assert [group for unit in units for group in range(unit.start, unit.stop)] == list(range(3))
    assert sum(unit.num_rows for unit in units) == 600
    assert len({unit.name for unit in units}) == len(units)
    assert all(unit.num_rows * image_bytes <= 32 << 20 or unit.stop - unit.start == 1 for unit in units)


def _folder(root: Path, count: int = 5) -> np.ndarray:
    """Write cutouts one pixel larger than a network's input, a broken one among them; return their pixels."""
    pixels = np.random.default_rng(0).normal(size=(count, SIZE + 1, SIZE + 1)).astype(np.float32)
    root.mkdir(parents=True)
    for i, image in enumerate(pixels):
        fits.PrimaryHDU(image).writeto(root / f"g{i}.fits")
    (root / "broken.fits").write_bytes(b"SIMPLE")
    return pixels


def test_fits_files_are_read_as_the_model_takes_them(tmp_path: Path) -> None:
    pixels = _folder(tmp_path / "cutouts")
    source, units = open_source(str(tmp_path / "cutouts"), split="", bands=("r",), size=SIZE)
    assert [(unit.name, unit.num_rows) for unit in units] == [("part-000000000.parquet", 6)]
    rows = source.read(units[0])
    assert rows["object_id"].tolist() == ["broken", "g0", "g1", "g2", "g3", "g4"]
    assert [reason != "" for reason in rows["reason"]] == [True] + [False] * 5
    assert np.array_equal(rows["image"][1:, 0], pixels[:, :SIZE, :SIZE])
    assert not rows["image"][0].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cutouts"]


def test_a_gampen_folder_is_read_by_its_table(tmp_path: Path) -> None:
    _folder(tmp_path / "cutouts")
    rows = ["object_id,file_name,ra,dec", "7,g1.fits,10.5,0", ",g2.fits,11,0", "9,gone.fits,12,0"]
    (tmp_path / "info.csv").write_text("\n".join(rows) + "\n")
    source, units = open_source(str(tmp_path), split="", bands=("r",), size=SIZE)
    read = source.read(units[0])
    assert read["object_id"].tolist() == [7, 0, 9]
    assert [text[:22] for text in read["reason"]] == ["", "object_id is missing", "there is no such file"]
    assert read["ra"].tolist() == [10.5, 11, 12]


@pytest.mark.parametrize(
    ("files", "split", "match"),
    [
        (["g.fits"], "test", "split: test, but .* holds FITS files without splits"),
        (["part-0.parquet"], "", r"holds neither a finished dataset \(dataset\.json\) nor FITS files"),
        ([], "", r"holds neither a finished dataset \(dataset\.json\) nor FITS files"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, files: list[str], split: str, match: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=match):
        open_source(str(tmp_path), split=split, bands=("r",), size=SIZE)

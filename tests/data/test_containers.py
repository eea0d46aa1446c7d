"""Files of many galaxies: every format gives the pixels that were written, to the last bit, and the columns beside them."""

import errno
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.data.containers import open_container
from gampen_ray.data.containers.faults import row_faults
from gampen_ray.data.containers.stacks import StackContainer
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.packing import read_rows
from gampen_ray.errors import StorageError, UserError

SIZE, COUNT = 12, 40
BANDS = ("g", "r", "z")
RNG = np.random.default_rng(3)
ONE = RNG.normal(size=(COUNT, SIZE, SIZE)).astype(np.float32)
SEVERAL = RNG.normal(size=(COUNT, 3, SIZE, SIZE)).astype(np.float32)
IDS = [f"G{number:03d}" for number in range(COUNT)]
RA = np.linspace(10, 20, COUNT)


def _read(images: Path, *, catalog: Path | None = None, per_unit: int = 7, **reader: Any) -> dict[str, Any]:
    """Return the columns of a whole plan, read in units as workers would."""
    config = CutoutsConfig(
        images=str(images),
        catalog=str(catalog) if catalog else "",
        cutout_size=SIZE,
        reader=ReaderConfig(**{"nan_policy": "zero"} | reader),
    )
    rows, info = plan(config)
    parts = [read_rows(rows.slice(start, per_unit), config.reader, info) for start in range(0, len(rows), per_unit)]
    joined: dict[str, Any] = {name: np.concatenate([np.asarray(part[0][name]) for part in parts]) for name in parts[0][0]}
    return joined | {"reason": np.concatenate([part[2] for part in parts]), "info": info}


def _hdf5(path: Path, **arrays: Any) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip", chunks=True)


def _zarr(path: Path, **arrays: Any) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    for name, values in arrays.items():
        group.create_array(name, data=np.asarray(values))


def _npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def _npz_compressed(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)


STACKS = {"a.h5": _hdf5, "a.hdf5": _hdf5, "a.zarr": _zarr, "a.npz": _npz, "b.npz": _npz_compressed}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("layout", ["one", "one-last", "chw", "hwc"])
def test_stacks_keep_every_bit(tmp_path: Path, name: str, layout: str) -> None:
    pixels = {"one": ONE, "one-last": ONE[..., None], "chw": SEVERAL, "hwc": np.moveaxis(SEVERAL, 1, 3)}[layout]
    write: Callable[..., None] = STACKS[name]
    ids = np.array(IDS, dtype="S4") if "zarr" not in name else np.arange(COUNT)
    write(tmp_path / name, images=pixels, object_id=ids, ra=RA, dec=-RA, labels=np.arange(COUNT) % 3)
    read = _read(tmp_path / name, bands=("r",) if layout.startswith("one") else BANDS)
    expected = ONE[:, None] if layout.startswith("one") else SEVERAL
    assert read["image"].tobytes() == expected.tobytes()
    assert read["object_id"].tolist() == (IDS if "zarr" not in name else list(range(COUNT)))
    np.testing.assert_array_equal(read["ra"], RA)
    assert read["labels"].tolist() == (np.arange(COUNT) % 3).tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file_of_many_has_numbered_identifiers(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "stack.npy", np.asarray(SEVERAL.astype(">f4"), order=order))
    read = _read(tmp_path / "stack.npy", bands=BANDS)
    assert read["image"].tobytes() == SEVERAL.tobytes()
    assert read["object_id"].tolist() == [f"stack-{number}" for number in range(COUNT)]


def test_npy_files_of_one_galaxy_each(tmp_path: Path) -> None:
    for name, pixels in zip(IDS, SEVERAL, strict=True):
        np.save(tmp_path / f"{name}.npy", np.moveaxis(pixels, 0, 2))
    read = _read(tmp_path, bands=BANDS)
    assert read["image"].tobytes() == SEVERAL.tobytes()
    assert read["object_id"].tolist() == IDS


def test_a_catalogue_is_joined_by_identifier_number_or_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=ONE, object_id=np.array(IDS))
    shuffled = RNG.permutation(COUNT)[:10]
    lines = [f"{IDS[row]},{row}.5" for row in shuffled]
    (tmp_path / "c.csv").write_text("object_id,flux\n" + "\n".join([*lines, "absent,1"]) + "\n")
    read = _read(tmp_path / "a.npz", catalog=tmp_path / "c.csv")
    np.testing.assert_array_equal(read["image"][:10, 0], ONE[shuffled])
    assert read["reason"].tolist() == [""] * 10 + [f"no image in {tmp_path}/a.npz has its identifier"]
    np.save(tmp_path / "s.npy", ONE)
    (tmp_path / "n.csv").write_text("object_id,index\n" + "\n".join(f"{IDS[row]},{row}" for row in shuffled) + "\n")
    np.testing.assert_array_equal(_read(tmp_path / "s.npy", catalog=tmp_path / "n.csv")["image"][:, 0], ONE[shuffled])
    (tmp_path / "o.csv").write_text("object_id\n" + "\n".join(IDS) + "\n")
    np.testing.assert_array_equal(_read(tmp_path / "s.npy", catalog=tmp_path / "o.csv")["image"][:, 0], ONE)
    with pytest.raises(UserError, match=r"c.csv has 11 rows and .*s.npy 40 images, which have no column 'object_id' to join"):
        _read(tmp_path / "s.npy", catalog=tmp_path / "c.csv")


def test_cutanas_zarr_with_its_table(tmp_path: Path) -> None:
    order = RNG.permutation(COUNT)
    _zarr(tmp_path / "images.zarr", images=np.moveaxis(SEVERAL, 1, 3)[order])
    place = np.argsort(order)
    table = pa.table({"source_id": IDS, "ra": RA, "dec": RA, "idx_in_zarr": place, "diameter_arcsec": RA})
    pq.write_table(table, tmp_path / "images_metadata.parquet")
    for images in (tmp_path / "images.zarr", tmp_path):
        read = _read(images, bands=BANDS)
        assert read["object_id"].tolist() == IDS
        assert read["image"].tobytes() == SEVERAL.tobytes()


def test_galaxy10_is_refused_as_pictures_are_not_linear(tmp_path: Path) -> None:
    pictures = (255 * RNG.random((5, SIZE, SIZE, 3))).astype(np.uint8)
    _hdf5(tmp_path / "g.h5", images=pictures, ans=np.arange(5, dtype=np.uint8), ra=RA[:5], dec=RA[:5], pxscale=RA[:5])
    read = _read(tmp_path / "g.h5", bands=BANDS)
    assert all(text.startswith("8-bit pixels of a picture are stretched for display, not linear") for text in read["reason"])
    read = _read(tmp_path / "g.h5", bands=BANDS, allow_nonlinear=True)
    np.testing.assert_array_equal(read["image"], np.moveaxis(pictures, 3, 1).astype(np.float32))
    assert read["ans"].tolist() == list(range(5))


def _universe() -> dict[str, np.ndarray]:
    ivar = RNG.uniform(1, 4, size=(COUNT, 3, SIZE, SIZE)).astype(np.float32)
    mask = np.ones((COUNT, SIZE, SIZE), bool)
    ivar[1, 2, 4, 4] = 0
    mask[2, 3, 5] = False
    return {"ivar": ivar, "mask": mask, "psf_fwhm": RNG.uniform(0.7, 1.5, (COUNT, 3)).astype(np.float32)}


UNIVERSE = _universe()


def _check_universe(read: dict[str, Any]) -> None:
    expected = SEVERAL[:, [2, 0]].copy()
    expected[1, 0, 4, 4] = 0
    expected[2, :, 3, 5] = 0
    assert read["image"].tobytes() == expected.tobytes()
    assert read["pixels_filled"].nonzero()[0].tolist() == [1, 2]
    assert read["object_id"].tolist() == IDS
    assert read["info"].pixel_scale_arcsec == pytest.approx(0.262)
    for index, band in ((2, "z"), (0, "g")):
        np.testing.assert_array_equal(read[f"psf_fwhm_{band}"].astype(np.float32), UNIVERSE["psf_fwhm"][:, index])
        ivar = UNIVERSE["ivar"][3, index]
        assert read[f"noise_{band}"][3] == pytest.approx(np.median(ivar) ** -0.5)


def test_multimodal_universe_in_hdf5(tmp_path: Path) -> None:
    for number, part in enumerate((slice(0, 15), slice(15, COUNT))):
        folder = tmp_path / f"healpix={number}"
        folder.mkdir()
        _hdf5(
            folder / "001-of-001.hdf5",
            image_band=np.array([[b"des-g", b"des-r", b"des-z"]] * COUNT)[part],
            image_array=SEVERAL[part],
            image_ivar=UNIVERSE["ivar"][part],
            image_mask=UNIVERSE["mask"][part],
            image_psf_fwhm=UNIVERSE["psf_fwhm"][part],
            image_scale=np.full((COUNT, 3), 0.262, np.float32)[part],
            object_id=np.array(IDS, dtype="S8")[part],
            ra=RA[part],
            dec=RA[part],
        )
    _check_universe(_read(tmp_path, bands=("z", "g")))
    with pytest.raises(UserError, match=r"reader\.bands: .*the images have the bands des-g, des-r, des-z, none of them y"):
        _read(tmp_path, bands=("y",))
    with pytest.raises(UserError, match=r"reader\.pixel_scale_arcsec: 0\.2 is given, but .* says 0\.262"):
        _read(tmp_path, bands=("z", "g"), pixel_scale_arcsec=0.2)


@pytest.mark.parametrize("layout", ["struct of lists", "list of structs"])
def test_multimodal_universe_in_hats(tmp_path: Path, layout: str) -> None:
    bands = ["des-g", "des-r", "des-z"]
    scale = np.full(3, 0.262, np.float32)
    rows = []
    for row in range(COUNT):
        members = {"flux": SEVERAL[row], "ivar": UNIVERSE["ivar"][row], "psf_fwhm": UNIVERSE["psf_fwhm"][row], "scale": scale}
        members = {name: values.tolist() for name, values in members.items()} | {"band": bands}
        members["mask"] = [UNIVERSE["mask"][row].tolist()] * 3
        if layout == "list of structs":
            rows.append([{name: values[band] for name, values in members.items()} for band in range(3)])
        else:
            rows.append(members)
    number = pa.list_(pa.float32())
    plane = pa.list_(number)
    flat = {"band": pa.string(), "flux": plane, "ivar": plane, "mask": pa.list_(pa.list_(pa.bool_()))}
    flat |= {"psf_fwhm": pa.float32(), "scale": pa.float32()}
    kind: Any = pa.list_(pa.struct(flat))
    if layout == "struct of lists":
        kind = pa.struct({name: pa.list_(member) for name, member in flat.items()})
    table = pa.table({"_healpix_29": range(COUNT), "object_id": IDS, "ra": RA, "dec": RA, "image": pa.array(rows, kind)})
    folder = tmp_path / "dataset" / "Norder=0" / "Dir=0"
    folder.mkdir(parents=True)
    (tmp_path / "hats.properties").write_text("obs_collection=mmu\n")
    pq.write_table(table.slice(0, 15), folder / "Npix=3.parquet", row_group_size=4)
    pq.write_table(table.slice(15), folder / "Npix=4.parquet", row_group_size=30)
    pq.write_table(table.slice(0, 3), tmp_path / "dataset" / "data_thumbnail.parquet")
    read = _read(tmp_path, bands=("z", "g"))
    _check_universe(read)
    assert "_healpix_29" not in read


@pytest.mark.parametrize("kind", ["tensor", "nested", "large", "fixed", "two axes", "files"])
def test_parquet_with_images(tmp_path: Path, kind: str) -> None:
    pixels = ONE if kind in ("two axes", "files") else SEVERAL
    if kind == "tensor":
        image = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(pixels))
    elif kind == "files":
        image = pa.array([_fits(one) for one in pixels])
    else:
        inner: Any = pa.float32()
        for size in pixels.shape[:0:-1]:
            inner = {"large": pa.large_list(inner), "fixed": pa.list_(inner, size)}.get(kind, pa.list_(inner))
        image = pa.array(pixels.tolist(), inner)
    pq.write_table(pa.table({"object_id": IDS, "image": image, "flux": RA}), tmp_path / "a.parquet", row_group_size=9)
    config = {"dataset": "image"} if kind == "files" else {}
    read = _read(tmp_path, bands=("r",) if pixels is ONE else BANDS, **config)
    assert read["image"].tobytes() == pixels.tobytes()
    assert read["object_id"].tolist() == IDS
    np.testing.assert_array_equal(read["flux"], RA)


def test_a_ragged_image_and_a_missing_one_have_a_reason(tmp_path: Path) -> None:
    images = [[[1.0, 2.0], [3.0]], None, [[1.0, 2.0], [3.0, 4.0]]]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "image": images}), tmp_path / "a.parquet")
    reasons = _read(tmp_path / "a.parquet")["reason"]
    assert [text[:20] for text in reasons] == ["the image is ragged:", "the image is missing", ""]


def _fits(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    fits.PrimaryHDU(image).writeto(buffer)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset(tmp_path: Path, format_: int) -> None:
    long = "x" * 120
    for part in range(2):
        with tarfile.open(tmp_path / f"a_{part}.tar", "w", format=format_) as tar:
            for row in range(part, COUNT, 2):
                _add(tar, f"{long}/{IDS[row]}.labels.json", json.dumps({"flux": row + 0.5, "note": "x"}).encode())
                _add(tar, f"{long}/{IDS[row]}.image.fits", _fits(ONE[row]))
                _add(tar, f"{long}/{IDS[row]}.cls", b"7")
    read = _read(tmp_path)
    order = [*range(0, COUNT, 2), *range(1, COUNT, 2)]
    assert read["image"].tobytes() == ONE[order].tobytes()
    assert read["object_id"].tolist() == [IDS[row] for row in order]
    assert (read["flux"] - 0.5).tolist() == order
    assert set(read["cls"]) == {7}


def test_webdataset_of_pictures_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        _add(tar, "G1.image.jpg", b"\xff\xd8\xff\xe0" + bytes(100))
    assert _read(tmp_path / "a.tar")["reason"][0].startswith("a JPEG or PNG file: 8-bit pixels of a picture are stretched")


def test_images_that_cannot_be_found_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=ONE, two=ONE, x=np.arange(3))
    with pytest.raises(UserError, match=r"no array of images .*; give reader.dataset; there are: one \(40, 12, 12\), two"):
        _read(tmp_path / "a.npz")
    np.testing.assert_array_equal(_read(tmp_path / "a.npz", dataset="two")["image"][:, 0], ONE)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet has no column of images"):
        _read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds numpy_stack and parquet files; choose some by pattern"):
        _read(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"b.npz cannot be opened: "):
        _read(tmp_path / "b.npz")


def test_a_truncated_stack_loses_its_last_rows_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", ONE)
    data = (tmp_path / "s.npy").read_bytes()
    (tmp_path / "s.npy").write_bytes(data[: -ONE[0].nbytes * 3 - 5])
    reasons = _read(tmp_path / "s.npy")["reason"]
    assert (reasons == "").sum() == COUNT - 4
    assert reasons[-1] == "row 39 of the file is damaged: the file is truncated"


@pytest.mark.parametrize("format_", [2, 3])
@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_a_lost_chunk_of_zarr_has_no_value(tmp_path: Path, kind: str, format_: Any) -> None:
    zarr = pytest.importorskip("zarr")
    pixels = (1000 + 10 * ONE).astype(kind)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=format_)
    group.create_array("images", data=pixels, chunks=(4, SIZE, SIZE // 2))
    group.create_array("z", data=RA, chunks=(4,))
    group.create_array("label", data=np.zeros(COUNT, int), chunks=(4,))
    read = _read(tmp_path / "a.zarr", nan_policy="quarantine")
    assert (set(read["reason"]), set(read["label"])) == ({""}, {0})
    np.testing.assert_array_equal(read["image"][:, 0], pixels)
    for name in ("images/2.0.1", "z/5") if format_ == 2 else ("images/c/2/0/1", "z/c/5"):
        (tmp_path / "a.zarr" / name).unlink()
    read = _read(tmp_path / "a.zarr", nan_policy="quarantine")
    assert np.flatnonzero(read["reason"] != "").tolist() == [8, 9, 10, 11]
    assert read["reason"][8].startswith("72 of 144 pixels are without a value")
    assert np.flatnonzero(np.isnan(read["z"])).tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_what_was_never_written_to_hdf5_has_no_value(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    pixels = (1000 + 10 * ONE).astype(kind)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", pixels.shape, kind, chunks=(4, SIZE, SIZE // 2))
        images[:21] = pixels[:21]
        images[24:28, :, :6] = pixels[24:28, :, :6]
        file.create_dataset("z", COUNT, "f8")
        file.create_dataset("away", COUNT, "f8", external=[(str(tmp_path / "other"), 0, 8 * COUNT)])
    (tmp_path / "other").write_bytes(RA.tobytes())
    read = _read(tmp_path / "a.h5", nan_policy="quarantine")
    # A chunk of which one row was written holds zeros in the others.
    assert np.flatnonzero(read["reason"] == "").tolist() == list(range(21))
    assert read["reason"][21] == "all pixels have the same value 0"
    assert read["reason"][24].startswith("72 of 144 pixels are without a value")
    assert read["reason"][39].startswith("all pixels are without a value")
    np.testing.assert_array_equal(read["image"][:21, 0], pixels[:21])
    assert np.isnan(read["z"]).all()
    assert "away" not in read


class Declared:
    """A header without the values that it declares."""

    def __init__(self, *shape: int, chunks: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self.chunks = shape, np.dtype("f4"), chunks

    def __getitem__(self, key: Any) -> np.ndarray:
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": Declared(10**11, SIZE, SIZE)}, r"declares 100,000,000,000 galaxies, more than 100,000,000: it is damaged"),
        ({"images": Declared(2, 5000, 5000)}, r"an image has 95\.4 MiB, more than 64 \(reader\.max_mebibytes\)"),
        ({"images": Declared(10**6, 9, 9, chunks=(10**6, 9, 9))}, r"images has chunks of 0\.3 GiB"),
        ({"images": Declared(10**8, 9, 9), "z": Declared(10**8, 60)}, r"declares columns of 22\.4 GiB"),
    ],
)
def test_no_memory_is_taken_because_a_header_declares_it(arrays: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.data.containers.stacks._MOST_CHUNK_BYTES", 1 << 28)
    with pytest.raises(UserError, match=line):
        StackContainer("a.h5", arrays, ReaderConfig()).rows()


def test_a_run_of_rows_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.data.containers.stacks._RUN_BYTES", 3 * ONE[0].nbytes)
    np.save(tmp_path / "s.npy", ONE)
    assert _read(tmp_path / "s.npy")["image"].tobytes() == ONE.tobytes()


def test_a_row_of_parquet_is_bounded_though_few_bytes_stand_for_it(tmp_path: Path) -> None:
    lists = pa.ListArray.from_arrays(np.arange(601, dtype=np.int32) * 600, pa.array(np.zeros(600 * 600, np.float32)))
    image = pa.ListArray.from_arrays(pa.array([0, 600], pa.int32()), lists)
    pq.write_table(pa.table({"object_id": [1], "image": image}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with open_container(str(tmp_path / "a.parquet"), ReaderConfig(max_mebibytes=1)) as container:
        (found,) = container.read([0])
    assert str(found) == "the image has 1.4 MiB, more than 1 (reader.max_mebibytes)"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'a.h5 needs h5py; pip install "gampen_ray\[h5py\]"'):
        _read(tmp_path / "a.h5")


def test_a_row_is_read_without_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "s.npy", ONE)
    read: list[int] = []
    with open_container(str(tmp_path / "s.npy"), ReaderConfig()) as container:
        file: Any = container._arrays["images"]._file  # type: ignore[attr-defined]

        class Counting:
            seek = staticmethod(file.seek)

            def read(self, size: int) -> bytes:
                read.append(size)
                return file.read(size)

        monkeypatch.setattr(container._arrays["images"], "_file", Counting())  # type: ignore[attr-defined]
        cutouts = list(container.read([20, 21]))
    np.testing.assert_array_equal([cutout.image_CHW[0] for cutout in cutouts], ONE[20:22])  # type: ignore[union-attr]
    assert read == [2 * ONE[0].nbytes]


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("image_mask", np.ones((COUNT, 5, 5), bool)),
        ("image_ivar", np.ones((COUNT, 5, 5), np.float32)),
        ("image_ivar", np.ones((COUNT - 1, SIZE, SIZE), np.float32)),
    ],
    ids=["mask-size", "ivar-size", "ivar-count"],
)
def test_a_plane_that_does_not_fit_its_images_is_a_reason(tmp_path: Path, name: str, plane: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=ONE, **{name: plane})
    with open_container(str(tmp_path / "a.npz"), ReaderConfig()) as container:
        *_, last = container.read([0, COUNT - 1])
    assert isinstance(last, CutoutError)
    assert re.match(rf"row {COUNT - 1} of the file is damaged: ", str(last))


def test_columns_that_no_table_can_hold_are_left_out(tmp_path: Path) -> None:
    columns = {"pairs": np.zeros(COUNT, [("a", "f4"), ("b", "i4")]), "waves": np.zeros(COUNT, complex)}
    _hdf5(tmp_path / "a.h5", images=ONE, object_id=np.array([b"\xff%d" % row for row in range(COUNT)]), **columns)
    read = _read(tmp_path / "a.h5")
    assert read["object_id"][3] == r"\xff3"
    assert read.keys().isdisjoint(columns)


def test_a_failing_disk_quarantines_no_row() -> None:
    with pytest.raises(StorageError, match=r"a\.h5: Input/output error"), row_faults("a.h5", 3):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(StorageError), row_faults("s3://bucket/a.h5", 3):
        raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: no answer")
    with pytest.raises(CutoutError, match="row 3 of the file is damaged: filter returned failure"), row_faults("a.h5", 3):
        raise OSError("filter returned failure")

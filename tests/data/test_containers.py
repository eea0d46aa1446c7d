"""Files of many galaxies: every format gives the pixels that were written, to the last bit, and the columns beside them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray.errors import UserError
from tests.data.stacks import (
    BANDS,
    COUNT,
    IDS,
    ONE,
    RA,
    RNG,
    SEVERAL,
    SIZE,
    read_plan,
    write_hdf5,
    write_npz,
    write_npz_compressed,
    write_zarr,
)

STACKS = {"a.h5": write_hdf5, "a.hdf5": write_hdf5, "a.zarr": write_zarr, "a.npz": write_npz, "b.npz": write_npz_compressed}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("layout", ["one", "one-last", "chw", "hwc"])
def test_stacks_keep_every_bit(tmp_path: Path, name: str, layout: str) -> None:
    pixels = {"one": ONE, "one-last": ONE[..., None], "chw": SEVERAL, "hwc": np.moveaxis(SEVERAL, 1, 3)}[layout]
    write: Callable[..., None] = STACKS[name]
    ids = np.array(IDS, dtype="S4") if "zarr" not in name else np.arange(COUNT)
    write(tmp_path / name, images=pixels, object_id=ids, ra=RA, dec=-RA, labels=np.arange(COUNT) % 3)
    read = read_plan(tmp_path / name, bands=("r",) if layout.startswith("one") else BANDS)
    expected = ONE[:, None] if layout.startswith("one") else SEVERAL
    assert read["image"].tobytes() == expected.tobytes()
    assert read["object_id"].tolist() == (IDS if "zarr" not in name else list(range(COUNT)))
    np.testing.assert_array_equal(read["ra"], RA)
    assert read["labels"].tolist() == (np.arange(COUNT) % 3).tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file_of_many_has_numbered_identifiers(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "stack.npy", np.asarray(SEVERAL.astype(">f4"), order=order))
    read = read_plan(tmp_path / "stack.npy", bands=BANDS)
    assert read["image"].tobytes() == SEVERAL.tobytes()
    assert read["object_id"].tolist() == [f"stack-{number}" for number in range(COUNT)]


def test_npy_files_of_one_galaxy_each(tmp_path: Path) -> None:
    for name, pixels in zip(IDS, SEVERAL, strict=True):
        np.save(tmp_path / f"{name}.npy", np.moveaxis(pixels, 0, 2))
    read = read_plan(tmp_path, bands=BANDS)
    assert read["image"].tobytes() == SEVERAL.tobytes()
    assert read["object_id"].tolist() == IDS


def test_a_catalogue_is_joined_by_identifier_number_or_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=ONE, object_id=np.array(IDS))
    shuffled = RNG.permutation(COUNT)[:10]
    lines = [f"{IDS[row]},{row}.5" for row in shuffled]
    (tmp_path / "c.csv").write_text("object_id,flux\n" + "\n".join([*lines, "absent,1"]) + "\n")
    read = read_plan(tmp_path / "a.npz", catalog=tmp_path / "c.csv")
    np.testing.assert_array_equal(read["image"][:10, 0], ONE[shuffled])
    assert read["reason"].tolist() == [""] * 10 + [f"no image in {tmp_path}/a.npz has its identifier"]
    np.save(tmp_path / "s.npy", ONE)
    (tmp_path / "n.csv").write_text("object_id,index\n" + "\n".join(f"{IDS[row]},{row}" for row in shuffled) + "\n")
    np.testing.assert_array_equal(read_plan(tmp_path / "s.npy", catalog=tmp_path / "n.csv")["image"][:, 0], ONE[shuffled])
    (tmp_path / "o.csv").write_text("object_id\n" + "\n".join(IDS) + "\n")
    np.testing.assert_array_equal(read_plan(tmp_path / "s.npy", catalog=tmp_path / "o.csv")["image"][:, 0], ONE)
    with pytest.raises(UserError, match=r"c.csv has 11 rows and .*s.npy 40 images, which have no column 'object_id' to join"):
        read_plan(tmp_path / "s.npy", catalog=tmp_path / "c.csv")


def test_cutanas_zarr_with_its_table(tmp_path: Path) -> None:
    order = RNG.permutation(COUNT)
    write_zarr(tmp_path / "images.zarr", images=np.moveaxis(SEVERAL, 1, 3)[order])
    place = np.argsort(order)
    table = pa.table({"source_id": IDS, "ra": RA, "dec": RA, "idx_in_zarr": place, "diameter_arcsec": RA})
    pq.write_table(table, tmp_path / "images_metadata.parquet")
    for images in (tmp_path / "images.zarr", tmp_path):
        read = read_plan(images, bands=BANDS)
        assert read["object_id"].tolist() == IDS
        assert read["image"].tobytes() == SEVERAL.tobytes()


def test_galaxy10_is_refused_as_pictures_are_not_linear(tmp_path: Path) -> None:
    pictures = (255 * RNG.random((5, SIZE, SIZE, 3))).astype(np.uint8)
    write_hdf5(tmp_path / "g.h5", images=pictures, ans=np.arange(5, dtype=np.uint8), ra=RA[:5], dec=RA[:5], pxscale=RA[:5])
    read = read_plan(tmp_path / "g.h5", bands=BANDS)
    assert all(text.startswith("8-bit pixels of a picture are stretched for display, not linear") for text in read["reason"])
    read = read_plan(tmp_path / "g.h5", bands=BANDS, allow_nonlinear=True)
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


def _check_noise(read: dict[str, Any]) -> None:
    good = np.broadcast_to(UNIVERSE["mask"][:, None], (COUNT, 2, SIZE, SIZE))
    ivar = np.where(good, UNIVERSE["ivar"][:, [2, 0]], 0)
    expected = np.divide(1, np.sqrt(ivar), out=np.zeros_like(ivar), where=ivar > 0)
    np.testing.assert_allclose(read["image"][:, 2:], expected, rtol=2e-7)


def test_multimodal_universe_in_hdf5(tmp_path: Path) -> None:
    for number, part in enumerate((slice(0, 15), slice(15, COUNT))):
        folder = tmp_path / f"healpix={number}"
        folder.mkdir()
        write_hdf5(
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
    _check_universe(read_plan(tmp_path, bands=("z", "g")))
    _check_noise(read_plan(tmp_path, bands=("z", "g"), noise_planes=True))
    with pytest.raises(UserError, match=r"reader\.bands: .*the images have the bands des-g, des-r, des-z, none of them y"):
        read_plan(tmp_path, bands=("y",))
    with pytest.raises(UserError, match=r"reader\.pixel_scale_arcsec: 0\.2 is given, but .* says 0\.262"):
        read_plan(tmp_path, bands=("z", "g"), pixel_scale_arcsec=0.2)


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
    read = read_plan(tmp_path, bands=("z", "g"))
    _check_universe(read)
    _check_noise(read_plan(tmp_path, bands=("z", "g"), noise_planes=True))
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
    read = read_plan(tmp_path, bands=("r",) if pixels is ONE else BANDS, **config)
    assert read["image"].tobytes() == pixels.tobytes()
    assert read["object_id"].tolist() == IDS
    np.testing.assert_array_equal(read["flux"], RA)


def test_a_ragged_image_and_a_missing_one_have_a_reason(tmp_path: Path) -> None:
    images = [[[1.0, 2.0], [3.0]], None, [[1.0, 2.0], [3.0, 4.0]]]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "image": images}), tmp_path / "a.parquet")
    reasons = read_plan(tmp_path / "a.parquet")["reason"]
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
    read = read_plan(tmp_path)
    order = [*range(0, COUNT, 2), *range(1, COUNT, 2)]
    assert read["image"].tobytes() == ONE[order].tobytes()
    assert read["object_id"].tolist() == [IDS[row] for row in order]
    assert (read["flux"] - 0.5).tolist() == order
    assert set(read["cls"]) == {7}


def test_webdataset_of_pictures_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        _add(tar, "G1.image.jpg", b"\xff\xd8\xff\xe0" + bytes(100))
    assert read_plan(tmp_path / "a.tar")["reason"][0].startswith("a JPEG or PNG file: 8-bit pixels of a picture are stretched")


def test_images_that_cannot_be_found_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=ONE, two=ONE, x=np.arange(3))
    with pytest.raises(UserError, match=r"no array of images .*; give reader.dataset; there are: one \(40, 12, 12\), two"):
        read_plan(tmp_path / "a.npz")
    np.testing.assert_array_equal(read_plan(tmp_path / "a.npz", dataset="two")["image"][:, 0], ONE)
    # The only readable array of a file whose images are Python objects.
    np.savez(tmp_path / "a.npz", psf=ONE)
    with pytest.raises(UserError, match=r"no array of images .*; there are: psf \(40, 12, 12\)"):
        read_plan(tmp_path / "a.npz")
    np.testing.assert_array_equal(read_plan(tmp_path / "a.npz", dataset="psf")["image"][:, 0], ONE)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet has no column of images"):
        read_plan(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds numpy_stack and parquet files; choose some by pattern"):
        read_plan(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"b.npz cannot be opened: "):
        read_plan(tmp_path / "b.npz")

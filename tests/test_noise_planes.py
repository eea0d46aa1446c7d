"""The noise of each pixel from files to posteriors."""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from numpy.testing import assert_allclose, assert_array_equal

from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.commands.ingest import IngestConfig, ingest
from gampen_ray.commands.ingest_tiles import dataset_info
from gampen_ray.commands.tile_plans import tile_source
from gampen_ray.config import ActorResources, CatalogConfig, ImagesConfig, ReaderConfig, TaskResources
from gampen_ray.data import shards, validation
from gampen_ray.data.cutouts import overlap
from gampen_ray.data.ingest_plan import content_settings, plan
from gampen_ray.data.packing import read_rows
from gampen_ray.data.reader_process import read_file
from gampen_ray.data.readers import read_cutout
from gampen_ray.engine import feed
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.crops import Cropper
from gampen_ray.inference.rotation import rotation_stability
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.symmetries import AUGMENTATIONS
from gampen_ray.training.execute import execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.reading import read_unit
from gampen_ray.training.run import prepare, with_config
from tests.networks import SIZE, dataset, galaxies, train_config

RNG = np.random.default_rng(7)
PLANES = {
    "VARIANCE": lambda sigma: sigma**2,
    "IVAR": lambda sigma: 1 / sigma**2,
    "ERR": lambda sigma: sigma,
    "MERRMS_VIS": lambda sigma: sigma,
}
"""What HDUs of a name hold."""


def content(*planes: tuple[str, np.ndarray], **cards: str) -> bytes:
    """Return a FITS file of an HDU each; the cards are those of the first."""
    buffer = io.BytesIO()
    images = [fits.ImageHDU(pixels.astype(np.float32), name=name) for name, pixels in planes]
    images[0].header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(buffer)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 3, shape).astype(np.float32)


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("layout", ["one", "cube", "named cube", "in turn", "grouped"])
def test_planes_of_each_kind_are_standard_deviations(name: str, layout: str) -> None:
    image_CHW, sigma_CHW = RNG.normal(size=(2, 9, 7)), noise(2, 9, 7).astype(np.float64)
    planes_CHW, bands = PLANES[name](sigma_CHW), ("g", "r")
    planes_CHW[:, 4, 2] = {"VARIANCE": np.inf, "IVAR": 0}.get(name, np.nan)
    if layout == "one":
        image_CHW, sigma_CHW, bands = image_CHW[:1], sigma_CHW[:1], ("r",)
        data = content(("SCI", image_CHW[0]), (name, planes_CHW[0]))
    elif layout == "cube":
        data = content(("SCI", image_CHW), (name, planes_CHW))
    elif layout == "named cube":
        data = content(("SCI", image_CHW[::-1]), (name, planes_CHW[::-1]), BAND0="r", BAND1="g")
    else:
        science, rest = (
            [(f"{kind}_{b}", of[i]) for i, b in enumerate(bands)] for kind, of in (("SCI", image_CHW), (name, planes_CHW))
        )
        hdus = [*science, *rest] if layout == "grouped" else [science[0], rest[0], science[1], rest[1]]
        # Where each follows its image, it need not name the band.
        data = content(*((name if layout == "in turn" and key.startswith(name) else key, pixels) for key, pixels in hdus))
    config = ReaderConfig(bands=bands, noise_planes=True)
    for cutout in (read_cutout(data, "a.fits", config), read_file(data, "a.fits", config)):
        assert cutout.sigma_CHW is not None
        known = np.ones((9, 7), bool)
        known[4, 2] = False
        assert cutout.sigma_CHW.dtype == np.float32
        assert_allclose(cutout.sigma_CHW[:, known], sigma_CHW[:, known], rtol=2e-7)
        assert_array_equal(cutout.sigma_CHW[:, 4, 2], 0)
        assert_array_equal(np.isnan(cutout.image_CHW), ~np.broadcast_to(known, image_CHW.shape))
        scaled = cutout.scaled(4).sigma_CHW
        assert scaled is not None
        assert_allclose(scaled, 4 * cutout.sigma_CHW)
    assert read_cutout(data, "a.fits", dataclasses.replace(config, noise_planes=False)).sigma_CHW is None
    if layout in ("in turn", "grouped"):
        alone = read_cutout(data, "a.fits", dataclasses.replace(config, bands=("r",)))
        assert_array_equal(alone.sigma_CHW, cutout.sigma_CHW[1:])


def test_a_part_of_a_variance_and_a_weight_of_unknown_unit_are_no_noise() -> None:
    for name in ("VAR_POISSON", "WHT"):
        data = content(("SCI", RNG.normal(size=(9, 7))), (name, noise(9, 7)))
        assert read_cutout(data, "a.fits", ReaderConfig(noise_planes=True)).sigma_CHW is None


@pytest.mark.parametrize("layout", ["HDUs", "files"])
def test_the_band_without_noise_is_named(layout: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    bands = {"g": [("SCI_g", RNG.normal(size=(9, 9))), ("ERR_g", noise(9, 9))], "r": [("SCI_r", RNG.normal(size=(9, 9)))]}
    files = {f"a_{band}": hdus for band, hdus in bands.items()} if layout == "files" else {"a": [*bands["g"], *bands["r"]]}
    for name, hdus in files.items():
        (tmp_path / "images" / f"{name}.fits").write_bytes(content(*hdus))
    template = "{object_id}_{band}.fits" if layout == "files" else ""
    reader = ReaderConfig(bands=("g", "r"), noise_planes=True)
    config = ingest_config(tmp_path, catalog="", targets=(), reader=reader, file_template=template, cutout_size=9)
    rows, info = plan(config)
    assert [*read_rows(rows, reader, info).reasons] == [REASON]
    fewer = dataclasses.replace(reader, bands=("g",))
    rows, info = plan(dataclasses.replace(config, reader=fewer))
    assert [*read_rows(rows, fewer, info).reasons] == [""]


def write_files(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write galaxies that look alike, whose flux is what their noise planes say alone; return their noise and flux."""
    (folder / "images").mkdir(parents=True)
    level_N = np.exp(RNG.uniform(-1, 1, count))
    sigma_NHW = level_N[:, None, None] * RNG.uniform(0.9, 1.1, (count, SIZE + 2, SIZE + 4))
    y, x = np.indices(sigma_NHW.shape[1:])
    galaxy = 20 * np.exp(-((y - SIZE / 2) ** 2 + (x - SIZE / 2 - 1) ** 2) / 8)
    names = [*PLANES]
    for i, sigma_HW in enumerate(sigma_NHW):
        planes = [("SCI", galaxy + RNG.normal(size=galaxy.shape)), (names[i % 4], PLANES[names[i % 4]](sigma_HW))]
        (folder / "images" / f"{i}.fits").write_bytes(content(*planes))
    flux_N = 100 * level_N
    rows = [f"{i},{i}.fits,{flux},{RNG.uniform(0.1, 0.9)}" for i, flux in enumerate(flux_N)]
    (folder / "c.csv").write_text("\n".join(["object_id,file_name,flux,concentration", *rows]))
    return sigma_NHW.astype(np.float32), flux_N


def ingest_config(folder: Path, **changes: Any) -> IngestConfig:
    values: dict[str, Any] = {
        "images": str(folder / "images"),
        "catalog": str(folder / "c.csv"),
        "output": str(folder / "data"),
    }
    values |= {
        "cutout_size": SIZE,
        "targets": ("flux", "concentration"),
        "reader": ReaderConfig(bands=("r",), noise_planes=True),
    }
    values["resources"] = TaskResources(engine="local")
    return IngestConfig(**values | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of files, a dataset of them, and a network that was trained on it."""
    folder = tmp_path_factory.mktemp("noise")
    sigma_NHW, _ = write_files(folder, 240)
    plain = content(("SCI", RNG.normal(size=sigma_NHW.shape[1:])), ("MASK", np.zeros(sigma_NHW.shape[1:])))
    (folder / "images" / "7.fits").write_bytes(plain)
    summary = ingest(ingest_config(folder))
    assert (sum(summary.num_rows.values()), summary.num_quarantined) == (239, 1)
    ((reason, count),) = summary.reasons.items()
    assert (reason.partition(":")[0], count) == ("no noise plane of band r", 1)
    np.save(folder / "sigma.npy", sigma_NHW)
    config = train_config(str(folder / "data"), str(folder / "run"), epochs=10, learning_rate=1e-2)
    run = prepare(dataclasses.replace(config, images=dataclasses.replace(config.images, noise_planes=True)))
    execute(LocalWorker.read(run), run)
    return folder


REASON = (
    "no noise plane of band r: the file has no variance (VAR, VARIANCE), inverse variance (IVAR) or error (ERR, RMS) image of "
    "the band's size with values, which reader.noise_planes or the bundle asks for"
)


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return load_bundle(str(root / "run"))


def stored(root: Path) -> pa.Table:
    return pa.concat_tables(shards.read_shard(uri) for uri in shards.shard_uris(str(root / "data"))).sort_by("object_id")


def test_shards_hold_the_noise_of_the_files(root: Path) -> None:
    info, table, sigma_NHW = shards.read_dataset_info(str(root / "data")), stored(root), np.load(root / "sigma.npy")
    assert (info.noise_planes, info.image_shape, info.planes_shape) == (True, (1, SIZE, SIZE), (2, SIZE, SIZE))
    assert shards.images(table.select(["image"])).shape == (239, 1, SIZE, SIZE)
    rows, columns = (overlap(side, SIZE)[0] for side in sigma_NHW.shape[1:])
    found = shards.images(table)[:, 1]
    assert_allclose(found, sigma_NHW[table["object_id"].to_numpy(), rows, columns], rtol=2e-7)
    assert validation.validate_dataset(str(root / "data")) == []


def test_padded_and_filled_pixels_have_no_noise(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image_HW, sigma_HW = RNG.normal(size=(SIZE - 4, SIZE - 4)), noise(SIZE - 4, SIZE - 4)
    image_HW[3, 5] = np.nan
    (tmp_path / "images" / "0.fits").write_bytes(content(("SCI", image_HW), ("ERR", sigma_HW)))
    reader = ReaderConfig(bands=("r",), noise_planes=True, nan_policy="median")
    ingest(ingest_config(tmp_path, catalog="", targets=(), reader=reader))
    image, sigma = shards.images(shards.read_shard(shards.shard_uris(str(tmp_path / "data"))[0]))[0]
    sigma_HW[3, 5] = 0
    assert_array_equal(sigma, np.pad(sigma_HW, 2))
    assert image[5, 7] == np.float32(np.nanmedian(image_HW))


def test_the_posterior_follows_the_noise_planes(root: Path, bundle: Bundle) -> None:
    assert (bundle.images.noise_planes, bundle.images.channels) == (True, 2)
    table = stored(root)
    image, sigma = np.split(shards.images(table), 2, axis=1)
    posterior = bundle.predict(image, noise_planes=sigma, num_passes=4)
    assert np.corrcoef(np.log(posterior.quantile(0.5)[:, 0]), np.log(table["flux"].to_numpy()))[0, 1] > 0.9
    doubled = bundle.predict(image, noise_planes=2 * sigma, num_passes=4)
    assert np.median(doubled.quantile(0.5)[:, 0] / posterior.quantile(0.5)[:, 0]) > 1.3
    # Masked ones, those that are not finite and zeros are unknown.
    masked = np.ma.masked_array(sigma, np.zeros(sigma.shape, bool))
    masked[:, :, :3] = np.ma.masked
    zero = np.where(masked.mask, 0, sigma)
    expected = bundle.predict(image, noise_planes=zero, num_passes=4).mean()
    assert_array_equal(bundle.predict(image, noise_planes=masked, num_passes=4).mean(), expected)
    assert not np.allclose(expected, posterior.mean())
    stability = rotation_stability(bundle, image[:3], noise_planes=sigma[:3], num_angles=4, num_passes=4)
    assert np.isfinite(stability.mean_NAD).all()


def test_inference_reads_the_planes_of_files_and_shards(root: Path, bundle: Bundle, tmp_path: Path) -> None:
    def catalog(dataset: str, **fields: Any) -> tuple[pa.Table, dict[str, Any]]:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        job: dict[str, Any] = {
            "bundle": str(root / "run"),
            "dataset": str(root / dataset),
            "output": str(output),
            "num_passes": 4,
        }
        manifest = infer(InferConfig(**job, resources=ActorResources(engine="local"), **fields))
        return pq.read_table(output / "catalog").sort_by("object_id"), manifest | {"output": output}

    shards_, _ = catalog("data")
    files, manifest = catalog("images", catalog=str(root / "c.csv"))
    assert manifest["num_quarantined"] == 1
    (quarantined,) = pq.read_table(manifest["output"] / "quarantine").to_pylist()
    assert (quarantined["object_id"], quarantined["reason"]) == ("7", REASON)
    image, sigma = np.split(shards.images(stored(root)), 2, axis=1)
    expected = bundle.predict(image, noise_planes=sigma, num_passes=4).quantile(0.5)[:, 0]
    for found in (shards_, files):
        assert_allclose(found["flux_median"].to_numpy(), expected, rtol=1e-4)
    plain = dataset(str(tmp_path / "plain"), {shards.ALL: 4})
    with pytest.raises(
        UserError, match=r"^dataset: .*plain has no noise planes, which the network takes; make it with `ingest`"
    ):
        catalog(plain)
    with pytest.raises(ValueError, match=r"reader\.noise_planes is True, but it comes from the bundle; leave it out"):
        InferConfig(bundle="b", dataset="d", output="o", reader=ReaderConfig(noise_planes=True))


def test_crops_of_files_with_noise_planes_are_those_of_their_images(root: Path, bundle: Bundle) -> None:
    names = ["0.fits", "7.fits"]
    crop, reason = Cropper(bundle, "digest")(names, [(root / "images" / name).read_bytes() for name in names])
    assert isinstance(crop, bytes)
    image: Any = fits.getdata(io.BytesIO(crop))
    assert image.ndim == 2
    assert str(reason) == REASON


def test_wrong_planes_are_refused_by_the_library(root: Path, bundle: Bundle) -> None:
    images = galaxies(4)["image"]
    for planes, message in (
        (None, r"^noise_planes: are missing, and the bundle was trained with them; give"),
        (images[:3], r"^noise_planes: have the shape \(3, 1, 20, 20\), but the images \(4, 1, 20, 20\); give"),
    ):
        with pytest.raises(UserError, match=message):
            bundle.predict(images, noise_planes=planes)
    run = prepare(train_config(str(root / "data"), "o"))
    assert (run.images.noise_planes, run.images.channels, run.columns.noise_planes) == (False, 1, False)
    with pytest.raises(UserError, match=r"^images\.noise_planes: cannot differ between trials"):
        with_config(run, dataclasses.replace(run.config, images=dataclasses.replace(run.config.images, noise_planes=True)))


def test_training_on_a_dataset_without_planes_is_refused(tmp_path: Path) -> None:
    config = train_config(dataset(str(tmp_path / "d"), {"train": 40, "val": 20}), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"^dataset: .* has no noise planes, .* reader\.noise_planes, from files with a var"):
        prepare(dataclasses.replace(config, images=dataclasses.replace(config.images, noise_planes=True)))


def test_tiles_have_no_planes(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"^bundle: b takes noise planes, which are not cut from tiles; give cutouts"):
        tile_source(InferConfig(bundle="b", dataset="f", output="o", catalog="c"), "f", bundle)
    config = IngestConfig(images="f", catalog="c", output="o", cutout_size=8, reader=ReaderConfig(noise_planes=True))
    with pytest.raises(UserError, match=r"^reader\.noise_planes: has no effect with a footprint"):
        dataset_info(config)


def test_settings_without_planes_are_those_of_earlier_versions(tmp_path: Path) -> None:
    reader = content_settings(ingest_config(tmp_path, reader=ReaderConfig()))["reader"]
    assert reader.keys() == CatalogConfig().reader.__dataclass_fields__.keys() - {
        "noise_planes",
        # Left out.
        *("hdu", "zero_point_mag", "pixel_scale_arcsec"),
    }
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE)
    shards.write_dataset_info(str(tmp_path), info)
    assert b"noise" not in (tmp_path / "dataset.json").read_bytes()


PREPROCESSING = ImagePreprocessing(
    bands=("g", "r"),
    size=SIZE,
    softening=2.0,
    channels=4,
    zero_point_mag=30.0,
    pixel_scale_arcsec=0.2,
    sky="border",
    measure=True,
    noise_planes=True,
)


def planes(side: int = SIZE, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([RNG.normal(5, 1, (count, 2, side, side)), noise(count, 2, side, side)], 1)).float()


def test_channels_of_noise_are_finite_and_apart_from_the_image() -> None:
    x = planes()
    x[0, 2, 0, :6] = torch.tensor([0.0, -1.0, np.nan, np.inf, 1e-38, 1e38])
    plain = dataclasses.replace(PREPROCESSING, noise_planes=False, channels=2)
    inputs, expected = PREPROCESSING.inputs(x), plain.inputs(x[:, :2])
    assert torch.equal(inputs.image_NCHW[:, :2], expected.image_NCHW)
    assert inputs.number_NM is not None
    assert expected.number_NM is not None
    assert torch.equal(inputs.number_NM, expected.number_NM)
    assert torch.equal(PREPROCESSING.plain_numbers(x), plain.plain_numbers(x[:, :2]))
    channels = inputs.image_NCHW[:, 2:]
    assert torch.isfinite(channels).all()
    assert torch.equal(channels[0, 0, 0, :4], torch.zeros(4))
    torch.testing.assert_close(channels[1:], torch.asinh(2.0 / x[1:, 2:]))
    # Scale-free: the same in another unit of flux.
    scaled = dataclasses.replace(PREPROCESSING, softening=200.0)
    torch.testing.assert_close(scaled(100 * x[1:]), inputs.image_NCHW[1:])
    # Beyond the edge it is unknown.
    assert torch.equal(PREPROCESSING(x[1:, :, 2:-2, 2:-2])[:, 2:, :2], torch.zeros(2, 2, 2, SIZE))
    turned = AUGMENTATIONS["symmetries"](inputs.image_NCHW, torch.tensor([[0.1], [0.9], [0.1]]).expand(3, 3))
    torch.testing.assert_close(turned, PREPROCESSING(x.flip(-1).transpose(-1, -2)), atol=1e-5, rtol=1e-5)


def test_noise_is_converted_as_fluxes_and_with_the_pixel_size() -> None:
    x = planes(40)
    preprocessing = dataclasses.replace(PREPROCESSING, size=80)
    same = preprocessing.match(x, zero_point_mag=27.5, pixel_scale_arcsec=0.2)
    assert same.sigma_NCHW is not None
    torch.testing.assert_close(same.sigma_NCHW, 10 * x[:, 2:])
    for scale in (0.1, 0.3):
        zoom = scale / 0.2
        x[:, 2:] = 1.5
        x[:, 2:, 10:22, 10:22] = torch.tensor([0.0, np.nan, np.inf, -1]).repeat(3)
        matched = preprocessing.match(x, zero_point_mag=30.0, pixel_scale_arcsec=scale)
        assert matched.sigma_NCHW is not None
        assert matched.sigma_NCHW.shape == matched.image_NCHW.shape == (3, 2, *2 * (round(40 * zoom),))
        known = matched.sigma_NCHW > 0
        # As white noise of this level has when it is summed: a sum over the same sky has the same noise.
        torch.testing.assert_close(matched.sigma_NCHW[known], torch.full_like(matched.sigma_NCHW[known], 1.5 / zoom))
        assert float((~known).double().mean()) == pytest.approx((12 / 40) ** 2, rel=0.1)


def test_ray_reads_what_one_process_reads(root: Path) -> None:
    config = train_config(str(root / "data"), "o")
    run = prepare(dataclasses.replace(config, images=dataclasses.replace(config.images, noise_planes=True)))
    chunks = list(run.orders()["train"].chunks(0, 0))
    block = feed._read(pa.table({"chunks": [pickle.dumps(chunks)]}), columns=run.columns)
    for chunk, (lane, rows) in zip(chunks, feed._parts(block, len(run.targets)), strict=True):
        assert lane == chunk.lane
        assert_array_equal(rows.cutout_NCHW, read_unit(run.columns, chunk.unit).take(chunk.rows).cutout_NCHW)


def test_a_band_that_is_repeated_has_no_planes() -> None:
    config = ImagesConfig(noise_planes=True, channels=3)
    with pytest.raises(UserError, match=r"^images\.channels: 3 channels cannot be filled .* r and their noise planes; only a"):
        ImagePreprocessing.fit(config, ("r",), RNG.normal(size=(9, 1, 20, 20)).astype(np.float32))
    assert (
        ImagePreprocessing.fit(
            ImagesConfig(noise_planes=True), ("r",), RNG.normal(size=(9, 1, 20, 20)).astype(np.float32)
        ).channels
        == 2
    )

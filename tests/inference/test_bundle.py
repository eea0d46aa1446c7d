import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.utils.masked import Masked

import gampen_ray
from gampen_ray.config import TrainConfig
from gampen_ray.config.base import build, to_dict
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.inference.out_of_distribution import OutOfDistribution
from gampen_ray.inference.ranges import Ranges
from gampen_ray.model.targets import TargetSchema
from tests.networks import NETWORK, WITH_NUMBERS, bundle, galaxies, with_prior


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundle().save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_loaded_bundle_predicts_the_same(saved: Path) -> None:
    images = galaxies(7, seed=2)["image"]
    before, after = bundle().predict(images, num_passes=4), gampen_ray.load_bundle(str(saved)).predict(images, num_passes=4)
    torch.testing.assert_close(after.mean_NKD, before.mean_NKD)
    torch.testing.assert_close(after.scale_tril_NKDD, before.scale_tril_NKDD)
    loaded = load_bundle(str(saved))
    assert (loaded.config, loaded.targets, loaded.images) == (bundle().config, bundle().targets, bundle().images)
    assert (loaded.metrics, loaded.provenance) == (bundle().metrics, bundle().provenance)


def test_device_and_precision_are_those_asked_for(saved: Path) -> None:
    images, loaded = galaxies(7)["image"], load_bundle(str(saved))
    whole, half = (loaded.predict(images, num_passes=2, device="cpu", precision=p) for p in ("float32", "bfloat16"))
    difference = np.abs(half.standardised_mean() - whole.standardised_mean())
    assert 0 < difference.max() < 0.05
    assert np.array_equal(whole.mean(), loaded.predict(images, num_passes=2, device="cpu").mean())


@pytest.mark.gpu
def test_a_gpu_is_used_where_there_is_one(saved: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.reset_peak_memory_stats()
    loaded, images = load_bundle(str(saved)), galaxies(20)["image"]
    mixture = loaded.predict(images, num_passes=2)
    assert torch.cuda.max_memory_allocated() > images.nbytes
    assert mixture.mean_NKD.device.type == "cpu"
    assert next(loaded.network.parameters()).device.type == "cpu"


def test_every_file_is_hashed_once_at_a_load(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_novelty().save(str(saved))
    hashed, sha256 = [], hashlib.sha256

    def counted(data: bytes) -> Any:
        hashed.append(len(data))
        return sha256(data)

    monkeypatch.setattr(hashlib, "sha256", counted)
    load_bundle(str(saved))
    assert sorted(hashed) == sorted(path.stat().st_size for path in saved.iterdir() if path.name != "SHA256SUMS")


def test_run_folder_stands_for_its_bundle(tmp_path: Path) -> None:
    bundle().save(str(tmp_path / "run" / "bundle"))
    assert load_bundle(str(tmp_path / "run")).targets == bundle().targets


def test_calibration_scale_stretches_the_posterior(saved: Path) -> None:
    images = galaxies(3)["image"]
    plain = bundle()
    plain.calibration.scale_DB[:] = 1
    width, plain_width = (
        np.diff(b.predict(images, num_passes=4).standardised_quantile(np.array([0.1, 0.9])), axis=1)
        for b in (load_bundle(str(saved)), plain)
    )
    np.testing.assert_allclose(width / plain_width, np.broadcast_to([1.2, 0.8], (3, 1, 2)), rtol=1e-6)


def test_a_bundle_replaced_since_its_digest_was_taken_is_refused(saved: Path) -> None:
    digest = bundle_digest(str(saved))
    assert load_bundle(str(saved), digest).provenance == load_bundle(str(saved)).provenance
    retrained = bundle()
    retrained.calibration.scale_DB[:] = 7.3
    retrained.save(str(saved))
    with pytest.raises(UserError, match=r"bundle: .* was replaced while it was in use; put the former one back, or give a new"):
        load_bundle(str(saved), digest)


def test_batch_size_changes_no_posterior(saved: Path) -> None:
    images = galaxies(64)["image"]
    one, all_ = (load_bundle(str(saved)).predict(images, num_passes=8, batch_size=n) for n in (1, 64))
    for name in ("mean", "std", "mode"):
        np.testing.assert_allclose(getattr(one, name)(), getattr(all_, name)(), rtol=1e-4)


def test_novelty_is_stored_and_a_bundle_without_it_loads(saved: Path) -> None:
    assert load_bundle(str(saved)).novelty is None
    novelty, images = with_novelty().novelty, np.random.default_rng(1).normal(size=(5, 3))
    assert novelty
    with_novelty().save(str(saved))
    back = load_bundle(str(saved)).novelty
    assert back
    assert back.threshold == novelty.threshold
    assert np.array_equal(back.distance(images), novelty.distance(images))
    description = json.loads((saved / "bundle.json").read_text())
    assert description["novelty"] == {"threshold": novelty.threshold}
    # As in bundles made before novelty was stored.
    del description["novelty"]
    write_description(saved, description)
    assert load_bundle(str(saved)).novelty is None


def test_the_prior_of_the_training_is_kept(saved: Path) -> None:
    with_prior().save(str(saved))
    loaded, kept = load_bundle(str(saved)), with_prior().prior
    assert loaded.prior and kept
    drawn = kept.sample(50, 0)
    np.testing.assert_array_equal(loaded.prior.log_density(drawn), kept.log_density(drawn))
    posterior = loaded.predict(galaxies(3)["image"], num_passes=2)
    np.testing.assert_allclose(
        posterior.reweight(loaded.prior.log_density, loaded.prior.log_density, num_draws=200).effective_size_N,
        [(np.isfinite(kept.log_density(draws))).sum() for draws in posterior.sample(200, 0)],
    )
    description = json.loads((saved / "bundle.json").read_text())
    for change, message in (
        ({"masses": [[1.0], [1.0]]}, "prior: flux has .* ends of 1 bins"),
        ({"edges": "none"}, "prior.edges: 'none' is not allowed"),
    ):
        write_description(saved, description | {"prior": description["prior"] | change})
        with pytest.raises(UserError, match=rf"bundle: .*/bundle.json is damaged: {message}.*; copy the bundle again"):
            load_bundle(str(saved))
    # As in bundles made before it was stored.
    del description["prior"]
    write_description(saved, description)
    assert load_bundle(str(saved)).prior is None


def write_description(saved: Path, description: dict) -> None:
    """Replace bundle.json, and its checksum."""
    (saved / "bundle.json").write_text(json.dumps(description))
    sums = {name: hashlib.sha256((saved / name).read_bytes()).hexdigest() for name in ("bundle.json", "weights.safetensors")}
    (saved / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def test_a_bundle_with_former_names_loads(tmp_path: Path) -> None:
    config = dataclasses.replace(NETWORK, likelihood="unit_variance")
    train = to_dict(TrainConfig(dataset="d", output="o", network=config))
    made = dataclasses.replace(bundle(config), provenance={"train": train})
    made.save(str(tmp_path))
    text = (tmp_path / "bundle.json").read_text()
    for now, before in (
        ("unit_variance", "mse"),
        ("gradient_accumulation_steps", "accumulate"),
        ("max_grad_norm", "clip_norm"),
    ):
        assert f'"{now}"' in text
        text = text.replace(f'"{now}"', f'"{before}"')
    write_description(tmp_path, json.loads(text))
    loaded, images = load_bundle(str(tmp_path)), galaxies(3)["image"]
    assert loaded.config == made.config
    assert to_dict(build(TrainConfig, loaded.provenance["train"], recorded=True)) == train
    torch.testing.assert_close(loaded.predict(images, num_passes=2).mean_NKD, made.predict(images, num_passes=2).mean_NKD)


def test_a_bundle_that_does_not_say_so_has_crops_with_the_psf(tmp_path: Path) -> None:
    made = bundle(dataclasses.replace(NETWORK, spatial_transformer=WITH_NUMBERS.spatial_transformer))
    assert made.config.spatial_transformer.subtract_psf
    made.save(str(tmp_path))
    assert load_bundle(str(tmp_path)).config == made.config
    described = json.loads((tmp_path / "bundle.json").read_text())
    del described["network"]["spatial_transformer"]["subtract_psf"]
    write_description(tmp_path, described)
    assert not load_bundle(str(tmp_path)).config.spatial_transformer.subtract_psf


def with_novelty() -> Bundle:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    return dataclasses.replace(bundle(), novelty=OutOfDistribution.fit(rows, rows))


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json", "novelty.safetensors"])
def test_damaged_file_is_named(saved: Path, name: str) -> None:
    with_novelty().save(str(saved))
    data = bytearray((saved / name).read_bytes())
    data[-2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"bundle: .*/{name} .*damaged.*; copy the bundle again"):
        load_bundle(str(saved))


@pytest.mark.parametrize(("version", "remedy"), [(4, "train or import it again"), (6, "upgrade gampen_ray")])
def test_another_format_is_refused(saved: Path, version: int, remedy: str) -> None:
    description = json.loads((saved / "bundle.json").read_text()) | {"format_version": version}
    (saved / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=rf"bundle: .* has format_version {version}, this gampen_ray reads 5; {remedy}"):
        load_bundle(str(saved))


def test_missing_bundle_and_missing_weights(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bundle: .*/nowhere holds no bundle\.json"):
        load_bundle(str(tmp_path / "nowhere"))
    (saved / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors: no such file"):
        load_bundle(str(saved))


def test_a_posterior_that_may_be_wrong_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = bundle()
    usual = model.images.plain_numbers(torch.from_numpy(galaxies(300, seed=1)["image"])).numpy()
    image = galaxies(3, seed=2)["image"].copy()
    image[1, 0, 5, 5] = 0
    for low, flagged in (
        (-1e9, "1 of 3 posteriors may be wrong"),
        (1e9, "3 of 3 posteriors may be wrong: NEAR_TRAINING_EDGE (3)"),
    ):
        targets = TargetSchema(tuple(dataclasses.replace(target, low=low, high=1e10) for target in model.targets))
        caplog.clear()
        dataclasses.replace(model, ranges=Ranges.fit(usual), targets=targets).predict(image, num_passes=2)
        assert [record.message for record in caplog.records] == [f"{flagged}{', ' if low > 0 else ': '}PIXELS_ZERO (1)"]


def test_images_that_do_not_fit_are_refused(saved: Path) -> None:
    images = galaxies(4)["image"]
    images[2, 0, 3, 3] = np.nan
    with pytest.raises(UserError, match=r"images: 1 have non-finite pixels, the first is number 2"):
        load_bundle(str(saved)).predict(images)
    with pytest.raises(UserError, match=r"images: shape \(4, 2, 20, 20\) does not fit; give \(galaxies, 1, height, width\)"):
        load_bundle(str(saved)).predict(np.zeros((4, 2, 20, 20)))
    with pytest.raises(UserError, match=r"images: shape \(20,\)"):
        load_bundle(str(saved)).predict(np.zeros(20))
    with pytest.raises(UserError, match=r"images: shape \(0, 1, 20, 20\)"):
        load_bundle(str(saved)).predict(images[:0])


def test_images_of_one_band_need_no_axis_of_bands_and_one_image_none_of_galaxies(saved: Path) -> None:
    model, image_NCHW = load_bundle(str(saved)), galaxies(3)["image"]
    expected = model.predict(image_NCHW, num_passes=2).mean()
    np.testing.assert_array_equal(model.predict(image_NCHW[:, 0], num_passes=2).mean(), expected)
    np.testing.assert_allclose(model.predict(image_NCHW[0, 0], num_passes=2).mean(), expected[:1], rtol=1e-5)


def test_pixels_of_any_layout_mask_and_unit(saved: Path) -> None:
    model = dataclasses.replace(load_bundle(str(saved)), calibration=bundle().calibration)
    model = dataclasses.replace(model, images=dataclasses.replace(model.images, zero_point_mag=27.0))
    images = galaxies(3)["image"]

    def mean(pixels: Any, **options: Any) -> np.ndarray:
        return model.predict(pixels, num_passes=2, **options).mean()

    expected = mean(images)
    np.testing.assert_array_equal(mean(images.astype(">f4")), expected)
    np.testing.assert_allclose(mean(images[..., ::-1].copy()), mean(images[..., ::-1]))
    np.testing.assert_array_equal(mean(np.ma.array(images, mask=False)), expected)
    mask = np.arange(3)[:, None, None, None] + np.zeros(images.shape) == 1
    with pytest.raises(UserError, match="images: 1 have non-finite pixels, the first is number 1"):
        mean(np.ma.array(images, mask=mask))
    with pytest.raises(UserError, match="images: 1 have non-finite pixels, the first is number 1"):
        mean(Masked(images * u.nJy, mask=mask))
    # 31.4, up to the definition of the AB system.
    np.testing.assert_allclose(mean(images * u.nJy), mean(images, zero_point_mag=31.4), rtol=2e-3)
    np.testing.assert_allclose(mean(images * u.nJy), mean(images / 1000 * u.uJy), rtol=1e-5)
    with pytest.raises(UserError, match="images: their unit is ct, whose zero point is unknown; give zero_point_mag"):
        mean(images * u.ct)
    with pytest.raises(UserError, match=r"zero_point_mag: 27 is given, but the images are in nJy, of 31\.400; leave it out"):
        mean(images * u.nJy, zero_point_mag=27.0)
    for wrong in (0.0, -0.2, np.nan):
        with pytest.raises(UserError, match=r"pixel_scale_arcsec: .* is no size of a pixel"):
            mean(images, pixel_scale_arcsec=wrong)


def test_what_lies_beyond_the_networks_input_changes_nothing() -> None:
    made = load_bundle("builtin:kids-r")
    psf = {"psf_fwhm_arcsec": 0.68, "psf_r50_arcsec": 0.45, "psf_r80_arcsec": 0.83, "psf_r95_arcsec": 1.78}
    y, x = np.mgrid[:96, :96] - 47.5
    image = 200 * np.exp(-np.hypot(x, 1.4 * y) / 4) + np.random.default_rng(0).normal(size=(96, 96))
    expected = made.predict(image, conditions=psf, num_passes=17, warn=False)
    for wide in (np.pad(image, 10), np.pad(image, ((10, 11), (10, 11)), mode="reflect"), np.pad(image, 50, constant_values=99)):
        found = made.predict(wide, conditions=psf, num_passes=17, warn=False)
        torch.testing.assert_close(found.mean_NKD, expected.mean_NKD)
    # At another pixel scale a little more than the input is needed.
    coarse = [made.predict(np.pad(image, pad), conditions=psf, pixel_scale_arcsec=0.25, warn=False) for pad in (0, 10)]
    torch.testing.assert_close(coarse[0].mean_NKD, coarse[1].mean_NKD)


@pytest.mark.parametrize(
    ("images", "fields", "match"),
    [
        (np.ones((2, 20, 20)), {}, r"^images: 2 have the same value in all pixels, the first is number 0; remove them$"),
        (np.ones((20, 20)) * 1j, {}, r"^images: hold complex128, not real numbers; give pixels$"),
        ("galaxy.fits", {}, r"^images: hold <U11, not real numbers; give pixels$"),
        (None, {"num_passes": 0}, r"^num_passes: 0 is below 1$"),
        (None, {"seed": -1}, r"^seed: -1 is below 0$"),
    ],
)
def test_mistakes_in_python_are_one_line(images, fields, match: str) -> None:
    with pytest.raises(UserError, match=match):
        bundle().predict(galaxies(1)["image"] if images is None else images, **fields)

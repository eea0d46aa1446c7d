import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gampen_ray.config.scene import PsfConfig
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.flags import Flag, condition_flags
from gampen_ray.inference.known_conditions import KnownConditions, impossible
from gampen_ray.model.images import Condition
from gampen_ray.model.network import Network
from gampen_ray.simulation.inputs import Inputs
from gampen_ray.simulation.scene import draw_psf, simulate, stream
from gampen_ray.simulation.surveys import SURVEYS
from tests.networks import WITH_NUMBERS, bundle


def along_a_line(count: int, seed: int) -> np.ndarray:
    """Return two conditions of which the second is twice the first, to 5 %, with an unimportant third."""
    rng = np.random.default_rng(seed)
    width_N = rng.uniform(0.5, 1.5, count)
    return np.stack([width_N, 2 * width_N * rng.normal(1, 0.05, count), rng.normal(0, 100, count)], axis=1)


def psf_sizes(count: int, seed: int, *, least_ratio: float = 0.0, **psf: tuple[float, float]) -> np.ndarray:
    """Return sizes of PSFs whose aureole is at least so many times as wide as the core."""
    survey, config = SURVEYS["kids-r"], PsfConfig(**psf)
    rows = [draw_psf(stream(seed, index, "psf"), survey, config, Inputs())[1] for index in range(count)]
    rows = [row for row in rows if row["psf_wing_fwhm_arcsec"] >= least_ratio * row["psf_core_fwhm_arcsec"]]
    return np.array([[row[f"psf_{name}_arcsec"] for name in ("fwhm", "r50", "r80", "r95")] for row in rows])


def test_values_that_are_usual_alone_may_be_unlike_all_training_galaxies_together() -> None:
    known = KnownConditions.fit(along_a_line(5000, seed=0))
    assert known.unlike(along_a_line(5000, seed=1)).mean() < 0.01
    corners = np.array([[0.6, 2.8, 0.0], [1.4, 1.2, 0.0]])
    assert known.unlike(corners).all()
    conditions = [Condition.fit(str(j), values) for j, values in enumerate(along_a_line(5000, seed=0).T)]
    assert condition_flags(corners, conditions, None).tolist() == [0, 0]
    assert condition_flags(corners, conditions, known).tolist() == [Flag.CONDITION_OUT_OF_RANGE.value] * 2


def test_psfs_beyond_those_of_the_training_are_seen() -> None:
    trained = {"beta": (1.8, 4.765), "wing_fraction": (0.0, 0.15)}
    known = KnownConditions.fit(psf_sizes(4000, seed=1, **trained))
    assert known.unlike(psf_sizes(500, seed=2, **trained)).mean() < 0.02
    assert known.unlike(psf_sizes(200, seed=2, **trained | {"fwhm_arcsec": (1.0, 1.2)})).mean() > 0.9
    assert known.unlike(psf_sizes(200, seed=2, **trained | {"beta": (1.5, 1.6)})).mean() > 0.9
    # Narrower ones look like a core of shallower wings.
    winged = psf_sizes(300, seed=2, least_ratio=3.0, **trained | {"wing_fraction": (0.3, 0.4)})
    assert known.unlike(winged).mean() > 0.95


def test_a_survey_may_have_few_psfs() -> None:
    rng = np.random.default_rng(0)
    few = np.exp(rng.normal(0, 0.1, (40, 3)))
    known = KnownConditions.fit(few[rng.integers(40, size=2000)])
    assert not known.unlike(few).any()
    assert known.unlike(np.exp(rng.normal(0, 0.1, (500, 3)))).mean() < 0.05
    assert known.unlike(np.full((1, 3), 2.0)).all()
    single = KnownConditions.fit(np.ones((10, 2)))
    assert single.unlike(np.array([[1.0, 1.0], [1.1, 1.0]])).tolist() == [False, True]


def test_a_condition_that_is_missing_or_not_positive() -> None:
    known = KnownConditions.fit(along_a_line(500, seed=0))
    assert known.unlike(np.array([[np.nan, 2.0, 0.0], [-1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])).tolist() == [False, True, False]


def test_only_part_of_a_large_split_is_kept() -> None:
    values = along_a_line(40_000, seed=0)
    known = KnownConditions.fit(values)
    assert known.condition_MJ.shape == (1 << 14, 3)
    assert known.condition_MJ[:, 0].std() == pytest.approx(values[:, 0].std(), rel=0.02)


def with_conditions() -> Bundle:
    """Return a bundle of a network that is given a condition."""
    made, conditions = bundle(), (Condition(name="psf", low=0.5, high=1.5, mean=1.0),)
    images = dataclasses.replace(made.images, conditions=conditions, zero_point_mag=25.0, pixel_scale_arcsec=0.2)
    known = KnownConditions.fit(np.linspace(0.5, 1.5, 30)[:, None])
    network = Network.of(WITH_NUMBERS, images, 2).eval()
    return dataclasses.replace(made, images=images, network=network, config=WITH_NUMBERS, known_conditions=known)


def test_a_bundle_keeps_them(tmp_path: Path) -> None:
    made = with_conditions()
    made.save(str(tmp_path))
    loaded = load_bundle(str(tmp_path))
    assert made.known_conditions
    assert loaded.known_conditions
    np.testing.assert_array_equal(loaded.known_conditions.condition_MJ, made.known_conditions.condition_MJ)
    path = tmp_path / "conditions.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"conditions\.safetensors does not match its checksum .*; copy the bundle again"):
        load_bundle(str(tmp_path))


def test_wrong_tensors_are_refused() -> None:
    tensors = KnownConditions.fit(np.ones((3, 1))).to_tensors()
    for wrong in ({}, {"condition": tensors["condition"].double()}, {"condition": torch.zeros(3, 2)}):
        with pytest.raises(ValueError, match="not 1 conditions in float32"):
            KnownConditions.from_tensors(wrong, 1)
    with pytest.raises(ValueError, match="no table of finite numbers"):
        KnownConditions(np.array([[np.nan]]))


def test_each_galaxy_of_a_tile_may_have_a_psf_of_its_own() -> None:
    rng = np.random.default_rng(0)
    tiles, others = (rng.uniform(0.6, 0.85, 24) for _ in range(2))
    known = KnownConditions.fit((rng.choice(tiles, 5000) * rng.normal(1, 5e-4, 5000))[:, None])
    between = others[(others > tiles.min()) & (others < tiles.max())]
    # Nearly all were flagged when the distances that counted were those within a tile.
    assert known.unlike((rng.choice(between, 500) * rng.normal(1, 5e-4, 500))[:, None]).mean() < 0.1
    assert known.unlike(np.array([[0.52], [0.95]])).all()


def test_unknown_conditions_are_drawn_as_the_training_has_them() -> None:
    line_NJ = along_a_line(5000, seed=0)
    known = KnownConditions(line_NJ)
    given_NJ = np.array([[np.nan, np.nan, np.nan], [1.2, np.nan, np.nan], [0.7, 1.4, np.nan], [0.7, 1.4, 5.0]])
    drawn_SNJ = known.drawn(given_NJ, 200)
    np.testing.assert_array_equal(
        np.where(np.isfinite(given_NJ), drawn_SNJ, np.nan), np.broadcast_to(given_NJ, drawn_SNJ.shape)
    )
    # All of it, and in the order of its widths alone.
    np.testing.assert_allclose(drawn_SNJ[:, 0].mean(axis=0)[:2], line_NJ.mean(axis=0)[:2], rtol=0.05)
    np.testing.assert_allclose(drawn_SNJ[:, 0].std(axis=0), line_NJ.std(axis=0), rtol=0.15)
    np.testing.assert_allclose(drawn_SNJ[:, 0, 1], 2 * drawn_SNJ[:, 0, 0], rtol=0.3)
    assert drawn_SNJ[:, 1, 1].mean() == pytest.approx(2.4, rel=0.02)
    assert drawn_SNJ[:, 1, 1].std() == pytest.approx(0.12, rel=0.3)
    assert drawn_SNJ[:, 2, 2].std() == pytest.approx(100, rel=0.3)
    # A galaxy's draws do not depend on the others, and few training galaxies are drawn again.
    np.testing.assert_array_equal(known.drawn(given_NJ[1:2], 200)[:, 0], drawn_SNJ[:, 1])
    assert (
        np.unique(KnownConditions(line_NJ[:3]).drawn(given_NJ[:2], 7)[:, 1, 1]).tolist()
        == np.unique(line_NJ[:3, 1].astype(np.float32)).tolist()
    )


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"psf_fwhm_arcsec": 0.7, "psf_r50_arcsec": 0.4, "psf_r95_arcsec": 1.8, "redshift": -1.0}, ""),
        ({"psf_r50_arcsec": np.nan, "psf_r80_arcsec": 0.8}, ""),
        ({"psf_fwhm_arcsec": -0.7}, "psf_fwhm_arcsec is -0.7, not a positive size"),
        ({"psf_r80_arcsec": 0.0}, "psf_r80_arcsec is 0, not a positive size"),
        (
            {"psf_r95_arcsec": 0.4, "psf_r50_arcsec": 1.8},
            "psf_r50_arcsec is 1.8, not below psf_r95_arcsec of 0.4: are columns swapped?",
        ),
        (
            {"psf_r80_arcsec": 1.8, "psf_r95_arcsec": 1.8},
            "psf_r80_arcsec is 1.8, not below psf_r95_arcsec of 1.8: are columns swapped?",
        ),
    ],
)
def test_sizes_that_no_psf_has_are_named(sizes: dict[str, float], reason: str) -> None:
    rows = np.array([list(sizes.values()), [np.nan] * len(sizes)])
    assert impossible(list(sizes), rows).tolist() == [reason, ""]


def test_a_posterior_without_the_psf_is_over_the_psfs_of_the_training() -> None:
    made = load_bundle("builtin:kids-r")
    rows = simulate(SURVEYS["kids-r"], cutout_size=96, seed=20261201, start=0, stop=120)
    names, truths_ND = made.images.condition_names, np.stack([rows[name] for name in made.targets.names], axis=1)
    psf = {name: rows[name] for name in names}
    unknown = dict.fromkeys(names, np.nan)
    widths = []
    for conditions in (psf, psf | {names[0]: rows[names[0]], **dict.fromkeys(names[1:], np.nan)}, unknown):
        posterior = made.predict(rows["image"], conditions=conditions, warn=False)
        inside_ND = np.abs(posterior.cdf(truths_ND) - 0.5) < 0.4772
        # With the mean PSF instead, 34 to 61 %.
        assert (inside_ND.mean(axis=0) > 0.8).all()
        widths.append(np.median(posterior.std(), axis=0))
    assert (widths[0] < widths[1]).all()
    assert (widths[1] < widths[2]).all()

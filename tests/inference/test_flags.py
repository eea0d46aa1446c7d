import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gampen_ray.catalog.parquet import catalog_table
from gampen_ray.inference.flags import Flag, FlagCounts, crop_at_bound, image_flags, posterior_flags
from gampen_ray.inference.out_of_distribution import OutOfDistribution
from gampen_ray.posterior.summary import summarise
from tests.posterior.posterior_cases import gaussian, mixture


def affine(scale=1.0, angle=0.0, shift=(0.0, 0.0)):
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[[cos, -sin, shift[0]], [sin, cos, shift[1]]]])


@pytest.mark.parametrize(
    ("map_N23", "beyond"),
    [
        (affine(), False),
        (affine(0.5), False),
        (affine(1.005), False),
        (affine(1.1), True),
        (affine(-1.1), True),
        (affine(0.5, shift=(0.45, 0.0)), False),
        (affine(0.5, shift=(0.6, 0.0)), True),
        (affine(0.5, shift=(0.0, -0.6)), True),
        (affine(0.8, angle=math.pi / 4), True),
        (affine(0.7, angle=math.pi / 4), False),
        (affine(0.8, angle=math.pi / 2), False),
    ],
)
def test_crop_at_bound(map_N23, beyond):
    assert crop_at_bound(map_N23).tolist() == [beyond]
    expected = Flag.CROP_AT_BOUND if beyond else 0
    assert image_flags(map_N23, np.zeros((1, 0)), None, zoom=1.0, centre_offset_N=np.zeros(1)).tolist() == [expected]


def test_the_table_of_the_page_gives_every_meaning():
    page = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()
    table = re.search(r"\| flag \| bit \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", page)
    assert table is not None
    assert table[1].splitlines() == [f"| `{flag.name}` | {flag.value} | {flag.meaning} |" for flag in Flag]


def test_unusual_images_and_coarse_pixels():
    training = np.random.default_rng(0).normal(size=(1000, 3))
    novelty = OutOfDistribution.fit(training, training)
    maps, images = np.repeat(affine(0.5), 2, axis=0), np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    assert image_flags(maps, images, novelty, zoom=1.0, centre_offset_N=np.zeros(1)).tolist() == [0, Flag.UNUSUAL_IMAGE]
    assert image_flags(maps, images, None, zoom=1.0, centre_offset_N=np.zeros(1)).tolist() == [0, 0]
    both = Flag.UNUSUAL_IMAGE | Flag.COARSE_PIXELS
    assert image_flags(maps, images, novelty, zoom=1.5, centre_offset_N=np.array([0.0, 5.0])).tolist() == [
        Flag.COARSE_PIXELS,
        both | Flag.OFF_CENTRE,
    ]


@pytest.mark.parametrize(
    ("mean", "sigma", "edge"), [(0.5, 0.1, False), (0.5, 0.6, True), (0.85, 0.1, False), (0.95, 0.1, True), (0.05, 0.1, True)]
)
def test_near_training_edge(mean, sigma, edge):
    # Training values of the cases lie in [0, 1]; the interval is mean +- 1 sigma.
    m = gaussian([mean, 0.5], np.diag([sigma, 0.01]) ** 2, "identity", "identity")
    assert posterior_flags(summarise(m), m.targets).tolist() == [Flag.NEAR_TRAINING_EDGE if edge else 0]


def test_edge_of_any_target_counts():
    m = gaussian([0.5, 1.5], np.diag([0.01, 0.01]) ** 2, "identity", "identity")
    assert posterior_flags(summarise(m), m.targets).tolist() == [Flag.NEAR_TRAINING_EDGE]


@pytest.mark.parametrize(("spread", "share"), [(0.05, 0.0), (5.0, 1.0)])
def test_epistemic_dominates(spread, share):
    m = mixture("log", "logit", spread=spread)
    flags = posterior_flags(summarise(m), m.targets)
    assert ((flags & Flag.EPISTEMIC_DOMINATES) > 0).mean() == share


def test_one_pass_has_no_epistemic_part():
    m = mixture("log", num_passes=1)
    assert not (posterior_flags(summarise(m), m.targets) & Flag.EPISTEMIC_DOMINATES).any()


def test_passes_that_differ_in_an_unknown_condition_are_not_called_epistemic():
    m = mixture("log", "logit", num_galaxies=2, spread=9.0)
    image_N = np.array([0, Flag.CONDITION_MISSING])
    flags = catalog_table(pa.table({"object_id": [1, 2]}), m, np.ones(2), image_N, store_mixture=False)["flags"].to_numpy()
    assert ((flags & Flag.EPISTEMIC_DOMINATES) > 0).tolist() == [True, False]
    assert ((flags & Flag.CONDITION_MISSING) > 0).tolist() == [False, True]


def test_catalogue_holds_the_flags_of_image_and_posterior():
    m = gaussian([0.95], [[0.01]], "identity")
    table = catalog_table(pa.table({"object_id": [1]}), m, np.ones(1), np.array([Flag.COARSE_PIXELS]), store_mixture=False)
    assert table["flags"].to_pylist() == [Flag.COARSE_PIXELS | Flag.NEAR_TRAINING_EDGE]


def test_bits_are_distinct_powers_of_two():
    assert [flag.value for flag in Flag] == [2**i for i in range(len(Flag))]


def test_flags_are_counted_and_remarks_warn_of_nothing() -> None:
    first = FlagCounts.of(np.array([0, Flag.INPUT_PADDED, Flag.UNUSUAL_IMAGE | Flag.INPUT_PADDED, Flag.OFF_CENTRE]))
    assert first.flags == {"INPUT_PADDED": 2, "UNUSUAL_IMAGE": 1, "OFF_CENTRE": 1}
    both = first + FlagCounts.of(np.full(1000, Flag.OFF_CENTRE.value))
    assert both.warning == "1,002 of 1,004 posteriors may be wrong: UNUSUAL_IMAGE (1), OFF_CENTRE (1,001)"
    assert FlagCounts.of(np.array([0, Flag.INPUT_PADDED.value])).warning == ""
    assert FlagCounts() + first == first

"""The sections on columns and the sky: which groups are shown, and how the sky is drawn."""

import re

import numpy as np
import pytest

from gampen_ray.posterior.bins import in_bins, pixels
from gampen_ray.reports.figures import number
from gampen_ray.reports.groups_section import columns_section, sky_map, sky_section

NAMES = ("radius", "flux")


def row(target: str, value: str, coverage: float) -> dict:
    parts = {"column": "tile", "value": value, "num_galaxies": 100, "target": target, "level": 0.68, "coverage": coverage}
    parts |= {"error": 0.05, "mean_rank": 0.5, "mean_rank_error": 0.03, "bias": 0.1, "bias_error": 0.01, "scatter": 0.2}
    return parts | {"bias_sigma": 0.5, "bias_sigma_error": 0.05, "scatter_sigma": 1.1}


def test_of_many_values_those_that_deviate_most_are_shown() -> None:
    rows = [row(name, f"KIDS_130.0_{i:02d}", 0.68 + 0.01 * (i if name == "flux" else 0)) for i in range(20) for name in NAMES]
    (column,) = columns_section({"rows": rows, "p": 0.5, "critical": 3.0})["columns"]
    shown = [f"KIDS_130.0_{i:02d}" for i in range(8, 20)]
    assert [(found["target"], found["group"]) for found in column["rows"]] == [
        (name, value) for name in NAMES for value in shown
    ]
    assert (column["num_groups"], column["most"]) == (20, 12)
    assert [panel["title"] for panel in column["panels"]] == [
        f"{name}: {what}" for name in NAMES for what in ("coverage", "bias")
    ]
    plot = str(column["panels"][2]["plot"])
    assert re.findall(r">(…[^<]*)<", plot) == [f"….0_{i}" for i in range(15, 20)]
    assert "coverage minus nominal 15.0, 16.0, 17.0, 18.0, 19.0" in plot


@pytest.fixture(scope="module")
def sky() -> dict:
    rng = np.random.default_rng(0)
    # On both sides of the origin of right ascension.
    nside, groups = pixels(rng.uniform(-20, 10, 6_000) % 360, rng.uniform(-5, 5, 6_000))
    error_ND = rng.normal(size=(6_000, 2))
    return {"nside": nside, **in_bins(NAMES, rng.random((6_000, 2)), [groups], errors={"": error_ND, "_sigma": error_ND})}


def test_maps_are_of_coverage_and_bias_of_each_target(sky: dict) -> None:
    found = sky_section(sky)
    whats = ["Coverage − nominal (pp)", "Bias (σ)"]
    assert [(one["target"], one["what"]) for one in found["maps"]] == [(name, what) for name in NAMES for what in whats]
    assert found["num_pixels"] == len(sky["rows"]) / 2 and found["median"] >= 100
    assert 0.1 < found["extents"]["bias"] < 0.6
    worst = found["worst"][0]
    assert worst["mean_rank"] in [one["mean_rank"] for one in sky["rows"]]
    assert all(str(one["plot"]).count("<path") < 80 for one in found["maps"])


def test_a_map_across_the_origin_is_in_one_piece(sky: dict) -> None:
    rows = sky["rows"][::2]
    values = [one["bias_sigma"] for one in rows]
    plot = sky_map("k", "Bias", rows, values, 0.5, sky["nside"])
    labels = set(re.findall(r">(\d+)</text>", plot))
    assert {"340", "350", "0"} <= labels and not {"90", "180", "270"} & labels
    low, high = (rows[i] for i in (int(np.argmin(values)), int(np.argmax(values))))
    ends = (f"{number(one['bias_sigma'])} at RA {number(one['ra'])}, Dec {number(one['dec'])}" for one in (low, high))
    assert f"Bias in {len(rows)} pixels of the sky: from {' to '.join(ends)}" in plot

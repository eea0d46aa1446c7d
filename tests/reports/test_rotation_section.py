"""The section on rotation stability of a page whose galaxies' posterior means are sines of the angle."""

import dataclasses
import math

import pytest

from gampen_ray.reports.page import render
from gampen_ray.reports.rotation_section import rotation_section
from tests.reports.report_cases import Page, make_data


def test_numbers_are_those_of_sines() -> None:
    data = make_data(num_galaxies=40, num_examples=3)
    section = rotation_section(data.targets, ["a", "b", "c"], data.rotation)
    assert (section["num_angles"], section["num_galaxies"]) == (12, 3)
    # The amplitude is 0.1 (i + 1) (d + 1) posterior standard deviations, and its root mean square over sqrt(2).
    for d, row in enumerate(section["rows"]):
        assert row["target"] == data.targets.names[d]
        assert row["median"] == pytest.approx(0.2 * (d + 1) / math.sqrt(2))
        assert row["worst"] == pytest.approx(0.3 * (d + 1) / math.sqrt(2))
        assert (row["worst_id"], row["inside"]) == ("c", 1)
    assert section["largest"] == section["rows"][2]
    shown = Page(render(data)).values
    for row in section["rows"]:
        assert {row["median"], row["worst"], row["inside"]} <= set(shown)


def test_panels_share_one_range_and_name_the_largest_deviation() -> None:
    data = make_data(num_galaxies=40, num_examples=2)
    plots = Page(render(data)).plots
    labels = [plot["aria-label"] for plot in plots if "angles" in plot["aria-label"]]
    assert len(labels) == 3
    for d, label in enumerate(labels):
        assert label.startswith(f"{data.targets.names[d]} of 2 galaxies at 12 angles")
        assert f"at most {0.2 * (d + 1):#.3g} standard deviations" in label


def test_a_network_that_rotation_does_not_move_is_drawn() -> None:
    data = make_data(num_galaxies=40, num_examples=1)
    still = dataclasses.replace(data.rotation, mean_NAD=0 * data.rotation.mean_NAD)
    section = rotation_section(data.targets, [7], still)
    assert all(row["median"] == row["worst"] == 0 and row["inside"] == 1 for row in section["rows"])
    assert "at most 0 standard deviations" in section["plots"][0]

"""The page with synthetic posteriors of known error, hostile text and missing parts; its layout in a real browser."""

import dataclasses
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy.stats import norm

from gampen_ray.errors import UserError
from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.verdicts import crop_verdict
from gampen_ray.model.targets import TargetSchema
from gampen_ray.reports import figures
from gampen_ray.reports.page import ReportData, render
from tests.browser import layouts
from tests.reports.report_cases import Page, make_data

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><b>",
    "--></svg><script>",
    "{{ 7 * 7 }}",
    "$\\frac{a$",
)


@pytest.fixture(scope="module")
def data() -> ReportData:
    return make_data(groups=True)


@pytest.fixture(scope="module")
def text(data) -> str:
    return render(data)


def test_same_data_give_the_same_page(data, text):
    assert render(data) == text


def test_page_stays_small_for_many_galaxies_and_large_cutouts():
    assert len(render(make_data(num_galaxies=20_000, size=128))) < 3e6


def test_numbers_shown_are_those_of_the_data(data, text):
    page = Page(text)
    for row in data.accuracy.values():
        for name in ("median_absolute_relative_error", "mean_absolute_error", "bias", "rmse"):
            assert row[name] in page.values
    for rows in data.coverage.values():
        for row in rows:
            assert row["coverage"] in page.values
            assert f"{100 * row['coverage']:.1f}" in page.texts
    for example in data.examples:
        assert str(example.object_id) in "".join(page.texts)
        for name in data.targets.names:
            assert example.truth[name] in page.values
            assert set(example.interval[name]) <= set(page.values)
    assert float(np.median(data.crop_scale_N)) in page.values
    assert min(row["val_loss"] for row in data.history) in page.values
    assert set(data.facts.values()) <= set(page.texts)


def test_summary_names_the_worst_coverage(data):
    rows = [dict(row, coverage=row["level"]) for row in data.coverage["calibrated"]]
    rows[5]["coverage"] = rows[5]["level"] - 0.042
    text = render(dataclasses.replace(data, coverage=dict(data.coverage, calibrated=rows)))
    summary = text[text.index('id="summary"') : text.index("<nav")]
    assert ">−4.2</data>" in summary
    assert f"{rows[5]['target']} at {100 * rows[5]['level']:.2f}&nbsp;%, after calibration" in summary


def test_every_figure_has_alternative_text(text):
    plots = Page(text).plots
    # 6 galaxies x (2 images + 3 curves), 3 predictions, 3 residuals, 3 + 1 coverages, as many ranks and curves, TARP, 3 bins,
    # 2 columns x 3 x 2, 3 x 2 maps, 3 rotations, crop, loss, learning rate
    assert len(plots) == 6 * 5 + 3 + 3 + 3 * 4 + 1 + 3 + 12 + 6 + 3 + 3
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)


def test_ids_are_unique_and_references_resolve(text):
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"""(?:href="|url\()#([\w-]+)""", text))
    assert references <= set(ids)
    assert len(references) > 20


def test_nothing_is_loaded_from_the_network(text):
    page = Page(text)
    assert "http:" not in text and "https:" not in text
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.elements
    assert not {"script", "link", "iframe", "object", "embed", "img"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_fluxes_are_in_nanojansky_with_magnitudes_and_columns_have_units(data):
    targets = TargetSchema(tuple(dataclasses.replace(t, unit=t.unit.replace("ADU", "1e-12 mgy")) for t in data.targets))
    rows = data.diagnostics["bins"]["rows"]
    named = [row | {"column": "measured_size"} if row["column"] == "psf" else row for row in rows]
    bins = data.diagnostics["bins"] | {"rows": named}
    page = render(dataclasses.replace(data, targets=targets, diagnostics=data.diagnostics | {"bins": bins}))
    texts, values = " ".join(Page(page).texts), Page(page).values
    flux, (low, high) = data.examples[0].truth["flux"], data.examples[0].interval["flux"]
    for value in (flux, low, high):
        assert any(shown == pytest.approx(3.631 * value) for shown in values)
        assert any(shown == pytest.approx(30 - 2.5 * np.log10(value)) for shown in values)
    assert any(shown == pytest.approx(3.631 * data.accuracy["flux"]["rmse"]) for shown in values)
    assert "True flux (nJy)" in texts and "1e-12 mgy" not in page
    assert "effective_radius_arcsec (arcsec)" in texts and "measured_size (ln radius / side)" in texts
    assert data.origin in texts


def test_ticks_of_a_narrow_panel_surround_the_peak(data):
    y_G = np.geomspace(0.24, 0.62, 200)
    density_G = norm.pdf(np.log(y_G), np.log(0.36), 0.13) / y_G
    svg = figures.posterior_curve("k", data.targets.targets[1], y_G, density_G, truth=0.32, interval=(0.31, 0.41))
    assert {"0.3", "0.4", "0.5"} <= set(Page(svg).texts)


def test_no_number_is_nan(text):
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(re.findall(r">[^<]*<|[vd]=\"[^\"]*\"", text)))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(hostile, text):
    data = make_data(num_galaxies=200, num_examples=1, groups=True)
    first = dataclasses.replace(data.targets.targets[0], name=hostile, unit=hostile)
    old = data.targets.names[0]
    example = data.examples[0]
    data = dataclasses.replace(
        data,
        title=hostile,
        targets=TargetSchema((first, *data.targets.targets[1:])),
        object_id_N=np.full(200, hostile),
        coverage={kind: [_renamed(row, old, hostile) for row in rows] for kind, rows in data.coverage.items()},
        accuracy={hostile if name == old else name: dict(row, unit=hostile) for name, row in data.accuracy.items()},
        examples=[
            dataclasses.replace(
                example,
                object_id=hostile,
                **{
                    name: {hostile if key == old else key: value for key, value in getattr(example, name).items()}
                    for name in ("curves", "truth", "interval")
                },
            )
        ],
        **{name: renamed(getattr(data, name), old, hostile) for name in ("diagnostics", "columns")},
        facts={hostile: hostile},
    )
    page = Page(render(data))
    # The same kinds of element as with harmless text.
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in Page(text).elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    shown = "".join(page.texts)
    assert shown.count(hostile) >= 10
    assert f"Predicted {hostile} ({hostile})"[:45] in shown
    assert any(hostile in plot["aria-label"] for plot in page.plots)


def renamed(found: dict, old: str, new: str) -> dict:
    """Rename a target, a column and the values of another."""
    text = json.dumps(found)
    for name in (old, "tile 000", "psf_fwhm_arcsec"):
        text = text.replace(name, json.dumps(new)[1:-1])
    return json.loads(text)


def _renamed(row: dict, old: str, new: str) -> dict:
    return dict(row, target=new if row["target"] == old else row["target"])


def test_names_that_no_font_or_xml_holds_are_drawn():
    data = make_data(num_galaxies=40, num_examples=0, num_targets=1)
    target = dataclasses.replace(data.targets.targets[0], name="半径\x00🌀", unit="\n")
    row = data.accuracy["bulge_to_total"]
    data = dataclasses.replace(data, targets=TargetSchema((target,)), accuracy={target.name: row})
    assert "Predicted 半径\ufffd🌀 (\ufffd)" in render(data)


def test_missing_parts_are_reported(data):
    page = render(
        dataclasses.replace(
            data,
            crop_scale_N=None,
            history=[],
            examples=[],
            seeds=None,
            diagnostics=None,
            columns=None,
            sky=None,
            rotation=None,
            facts={},
            coverage={"uncalibrated": [], "calibrated": []},
        )
    )
    missing = (
        "No coverage was measured",
        "has no spatial transformer",
        "Rotation stability was not tested",
        "No training history",
        "No second seed was tried",
        "This evaluation has no diagnostics",
    )
    for sentence in (*missing, "No facts were recorded"):
        assert sentence in page
    assert len(Page(page).plots) == 6


def test_agreement_of_seeds_is_told_in_red_where_it_fails(data):
    page = " ".join(render(data).split())
    assert '<span class="holds">holds</span>' in page
    assert "Remedy" not in page and 'class="fails"' not in page
    failing = make_data(num_galaxies=40, num_examples=0, seed_difference=0.2)
    page = " ".join(render(failing).split())
    assert '<span class="fails">fails</span>' in page
    assert f"Remedy: {failing.seeds['advice']}." in page
    # Median and 99 % of standard deviation and width of three targets; the means agree.
    assert page.count('<td class="fails">') == 12


@pytest.mark.parametrize(
    ("scale_N", "dead", "verdict"), [(np.full(40, 0.743), 1.0, "fails"), (np.linspace(0.2, 0.8, 40), 0.0, "holds")]
)
def test_a_collapsed_crop_is_red(scale_N: np.ndarray, dead: float, verdict: str):
    data = make_data(num_galaxies=40, num_examples=0)
    row = crop_verdict(CropStatistics.of(scale_N, dead_fraction=dead)).to_dict()
    page = " ".join(render(dataclasses.replace(data, crop_scale_N=scale_N, verdicts={"crop": row})).split())
    assert f'<div class="{verdict}"><dt>crop</dt><dd><b>{verdict}</b>: ' in page
    assert f'<b class="{verdict}">{verdict.capitalize()}</b>: the crop is ' in page
    assert ("the crop is constant" in page) == (verdict == "fails")


def test_one_target_and_one_galaxy():
    page = render(make_data(num_galaxies=1, num_targets=1, num_examples=1))
    assert "1 target for" in page and "1 galaxy, compared" in " ".join(page.split())
    # 2 images + 1 curve, prediction, residual, 2 coverages, as many ranks and curves, TARP, bins, rotation, crop, training
    assert len(Page(page).plots) == 3 + 1 + 1 + 3 * 2 + 1 + 1 + 1 + 3


def test_diagnostics_end_in_their_verdicts(data):
    names = ("ranks", "joint", "levels", "tarp", "bins", "local", "scores")
    verdicts = {name: {"verdict": "fails", "text": f"the {name} are off"} for name in names}
    page = " ".join(render(dataclasses.replace(data, verdicts=verdicts)).split())
    section = page[page.index('<section id="diagnostics">') : page.index('<section id="crop">')]
    for name in names:
        assert section.count(f'<p class="verdict"><b class="fails">Fails</b>: the {name} are off.</p>') == 1
    values = Page(section).values
    assert {row["value"] for row in data.diagnostics["scores"]} <= set(values)
    assert set(data.diagnostics["local"]["effects"].values()) <= set(values)
    worst = max(data.diagnostics["bins"]["rows"], key=lambda row: abs(row["mean_rank"] - 0.5) / row["mean_rank_error"])
    assert worst["mean_rank"] in values


def test_density_without_finite_values_at_the_ends():
    data = make_data(num_galaxies=40, num_examples=1, num_targets=1)
    curve = (np.linspace(0, 1, 5), np.array([np.nan, 1.0, 2.0, 1.0, np.inf]))
    page = render(dataclasses.replace(data, examples=[dataclasses.replace(data.examples[0], curves={"bulge_to_total": curve})]))
    test_no_number_is_nan(page)


def test_constant_crop_and_diverged_training():
    data = make_data(num_galaxies=40, num_examples=0)
    history = [dict(data.history[0], train_loss=float("nan"), val_loss=float("nan"))]
    page = render(dataclasses.replace(data, crop_scale_N=np.ones(40), history=history))
    assert "lowest validation loss" not in page
    test_no_number_is_nan(page)


def test_undefined_accuracy_is_a_dash():
    data = make_data(num_galaxies=40, num_examples=0)
    accuracy = {
        name: dict(row, median_absolute_relative_error=value)
        for (name, row), value in zip(data.accuracy.items(), (None, float("nan"), float("inf")), strict=True)
    }
    page = render(dataclasses.replace(data, accuracy=accuracy))
    test_no_number_is_nan(page)
    assert page.count("<td>– %</td>") == 3


def test_data_that_cannot_be_drawn_are_refused(data):
    with pytest.raises(UserError, match="0 galaxies"):
        dataclasses.replace(data, object_id_N=np.array([]))
    with pytest.raises(UserError, match=r"median_ND has shape \(3, 3\)"):
        dataclasses.replace(data, median_ND=data.median_ND[:3])
    with pytest.raises(UserError, match="lo68_ND holds values that are not finite"):
        dataclasses.replace(data, lo68_ND=np.full((1200, 3), np.nan))
    with pytest.raises(UserError, match="truth_ND of effective_radius_arcsec holds values at or below 0"):
        dataclasses.replace(data, truth_ND=np.zeros((1200, 3)))


def test_rendering_leaves_matplotlib_as_it_was():
    data = make_data(num_galaxies=40, num_examples=1)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 33}):
        before = dict(matplotlib.rcParams)
        text = render(data)
        assert dict(matplotlib.rcParams) == before
    assert text == render(data)


@pytest.mark.browser
def test_layout_fits_a_desktop_and_a_phone(data, tmp_path: Path):
    long = {"a fact without any space": "x" * 300, **data.facts}
    page = render(dataclasses.replace(data, title="GaMPEN_" * 12, facts=long))
    for measured, width in zip(layouts(page, tmp_path), (1280, 768, 400), strict=True):
        assert measured["width"] == measured["viewport"] == width
        assert measured["outside"] == []
        assert measured["margin"] >= 0
        # Text in figures is 11 px times this.
        assert measured["zoom"] > 0.75
        assert measured["color"] == "rgb(93, 104, 114)"
        assert measured["images"] == 12

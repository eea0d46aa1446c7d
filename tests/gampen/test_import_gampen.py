import io
from pathlib import Path

import pandas as pd
import pytest
import torch

from gampen_ray import cli
from gampen_ray.commands.import_gampen import ImportGampenConfig, import_gampen, settled
from gampen_ray.errors import UserError

LABELS = ("custom_logit_bt", "ln_R_e_asec", "ln_total_flux_adus")


def files(root: Path, **columns: list[object]) -> dict[str, str]:
    """Write a training CSV and a state dict that is none of GaMPEN's; return the fields that name them."""
    table = {"object_id": [1, 2, 3], "custom_logit_bt": [-1.0, 0.0, 2.0], "ln_R_e_asec": [0.1, 0.2, 0.4]}
    table |= {"ln_total_flux_adus": [7.0, 8.0, 9.0], **columns}
    pd.DataFrame(table).to_csv(root / "train.csv", index=False)
    buffer = io.BytesIO()
    torch.save({"module.localization.0.weight": torch.zeros(64, 3, 11, 11)}, buffer)
    (root / "m.pt").write_bytes(buffer.getvalue())
    return {"model": str(root / "m.pt"), "scaling": str(root / "train.csv"), "output": str(root / "bundle")}


@pytest.mark.parametrize(
    ("preset", "size", "rate", "band"),
    [
        ("g_0_025", 239, 4e-4, "g"),
        ("r_025_050", 143, 2e-4, "r"),
        ("i_050_075", 96, 2e-4, "i"),
        ("sim_g_0_025", 239, 7e-4, "g"),
        ("sim_r_025_050", 143, 7e-4, "r"),
        ("sim_i_050_075", 96, 4e-4, "i"),
    ],
)
def test_presets_are_the_published_models(preset: str, size: int, rate: float, band: str) -> None:
    config = settled(ImportGampenConfig(model="m", scaling="s", output="o", preset=preset))  # type: ignore[arg-type]
    assert (config.cutout_size, config.dropout_rate, config.bands) == (size, rate, (band,))
    assert (config.targets, config.pixel_scale_arcsec, config.zero_point_mag) == (LABELS, 0.168, 27.0)


def test_what_is_given_wins_over_the_preset() -> None:
    given = {"targets": ("ln_R_e_asec",), "cutout_size": 240, "dropout_rate": 0.0, "zero_point_mag": 0.0, "bands": ("x",)}
    config = settled(ImportGampenConfig(model="m", scaling="s", output="o", preset="g_0_025", **given))
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize(
    ("fields", "columns", "match"),
    [
        ({"targets": ()}, {}, r"^targets: required without a preset"),
        ({"cutout_size": 0}, {}, r"^cutout_size: required without a preset; give --cutout-size or --preset"),
        ({"dropout_rate": None}, {}, r"^dropout_rate: required without a preset"),
        ({"targets": ("bt",)}, {}, r"^targets: catalog .*train\.csv has no column 'bt'; its columns: object_id, "),
        ({"targets": ("ln_R_e_asec", "effective_radius_arcsec")}, {}, r"two labels stand for one target"),
        ({}, {"ln_R_e_asec": [0.1, None, 0.2]}, r"^scaling: .*column 'ln_R_e_asec', row 2: the value is missing"),
        ({}, {"ln_R_e_asec": [0.1, 0.1, 0.1]}, r"^scaling: column 'ln_R_e_asec' does not vary"),
        ({}, {}, r"^model: .*is missing"),
        ({"model": "train.csv"}, {}, r"^model: .*train\.csv is not a state dict"),
        ({"model": "gone.pt"}, {}, r"gone\.pt: no such file"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    tmp_path: Path, fields: dict[str, object], columns: dict[str, list[object]], match: str
) -> None:
    values = files(tmp_path, **columns) | {"targets": LABELS, "cutout_size": 64, "dropout_rate": 1e-3}
    fields = {name: str(tmp_path / str(value)) if name == "model" else value for name, value in fields.items()}
    with pytest.raises(UserError, match=match):
        import_gampen(ImportGampenConfig(**(values | fields)))  # type: ignore[arg-type]
    assert not (tmp_path / "bundle").exists()


def test_the_model_needs_no_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path)
    flags = ["--scaling", paths["scaling"], "--output", paths["output"], "--preset", "r_025_050"]
    _, config = cli.parse(["import-gampen", paths["model"], *flags])
    assert config == ImportGampenConfig(**paths, preset="r_025_050")  # type: ignore[arg-type]
    (tmp_path / "job.toml").write_text(f'model = "{paths["model"]}"\n')
    assert cli.parse(["import-gampen", str(tmp_path / "job.toml"), *flags])[1] == config
    assert cli.main(["import-gampen", paths["model"], *flags, "--model", "other.pt"]) == 2
    assert "error: model: given twice" in capsys.readouterr().err
    assert cli.main(["import-gampen", paths["model"], *flags]) == 2
    assert "error: model: fc_loc.2.bias is missing" in capsys.readouterr().err

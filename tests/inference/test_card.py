import json
from pathlib import Path

import pytest

from gampen_ray.config.base import build, to_dict
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import bundle_digest, load_bundle
from gampen_ray.inference.card import CARD, Card, Shift, describe, read_card
from tests.networks import bundle, card


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundle().save(str(tmp_path / "run" / "bundle"))
    return tmp_path / "run" / "bundle"


def test_a_card_is_read_back_and_changes_nothing_of_the_bundle(saved: Path) -> None:
    assert read_card(str(saved)) is None
    assert describe(str(saved))["evaluation"] is None
    digest = bundle_digest(str(saved))
    (saved / CARD).write_text(json.dumps(to_dict(card())))
    # Also by the run folder.
    assert read_card(str(saved.parent)) == card() == build(Card, to_dict(card()))
    assert bundle_digest(str(saved)) == digest
    load_bundle(str(saved))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_galaxies": "many"}, "num_galaxies: 'many' is not allowed: Input should be a valid integer"),
        (
            {"shifts": [{"name": "seeing", "coverage": {}, "flagged": 2}]},
            "shifts.0.flagged: 2 is not allowed: Input should be less than",
        ),
        ({"coverage": {"all": {}}}, "coverage: there is none"),
        ({"width": {"18": {"a": 1.0}, "19": {"b": 1.0}}}, "width: its rows are not of the same quantities"),
        ({"weather": "fine"}, "weather: unknown field"),
    ],
)
def test_a_damaged_card_is_a_mistake_in_one_line(change: dict[str, object], match: str, saved: Path) -> None:
    (saved / CARD).write_text(json.dumps(to_dict(card()) | change))
    with pytest.raises(UserError, match=rf"card\.json: {match}.*; delete the file, or copy the bundle again$"):
        describe(str(saved))
    (saved / CARD).write_text("{")
    with pytest.raises(UserError, match=r"card\.json: not valid JSON"):
        describe(str(saved))
    # The bundle itself is as good as before.
    load_bundle(str(saved))


@pytest.mark.parametrize(
    ("coverage", "flagged", "verdict"),
    [
        ({"flux": 0.72, "radius": 0.645}, 0.0, "survived"),
        ({"flux": 0.70, "radius": 0.640}, 0.94, "fails"),
        ({"flux": 0.70, "radius": 0.640}, 0.95, "flagged"),
        ({"flux": 0.73, "radius": 0.683}, 0.10, "fails"),
    ],
)
def test_a_shift_is_survived_flagged_or_fails(coverage: dict[str, float], flagged: float, verdict: str) -> None:
    assert Shift(name="s", coverage=coverage, flagged=flagged).verdict == verdict


def test_the_description_holds_the_bundle(saved: Path) -> None:
    found = describe(str(saved))
    weights = load_bundle(str(saved)).network.state_dict()
    assert found["targets"][1] == {**found["targets"][1], "name": "concentration", "transform": "logit", "unit": ""}
    assert 0.05 < found["targets"][1]["low"] < 0.1 < 0.9 < found["targets"][1]["high"] < 0.95
    # Buffers of batch normalisation are stored beside the parameters.
    assert found["network"]["parameters"] < sum(w.numel() for w in weights.values())
    size = (saved / "weights.safetensors").stat().st_size
    assert size - 5000 < found["network"]["bytes"] < size
    assert found["network"]["num_passes"] == NUM_PASSES
    assert found["metrics"] == {"val_loss": 0.5}
    json.dumps(found, allow_nan=False)

"""Makes the built-in bundles again, each with its model card, from gampen_ray/bundles/NAME/recipe.toml.

    python benchmarks/models.py WORK [--names kids-r hsc-i] [--scale 0.01]

Simulates galaxies, trains on them, predicts and evaluates other galaxies (of another seed), measures the information limit
(`benchmarks/information_limit.py`) and the effect of shifts (`benchmarks/shifts.py`), writes ``card.json`` beside the bundle
and copies both into the package. WORK holds every step: run the same command again to resume. With a scale other than 1 there
are so many times the galaxies, and the bundle stays in WORK.
"""

import argparse
import dataclasses
import datetime
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

import gampen_ray
from gampen_ray import storage
from gampen_ray.config.base import build, config_class, load_toml, to_dict
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import CHECKSUMS, bundle_digest, load_bundle
from gampen_ray.inference.card import CARD, Card
from gampen_ray.training.run import training_prior

RECIPE = "recipe.toml"
MAX_BYTES = 5_000_000
"""Size that a built-in bundle must stay below."""

logger = logging.getLogger(__name__)


@config_class
class Recipe:
    """How a built-in bundle is made."""

    simulate: dict[str, Any]
    """Fields of `gampen-ray simulate`."""
    test: dict[str, Any]
    """Those that differ for the galaxies of the evaluation: another seed, and their number."""
    train: dict[str, Any]
    """Fields of `gampen-ray train`."""
    num_passes: int = pydantic.Field(default=NUM_PASSES, ge=1)
    """Monte Carlo dropout passes of the evaluation."""
    limit_galaxies: int = pydantic.Field(default=1000, ge=1)
    """Galaxies whose information limit is measured."""
    shift_galaxies: int = pydantic.Field(default=2000, ge=1)
    """Galaxies predicted under each shift."""
    known_failures: tuple[str, ...] = ()
    """Where not to trust the bundle, a sentence each, for its card."""

    def __post_init__(self) -> None:
        if self.test.get("seed") in (None, self.simulate.get("seed", 0)):
            raise ValueError("test.seed is that of simulate or left out: the network would be judged by its training galaxies")

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe; a `UserError` if it does not hold one."""
        try:
            return build(cls, load_toml(path.read_bytes(), str(path)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def scaled(self, scale: float) -> "Recipe":
        """Return a recipe with so many times the galaxies."""
        sets = {name: dict(getattr(self, name)) for name in ("simulate", "test")}
        for values in sets.values():
            if "num_galaxies" in values:
                values["num_galaxies"] = max(1, round(scale * values["num_galaxies"]))
        counts = {name: max(1, round(scale * getattr(self, name))) for name in ("limit_galaxies", "shift_galaxies")}
        return dataclasses.replace(self, **sets, **counts)


def main(arguments: argparse.Namespace) -> None:
    """Make the bundles."""
    there = sorted(path.parent.name for path in storage.BUNDLES.glob(f"*/{RECIPE}"))
    for name in arguments.names or there:
        if name not in there:
            raise UserError(f"names: {name} has no {RECIPE} in {storage.BUNDLES}; there are {', '.join(there)}")
    for name in arguments.names or there:
        recipe = Recipe.read(storage.BUNDLES / name / RECIPE)
        if arguments.scale == 1:
            install(make(recipe, Path(arguments.work, name)), name)
        else:
            bundle = make(recipe.scaled(arguments.scale), Path(arguments.work, f"{name}-{arguments.scale:g}"))
            logger.info("%s: made at scale %g, not copied into the package", bundle, arguments.scale)


def make(recipe: Recipe, work: Path) -> Path:
    """Follow a recipe in a folder, from where an earlier attempt stopped, and return the bundle with its card."""
    work = work.absolute()
    data, test, run, bundle, catalog, evaluated = (
        str(work / name) for name in ("data", "test", "run", "bundle", "catalog", "evaluation")
    )
    gampen_ray.simulate(output=data, **recipe.simulate)
    gampen_ray.simulate(output=test, **recipe.simulate | recipe.test)
    trained = gampen_ray.train(dataset=data, output=run, **recipe.train)
    if not Path(bundle, CHECKSUMS).exists() or load_bundle(bundle).prior is None:
        # Trainings of earlier versions have none.
        prior = trained.prior or training_prior(data, trained.targets)
        dataclasses.replace(trained, provenance=_relative(trained.provenance, work), prior=prior).save(bundle)
    # All splits: none of them was trained on.
    gampen_ray.infer(bundle=bundle, dataset=test, output=catalog, num_passes=recipe.num_passes, posterior="mixture")
    evaluation = gampen_ray.evaluate(catalog=catalog, output=evaluated)
    arguments = {"dataset": test, "split": "", "num-passes": recipe.num_passes}
    limit = measured("information_limit", work, arguments | {"num-galaxies": recipe.limit_galaxies}, bundle)
    # The scene of the training, under another seed.
    seen = {"dataset": data, "num-galaxies": recipe.shift_galaxies, "num-passes": recipe.num_passes}
    shifts = measured("shifts", work, seen, bundle)
    storage.write_json(str(Path(bundle, CARD)), to_dict(card(recipe, evaluation, limit, shifts)))
    return Path(bundle)


def card(recipe: Recipe, evaluation: Mapping[str, Any], limit: Mapping[str, Any], shifts: Mapping[str, Any]) -> Card:
    """Return the card of what was measured; the last two may be empty."""
    # A few galaxies fill no bin.
    binned, ratio = ({name: bins for name, bins in limit.get(key, {}).items() if bins} for key in ("coverage", "median_ratio"))
    everything = {"all": {"all": evaluation["coverage"]["calibrated"]}}
    return build(
        Card,
        {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "galaxies": f"simulated {recipe.simulate['survey']} galaxies never trained on (seed {recipe.test['seed']})",
            "num_galaxies": evaluation["num_galaxies"],
            "num_passes": recipe.num_passes,
            "coverage": {**binned, **everything},
            "width": limit.get("median_posterior", {}),
            "width_over_limit": ratio,
            "shifts": [
                {
                    "name": row["shift"],
                    "coverage": {name: target["coverage"]["68"] for name, target in row["targets"].items()},
                    "flagged": row["warned"],
                    "stated": row["stated"],
                }
                for row in shifts.get("rows", [])
            ],
            "known_failures": recipe.known_failures,
        },
    )


def measured(script: str, work: Path, arguments: Mapping[str, Any], bundle: str) -> dict[str, Any]:
    """Run a benchmark of a bundle that prints JSON, unless its result is there, and return it."""
    path, output = Path(__file__).with_name(f"{script}.py"), work / f"{script}.json"
    asked = {**arguments, "digest": bundle_digest(bundle)}
    if not output.exists() or json.loads(output.read_bytes())["asked"] != asked:
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        done = subprocess.run([sys.executable, str(path), f"--bundle={bundle}", *flags], stdout=subprocess.PIPE, check=True)
        storage.write_json(str(output), {"asked": asked, "result": json.loads(done.stdout)})
    return json.loads(output.read_bytes())["result"]


def install(bundle: Path, name: str) -> None:
    """Copy a bundle and its card into the package.

    Raises
    ------
    UserError
        If it is too large.
    """
    size = sum(path.stat().st_size for path in bundle.iterdir())
    if size >= MAX_BYTES:
        raise UserError(
            f"{bundle} has {size / 1e6:.3g} MB, a built-in bundle must stay below {MAX_BYTES / 1e6:g}; lower train.network "
            f"in the {RECIPE} of {name}"
        )
    storage.copy(str(bundle), str(storage.BUNDLES / name))
    load_bundle(f"builtin:{name}")
    logger.info("builtin:%s: %.3g MB", name, size / 1e6)


def _relative(values: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return nested values without the path of the work folder, which means nothing to others."""
    return json.loads(json.dumps(values).replace(f"{work}{os.sep}", ""))


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="folder of all steps; an interrupted attempt is resumed")
    parser.add_argument("--names", nargs="+", default=[], help="bundles to make; left out: all that have a recipe")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of galaxies, for a quick try")
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(parsed())
    except UserError as error:
        sys.exit(f"error: {error}")

"""The `demo` verb: everything from simulated galaxies to a calibrated catalogue and a report, on one machine."""

import logging

import pydantic

from gampen_ray.commands.evaluate import EvaluateConfig, evaluate
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.commands.registry import verb
from gampen_ray.commands.report import ReportConfig, report
from gampen_ray.commands.simulate import SimulateConfig, simulate
from gampen_ray.commands.train import train
from gampen_ray.config import OptimizerConfig, SplitConfig, TrainConfig, TrainResources
from gampen_ray.config.base import config_class

logger = logging.getLogger(__name__)


PSF_CONDITIONS = ("psf_fwhm_arcsec", "psf_r50_arcsec", "psf_r80_arcsec", "psf_r95_arcsec")
# Numbers teach most of it; one epoch of images is what the minutes allow, in which crops that move fast disturb the rest.
OPTIMIZER = OptimizerConfig(numbers_epochs=16, epochs=1, weight_decay=0.05, crop_factor=0.1)


@config_class
class DemoConfig:
    """Simulate, train, infer, evaluate and report, in minutes on a laptop."""

    output: str = "demo"
    """Folder to create."""
    num_galaxies: int = pydantic.Field(default=30_000, ge=200)
    """Number of simulated galaxies: 80 % for training, 10 % for validation, 10 % for testing."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of simulation, training and inference."""


@verb("demo")
def demo(config: DemoConfig) -> None:
    """Simulate, train, infer on the test split, evaluate and report, each into a folder of ``config.output``.

    Raises
    ------
    UserError
        If the output holds a demo of another config.
    """
    from gampen_ray import storage
    from gampen_ray.engine.session import ray_session
    from gampen_ray.engine.trainers import trains_here

    output = storage.absolute(config.output)
    dataset, run, catalog, evaluation = (storage.join(output, name) for name in ("dataset", "run", "inference", "evaluation"))
    # The Ray of this session is for simulation and inference; a training starts sooner without it.
    resources = TrainResources(engine="local" if trains_here(TrainResources()) else "auto")
    with ray_session():
        split = SplitConfig(train=0.8, val=0.1)
        simulate(SimulateConfig(output=dataset, num_galaxies=config.num_galaxies, seed=config.seed, split=split))
        train(
            TrainConfig(
                dataset=dataset,
                output=run,
                conditions=PSF_CONDITIONS,
                optimizer=OPTIMIZER,
                seed=config.seed,
                resources=resources,
            )
        )
        infer(InferConfig(bundle=run, dataset=dataset, split="test", output=catalog, posterior="mixture", seed=config.seed))
    evaluate(EvaluateConfig(catalog=catalog, output=evaluation))
    page = report(ReportConfig(evaluation=evaluation, output=storage.join(output, "report.html")))
    logger.info("catalogue: %s", storage.join(catalog, "catalog"))
    logger.info("report:    %s", page)

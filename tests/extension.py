"""Code of a user's own, which a test brings in by the environment variable GAMPEN_RAY_PLUGINS."""

import io
import sys

import numpy as np
import torch
from torch import nn

from gampen_ray.catalog.columns import Rows, register_column
from gampen_ray.commands.registry import verb
from gampen_ray.config import ReaderConfig
from gampen_ray.config.base import config_class
from gampen_ray.data.cutouts import Cutout
from gampen_ray.data.readers import READERS
from gampen_ray.model.backbones import Block, convolution, register_block
from gampen_ray.model.likelihoods import Likelihood, register_likelihood
from gampen_ray.simulation.surveys import Survey, register_survey


@register_likelihood("laplace")
class Laplace(Likelihood):
    """Independent Laplace distributions; a pass counts as the Gaussian of their means and variances."""

    @property
    def num_outputs(self) -> int:
        return 2 * self.num_targets

    def loss(
        self, outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
    ) -> torch.Tensor:
        mean_ND, log_scale_ND = outputs_NP.chunk(2, dim=-1)
        if mean_only:
            return 0.5 * (targets_ND - mean_ND).square().sum(-1) + 0 * log_scale_ND.sum(-1)
        loss_ND = (targets_ND - mean_ND).abs() * torch.exp(-log_scale_ND) + log_scale_ND
        return (torch.exp(2 * beta * log_scale_ND.detach()) * loss_ND).sum(-1)

    def components(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_scale = outputs_P.chunk(2, dim=-1)
        return mean, torch.diag_embed(2**0.5 * log_scale.exp())


@register_block("separable")
class SeparableBlock(Block):
    """A depthwise and a pointwise convolution (Chollet 2017)."""

    def __init__(self, channels: int, width: int, normalisation: str) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.layers = nn.Sequential(depthwise, *convolution(channels, width, 1, normalisation), nn.ReLU())

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(x_NCHW)


@register_column("flux_to_noise", unit="", description="posterior mean of flux over its standard deviation")
def flux_to_noise(rows: Rows) -> np.ndarray:
    d = rows.mixture.targets.names.index("flux")
    return rows.mixture.mean()[:, d] / rows.mixture.std()[:, d]


@READERS.register("npy")
class NpyReader:
    """NumPy's files of one image, bands x height x width."""

    def reads(self, name: str, head: bytes) -> bool:
        return head.startswith(b"\x93NUMPY")

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        return Cutout(np.load(io.BytesIO(data)).astype(np.float32))


register_survey(
    Survey(
        name="space-h",
        band="h",
        pixel_scale_arcsec=0.06,
        zero_point_mag=25.96,
        flux_unit="electron / s",
        psf_fwhm_arcsec=(0.17, 0.19),
        sky_noise=0.003,
        electrons_per_flux=2000.0,
        magnitude_range=(20.0, 23.0),
        radius_range_arcsec=(0.05, 0.5),
    )
)


@config_class
class BrightestConfig:
    """List the brightest galaxies of a catalogue."""

    catalog: str
    """Output folder of `infer`."""
    count: int = 3
    """How many galaxies."""


@verb("list-brightest", positional="catalog")
def list_brightest(config: BrightestConfig) -> list[str]:
    """Write the identifiers of the brightest galaxies, and return them."""
    from gampen_ray.catalog.parquet import catalog_parts

    rows = [row for table in catalog_parts(config.catalog) for row in table.select(["object_id", "flux_mean"]).to_pylist()]
    brightest = sorted(rows, key=lambda row: -row["flux_mean"])[: config.count]
    ids = [str(row["object_id"]) for row in brightest]
    sys.stdout.writelines(f"{name}\n" for name in ids)
    return ids

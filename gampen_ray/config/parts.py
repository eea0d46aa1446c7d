"""Sections of the verbs' configs, from targets and network to resources; `inputs.py` has those of images and catalogues."""

from typing import Annotated, Literal

import pydantic

from gampen_ray.config.base import Needs, config_class, default

MOST_PIXELS, MOST_CHANNELS = 4096, 1024
"""Largest side and number of channels of a network's input."""
_MOST_WIDTH = 1 << 16
_Count = Annotated[int, pydantic.Field(ge=1, le=_MOST_WIDTH)]
Split = Literal["train", "val", "test"]
Transform = Literal["identity", "log", "logit"]
GALAXIES_PER_FILE = 2048
"""Default galaxies per shard or catalogue file: 32 MiB of cutouts of 64 x 64 pixels in one band."""
NUM_PASSES = 289
"""Default Monte Carlo dropout passes: the square of 17, as the default dropout rate is 1 / 17
(`gampen_ray.inference.mc_dropout.dealt_units`)."""
_IfCropped = Needs("family", unless="none")
_IfExponential = Needs("scale", "exponential")
_IfSgd = Needs("name", "sgd")
_IfVariances = Needs("network.likelihood", unless="unit_variance")
_IfBatchNorm = Needs("network.backbone.normalisation", "batch")
_IfBundle = Needs("bundle", unless="")


@config_class
class TargetConfig:
    """How one target column is modelled."""

    transform: Transform = "identity"
    """Map from physical values to the real line: identity, log (positive values) or logit (values in [0, 1])."""
    clip: Annotated[float, Needs("transform", "logit")] = pydantic.Field(default=0.01, ge=0, lt=0.5)
    """Logit only: values are clipped to [clip, 1 - clip] before the logit, so 0 and 1 are allowed. 0: clipped half-way between
    each bound and the nearest other training value, as in GaMPEN."""
    unit: str = ""
    """Physical unit, in astropy's notation; empty: that of the dataset, or dimensionless."""


def default_targets() -> dict[str, TargetConfig]:
    return {
        "bulge_to_total": TargetConfig(transform="logit"),
        "effective_radius_arcsec": TargetConfig(transform="log"),
        "flux": TargetConfig(transform="log"),
    }


@config_class
class ImagesConfig:
    """Preprocessing of stored cutouts to network inputs."""

    size: int = pydantic.Field(default=0, ge=0, le=MOST_PIXELS)
    """Side of the network's input, pixels: cutouts are cropped or zero-padded to it about the centre. 0: as stored."""
    softening: float = pydantic.Field(default=0.0, ge=0)
    """Scale of the asinh stretch, flux units: x -> asinh(x / softening). 0: the sky noise of the training images; GaMPEN: 1."""
    channels: int = pydantic.Field(default=0, ge=0, le=MOST_CHANNELS)
    """Number of input channels: a single band is repeated to fill them (GaMPEN: 3). 0: one channel per band."""
    sky: Literal["none", "border"] = "border"
    """border: the sky level that the border of each cutout shows is subtracted; none: nothing is (GaMPEN)."""
    measure: bool = True
    """Whether sky, noise, and fluxes and elongations in Gaussian windows are measured in each cutout and given to the network
    beside the image (`gampen_ray.model.measure`); GaMPEN: no."""
    noise_planes: bool = False
    """Whether the network is given the noise of each pixel as a further channel of each band, from a dataset that was ingested
    with reader.noise_planes; the galaxies to predict must have it too."""


@config_class
class SpatialTransformerConfig:
    """The learned crop in front of the convolutional network (Jaderberg et al. 2015; Ghosh et al. 2022, sec. 4.1)."""

    family: Literal["scale", "scale_shift", "affine", "none"] = "scale"
    """Transform family: isotropic scale (GaMPEN as published), scale and shift, full affine, or no transformer."""
    scale: Annotated[Literal["exponential", "linear"], _IfCropped] = "exponential"
    """Map from the localisation network's output to the scale of the crop: exponential, behind activations that cannot die
    (SiLU), or linear behind ReLU (GaMPEN). The elements of an affine map are linear in either case."""
    initial_scale: Annotated[float, _IfCropped] = pydantic.Field(default=0.75, gt=0)
    """Ratio of the sides of crop and cutout before training; 1: the identity."""
    initial_radii: Annotated[float, _IfExponential] = pydantic.Field(default=10.0, gt=0)
    """With images.measure: half the side of the crop before training, in measured half-light radii of the galaxy."""
    subtract_psf: Annotated[bool, _IfExponential] = True
    """With images.measure and the condition psf_r50_arcsec or psf_fwhm_arcsec: whether the PSF's half-light radius is
    subtracted from the measured one, in quadrature, so that crops follow the galaxy and not the seeing."""
    output_size: Annotated[int, _IfCropped] = pydantic.Field(default=40, ge=0, le=MOST_PIXELS)
    """Side of the resampled crop, pixels; 0: that of the input."""
    convolutions: Annotated[tuple[tuple[_Count, _Count], ...], _IfCropped] = ((16, 5), (16, 3))
    """(channels, kernel size) of each localisation convolution; each is followed by a 3x3, stride 2 max pool and a ReLU."""
    hidden: Annotated[int, _IfCropped] = pydantic.Field(default=32, ge=1, le=_MOST_WIDTH)
    """Width of the localisation network's fully connected layer."""
    downsample: Annotated[int, _IfCropped] = pydantic.Field(default=2, ge=1, le=MOST_PIXELS)
    """The localisation network sees the image averaged over blocks of this many pixels; 1: every pixel, as in GaMPEN."""


@config_class
class BackboneConfig:
    """A convolutional network of any depth and width, VGG-like (Simonyan & Zisserman 2015) or residual.

    The defaults are a compact network that trains in minutes on a CPU; `gampen_vgg16` is the published one.
    """

    plan: tuple[_Count | Literal["M"], ...] = (24, 48, "M", 64, 64, "M", 128)
    """Layers in order: a number is a convolution (or residual block) of that many channels with ReLU, "M" a 2x2 max pool."""
    width: float = pydantic.Field(default=1.0, gt=0, le=100)
    """Factor on all widths of plan and classifier, which are then rounded to multiples of 8, at least 8; 1: unchanged."""
    block: str = "plain"
    """Block for each number in the plan after the first. plain: one 3x3 convolution; residual: a basic residual block of two
    with a skip connection (He et al. 2016); or a block that your code registers
    (`gampen_ray.model.backbones.register_block`)."""
    stem_kernel: int = pydantic.Field(default=5, ge=1, le=100)
    """Kernel size of the first convolution, pixels; the others are 3x3."""
    stem_stride: int = pydantic.Field(default=2, ge=1, le=MOST_PIXELS)
    """Stride of the first convolution, pixels."""
    normalisation: Literal["batch", "group", "none"] = "batch"
    """Normalisation after every convolution: batch; group (Wu & He 2018; groups of 8 channels, one group where 8 does not
    divide the width), which normalises each image separately and so hides its brightness; or none (GaMPEN)."""
    pool_size: int = pydantic.Field(default=5, ge=1, le=100)
    """Side of the feature map given to the classifier, by adaptive average pooling."""
    classifier: tuple[_Count, ...] = (128,)
    """Widths of the fully connected layers before the output layer."""
    dropout_rate: float = pydantic.Field(default=1 / 17, ge=0, lt=1)
    """Probability of dropping an activation, in training and in every Monte Carlo pass. Posteriors depend least on the seed
    of the masks if 1 / rate is a prime number and the number of passes is its square, else a multiple of 1 / rate."""
    dropout_placement: Literal["every_conv", "last_block", "classifier"] = "classifier"
    """every_conv: before every convolution (or residual block) except the first, and in the classifier (GaMPEN); last_block:
    before those after the last max pool (apart from one at the plan's end), and in the classifier; or in the classifier alone,
    which a network that is given numbers needs. The fewer layers follow the first dropout, the cheaper a Monte Carlo pass."""
    numbers_width: int = pydantic.Field(default=256, ge=1, le=_MOST_WIDTH)
    """Width of the layers that take numbers, measured or conditions, in a network that is given any."""
    numbers_blocks: int = pydantic.Field(default=3, ge=0, le=1000)
    """Pairs of layers of that width behind them, each with a skip connection."""
    base: bool = True
    """With dropout in the classifier alone: the means are a linear function of the activations before the first dropout, about
    which the dropped ones vary by an amount that is learned; GaMPEN: no."""


@config_class
class NetworkConfig:
    """Spatial transformer, backbone and likelihood."""

    likelihood: str = "scale_mixture"
    """In standardised target space: scale_mixture (Gaussians of full covariance, with heavy tails where the data has them), one
    Gaussian of full (GaMPEN's) or diagonal covariance or of unit_variance, or a likelihood that your code registers
    (`gampen_ray.model.likelihoods.register_likelihood`)."""
    spatial_transformer: SpatialTransformerConfig = default(SpatialTransformerConfig)
    """The learned crop."""
    backbone: BackboneConfig = default(BackboneConfig)
    """The convolutional network."""


def gampen_vgg16() -> NetworkConfig:
    """Return the network as published: VGG-16 with dropout before every convolution but the first (Ghosh et al. 2022)."""
    return NetworkConfig(
        likelihood="full",
        spatial_transformer=SpatialTransformerConfig(
            scale="linear", initial_scale=1.0, output_size=0, convolutions=((64, 11), (96, 9)), downsample=1
        ),
        backbone=BackboneConfig(
            plan=(64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
            stem_kernel=3,
            stem_stride=1,
            normalisation="none",
            pool_size=7,
            classifier=(4096, 4096),
            dropout_rate=2e-4,
            dropout_placement="every_conv",
            base=False,
        ),
    )


@config_class
class FineTuneConfig:
    """Start from a trained bundle, which determines network and image preprocessing: leave out `network` and `images`."""

    bundle: str = ""
    """Model bundle (or the run folder that holds it) to start from: a folder, s3:// URI or builtin:NAME; empty: random initial
    weights."""
    require_signature: Annotated[str, _IfBundle] = ""
    """Public key (Ed25519, PEM; a local file or s3:// URI) whose signature the bundle must have, as its SHA256SUMS.sig; empty:
    none."""
    head: Annotated[Literal["keep", "replace"], _IfBundle] = "keep"
    """keep: the bundle's targets and their standardisation (leave `targets` out); replace: a new output layer for `targets`."""
    freeze: Annotated[tuple[str, ...], _IfBundle] = ()
    """Blocks with fixed weights: spatial_transformer; block1, block2, ..., the convolutions up to each max pool; classifier,
    the hidden layers after them; head, the output layer."""
    learning_rate_decay: Annotated[float, _IfBundle] = pydantic.Field(default=1.0, gt=0, le=1)
    """A block's peak learning rate is optimizer.learning_rate times this factor for each block after it."""
    dropout_rate: Annotated[float | None, _IfBundle] = pydantic.Field(default=None, ge=0, lt=1)
    """Probability of dropping an activation, in training and in every Monte Carlo pass; left out: the bundle's."""

    @property
    def brings_targets(self) -> bool:
        """Whether the bundle's targets are kept."""
        return bool(self.bundle) and self.head == "keep"


@config_class
class OptimizerConfig:
    """Optimisation of the weights."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    learning_rate: float = pydantic.Field(default=2e-3, gt=0)
    """Peak learning rate for the global batch."""
    weight_decay: float = pydantic.Field(default=1e-4, ge=0)
    """Decoupled weight decay (adamw) or L2 penalty (sgd)."""
    momentum: Annotated[float, _IfSgd] = pydantic.Field(default=0.9, ge=0, lt=1)
    """SGD only: momentum (GaMPEN: 0.99)."""
    nesterov: Annotated[bool, _IfSgd] = False
    """SGD only: Nesterov momentum."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_fraction: float = pydantic.Field(default=0.05, ge=0, lt=1)
    """Fraction of all steps over which the learning rate rises linearly from zero."""
    max_grad_norm: float = pydantic.Field(default=5.0, ge=0)
    """Norm to which larger gradients are clipped; 0: no clipping."""
    epochs: int = pydantic.Field(default=12, ge=0)
    """Number of epochs on images; 0, for a network that is given numbers: it is trained on these alone, and its answer does not
    depend on what else is in the image."""
    numbers_epochs: int = pydantic.Field(default=16, ge=1)
    """For a network that is given numbers: epochs on the numbers alone, measured once and kept in memory, before the epochs on
    images."""
    numbers_learning_rate: float = pydantic.Field(default=4e-3, gt=0)
    """Peak learning rate of the epochs on numbers: of Muon for the matrices of hidden layers, and of AdamW for the rest."""
    trained_factor: float = pydantic.Field(default=0.05, gt=0, le=1)
    """Factor on the learning rate, in the epochs on images, of the layers that the epochs on numbers have trained."""
    crop_factor: float = pydantic.Field(default=1.0, gt=0)
    """Factor on the learning rate of the spatial transformer."""
    batch_size: int = pydantic.Field(default=128, ge=1)
    """Galaxies per optimiser step, over all workers."""
    batch_norm_fraction: Annotated[float, _IfBatchNorm] = pydantic.Field(default=0.6, ge=0, le=1)
    """Fraction of the steps in which batch normalisation uses batch statistics; afterwards it uses running statistics, as in
    prediction, so that the predicted covariance excludes the noise of the batches."""
    sync_batch_norm: Annotated[bool | None, _IfBatchNorm] = None
    """On GPUs: whether batch statistics are computed over all workers; left out: yes."""
    augment: Literal["none", "symmetries", "rotations"] = "symmetries"
    """Augmentation of the training images: none, random flips and 90-degree rotations (symmetries), or flips and rotations by
    any angle with zero-filled corners (rotations; GaMPEN)."""
    beta: Annotated[float, _IfVariances] = pydantic.Field(default=0.0, ge=0, le=1)
    """beta-NLL (Seitzer et al. 2022): each galaxy's loss is weighted by its predicted variance to this power, so that hard
    galaxies are not neglected; 0: the likelihood itself."""
    mse_warmup_fraction: Annotated[float, _IfVariances] = pydantic.Field(default=0.0, ge=0, lt=1)
    """Fraction of the epochs, at the start, in which only the means are trained, on squared errors."""
    gradient_accumulation_steps: int = pydantic.Field(default=1, ge=1)
    """Parts into which a worker divides its share of a batch, to save memory. Each part has its own dropout masks and batch
    statistics, so that results differ slightly."""
    ema_decay: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average (EMA) of the weights, which are validated and saved; 0: no averaging."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the convolutions (autocast); the spatial transformer, the output layer and the loss are float32. auto:
    bfloat16 on a GPU that supports it, else float32."""
    compile: bool = False
    """Compile the network with torch.compile: starts minutes later, with faster steps on GPUs."""

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum > 0:
            raise ValueError("nesterov needs a momentum above 0; set momentum or leave nesterov out")


@config_class
class CalibrationConfig:
    """Post-hoc scale of each target's posterior about its mean, fitted on the validation split."""

    enabled: bool = True
    """Whether the fitted scale is applied in prediction; it is fitted and stored in either case."""
    num_passes: int = pydantic.Field(default=NUM_PASSES, ge=1)
    """Monte Carlo passes per validation galaxy for the fit."""
    num_galaxies: int = pydantic.Field(default=30_000, ge=1)
    """Validation galaxies for the fit, evenly spaced in the split where it has more; all count for the validation loss."""


@config_class
class TaskResources:
    """Where the work is done, and resources requested from Ray. Without a cluster, a local Ray is started and stopped."""

    num_workers: int = pydantic.Field(default=0, ge=0)
    """Concurrent tasks, for which a cluster may grow; 0: as many as it has room for."""
    cpus_per_worker: float = pydantic.Field(default=0.0, ge=0)
    """CPUs reserved per task; 0: the job's default."""
    engine: Literal["auto", "local", "ray"] = "auto"
    """Where the work is done. auto: up to 500 galaxies in this process, which starts at once, and more on Ray; also few on
    Ray where there is a cluster or workers are requested. local: in this process. ray: on Ray."""


@config_class
class WorkerResources:
    """Resources requested from Ray. Without a cluster, a local Ray is started and stopped."""

    num_workers: int = pydantic.Field(default=0, ge=0)
    """Workers (training processes, inference actors, concurrent trials), for which a cluster may grow; 0: as many as fit its
    present nodes, one per GPU, or on CPUs one per two cores and two on a node of two or three."""
    cpus_per_worker: float = pydantic.Field(default=0.0, ge=0)
    """CPUs reserved per worker, all on one node; 0: an equal share that leaves a tenth of the node, at most 1.1 CPUs, for other
    tasks."""
    use_gpu: bool | None = None
    """Whether each worker uses a GPU; left out: if the cluster has one."""


@config_class
class ActorResources(WorkerResources):
    """Where the work is done, and resources requested from Ray. Without a cluster, a local Ray is started and stopped."""

    engine: Literal["auto", "local", "ray"] = "auto"
    """Where the work is done. auto: up to 500 galaxies in this process, which starts at once, and more on Ray; also few on
    Ray where there is a cluster or workers are requested. local: in this process. ray: on Ray."""


@config_class
class TrainResources(WorkerResources):
    """Where the training is done, and resources requested from Ray. Without a cluster, a local Ray is started and stopped."""

    engine: Literal["auto", "local", "ray"] = "auto"
    """Where the training is done. auto: on Ray where there is a cluster or a GPU, or workers are requested; otherwise in
    processes of this machine, which start sooner. local: in processes of this machine, on its CPUs. ray: on Ray."""
    min_workers: int = pydantic.Field(default=0, ge=0)
    """Elastic training: continue with min_workers to num_workers workers as nodes come and go; 0: always num_workers."""

    def __post_init__(self) -> None:
        if self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than num_workers, {self.num_workers}; raise num_workers")


@config_class
class TuneResources(WorkerResources):
    """Resources requested from Ray. Without a cluster, a local Ray is started and stopped."""

    gpus_per_worker: Annotated[float, Needs("use_gpu", unless=False)] = pydantic.Field(default=1.0, gt=0, le=1)
    """GPUs per trial; below 1, several trials share a GPU."""

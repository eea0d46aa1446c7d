"""VGG-like convolutional networks of any depth and width: one builder for every variant."""

from torch import nn

from gampen_ray.config import BackboneConfig
from gampen_ray.errors import UserError


def backbone(config: BackboneConfig, channels: int, side: int, outputs: int) -> list[nn.Module]:
    """Return the layers of a VGG-like network in order, dropout layers included.

    Parameters
    ----------
    config
        Depth plan, widths and dropout.
    channels, side
        Channels and side (pixels) of the input.
    outputs
        Width of the output layer.

    Raises
    ------
    UserError
        If the plan has no convolution, or pools the image away.
    """
    if not any(item != "M" for item in config.plan):
        raise UserError(f"network.backbone.plan: {config.plan} has no convolution; give at least one width")
    dropped = _convolutions_with_dropout(config)
    layers: list[nn.Module] = []
    convolution = 0
    for item in config.plan:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            side //= 2
        else:
            if convolution in dropped:
                layers.append(nn.Dropout(config.dropout_rate))
            kernel, stride = (config.stem_kernel, config.stem_stride) if convolution == 0 else (3, 1)
            layers.append(nn.Conv2d(channels, item, kernel, stride=stride, padding=kernel // 2, bias=not config.batch_norm))
            layers += [nn.BatchNorm2d(item)] if config.batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels, convolution = item, convolution + 1
            side = (side + 2 * (kernel // 2) - kernel) // stride + 1
        if side < 1:
            raise UserError(f"network.backbone.plan: {config.plan} pools the image away; remove an 'M' or use larger images")
    layers += [nn.AdaptiveAvgPool2d(config.pool_size), nn.Flatten()]
    width = channels * config.pool_size**2
    for hidden in config.classifier:
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(config.dropout_rate)]
        width = hidden
    layers.append(nn.Linear(width, outputs))
    _initialise(layers)
    return layers


def _convolutions_with_dropout(config: BackboneConfig) -> range:
    """Return the indices of the convolutions that a dropout layer precedes."""
    count = sum(item != "M" for item in config.plan)
    if config.dropout_placement == "every_conv":
        return range(1, count)
    if config.dropout_placement == "classifier":
        return range(0)
    blocks = " ".join("M" if item == "M" else "c" for item in config.plan).strip("M ").split("M")
    return range(max(1, count - blocks[-1].count("c")), count)


def _initialise(layers: list[nn.Module]) -> None:
    """He initialisation (He et al. 2015); a small output layer, so that training starts from the prior N(0, 1)."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    output = layers[-1]
    assert isinstance(output, nn.Linear)
    nn.init.normal_(output.weight, std=0.01)

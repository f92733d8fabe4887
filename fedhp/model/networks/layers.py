"""What networks with normalisation share."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from fedhp.model.networks.norms import channels_per_group

Norm = Callable[[int], nn.Module]


def group_norm(num_channels: int) -> nn.Module:
    """Makes a group normalisation of groups of four channels, or fewer where four do not divide them."""
    return nn.GroupNorm(num_channels // channels_per_group(num_channels), num_channels)


# "batch" keeps running statistics; what becomes of them in a federation says `fedhp.model.running`.
NORMS_2D: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}
NORMS_1D: dict[str, Norm] = {"batch": nn.BatchNorm1d, "group": group_norm}


def stack(
    first: Mapping[str, nn.Module],
    convolutions: Iterable[tuple[nn.Module, nn.Module | None]],
    norm: Norm,
    mean: nn.Module,
    num_classes: int,
) -> nn.Module:
    """Makes a chain: convolutions, each with normalisation and ReLU, and a linear layer on the maps' means.

    Args:
        first: What comes before, by name.
        convolutions: Each convolution, and the pooling that follows it, if one does.
        norm: Makes the normalisation after a convolution of that many channels.
        mean: Takes the mean over a map.
        num_classes: Width of the output.
    """
    layers, width = OrderedDict(first), 0
    for number, (convolution, pooling) in enumerate(convolutions, 1):
        width = len(convolution.get_parameter("weight"))
        layers[f"conv{number}"] = convolution
        layers[f"norm{number}"] = norm(width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if pooling is not None:
            layers[f"pool{number}"] = pooling
    layers["pool"] = mean
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(width, num_classes)
    return initialise(nn.Sequential(layers))


def initialise(module: nn.Module) -> nn.Module:
    """Draws the weights of convolutions for ReLU (He et al. 2015, arXiv 1502.01852, equation 14)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module

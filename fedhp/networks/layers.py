"""What networks with normalisation share."""

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]
_CHANNELS_PER_GROUP = 4


def group_norm(num_channels: int) -> nn.Module:
    """Makes a group normalisation of groups of four channels, or fewer where four do not divide them."""
    per_group = next(n for n in (_CHANNELS_PER_GROUP, 2, 1) if num_channels % n == 0)
    return nn.GroupNorm(num_channels // per_group, num_channels)


# "batch" keeps running statistics; what becomes of them in a federation says `fedhp.modules`.
NORMS_2D: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}
NORMS_1D: dict[str, Norm] = {"batch": nn.BatchNorm1d, "group": group_norm}


def initialise(module: nn.Module) -> nn.Module:
    """Draws the weights of convolutions for ReLU (He et al. 2015, arXiv 1502.01852, equation 14)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module

"""Networks for sensor windows, sounds and tables, small, as their authors and tutorials write them.

A window of 4 channels and 32 steps is a sample of shape (1, 4, 32).
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as users write it


def DsCnn(input_shape, num_classes):  # noqa: N802 - named as what is traced
    """MLPerf Tiny's keyword spotting (Zhang et al. 2017): depthwise separable, over time and frequency."""
    layers = [nn.Conv2d(1, 6, (2, 4), (1, 2), (0, 1)), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2)]
    for _ in range(2):
        layers += [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU()]
        layers += [nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Dropout(0.4), nn.AvgPool2d((3, 16)), nn.Flatten(), nn.Linear(6, num_classes)
    )


def AnomalyMlp(input_shape, num_classes):  # noqa: N802
    """MLPerf Tiny's anomaly detection as a classifier: dense layers around a bottleneck."""
    sizes = [input_shape[1] * input_shape[2], 12, 12, 3, 12]
    layers = [nn.Flatten()]
    for before, width in pairwise(sizes):
        layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, num_classes))


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    """Bai et al. 2018, without its weight normalisation: causal, by padding and cutting off."""

    def __init__(self, before, width, dilation):
        super().__init__()
        padding = 2 * dilation
        self.net = nn.Sequential(
            nn.Conv1d(before, width, 3, padding=padding, dilation=dilation), Chomp1d(padding), nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=padding, dilation=dilation), Chomp1d(padding), nn.ReLU(),
        )  # fmt: skip
        self.downsample = nn.Conv1d(before, width, 1) if before != width else None

    def forward(self, x):
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.tcn = nn.Sequential(TemporalBlock(input_shape[1], 6, 1), TemporalBlock(6, 6, 2))
        self.linear = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.linear(self.tcn(x.squeeze(1))[:, :, -1])


class WaveNet(nn.Module):
    """Van den Oord et al. 2016: causal by padding on one side, gates, skips that are added up."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.start = nn.Conv1d(input_shape[1], 6, 1)
        self.filters, self.gates, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for dilation in (1, 2):
            self.filters.append(nn.Conv1d(6, 6, 2, dilation=dilation))
            self.gates.append(nn.Conv1d(6, 6, 2, dilation=dilation))
            self.skips.append(nn.Conv1d(6, 5, 1))
        self.head = nn.Linear(5, num_classes)

    def forward(self, x):
        x, total = self.start(x[:, 0]), 0
        for number in range(2):
            padded = F.pad(x, (2**number, 0))
            out = torch.tanh(self.filters[number](padded)) * torch.sigmoid(self.gates[number](padded))
            total, x = total + self.skips[number](out), x + out
        return self.head(F.relu(total)[..., -1])


class InceptionModule(nn.Module):
    """Fawaz et al. 2020."""

    def __init__(self, before, width):
        super().__init__()
        self.bottleneck = nn.Conv1d(before, width, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, k, padding=k // 2, bias=False) for k in (3, 5, 9))
        self.pooled = nn.Conv1d(before, width, 1, bias=False)
        self.bn = nn.BatchNorm1d(4 * width)

    def forward(self, x):
        narrow = self.bottleneck(x)
        outs = [conv(narrow) for conv in self.convs] + [self.pooled(F.max_pool1d(x, 3, 1, 1))]
        return F.relu(self.bn(torch.cat(outs, dim=1)))


class InceptionTime(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one, self.two = InceptionModule(input_shape[1], 3), InceptionModule(12, 3)
        self.shortcut = nn.Sequential(nn.Conv1d(input_shape[1], 12, 1, bias=False), nn.BatchNorm1d(12))
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        x = x.view(x.shape[0], *x.shape[2:])
        return self.head(F.relu(self.two(self.one(x)) + self.shortcut(x)).mean(-1))


class M5(nn.Module):
    """Dai et al. 2017, as PyTorch's tutorial on speech commands has it; the last axis squeezed here."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.conv1, self.bn1, self.pool1 = nn.Conv1d(4, 6, 5, stride=2), nn.BatchNorm1d(6), nn.MaxPool1d(2)
        self.conv2, self.bn2, self.pool2 = nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.MaxPool1d(2)
        self.fc1 = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.pool1(F.relu(self.bn1(self.conv1(x.squeeze(dim=1)))))
        x = self.pool2(F.relu(self.bn2(self.conv2(x))))
        x = F.avg_pool1d(x, x.shape[-1])
        x = self.fc1(x.permute(0, 2, 1))
        return F.log_softmax(x, dim=2).squeeze(1)


class EEGNet(nn.Module):
    """Lawhern et al. 2018: over time, then over all electrodes, then separable."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.temporal, self.bn1 = nn.Conv2d(1, 4, (1, 9), padding=(0, 4), bias=False), nn.BatchNorm2d(4)
        self.spatial = nn.Conv2d(4, 8, (input_shape[1], 1), groups=4, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 6, 1, bias=False)
        self.dense = nn.Linear(6 * (input_shape[2] // 8), num_classes)

    def forward(self, x):
        x = self.bn2(self.spatial(self.bn1(self.temporal(x))))
        x = F.dropout(F.avg_pool2d(F.elu(x), (1, 4)), 0.25, self.training)
        x = F.avg_pool2d(F.elu(self.bn3(self.pointwise(self.depthwise(x)))), (1, 2))
        return self.dense(x.reshape(x.size(0), -1))


class HarCnn(nn.Module):
    """Convolutions over time, for human activities, with the channels last until they are turned round."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one, self.two = nn.LazyConv1d(6, 5), nn.LazyConv1d(7, 5)
        self.hidden, self.head = nn.LazyLinear(9), nn.LazyLinear(num_classes)

    def forward(self, x, return_features=False):
        x = x[:, 0].transpose(1, 2).transpose(2, 1)
        x = F.max_pool1d(F.relu(self.two(F.relu(self.one(x)))), 2)
        features = F.relu(self.hidden(torch.flatten(x, start_dim=1)))
        return (self.head(features), features) if return_features else self.head(features)


class WideAndDeep(nn.Module):
    """Cheng et al. 2016, for a table: some columns straight to the head, all through dense layers."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.deep = nn.Sequential(
            nn.Linear(128, 9), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(9, 6), nn.SELU()
        )
        self.head = nn.Linear(6 + 20, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.cat([self.deep(x), x[:, :20]], 1))


class DeepSets(nn.Module):
    """Zaheer et al. 2017: every step by itself, then the maximum over all; with noise in training."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(input_shape[1], 8), nn.Tanh(), nn.Linear(8, 7))
        self.rho = nn.Sequential(nn.Linear(7, 6), nn.Softplus(), nn.Linear(6, num_classes))

    def forward(self, x):
        x = self.phi(x.squeeze(1).permute(0, 2, 1))
        if self.training:
            x = x + 0.1 * torch.randn(x.shape)
        return self.rho(x.max(dim=1).values)


class Res2Net(nn.Module):
    """Gao et al. 2021: a slice of the channels after the other, each with what the one before made."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.first, self.last = nn.Conv1d(input_shape[1], 8, 1), nn.Conv1d(8, 7, 1)
        self.convs = nn.ModuleList(nn.Conv1d(2, 2, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(7, num_classes)

    def forward(self, x):
        slices = torch.split(self.first(x[:, 0]), 2, 1)
        outs, y = [slices[0]], 0
        for conv, one in zip(self.convs, slices[1:], strict=True):
            y = F.relu(conv(one + y))
            outs.append(y)
        return self.head(self.last(torch.cat(outs, 1)).mean(-1))


class ECANet(nn.Module):
    """Wang et al. 2020: a gate by a convolution over the channels, which needs them all."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one, self.two = nn.Conv1d(input_shape[1], 6, 3), nn.Conv1d(6, 7, 3)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Linear(7, num_classes)

    def forward(self, x):
        x = self.one(x[:, 0])
        y = self.gate(x.mean(-1, keepdim=True).transpose(-1, -2)).transpose(-1, -2)
        return self.head(self.two(x * y.sigmoid().expand_as(x)).amax(-1))


class Highway(nn.Module):
    """Srivastava et al. 2015, with two learnt shares, a learnt shift, and a window that is a constant."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.inner, self.plain, self.gate = nn.Linear(128, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.shares, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(8))
        self.register_buffer("window", torch.linspace(0, 1, 128))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.inner(x.flatten(1) * self.window)
        gate, shares = torch.sigmoid(self.gate(x)), F.softmax(self.shares, 0)
        x = shares[0] * torch.relu(self.plain(x)) * gate + shares[1] * x * (1 - gate)
        return self.head(x + self.shift)


class Tokens(nn.Module):
    """A token for the class and learnt places, as in vision transformers (Dosovitskiy et al. 2021)."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.embed, self.head = nn.Linear(input_shape[1], 8), nn.Linear(8, num_classes)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.places = nn.Parameter(torch.zeros(1, input_shape[2] + 1, 8))
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)

    def forward(self, x):
        x = self.embed(x.squeeze(1).transpose(1, 2))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


SIGNALS = (
    Res2Net, ECANet, Highway, Tokens,
    DsCnn, AnomalyMlp, TCN, WaveNet, InceptionTime, M5, EEGNet, HarCnn, WideAndDeep, DeepSets,
)  # fmt: skip

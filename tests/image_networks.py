"""Networks for images, small, as their authors and the usual libraries write them."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as users write it


class ConvBNAct(nn.Sequential):
    def __init__(self, before, width, kernel=3, stride=1, groups=1, act=nn.ReLU6):
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(before, width, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), act(inplace=True))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018."""

    def __init__(self, before, width, stride, expand_ratio):
        super().__init__()
        hidden = before * expand_ratio
        self.use_res_connect = stride == 1 and before == width
        layers = [] if expand_ratio == 1 else [ConvBNAct(before, hidden, 1)]
        layers += [ConvBNAct(hidden, hidden, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        blocks = [(4, 6, 1, 1), (6, 8, 2, 2), (8, 8, 1, 2)]
        self.features = nn.Sequential(
            ConvBNAct(input_shape[0], 4, stride=2),
            *(InvertedResidual(before, width, stride, ratio) for before, width, stride, ratio in blocks),
            ConvBNAct(8, 12, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, num_classes))

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class HSigmoid(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3, inplace=True) / 6


class HSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = HSigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class SELayer(nn.Module):
    """Squeeze and excitation with linear layers (Hu et al. 2018)."""

    def __init__(self, channel, reduction=2):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        middle = channel // reduction
        self.fc = nn.Sequential(
            nn.Linear(channel, middle), nn.ReLU(inplace=True), nn.Linear(middle, channel), HSigmoid()
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y


class MobileNetV3(nn.Module):
    """Howard et al. 2019."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), HSwish()
        )
        self.block = nn.Sequential(
            nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10), HSwish(),
            nn.Conv2d(10, 10, 5, 1, 2, groups=10, bias=False), nn.BatchNorm2d(10), SELayer(10), HSwish(),
            nn.Conv2d(10, 6, 1, bias=False), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(6, 12), HSwish(), nn.Dropout(0.2), nn.Linear(12, num_classes)
        )

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block(x)
        return self.classifier(x.mean([2, 3]))


def channel_shuffle(x, groups):
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


class ShuffleUnit(nn.Module):
    """Ma et al. 2018."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.stride, half = stride, width // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before),
                nn.Conv2d(before, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            )  # fmt: skip
        inside = before if stride > 1 else half
        self.branch2 = nn.Sequential(
            nn.Conv2d(inside, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = ConvBNAct(input_shape[0], 4, act=nn.ReLU)
        self.stage = nn.Sequential(ShuffleUnit(4, 12, 2), ShuffleUnit(12, 12, 1), ShuffleUnit(12, 12, 1))
        self.last = ConvBNAct(12, 10, 1, act=nn.ReLU)
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x):
        return self.fc(self.last(self.stage(self.stem(x))).mean([2, 3]))


class DenseLayer(nn.Module):
    """Huang et al. 2017."""

    def __init__(self, before, growth, bn_size=2):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(before, bn_size * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(bn_size * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bn_size * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs):
        concatenated = torch.cat(inputs, 1)
        return self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(concatenated))))))


class DenseBlock(nn.ModuleDict):
    def __init__(self, num_layers, before, growth):
        super().__init__()
        for i in range(num_layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(before + i * growth, growth))

    def forward(self, init_features):
        features = [init_features]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 4, 3, padding=1, bias=False)
        self.block1, self.block2 = DenseBlock(2, 4, 3), DenseBlock(2, 5, 3)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.Conv2d(10, 5, 1, bias=False), nn.AvgPool2d(2, 2)
        )
        self.norm, self.classifier = nn.BatchNorm2d(11), nn.Linear(11, num_classes)

    def forward(self, x):
        x = self.block2(self.transition(self.block1(self.stem(x))))
        out = F.relu(self.norm(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class DoubleConv(nn.Sequential):
    def __init__(self, before, width):
        super().__init__(ConvBNAct(before, width, act=nn.ReLU), ConvBNAct(width, width, act=nn.ReLU))


class UNetEncoder(nn.Module):
    """The contracting path (Ronneberger et al. 2015), and one step up, resized to the map that it joins."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one, self.two, self.three = DoubleConv(input_shape[0], 4), DoubleConv(4, 6), DoubleConv(6, 8)
        self.up = DoubleConv(6 + 8, 5)
        self.head = nn.Linear(5 + 4, num_classes)

    def forward(self, x):
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        low = self.three(F.max_pool2d(two, 2))
        low = F.interpolate(low, two.shape[2:], mode="bilinear", align_corners=False)
        high = self.up(torch.cat([two, low], dim=1))
        return self.head(torch.cat([high.amax((2, 3)), one.mean((2, 3))], 1))


def drop_path(x, drop_prob, training):
    """Stochastic depth, as timm writes it."""
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    random_tensor.div_(keep_prob)
    return x * random_tensor


class Conv2dSame(nn.Conv2d):
    """Padding as TensorFlow does it."""

    def forward(self, x):
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sizes]
        x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class MBConv(nn.Module):
    def __init__(self, before, width, ratio, stride, drop):
        super().__init__()
        hidden = before * ratio
        self.expand = nn.Sequential(nn.Conv2d(before, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        self.depthwise = Conv2dSame(hidden, hidden, 3, stride, groups=hidden, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.reduce, self.enlarge = nn.Conv2d(hidden, 3, 1), nn.Conv2d(3, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.drop, self.skips = drop, stride == 1 and before == width

    def forward(self, inputs):
        x = F.silu(self.expand(inputs))
        x = F.silu(self.norm(self.depthwise(x)))
        squeezed = self.enlarge(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = self.project(torch.sigmoid(squeezed) * x)
        return drop_path(x, self.drop, self.training) + inputs if self.skips else x


class EfficientNetB0(nn.Module):
    """Tan & Le 2019."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Sequential(
            Conv2dSame(input_shape[0], 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.SiLU()
        )
        self.blocks = nn.Sequential(MBConv(4, 6, 2, 2, 0.0), MBConv(6, 6, 2, 1, 0.2))
        self.head = nn.Sequential(nn.Conv2d(6, 9, 1, bias=False), nn.BatchNorm2d(9), nn.SiLU())
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(9, num_classes)

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)))


class Fire(nn.Module):
    """Iandola et al. 2016."""

    def __init__(self, before, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1, self.expand3x3 = (
            nn.Conv2d(squeeze, expand, 1),
            nn.Conv2d(squeeze, expand, 3, padding=1),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))], 1)


def SqueezeNet(input_shape, num_classes):  # noqa: N802 - named as what is traced
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 5, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(5, 3, 4), Fire(8, 3, 5), nn.Dropout(0.5), nn.Conv2d(10, num_classes, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022: channels last for layer normalisation and linear layers, a scale per channel."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x):
        inputs = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        return inputs + drop_path(x.permute(0, 3, 1, 2), 0.1, self.training)


def ConvNeXt(input_shape, num_classes):  # noqa: N802
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 6, 2, 2), ConvNeXtBlock(6), nn.Conv2d(6, 8, 2, 2), nn.BatchNorm2d(8),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )  # fmt: skip


class GhostModule(nn.Module):
    """Han et al. 2020: half of the channels are made cheaply from the others."""

    def __init__(self, before, width):
        super().__init__()
        self.oup, half = width, -(-width // 2)
        self.primary_conv = ConvBNAct(before, half, 1, act=nn.ReLU)
        self.cheap_operation = ConvBNAct(half, half, 3, groups=half, act=nn.ReLU)

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


def GhostNet(input_shape, num_classes):  # noqa: N802
    return nn.Sequential(
        ConvBNAct(input_shape[0], 6), GhostModule(6, 10), GhostModule(10, 7), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, num_classes),
    )  # fmt: skip


class RepVGGBlock(nn.Module):
    """Ding et al. 2021: three branches that are added."""

    def __init__(self, width):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(width)
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, inputs):
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return F.relu(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out)


def RepVGG(input_shape, num_classes):  # noqa: N802
    return nn.Sequential(
        ConvBNAct(input_shape[0], 6), RepVGGBlock(6), ConvBNAct(6, 8, stride=2), RepVGGBlock(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )  # fmt: skip


class ResNeXtBlock(nn.Module):
    """Xie et al. 2017: grouped convolutions inside a bottleneck."""

    def __init__(self, width, inside, groups):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, padding=1, groups=groups, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(inside), nn.Conv2d(inside, width, 1, bias=False)
        self.bn3, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        out += x
        return self.relu(out)


def ResNeXt(input_shape, num_classes):  # noqa: N802
    return nn.Sequential(
        ConvBNAct(input_shape[0], 5), ResNeXtBlock(5, 12, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, num_classes),
    )  # fmt: skip


class PlainBlock(nn.Module):
    """He et al. 2016 with shortcuts of option A: every second place, and zeros for the new channels."""

    def __init__(self, before, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        added = (width - before) // 2
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, added, added), "constant", 0)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def ResNetA(input_shape, num_classes):  # noqa: N802
    return nn.Sequential(
        ConvBNAct(input_shape[0], 4), PlainBlock(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )  # fmt: skip


class CBAM(nn.Module):
    """Woo et al. 2018: attention over channels, then over places, where all channels are looked at."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem, self.next = nn.Conv2d(input_shape[0], 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.fc1, self.fc2 = nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(3, 6, 1, bias=False)
        self.spatial, self.head = nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.Linear(7, num_classes)

    def forward(self, x):
        x = self.stem(x)
        pooled = [F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)]
        avg_out, max_out = (self.fc2(F.relu(self.fc1(one))) for one in pooled)
        x = x * torch.sigmoid(avg_out + max_out)
        both = torch.cat([torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
        x = F.relu(self.next(x * torch.sigmoid(self.spatial(both))))
        return self.head(x.mean((2, 3)))


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012, with its local response normalisation."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(input_shape[0], 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.lrn = nn.LocalResponseNorm(3)
        self.fc1, self.fc2 = nn.Linear(8 * (input_shape[1] // 4) ** 2, 9), nn.Linear(9, num_classes)

    def forward(self, x):
        x = F.max_pool2d(self.lrn(F.relu(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return F.log_softmax(self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training)), dim=1)


class Mixer(nn.Module):
    """Tolstikhin et al. 2021: one layer mixes places, the other channels."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        places = (input_shape[1] // 4) ** 2
        self.patches = nn.Conv2d(input_shape[0], 6, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(places, 5), nn.GELU(), nn.Linear(5, places))
        self.mixing = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.mixing(self.norm2(x))
        return self.head(x.mean(dim=1))


class SepConvGLU(nn.Module):
    """Gates (Dauphin et al. 2017), by halves and by the function; learnt slopes (He et al. 2015)."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one, self.two = nn.Conv2d(input_shape[0], 12, 3), nn.Conv2d(6, 10, 3)
        self.slopes, self.shared = nn.PReLU(6), nn.PReLU()
        self.head = nn.Linear(5, num_classes)

    def forward(self, x):
        values, gates = self.one(x).chunk(2, dim=1)
        x = self.slopes(values * gates.sigmoid())
        return self.head(self.shared(F.glu(self.two(x), dim=1)).mean((2, 3)))


class FedAvgCNN(nn.Module):
    """McMahan et al. 2017, as LEAF and many after it have it: two 5x5 convolutions, one dense layer."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(input_shape[0], 4, 5, padding=2), nn.Conv2d(4, 6, 5, padding=2)
        places = (input_shape[1] // 4) * (input_shape[2] // 4)
        self.fc1, self.fc2 = nn.Linear(6 * places, 9), nn.Linear(9, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class ResNet8(nn.Module):
    """MLPerf Tiny's image classification: three stages of one block."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = ConvBNAct(input_shape[0], 4, act=nn.ReLU)
        self.blocks, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for before, width in pairwise([4, 4, 6, 8]):
            stride = 1 if before == width else 2
            block = [ConvBNAct(before, width, 3, stride, act=nn.ReLU), nn.Conv2d(width, width, 3, 1, 1)]
            self.blocks.append(nn.Sequential(*block, nn.BatchNorm2d(width)))
            self.shortcuts.append(nn.Identity() if stride == 1 else nn.Conv2d(before, width, 1, stride))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = torch.relu(block(x) + shortcut(x))
        return self.head(F.avg_pool2d(x, x.shape[2:]).flatten(1))


def MobileNetV1(input_shape, num_classes):  # noqa: N802
    """MLPerf Tiny's visual wake words: a quarter of MobileNet (Howard et al. 2017)."""
    layers = [ConvBNAct(input_shape[0], 4, stride=2, act=nn.ReLU)]
    for before, width, stride in ((4, 6, 1), (6, 8, 2), (8, 8, 1)):
        layers += [
            ConvBNAct(before, before, 3, stride, before, nn.ReLU),
            ConvBNAct(before, width, 1, act=nn.ReLU),
        ]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, num_classes))


IMAGES = (
    MobileNetV2, MobileNetV3, ShuffleNetV2, DenseNet, UNetEncoder, EfficientNetB0, ResNet8, MobileNetV1,
    SqueezeNet, ConvNeXt, GhostNet, RepVGG, ResNeXt, ResNetA, CBAM, AlexNet, Mixer, SepConvGLU, FedAvgCNN,
)  # fmt: skip

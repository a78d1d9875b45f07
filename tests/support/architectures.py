"""Well-known networks on torch.nn, with their original topology at any width, for tests of `trinn.convert`.

`width` is the smallest number of channels of a layer, 64 in most originals. As in the authors' code, some networks call
functions, some work in place, and some keep their layers in nn.Sequential.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Narrow:
    """The layers of `nn` with a sixteenth of the hidden channels, for AlexNet in the interpreter."""

    def __init__(self, nn: Any) -> None:
        self.nn = nn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nn, name)

    def Conv2d(self, in_channels: int, out_channels: int, *rest: int, **options: int) -> nn.Module:
        return self.nn.Conv2d(sixteenth(in_channels), sixteenth(out_channels), *rest, **options)

    def Linear(self, in_features: int, out_features: int) -> nn.Module:
        return self.nn.Linear(sixteenth(in_features), sixteenth(out_features))


def sixteenth(channels: int) -> int:
    """Divide hidden channels, always multiples of 64, by 16."""
    return channels if channels % 64 else channels // 16


class FunctionalLeNet(nn.Module):
    """LeNet in the style of torch's tutorials: layers without weights are function calls."""

    def __init__(self, width: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5)
        self.conv2 = nn.Conv2d(width, 2 * width, 5)
        self.fc1 = nn.Linear(2 * width * 4 * 4, 8 * width)
        self.fc2 = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), (2, 2))
        x = torch.flatten(x, 1)
        return self.fc2(self.fc1(x).relu())


class VGG11(nn.Module):
    """K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015: column A."""

    def __init__(self, width: int = 64, num_classes: int = 10, batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M"):
            if isinstance(out, str):
                layers += [nn.MaxPool2d(2, 2)]
                continue
            layers += [nn.Conv2d(channels, out * width, 3, padding=1, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(out * width)] if batch_norm else []
            layers += [nn.ReLU(inplace=True)]
            channels = out * width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 4, 8 * width), nn.ReLU(True), nn.Dropout(0.0),
            nn.Linear(8 * width, 8 * width), nn.ReLU(True), nn.Dropout(0.0),
            nn.Linear(8 * width, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out = out + (self.downsample(x) if self.downsample is not None else x)
        return F.relu(out)


def shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2016. ResNet-18 has 2, 2, 2, 2
    basic blocks; ResNet-50 has 3, 4, 6, 3 bottlenecks."""

    def __init__(self, block: Any, blocks: tuple[int, ...], width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], width
        for stage, depth in enumerate(blocks):
            layers = []
            for i in range(depth):
                layers.append(block(channels, width << stage, 2 if stage > 0 and i == 0 else 1))
                channels = (width << stage) * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class ConvBNReLU6(nn.Sequential):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int) -> None:
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion to many channels, a depthwise convolution, and projection back."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        layers: list[nn.Module] = [ConvBNReLU6(channels, hidden, 1, 1, 1)] if expand != 1 else []
        layers += [ConvBNReLU6(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """M. Sandler and others, MobileNetV2: inverted residuals and linear bottlenecks, 2018. The original `width` is 8."""

    def __init__(self, width: int = 8, blocks: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1), num_classes: int = 10) -> None:
        super().__init__()
        channels = 4 * width
        layers: list[nn.Module] = [ConvBNReLU6(3, channels, 3, 2, 1)]
        stages = (1, 2, 1), (6, 3, 2), (6, 4, 2), (6, 8, 2), (6, 12, 1), (6, 20, 2), (6, 40, 1)
        for depth, (expand, out, stride) in zip(blocks, stages, strict=True):
            for i in range(depth):
                layers.append(InvertedResidual(channels, out * width, stride if i == 0 else 1, expand))
                channels = out * width
        layers.append(ConvBNReLU6(channels, 160 * width, 1, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(160 * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class DoubleConv(nn.Sequential):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """O. Ronneberger, P. Fischer, T. Brox, U-Net: convolutional networks for biomedical image segmentation, 2015. Upsampling by
    transposed convolutions as in the paper, or by bilinear interpolation."""

    def __init__(self, width: int = 64, depth: int = 4, num_classes: int = 3, bilinear: bool = False) -> None:
        super().__init__()
        sizes = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(DoubleConv(c, k) for c, k in zip([3, *sizes], sizes, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(2 * c, c, 1))
            if bilinear
            else nn.ConvTranspose2d(2 * c, c, 2, stride=2)
            for c in sizes[-2::-1]
        )
        self.join = nn.ModuleList(DoubleConv(2 * c, c) for c in sizes[-2::-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skipped.append(x)
        skipped.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((skipped.pop(), up(x)), 1))
        return self.head(x)


def dcgan_generator(width: int = 64, latent: int = 100) -> nn.Sequential:
    """A. Radford, L. Metz, S. Chintala, Unsupervised representation learning with deep convolutional generative adversarial
    networks, 2016: from (N, latent, 1, 1) to (N, 3, 64, 64)."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, 8 * width, 4, 1, 0, bias=False)]
    for c in (8, 4, 2, 1):
        layers += [nn.BatchNorm2d(c * width), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(c * width, c * width // 2 if c > 1 else 3, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def dcgan_discriminator(width: int = 64) -> nn.Sequential:
    """DCGAN's discriminator: from (N, 3, 64, 64) to (N, 1, 1, 1)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for c in (2, 4, 8):
        layers += [
            nn.Conv2d(c * width // 2, c * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(c * width),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False), nn.Sigmoid())


class ImagePooling(nn.Sequential):
    """The features of the whole image's mean, repeated at every pixel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class DeepLabHead(nn.Module):
    """L.-C. Chen and others, Rethinking atrous convolution for semantic image segmentation, 2017: parallel convolutions with
    several dilations. The result has four times the input's height and width."""

    def __init__(self, channels: int, width: int = 256, rates: tuple[int, ...] = (12, 24, 36), num_classes: int = 3) -> None:
        super().__init__()

        def branch(kernel: int, dilation: int) -> nn.Sequential:
            padding = dilation if kernel > 1 else 0
            conv = nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

        self.convs = nn.ModuleList([branch(1, 1), *(branch(3, rate) for rate in rates), ImagePooling(channels, width)])
        concatenated = (2 + len(rates)) * width
        self.project = nn.Sequential(
            nn.Conv2d(concatenated, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.0)
        )
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.head = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.project(torch.cat([conv(x) for conv in self.convs], dim=1)))
        return F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=False)

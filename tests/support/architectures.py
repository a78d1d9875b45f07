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


class SqueezeExcitation(nn.Module):
    """J. Hu, L. Shen, G. Sun, Squeeze-and-excitation networks, 2018: scale channels by a function of all channels' means."""

    def __init__(self, channels: int, squeezed: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


def conv_norm(channels: int, out: int, kernel: int, stride: int, groups: int, activation: nn.Module | None) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([activation] if activation is not None else []))


class MobileBlock(nn.Module):
    """An inverted residual with squeeze-and-excitation, of MobileNetV3 and EfficientNet."""

    def __init__(
        self, channels: int, hidden: int, out: int, kernel: int, stride: int, activation: Any, excitation: nn.Module | None
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [conv_norm(channels, hidden, 1, 1, 1, activation())] if hidden != channels else []
        layers += [conv_norm(hidden, hidden, kernel, stride, hidden, activation())]
        layers += [excitation] if excitation is not None else []
        self.block = nn.Sequential(*layers, conv_norm(hidden, out, 1, 1, 1, None))
        self.use_res_connect = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class MobileNetV3(nn.Module):
    """A. Howard and others, Searching for MobileNetV3, 2019: blocks of the small network. The original `width` is 8."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()

        def block(channels: int, hidden: int, out: int, kernel: int, stride: int, act: Any, excited: bool) -> nn.Module:
            gate = SqueezeExcitation(hidden, max(1, hidden // 4), nn.ReLU(), nn.Hardsigmoid()) if excited else None
            return MobileBlock(channels, hidden, out, kernel, stride, act, gate)

        relu, hardswish = (lambda: nn.ReLU(inplace=True)), (lambda: nn.Hardswish(inplace=True))
        self.features = nn.Sequential(
            conv_norm(3, 2 * width, 3, 2, 1, hardswish()),
            block(2 * width, 2 * width, 2 * width, 3, 2, relu, True),
            block(2 * width, 9 * width, 3 * width, 3, 2, relu, False),
            block(3 * width, 11 * width, 3 * width, 3, 1, relu, False),
            block(3 * width, 12 * width, 5 * width, 5, 2, hardswish, True),
            block(5 * width, 30 * width, 5 * width, 5, 1, hardswish, True),
            conv_norm(5 * width, 30 * width, 1, 1, 1, hardswish()),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(30 * width, 40 * width), nn.Hardswish(inplace=True), nn.Dropout(0.0), nn.Linear(40 * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class EfficientNet(nn.Module):
    """M. Tan, Q. Le, EfficientNet: rethinking model scaling for convolutional neural networks, 2019: B0 without its repeated
    blocks. The original `width` is 8."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        stages = (1, 2, 3, 1), (6, 3, 3, 2), (6, 5, 5, 2), (6, 10, 3, 2), (6, 14, 5, 1), (6, 14, 5, 1)
        channels, layers = 4 * width, [conv_norm(3, 4 * width, 3, 2, 1, nn.SiLU(inplace=True))]
        for expand, out, kernel, stride in stages:
            hidden, squeezed = expand * channels, max(1, channels // 4)
            excitation = SqueezeExcitation(hidden, squeezed, nn.SiLU(inplace=True), nn.Sigmoid())
            layers.append(MobileBlock(channels, hidden, out * width, kernel, stride, lambda: nn.SiLU(inplace=True), excitation))  # type: ignore[arg-type]
            channels = out * width
        self.features = nn.Sequential(*layers, conv_norm(channels, 40 * width, 1, 1, 1, nn.SiLU(inplace=True)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(40 * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvSiLU(nn.Module):
    """Convolution, batch norm and SiLU, as YOLO's authors write them."""

    default_act = nn.SiLU()

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class YoloBottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvSiLU(channels, channels, 3), ConvSiLU(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Bottlenecks in a row; the result concatenates all of their outputs."""

    def __init__(self, channels: int, out: int, depth: int = 1) -> None:
        super().__init__()
        half = out // 2
        self.cv1, self.cv2 = ConvSiLU(channels, out), ConvSiLU((2 + depth) * half, out)
        self.m = nn.ModuleList(YoloBottleneck(half) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A detector like YOLOv8: backbone, pyramid pooling, a neck that goes up and down again, and a convolution for each scale.

    After G. Jocher and others, Ultralytics YOLOv8, 2023, and C. Li and others, YOLOv6, 2022.
    """

    def __init__(self, width: int = 16, outputs: int = 6) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(ConvSiLU(3, w, 3, 2), ConvSiLU(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))
        self.stage3 = nn.Sequential(ConvSiLU(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w))
        self.stage4 = nn.Sequential(ConvSiLU(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w))
        self.before, self.after = ConvSiLU(8 * w, 4 * w), ConvSiLU(16 * w, 8 * w)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.join3, self.down, self.join4 = C2f(12 * w, 4 * w), ConvSiLU(4 * w, 4 * w, 3, 2), C2f(12 * w, 8 * w)
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in (4 * w, 8 * w))

    def forward(self, x: Tensor) -> Tensor:
        third = self.stage3(self.stem(x))
        pooled = [self.before(self.stage4(third))]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        fourth = self.after(torch.cat(pooled, 1))
        third = self.join3(torch.cat((self.up(fourth), third), 1))
        fourth = self.join4(torch.cat((self.down(third), fourth), 1))
        return torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (third, fourth), strict=True)], 2)


class ConvNeXtBlock(nn.Module):
    """Z. Liu and others, A ConvNet for the 2020s, 2022: depthwise 7x7, layer norm, two linear layers, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(0.1 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


def convnext(width: int = 96, depth: int = 2, num_classes: int = 10) -> nn.Sequential:
    """The first stage of ConvNeXt, and a classifier."""
    blocks = [ConvNeXtBlock(width) for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )  # fmt: skip


class RegNetBlock(nn.Module):
    """I. Radosavovic and others, Designing network design spaces, 2020: the Y block, with a grouped convolution."""

    def __init__(self, channels: int, out: int, stride: int, group_width: int) -> None:
        super().__init__()
        relu = lambda: nn.ReLU(inplace=True)  # noqa: E731
        self.proj = conv_norm(channels, out, 1, stride, 1, None) if stride > 1 or channels != out else None
        self.f = nn.Sequential(
            conv_norm(channels, out, 1, 1, 1, relu()), conv_norm(out, out, 3, stride, out // group_width, relu()),
            SqueezeExcitation(out, max(1, channels // 4), relu(), nn.Sigmoid()), conv_norm(out, out, 1, 1, 1, None),
        )  # fmt: skip
        self.activation = relu()

    def forward(self, x: Tensor) -> Tensor:
        x = (self.proj(x) if self.proj is not None else x) + self.f(x)
        return self.activation(x)


def regnet(width: int = 32, group_width: int = 16, num_classes: int = 10) -> nn.Sequential:
    blocks = RegNetBlock(width, 2 * width, 2, group_width), RegNetBlock(2 * width, 2 * width, 1, group_width)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes)
    return nn.Sequential(conv_norm(3, width, 3, 2, 1, nn.ReLU(inplace=True)), *blocks, *head)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = (
            nn.BatchNorm2d(channels),
            nn.ReLU(True),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
        )
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(y)))


class DenseNet(nn.Module):
    """G. Huang and others, Densely connected convolutional networks, 2017, with a few layers."""

    def __init__(self, growth: int = 32, depths: tuple[int, ...] = (3, 3), num_classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Sequential(conv_norm(3, channels, 7, 2, 1, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1))
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for depth in depths:
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(depth)))
            channels += depth * growth
            transition = nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, channels // 2, 1, bias=False)
            self.transitions.append(nn.Sequential(*transition, nn.AvgPool2d(2, 2)))
            channels //= 2
        self.norm, self.classifier = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x), inplace=True), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(channels, squeezed, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeezed, expanded, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat([self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1)


def squeezenet(width: int = 16, num_classes: int = 10) -> nn.Sequential:
    """F. Iandola and others, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, 2016, with fewer modules."""
    w = width
    return nn.Sequential(
        nn.Conv2d(3, 4 * w, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(4 * w, w, 4 * w), Fire(8 * w, w, 4 * w), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8 * w, 2 * w, 8 * w),
        nn.Dropout(0.0), nn.Conv2d(16 * w, num_classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    """N. Ma and others, ShuffleNet V2: practical guidelines for efficient CNN architecture design, 2018."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half, first = out // 2, channels if stride > 1 else channels // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_norm(channels, channels, 3, stride, channels, None), conv_norm(channels, half, 1, 1, 1, nn.ReLU(True))
            )
        self.branch2 = nn.Sequential(
            conv_norm(first, half, 1, 1, 1, nn.ReLU(True)), conv_norm(half, half, 3, stride, half, None),
            conv_norm(half, half, 1, 1, 1, nn.ReLU(True)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            y = torch.cat((left, self.branch2(right)), dim=1)
        else:
            y = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def shufflenet(width: int = 24, num_classes: int = 10) -> nn.Sequential:
    units = ShuffleUnit(width, 4 * width, 2), ShuffleUnit(4 * width, 4 * width, 1)
    stem = conv_norm(3, width, 3, 2, 1, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))


class Inception(nn.Module):
    """C. Szegedy and others, Going deeper with convolutions, 2015, with batch norms."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()

        def conv(channels: int, out: int, kernel: int) -> nn.Sequential:
            return conv_norm(channels, out, kernel, 1, 1, nn.ReLU(inplace=True))

        self.branch1 = conv(channels, 4 * width, 1)
        self.branch2 = nn.Sequential(conv(channels, 6 * width, 1), conv(6 * width, 8 * width, 3))
        self.branch3 = nn.Sequential(conv(channels, width, 1), conv(width, 2 * width, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(channels, 2 * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


def googlenet(width: int = 16, num_classes: int = 10) -> nn.Sequential:
    """GoogLeNet's stem, an inception block and a classifier."""
    stem = conv_norm(3, 4 * width, 7, 2, 1, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, ceil_mode=True)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16 * width, num_classes)
    return nn.Sequential(*stem, Inception(4 * width, width), *head)


class PReLUUNet(nn.Module):
    """E. Kerfoot and others, Left-ventricle quantification using residual U-Net, 2018: strided convolutions down, transposed
    convolutions up, and PReLU everywhere."""

    def __init__(self, width: int = 16, depth: int = 2, num_classes: int = 3) -> None:
        super().__init__()
        sizes = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(conv_norm(c, k, 3, 2, 1, nn.PReLU()) for c, k in zip([3, *sizes], sizes, strict=False))
        outputs = [num_classes, *sizes]
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(c * (2 if i < depth else 1), k, 3, 2, 1, 1), *((nn.BatchNorm2d(k), nn.PReLU(k)) if i else ())
            )
            for i, (c, k) in reversed(list(enumerate(zip(sizes, outputs, strict=False))))
        )

    def forward(self, x: Tensor) -> Tensor:
        skipped: list[Tensor] = []
        for block in self.down:
            skipped.append(x := block(x))
        x = skipped.pop()
        for i, block in enumerate(self.up):
            x = block(x if i == 0 else torch.cat((skipped.pop(), x), 1))
        return x

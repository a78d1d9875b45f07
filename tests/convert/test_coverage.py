"""The share of well-known networks on trinn's kernels under torch.compile, counted in elements of all results.

The networks have their original width and are traced on the meta device, which computes nothing. `--record` stores the counts
for docs/evidence.md.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from tests import evidence
from tests.convert.test_convert import WHOLE
from tests.support.architectures import (
    VGG11,
    BasicBlock,
    Bottleneck,
    DeepLabHead,
    DenseNet,
    EfficientNet,
    MobileNetV2,
    MobileNetV3,
    PReLUUNet,
    ResNet,
    UNet,
    Yolo,
    convnext,
    dcgan_discriminator,
    dcgan_generator,
    googlenet,
    regnet,
    shufflenet,
    squeezenet,
)
from trinn.layers import backend
from trinn.models import AlexNet, LeNet

IMAGES = (8, 3, 224, 224)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet": (lambda: LeNet(nn=nn), (8, 1, 32, 32)),
    "AlexNet": (lambda: AlexNet(nn=nn), IMAGES),
    "VGG-11": (VGG11, IMAGES),
    "VGG-11 with batch norm": (lambda: VGG11(batch_norm=True), IMAGES),
    "ResNet-18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2)), IMAGES),
    "ResNet-50": (lambda: ResNet(Bottleneck, (3, 4, 6, 3)), IMAGES),
    "MobileNetV2": (MobileNetV2, IMAGES),
    "U-Net": (UNet, (8, 3, 256, 256)),
    "U-Net, bilinear": (lambda: UNet(bilinear=True), (8, 3, 256, 256)),
    "DCGAN's generator": (dcgan_generator, (8, 100, 1, 1)),
    "DCGAN's discriminator": (dcgan_discriminator, (8, 3, 64, 64)),
    "DeepLab's head": (lambda: DeepLabHead(2048), (8, 2048, 28, 28)),
    "MobileNetV3": (MobileNetV3, IMAGES),
    "EfficientNet-B0": (EfficientNet, IMAGES),
    "YOLO": (Yolo, (8, 3, 640, 640)),
    "ConvNeXt": (convnext, IMAGES),
    "RegNetY": (regnet, IMAGES),
    "DenseNet": (DenseNet, IMAGES),
    "SqueezeNet": (squeezenet, IMAGES),
    "ShuffleNetV2": (shufflenet, IMAGES),
    "GoogLeNet": (googlenet, IMAGES),
    "U-Net with PReLU": (PReLUUNet, (8, 3, 256, 256)),
}
SHORT = {"LeNet", "ConvNeXt", "SqueezeNet", "U-Net with PReLU"}
# Networks with a smaller share than LEAST, and the operators that trinn lacks.
LEAST = 0.95
EXCEPTIONS = {
    "ConvNeXt": "layer_norm",
    "ShuffleNetV2": "contiguous: it shuffles channels; Inductor joins it with the concatenation before it",
}


@functools.cache
def measured(name: str) -> dict[str, Any]:
    """The row of a network: its input, the elements of all results, and the calls left to torch, in training."""
    build, shape = NETWORKS[name]
    found: list[backend.Summary] = []

    def rewritten(graph: Any, inputs: Any) -> Any:
        found.append(backend.rewrite(graph, inputs))
        return graph.forward

    torch._dynamo.reset()
    with torch.device("meta"):
        torch.compile(build(), backend=rewritten, fullgraph=True)(torch.empty(shape))
    torch._dynamo.reset()
    (summary,) = found
    elements = {key: summary.elements[key] for key in ("trinn", "torch", "concatenation")}
    return {"input": list(shape), "elements": elements, "left": sorted({operator for operator, _ in summary.left})}


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Any:
    """The recorded rows. With `--record`, measure and record them first."""
    if request.config.getoption("--record"):
        evidence.record("coverage", {"networks": {name: measured(name) for name in NETWORKS}}, "torch's meta device")
    return json.loads((evidence.DOCS / "evidence" / "coverage.json").read_text())["networks"]


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in NETWORKS])
def test_rows_are_as_recorded(name: str, recorded: Any) -> None:
    assert measured(name) == recorded[name]


def test_recorded_shares(recorded: Any) -> None:
    """At least LEAST of each network, and less of each exception."""
    assert list(recorded) == list(NETWORKS) and NETWORKS.keys() == WHOLE.keys()
    below = {name for name, row in recorded.items() if evidence.share_on_trinn(row["elements"]) < LEAST}
    assert below == set(EXCEPTIONS), f"change EXCEPTIONS: {sorted(below ^ set(EXCEPTIONS))}"

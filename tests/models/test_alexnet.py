"""AlexNet has the names and shapes of torchvision, and equals AlexNet on torch.nn."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import trinn.layers as tnn
from tests.support.architectures import Narrow
from tests.support.check import DEVICE, raises_like, randn
from tests.support.networks import OPTIMIZERS, check_network, check_training
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.models import AlexNet

pytestmark = pytest.mark.usefixtures("large_tiles")

# Shapes in torchvision's checkpoints, which must load.
SHAPES = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}


def networks(num_classes: int = 10, dropout: float = 0.0, narrow: bool = True) -> tuple[AlexNet, AlexNet]:
    """AlexNet on trinn and on torch."""
    torch.manual_seed(0)
    layers = (Narrow(tnn), Narrow(torch.nn)) if narrow else (tnn, torch.nn)
    ours, torchs = (AlexNet(num_classes, dropout, nn=nn).to(DEVICE) for nn in layers)
    return ours, torchs


def test_names_and_shapes() -> None:
    """Both networks have torchvision's, so its checkpoints load strictly into them."""
    expected = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in SHAPES.items()}
    with torch.device("meta"):
        ours, torchs = AlexNet(), AlexNet(nn=torch.nn)
    checkpoint = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    for network in (ours, torchs):
        assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
        network.load_state_dict(checkpoint, strict=True, assign=True)
    assert repr(ours) == repr(torchs)
    assert ours(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    assert sum(math.prod(shape) for shape in expected.values()) == 61_100_840


def test_checkpoints_go_both_ways(tmp_path: Path) -> None:
    ours, torchs = networks()
    for source, target in ((ours, torchs), (torchs, ours)):
        for parameter in target.parameters():
            nn.init.zeros_(parameter)
        torch.save(source.state_dict(), tmp_path / "weights.pt")
        target.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
        assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_options() -> None:
    """num_classes, in_channels and dropout."""
    network = AlexNet(num_classes=7, dropout=0.2, in_channels=1, nn=Narrow(tnn)).to(DEVICE)
    assert network.eval()(randn(2, 1, 63, 63)).shape == (2, 7)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.2, 0.2]


def test_narrow_equals_torch(full_float32: None) -> None:
    """Logits and the gradients of all sixteen parameters, on small images and few channels."""
    check_network(*networks(), randn(2, 3, 63, 63))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_narrow_trains_like_torchs(optimizer: str, full_float32: None) -> None:
    check_training(*networks(), [randn(2, 3, 63, 63, seed=step) for step in range(5)], OPTIMIZERS[optimizer])


@pytest.mark.long
def test_equals_torch(full_float32: None) -> None:
    """With all channels, on small images."""
    check_network(*networks(narrow=False), randn(2, 3, 63, 63))


@pytest.mark.skipif(INTERPRETED, reason="images of 224 x 224 need a GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_torch_at_full_size(optimizer: str, full_float32: None) -> None:
    """A thousand classes and images of 224 x 224: logits, gradients, and five steps of the optimizer."""
    ours, torchs = networks(1000, narrow=False)
    batches = [randn(4, 3, 224, 224, seed=step) for step in range(5)]
    check_network(ours, torchs, batches[0])
    check_training(ours, torchs, batches, OPTIMIZERS[optimizer])


def test_too_small_images_raise() -> None:
    ours, torchs = networks()
    raises_like(torchs, ours, randn(1, 3, 62, 62))
    raises_like(torchs, ours, randn(1, 1, 63, 63))

"""AlexNet has torchvision's names and shapes, and computes what it computes on torch.nn."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.check import DEVICE, close, error, randn
from trinn.kernels import tuning
from trinn.models import AlexNet

# torchvision's, whose checkpoints are to load.
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


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    """Whole layers in one program: the seams of tiles are tested with the operators."""
    monkeypatch.setattr(tuning, "interpreted_block", 16384)
    monkeypatch.setattr(tuning, "wanted_programs", 1)


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        state = AlexNet().state_dict()
    expected = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in SHAPES.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def passes(network: AlexNet, images: Tensor) -> list[Tensor]:
    logits = network(images)
    loss = F.cross_entropy(logits, torch.arange(len(images), device=images.device))
    return [logits.detach(), *torch.autograd.grad(loss, list(network.parameters()))]


@pytest.mark.long
def test_equals_torch() -> None:
    """The logits and the gradients of all sixteen parameters, on small images."""
    torch.manual_seed(0)
    ours, torchs = AlexNet(10).to(DEVICE).eval(), AlexNet(10, nn=torch.nn).to(DEVICE).eval()
    torchs.load_state_dict(ours.state_dict(), strict=True)
    images = randn(2, 3, 63, 63)
    got, expected = passes(ours, images), passes(torchs, images)
    oracle = passes(torchs.cpu().double(), images.cpu().double())
    for name, y, theirs, exact in zip(["logits", *dict(ours.named_parameters())], got, expected, oracle, strict=True):
        close(y, theirs, exact, error(theirs, exact), name)

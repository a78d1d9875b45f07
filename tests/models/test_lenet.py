"""LeNet runs forward and backward on trinn's kernels alone, and equals LeNet on torch.nn."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.support.check import DEVICE, raises_like, randn
from tests.support.networks import OPTIMIZERS, check_network, check_training
from trinn.models import LeNet

pytestmark = pytest.mark.usefixtures("large_tiles")

# Operators of ATen (cuDNN, oneDNN, ...) for work that trinn does.
OURS_TO_COMPUTE = re.compile(
    r"conv|mm$|mm_|addmv|mv$|matmul|linear|dot|einsum|pool|upsample|interpolate|threshold|relu|clamp|batch_norm|im2col|_pad"
)


class OnlyOurs(TorchDispatchMode):
    """Raises for an operator of torch that does trinn's work. `seen` has the names of all operators called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        self.seen.add(f"{namespace}::{name}")
        if namespace != "trinn" and OURS_TO_COMPUTE.search(name):
            raise AssertionError(f"{namespace}::{name} ran in place of a trinn kernel")
        return func(*args, **kwargs or {})


def networks() -> tuple[LeNet, LeNet]:
    """LeNet on trinn and on torch, with the same weights."""
    torch.manual_seed(0)
    ours, torchs = LeNet().to(DEVICE), LeNet(nn=torch.nn).to(DEVICE)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    return ours, torchs


def loss_of(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    labels = torch.arange(len(images), device=images.device) % 10
    return F.cross_entropy(network(images), labels)


def test_torch_computes_nothing() -> None:
    ours, _ = networks()
    with OnlyOurs() as mode:
        loss_of(ours, randn(2, 1, 32, 32).requires_grad_()).backward()
    passes = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "channel_sum", "linear_fprop", "linear_dgrad", "linear_wgrad")
    pools = ("max_pool2d_forward", "max_pool2d_backward", "activation_forward", "activation_backward")
    assert {f"trinn::{name}" for name in passes + pools} <= mode.seen


def test_torch_computes_nothing_in_other_layers() -> None:
    network = nn.Sequential(
        tnn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), tnn.BatchNorm2d(4), tnn.ReLU(inplace=True), tnn.AvgPool2d(2),
        tnn.Conv2d(4, 4, 3, groups=4, padding="same"), tnn.ConvTranspose2d(4, 2, 2, stride=2),
        tnn.Upsample(scale_factor=2, mode="bilinear"), tnn.MaxPool2d(2), nn.Flatten(), tnn.Linear(2 * 8 * 8, 3),
    ).to(DEVICE)  # fmt: skip
    with OnlyOurs() as mode:
        network(randn(2, 2, 8, 8).requires_grad_()).sum().backward()
    assert {"trinn::pad2d_backward", "trinn::batchnorm2d_backward", "trinn::bilinear2d_backward"} <= mode.seen


class TorchsBackward(torch.autograd.Function):
    """A linear layer with our forward and torch's backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return tnn.linear(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return dy @ w, dy.T @ x, dy.sum(0)


REROUTES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a convolution": (tnn.Conv2d, "_conv_forward", nn.Conv2d._conv_forward),
    "a linear layer": (tnn.Linear, "forward", nn.Linear.forward),
    "a pooling": (tnn.MaxPool2d, "forward", nn.MaxPool2d.forward),
    "a ReLU": (tnn.ReLU, "forward", nn.ReLU.forward),
    "a backward alone": (tnn.Linear, "forward", lambda self, x: TorchsBackward.apply(x, self.weight, self.bias)),
}


@pytest.mark.parametrize("which", REROUTES)
def test_a_layer_of_torch_is_detected(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OnlyOurs raises if one layer runs on torch, or only its backward."""
    ours, _ = networks()
    monkeypatch.setattr(*REROUTES[which])
    with pytest.raises(AssertionError, match="in place of a trinn kernel"), OnlyOurs():
        loss_of(ours, randn(2, 1, 32, 32)).backward()


def test_equals_torch(full_float32: None) -> None:
    """Logits and all gradients, by the rule of check.py."""
    check_network(*networks(), randn(3, 1, 32, 32))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trains_like_torchs(optimizer: str, full_float32: None) -> None:
    """Five optimizer steps give the same parameters, by the rule of check.py."""
    batches = [randn(4, 1, 32, 32, seed=step) for step in range(5)]
    check_training(*networks(), batches, OPTIMIZERS[optimizer])


def test_options(full_float32: None) -> None:
    """num_classes, in_channels and dropout. Dropout applies to the inputs of two layers, and drops the elements torch drops."""
    options: dict[str, Any] = {"num_classes": 3, "dropout": 0.5, "in_channels": 2}
    ours, torchs = LeNet(**options).to(DEVICE), LeNet(**options, nn=torch.nn).to(DEVICE)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    images = randn(2, 2, 32, 32)
    dropped: list[int] = []
    ours.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(output.shape[1]))
    outputs = []
    for network in (ours, torchs):
        torch.manual_seed(0)
        outputs.append(network(images))
    torch.testing.assert_close(*outputs)
    assert dropped == [120, 84] and outputs[0].shape == (2, 3) and not torch.allclose(outputs[0], ours.eval()(images))
    assert repr(ours) == repr(torchs)
    with pytest.raises(ValueError, match="dropout probability"):
        LeNet(dropout=2)


@pytest.mark.parametrize("size", [(2, 1, 28, 28), (2, 3, 32, 32)])
def test_other_images_raise(size: tuple[int, ...]) -> None:
    raises_like(LeNet(nn=torch.nn).to(DEVICE), LeNet().to(DEVICE), randn(*size))


def test_same_bits_every_time() -> None:
    ours, _ = networks()
    runs = []
    for _ in range(3):
        ours.zero_grad()
        loss_of(ours, randn(2, 1, 32, 32)).backward()
        runs.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_checkpoints_go_both_ways() -> None:
    ours, torchs = LeNet(num_classes=7, in_channels=3), LeNet(num_classes=7, in_channels=3, nn=torch.nn)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    assert repr(ours) == repr(torchs)
    assert sum(p.numel() for p in LeNet().parameters()) == 61_706


def test_compiles_whole() -> None:
    """The model compiles to one graph, forward and backward, with the same bits as in eager mode."""
    ours, _ = networks()
    images = randn(2, 1, 32, 32)
    expected = torch.autograd.grad(loss_of(ours, images), list(ours.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(loss_of(compiled, images), list(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

"""torch.utils.flop_counter.FlopCounterMode counts the same FLOPs for trinn as for torch."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import trinn
from tests.support.architectures import BasicBlock, UNet
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, TORCH_CASES
from tests.support.record import OperatorCase


def counts(case: OperatorCase) -> tuple[int, int]:
    """FLOPs of the forward pass and of the backward pass."""
    tensors = [t.requires_grad_() for t in case.tensors()]
    with FlopCounterMode(display=False) as forward:
        result = case.function(*tensors, *case.others())
    y = result[0] if isinstance(result, tuple) else result
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y.sum(), tensors)
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    assert counts(CASES[name]) == counts(TORCH_CASES[name])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a block of a ResNet": lambda: BasicBlock(3, 4, 2),
    "a U-Net": lambda: UNet(width=2, depth=1),
    "a classifier": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_modules(name: str, training: bool) -> None:
    """Counts per module. Fused layers count towards the module in charge of the fused call."""
    networks = [NETWORKS[name]().to(DEVICE).train(training)]
    networks += [trinn.convert(copy.deepcopy(networks[0]), fuse=fuse) for fuse in (False, True)]
    found: list[dict[str, int]] = []
    for network in networks:
        with FlopCounterMode(display=False) as counter, nullcontext() if training else torch.no_grad():
            y = network(randn(2, 3, 8, 8))
            if training:
                y.sum().backward()
        found.append({module: sum(by.values()) for module, by in counter.get_flop_counts().items()})
    torchs, ours, fused = found
    assert torchs["Global"] > 0 and len(torchs) > 2
    assert ours == torchs and fused["Global"] == torchs["Global"]

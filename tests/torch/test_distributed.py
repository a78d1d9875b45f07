"""torch.distributed's wrappers train our networks: two processes get the gradients of one process with all images."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.networks import check_found
from tests.support.processes import PATIENCE, ROOT, needs_processes, together
from trinn.models import LeNet


def lenet(layers: Any) -> nn.Module:
    return LeNet(nn=layers)


def normalizing(layers: Any) -> nn.Module:
    """A small network with batch normalisation."""
    return nn.Sequential(
        layers.Conv2d(1, 4, 5, stride=3), layers.BatchNorm2d(4), layers.ReLU(), layers.MaxPool2d(2), nn.Flatten(),
        layers.Linear(100, 10),
    )  # fmt: skip


def replicated(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda network: DistributedDataParallel(network, **options)


def sharded(network: nn.Module) -> Any:
    """FSDP2 shards each layer's parameters over the processes, and gathers them when the layer runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(DEVICE, (2,))
    for layer in network.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def synchronized_and_sharded(network: nn.Module) -> nn.Module:
    return sharded(tnn.SyncBatchNorm.convert_sync_batchnorm(network))


def replicated_and_synchronized(network: nn.Module) -> nn.Module:
    """Convert after wrapping, since DDP refuses to wrap a SyncBatchNorm on a CPU."""
    return tnn.SyncBatchNorm.convert_sync_batchnorm(DistributedDataParallel(network))


class Case(NamedTuple):
    """A function that builds a network of given layers, and its wrapper."""

    network: Callable[[Any], nn.Module]
    wrap: Callable[[nn.Module], nn.Module]
    accumulate: bool = False  # accumulate over images before the gradients are exchanged


CASES = {
    "DDP": Case(lenet, replicated()),
    "DDP, buckets as views, static graph": Case(lenet, replicated(gradient_as_bucket_view=True, static_graph=True)),
    "DDP, accumulated": Case(lenet, replicated(), accumulate=True),
    "DDP, SyncBatchNorm": Case(normalizing, replicated_and_synchronized),
    "FSDP2": Case(lenet, sharded),
    "FSDP2, SyncBatchNorm": Case(normalizing, synchronized_and_sharded),
}


def images() -> Tensor:
    return randn(4, 1, 32, 32)


def made(case: Case, layers: Any) -> nn.Module:
    torch.manual_seed(0)
    return case.network(layers).to(DEVICE)


def step(name: str, rank: int) -> dict[str, Tensor]:
    """The logits for this process's half of the images, and the gradients by the names of the parameters."""
    case = CASES[name]
    network: Any = case.wrap(made(case, tnn))
    half = slice(2 * rank, 2 * rank + 2)
    mine, labels = images()[half], torch.arange(4, device=DEVICE)[half]
    if case.accumulate:
        with network.no_sync():
            first = network(mine[:1])
            (F.cross_entropy(first, labels[:1]) / 2).backward()
        last = network(mine[1:])
        (F.cross_entropy(last, labels[1:]) / 2).backward()
        logits = torch.cat([first, last])
    else:
        logits = network(mine)
        F.cross_entropy(logits, labels).backward()
    found = {"logits": logits.detach()}
    for key, parameter in network.named_parameters():
        gradient: Any = parameter.grad
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        found[key.removeprefix("module.")] = whole.clone()
    return found


def steps(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: step(name, rank) for name in CASES}


@pytest.fixture(scope="module")
def found_by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The results of both processes."""
    return together(steps, tmp_path_factory.mktemp("processes"))


@needs_processes
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_one_process(name: str, found_by_rank: list[Any], full_float32: None) -> None:
    """The gradients equal torch's for all images, by the rule of check.py, and are bitwise equal in both processes."""
    first, second = (found[name] for found in found_by_rank)
    assert all(torch.equal(value, second[key]) for key, value in first.items() if key != "logits")
    found = {key: value.to(DEVICE) for key, value in first.items()}
    found["logits"] = torch.cat([first["logits"], second["logits"]]).to(DEVICE)
    check_found(found, made(CASES[name], tnn), made(CASES[name], nn), images())


@needs_processes
def test_example() -> None:
    """A few steps of `torchrun examples/train_ddp.py`."""
    pytest.importorskip("sklearn")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "examples" / "train_ddp.py"), "--limit", "20", "--epochs", "2", "--batch", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    counts, first, second, result, same = done.stdout.splitlines()
    assert counts == "2 processes, 16 digits to train on, 4 held out"
    assert first.startswith("epoch 1/2   loss ") and second.startswith("epoch 2/2   loss ")
    assert result.endswith(" % of the held-out digits read right")
    assert same == "the same weights in all processes: yes"

"""SyncBatchNorm in several processes equals one process with all images."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import trinn.layers as tnn
from tests.models.test_lenet import OnlyOurs
from tests.operators.test_batchnorm2d import parameters, statistics, tracked
from tests.support.check import DEVICE, check_results, raises_like, randn
from tests.support.processes import needs_processes, together
from trinn.kernels import ops
from trinn.kernels.runtime.settings import settings


class Case(NamedTuple):
    """All images, and the number of images in the first process."""

    images: Callable[[], Tensor]
    first: int
    affine: bool = True
    parameters: torch.dtype | None = None


RAMP = torch.arange(4, device=DEVICE)[:, None, None, None]
CASES = {
    "equal batches": Case(lambda: randn(4, 5, 4, 6), 2),
    "a larger first batch": Case(lambda: randn(5, 5, 4, 3), 4),
    "an empty first batch": Case(lambda: randn(3, 5, 4, 3), 0),
    "an empty second batch": Case(lambda: randn(3, 5, 4, 3), 3),
    "one value per channel and image": Case(lambda: randn(2, 3), 1),
    "several tiles": Case(lambda: randn(6, 20, 9, 7), 2),
    "sequences": Case(lambda: randn(5, 3, 11), 2),
    "three axes of pixels": Case(lambda: randn(3, 3, 2, 3, 4), 1),
    "channels_last": Case(lambda: randn(5, 6, 4, 3).contiguous(memory_format=torch.channels_last), 2),
    "every second column": Case(lambda: randn(4, 3, 4, 8)[..., ::2], 2),
    "a large mean, larger in the second batch": Case(lambda: randn(4, 3, 4, 4).add_(1e3).mul_(1 + (RAMP > 1)), 2),
    "no weight or bias": Case(lambda: randn(4, 5, 4, 6), 2, affine=False),
    "float64": Case(lambda: randn(5, 5, 4, 3, dtype=torch.float64), 2),
    "float16, float32 parameters": Case(lambda: randn(5, 5, 4, 3, dtype=torch.float16), 2, parameters=torch.float32),
    "bfloat16, float32 parameters": Case(lambda: randn(5, 5, 4, 3, dtype=torch.bfloat16), 2, parameters=torch.float32),
}


def given(case: Case) -> list[Tensor]:
    x = case.images()
    return [x, *(parameters(x, case.parameters) if case.affine else ())]


def step(name: str, rank: int) -> dict[str, Tensor]:
    """One process's outputs and gradients, under the names of `check`."""
    case = CASES[name]
    x, *vectors = given(case)
    mine = slice(0, case.first) if rank == 0 else slice(case.first, len(x))
    module = tnn.SyncBatchNorm(x.shape[1], affine=case.affine).to(DEVICE, case.parameters or x.dtype)
    module.running_mean, module.running_var = statistics(x, case.parameters or x.dtype)
    if case.affine:
        module.weight, module.bias = map(nn.Parameter, vectors)
    images, dy = x[mine].requires_grad_(), randn(*x.shape, dtype=x.dtype, seed=1)[mine]
    with OnlyOurs():
        y = module(images)
        gradients = torch.autograd.grad(y, [images, *module.parameters()], dy)
    outputs = {"output 0": y.detach(), "output 1": module.running_mean, "output 2": module.running_var}
    return outputs | {f"gradient {i}": g for i, g in enumerate(gradients)}


def all_cases(rank: int) -> dict[str, dict[str, Tensor]]:
    """Run every case twice, assert the same bits, and return the results."""
    settings.interpreted_block, settings.wanted_programs = 64, 8  # several tiles and splits
    results = {}
    for name in CASES:
        results[name], again = step(name, rank), step(name, rank)
        assert all(torch.equal(value, again[key]) for key, value in results[name].items()), name
    return results


@pytest.fixture(scope="module")
def both_results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The results of both processes."""
    return together(all_cases, tmp_path_factory.mktemp("processes"))


@needs_processes
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(name: str, both_results: list[Any]) -> None:
    """Outputs, running statistics and gradients equal torch's batch norm of all images, by the rule of check.py."""
    first, second = (results[name] for results in both_results)
    got = {key: torch.cat([first[key], second[key]]) for key in ("output 0", "gradient 0")}
    for key in ("output 1", "output 2"):
        assert torch.equal(first[key], second[key]), f"{key} is not the same in both processes"
        got[key] = first[key]
    got |= {key: first[key] + second[key] for key in first if key in ("gradient 1", "gradient 2")}
    check_results(
        {key: value.to(DEVICE) for key, value in got.items()},
        tracked(nn.functional.batch_norm, training=True),
        *given(CASES[name]),
    )


def modules(rank: int) -> None:
    """Test modules in two processes: the first has one image, the second has two."""
    x = randn(3, 5, 4, 3)
    mine = x[:1] if rank == 0 else x[1:]

    averaged, whole = tnn.SyncBatchNorm(5, momentum=None).to(DEVICE), nn.BatchNorm2d(5, momentum=None).to(DEVICE)
    for shift in (0, 1, 3):
        averaged(mine + shift)
        whole(x + shift)
    torch.testing.assert_close(averaged.state_dict(), whole.state_dict())

    averaged.eval()
    if rank == 0:  # evaluation does not communicate
        torch.testing.assert_close(averaged(x), whole.eval()(x))

    untracked = tnn.SyncBatchNorm(5, track_running_stats=False).to(DEVICE)
    expected = untracked(mine)
    torch.testing.assert_close(
        expected, nn.BatchNorm2d(5).to(DEVICE)(x)[:1] if rank == 0 else nn.BatchNorm2d(5).to(DEVICE)(x)[1:]
    )
    together, *alone = (distributed.new_group(ranks) for ranks in ([0, 1], [0], [1]))
    untracked.process_group = together
    with torch.inference_mode():
        assert torch.equal(untracked(mine), expected)
    untracked.process_group = alone[rank]
    assert torch.equal(untracked(mine), tnn.BatchNorm2d(5, track_running_stats=False).to(DEVICE)(mine))
    untracked.process_group = None

    # without the gradient of the images, the gradients of the parameters have the same bits
    wanted = torch.autograd.grad(untracked(mine.clone().requires_grad_()).pow(3).sum(), list(untracked.parameters()))
    found = torch.autograd.grad(untracked(mine).pow(3).sum(), list(untracked.parameters()))
    assert all(map(torch.equal, wanted, found))

    nothing = tnn.SyncBatchNorm(5).to(DEVICE)
    assert nothing(x[:0]).shape == (0, 5, 4, 3)  # in both processes
    assert not nothing.state_dict()["running_mean"].any() and (nothing.state_dict()["running_var"] == 1).all()

    images = mine.clone().requires_grad_()
    (dx,) = torch.autograd.grad(untracked(images).pow(3).sum(), images, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(dx.sum(), images)
    with pytest.raises(NotImplementedError, match="torch.func"):
        torch.func.vjp(untracked, mine)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="GPU modules"):
            DistributedDataParallel(untracked)


def compiled(rank: int) -> None:
    """torch.compile makes one graph with the same bits."""
    module = tnn.SyncBatchNorm(5).to(DEVICE)
    whole: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    images = randn(1 + rank, 5, 4, 3).requires_grad_()
    got, expected = (torch.autograd.grad(m(images).pow(3).sum(), [images, *m.parameters()]) for m in (whole, module))
    assert all(map(torch.equal, got, expected))


@needs_processes
def test_modules(tmp_path: Path) -> None:
    together(modules, tmp_path)


@needs_processes
@pytest.mark.long
def test_compiles_in_one_graph(tmp_path: Path) -> None:
    together(compiled, tmp_path)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_one_process_is_batch_norm(training: bool) -> None:
    ours, whole = tnn.SyncBatchNorm(5).to(DEVICE).train(training), tnn.BatchNorm2d(5).to(DEVICE).train(training)
    x = randn(3, 5, 4, 3)
    assert torch.equal(ours(x), whole(x))
    assert all(map(torch.equal, ours.state_dict().values(), whole.state_dict().values()))


def test_sums_of_the_whole_batch() -> None:
    """The gradient of a part of the batch uses the sums over the whole batch."""
    x, dy, mean, var = randn(6, 3, 4, 5), randn(6, 3, 4, 5, seed=1), randn(3), randn(3).square()
    sums = ops.batchnorm2d_sums(x, dy, mean, var, 1e-5)
    whole = ops.batchnorm2d_backward(x, dy, mean, var, None, sums, 1e-5)
    pixels = torch.full((1,), 120.0, device=DEVICE)
    part = ops.batchnorm2d_backward(x[:2], dy[:2], mean, var, None, sums, 1e-5, pixels)
    torch.testing.assert_close(part, whole[:2])


def test_update_with_a_count_on_the_device() -> None:
    """A pixel count on the device gives the same running statistics as a count on the host; 0 changes nothing."""
    mean, var, pixels = randn(7), randn(7).square(), torch.full((1,), 11.0, device=DEVICE)
    states = []
    for count, on_device in ((11, None), (0, pixels), (0, 0 * pixels)):
        states.append((randn(7, seed=1), randn(7, seed=2)))
        ops.batchnorm2d_update(*states[-1], mean, var, 0.3, count, on_device)
    torch.testing.assert_close(states[1], states[0])
    assert all(map(torch.equal, states[2], (randn(7, seed=1), randn(7, seed=2))))


class Net(nn.Module):
    """Batch norms of both libraries, one of them inside fused layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = tnn.ConvBNActivation2d(tnn.Conv2d(3, 4, 3), tnn.BatchNorm2d(4), tnn.ReLU())
        self.norms = nn.Sequential(
            nn.BatchNorm2d(4, affine=False), nn.SyncBatchNorm(4, eps=0.1), tnn.BatchNorm2d(4, momentum=None)
        )
        self.other = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.norms(self.stem(x)))


def test_conversion() -> None:
    """All batch norms become trinn's and keep tensors, options and mode; fused layers compute the same."""
    net = Net().to(DEVICE)
    net.norms[1].eval()
    x, before = randn(2, 3, 8, 8), copy.deepcopy(net)

    def attributes() -> list[Any]:
        """Tensors and options of all batch norms, without classes and groups."""
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        tensors = [(name, id(t)) for name, t in (*net.named_parameters(), *net.named_buffers())]
        return [tensors, [(m.eps, m.momentum, m.affine, m.track_running_stats, m.training) for m in norms]]

    expected = attributes()
    assert tnn.SyncBatchNorm.convert_sync_batchnorm(net, "a group") is net
    assert attributes() == expected
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [(type(m), m.process_group) for m in norms] == [(tnn.SyncBatchNorm, "a group")] * 4
    torch.testing.assert_close(net(x), before(x))
    assert type(tnn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3))) is tnn.SyncBatchNorm


@pytest.mark.parametrize("shape", [(3,), (2, 0, 4, 4)], ids=["one axis", "no channels"])
def test_errors(shape: tuple[int, ...]) -> None:
    raises_like(nn.SyncBatchNorm(3).to(DEVICE), tnn.SyncBatchNorm(3).to(DEVICE), randn(*shape))

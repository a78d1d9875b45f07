"""The same inputs give the same bits in every run, in torch's deterministic mode, and in any batch."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, TMA_CASES, results
from tests.support.record import OperatorCase
from tests.support.tma import tma_everywhere
from trinn.kernels import launchers
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings
from trinn.models import AlexNet

RUNS = 20


@pytest.fixture
def strict() -> None:
    """Set torch's deterministic mode. On a GPU, torch's adaptive pools, bilinear resizing and reflection padding raise."""
    torch.use_deterministic_algorithms(True)


@pytest.fixture
def busy() -> Iterator[Callable[[], None]]:
    """A function to call before each run: it keeps another stream of the GPU busy."""
    if DEVICE == "cpu":
        yield lambda: None
        return
    stream, matrix = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")

    def work() -> None:
        with torch.cuda.stream(stream):
            for _ in range(5):
                matrix.mul_(1.0001).sin_()

    yield work
    torch.cuda.synchronize()


def same_bits(case: OperatorCase, runs: int, busy: Callable[[], None]) -> None:
    tensors, others = case.tensors(), case.others()
    first = results(case, tensors, others)
    for _ in range(runs - 1):
        busy()
        for key, value in results(case, tensors, others).items():
            assert torch.equal(value, first[key]), key


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str, busy: Callable[[], None]) -> None:
    same_bits(CASES[name], 2 if INTERPRETED else RUNS, busy)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", TMA_CASES)
def test_same_bits_through_tma(name: str, busy: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "interpreted_block", 256)
    with tma_everywhere() as launched_names:
        same_bits(TMA_CASES[name], 2 if INTERPRETED else RUNS, busy)
    assert launched_names or not INTERPRETED


@pytest.mark.long
@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", CASES)
def test_same_bits_in_twenty_runs(name: str, busy: Callable[[], None]) -> None:
    same_bits(CASES[name], RUNS, busy)


@pytest.mark.usefixtures("strict")
def test_same_bits_of_split_sums(busy: Callable[[], None]) -> None:
    """Weight gradients and statistics over more pixels than one program handles."""
    x, w = randn(2, 3, 20, 20), randn(6, 3, 3, 3)

    def run() -> list[Tensor]:
        busy()
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_(), torch.ones(6, device=DEVICE, requires_grad=True)]
        y = tnn.batch_norm(tnn.conv2d(leaves[0], leaves[1], leaves[2]), None, None, None, None, True)
        return list(torch.autograd.grad(y.square().mul(y).sum(), leaves))

    first = run()
    for _ in range(1 if INTERPRETED else RUNS - 1):
        assert all(map(torch.equal, run(), first))


def train(model: Callable[[], nn.Module], image: int, classes: int, steps: int) -> list[Tensor]:
    """The parameters and the losses after some steps from the same seed."""
    torch.manual_seed(0)
    net = model().to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        x, target = randn(2, 3, image, image, seed=step), torch.arange(2, device=DEVICE) % classes
        loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [p.detach() for p in net.parameters()] + losses


def narrow_alexnet() -> nn.Module:
    """AlexNet's layers in the original order, with few channels."""
    return nn.Sequential(
        tnn.Conv2d(3, 8, 11, stride=4, padding=2),
        tnn.ReLU(inplace=True),
        tnn.MaxPool2d(3, 2),
        tnn.Conv2d(8, 12, 5, padding=2),
        tnn.ReLU(inplace=True),
        tnn.MaxPool2d(3, 2),
        tnn.Conv2d(12, 8, 3, padding=1),
        tnn.ReLU(inplace=True),
        tnn.AdaptiveAvgPool2d((6, 6)),
        nn.Flatten(),
        nn.Dropout(),
        tnn.Linear(8 * 36, 32),
        tnn.ReLU(inplace=True),
        tnn.Linear(32, 10),
    )


@pytest.mark.usefixtures("strict")
def test_narrow_alexnet_trains_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # conftest's small tiles are too slow here
    first, again = (train(narrow_alexnet, 63, 10, steps=3) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[-1], first[-2]), "nothing was learnt"


@pytest.mark.long
@pytest.mark.usefixtures("strict")
def test_alexnet_trains_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    first, again = (train(lambda: AlexNet(num_classes=10), 63, 10, steps=2) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("default", [False, True], ids=["small tiles", "default tiles"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.per_image])
def test_batch_split(name: str, default: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """An image has the same output and gradient bits alone and in a batch."""
    if default:
        if INTERPRETED and re.match("conv|linear", name) and "depthwise" not in name:
            pytest.skip("the interpreter's default tiles split sums by the number of rows")
        monkeypatch.undo()
    request.getfixturevalue("rowwise_products")
    assert_same_alone_and_in_a_batch(CASES[name])


@pytest.mark.usefixtures("rowwise_products")
@pytest.mark.parametrize("name", TMA_CASES)
def test_batch_split_through_tma(name: str) -> None:
    with tma_everywhere() as launched_names:
        assert_same_alone_and_in_a_batch(TMA_CASES[name])
    assert launched_names or not INTERPRETED


def assert_same_alone_and_in_a_batch(case: OperatorCase) -> None:
    (x, *rest), others = case.tensors(), case.others()
    whole = outputs_and_gradient(case.function, x, rest, others)
    for i in range(x.shape[0]):
        own = tuple(t[i : i + 1] if t.dim() == 4 else t for t in others)
        for together, alone in zip(whole, outputs_and_gradient(case.function, x[i : i + 1], rest, own), strict=True):
            assert torch.equal(together[i : i + 1], alone), f"image {i}: {(together[i : i + 1] - alone).abs().max()}"


def outputs_and_gradient(
    function: Callable[..., Any], x: Tensor, rest: list[Tensor], others: tuple[Tensor, ...]
) -> list[Tensor]:
    """The outputs and the gradient of x."""
    x = x.detach().clone().requires_grad_()
    result = function(x, *rest, *others)
    outputs = result if isinstance(result, tuple) else (result,)
    upstream = (torch.arange(outputs[0][0].numel(), device=x.device) % 7 - 3.0).reshape(outputs[0][:1].shape)
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs[0], x, upstream.expand_as(outputs[0])))


def constants_of(passes: Callable[[], object], architecture: str) -> dict[str, Any]:
    """The compile-time constants of the last launch of `passes` on an architecture."""
    found: list[dict[str, Any]] = []
    with intercepted(lambda kernel, _, args, constants: found.append(constants), architecture):
        passes()
    return found[-1]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_order_of_a_convolutions_sum(architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reproducibility.md: the number of images changes neither the blocks nor the precision, and the sum is not split."""
    monkeypatch.undo()
    monkeypatch.setattr(settings, "int64_offsets", False)
    monkeypatch.setattr(settings, "wanted_programs", 264)

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    window = (1, 1), (1, 1), (1, 1), 1
    orders = set()
    for n in (1, 2, 7, 64, 1000):
        for op in (launchers.conv2d_fprop, launchers.conv2d_dgrad):
            constants = constants_of(lambda: op(meta(n, 64, 14, 14), meta(64, 64, 3, 3), None, (14, 14), *window), architecture)  # noqa: B023
            orders.add(tuple(constants.get(name) for name in ("BLOCK_K", "PRECISION", "ACCUMULATOR", "CROSS")))
    assert len(orders) == 1, orders


def test_splits_of_a_linear_layers_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reproducibility.md: all batches up to one tile of rows have equally many splits; larger batches may have fewer."""
    monkeypatch.undo()
    monkeypatch.setattr(settings, "int64_offsets", False)
    monkeypatch.setattr(settings, "wanted_programs", 264)
    for dtype, rows in ((torch.float16, 128), (torch.float32, 64), (torch.float64, 64)):
        for k, n in ((9216, 4096), (4096, 1000), (84, 10)):
            splits, blocks = zip(*(splits_of(m, k, n, dtype) for m in (1, 3, 16, rows)), strict=True)
            assert len(set(splits)) == len(set(blocks)) == 1
    assert splits_of(128, 9216, 4096, torch.float16) != splits_of(1024, 9216, 4096, torch.float16)


def splits_of(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[int, int]:
    """The number of splits of a linear layer's sum, and its block size."""
    tile = tuning.default_tile(tuning.Gemm("linear", m, n, k, dtype, "ieee"), "sm_90")
    return tuning.count_splits(-(-m // tile.m) * -(-n // tile.n), k, tile.k), tile.k

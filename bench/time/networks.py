"""Networks of the benchmark: training and inference steps, in eager mode, as CUDA graphs, and with torch.compile."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trinn
from bench.registry import PRODUCTS
from bench.time.case import LAYOUTS, Contender, Errors, Results, cast, errors_of, exactly, right, timed, verdict
from bench.time.protocol import Call, Machine, using
from trinn.models import AlexNet, LeNet


class ResNet(nn.Module):
    """ResNet of He et al., arXiv:1512.03385, with bottleneck blocks whose 3x3 convolution has the stride.

    Args:
        blocks: bottleneck blocks per stage; (3, 4, 6, 3) is ResNet-50.
    """

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, num_classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.stem = nn.Sequential(*stem)
        channels, bottlenecks = width, []
        for stage, count in enumerate(blocks):
            for number in range(count):
                bottlenecks.append(_Bottleneck(channels, width << stage, 2 if stage and not number else 1))
                channels = 4 * (width << stage)
        self.blocks = nn.Sequential(*bottlenecks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(self.average(self.blocks(self.stem(input))).flatten(1))


class _Bottleneck(nn.Module):
    """relu(shortcut(x) + three convolutions of x). The shortcut is a 1x1 convolution if the shape changes, else x."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride > 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, input: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(input)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += input if self.shortcut is None else self.shortcut(input)
        return self.relu(y)


@dataclass(frozen=True)
class Model:
    """A network of torch.nn layers, and the shape of its batch."""

    make: Callable[[], nn.Module]
    batch: int  # images
    image: tuple[int, int, int]  # channels, rows, columns
    classes: int = 1000
    runs: Sequence[tuple[str, ...]] = ()  # consecutive layers to fuse, for `trinn.convert(network, fuse=runs)`
    arithmetics: tuple[str, ...] = PRODUCTS


_BLOCK = ("conv1", "bn1", "relu"), ("conv2", "bn2", "relu"), ("conv3", "bn3")
RESNET = [tuple(f"blocks.{number}.{name}" for name in run) for number in range(16) for run in _BLOCK]
MODELS = {
    "LeNet b128": Model(partial(LeNet, nn=nn), 128, (1, 32, 32), 10, LeNet.RUNS),
    "LeNet b1024": Model(partial(LeNet, nn=nn), 1024, (1, 32, 32), 10, LeNet.RUNS),
    "AlexNet b128": Model(partial(AlexNet, nn=nn), 128, (3, 224, 224)),
    "AlexNet b256": Model(partial(AlexNet, nn=nn), 256, (3, 224, 224)),
    "ResNet-50 b64": Model(ResNet, 64, (3, 224, 224), runs=RESNET),
}
QUICK = {"LeNet b128": ("tf32", "bf16"), "AlexNet b128": ("bf16",), "ResNet-50 b64": ("bf16",)}
PASSES = ("training", "inference")


class Run:
    """One side's network and its random batch.

    Our network is torch's network, converted and fused. In compiled mode it is not converted: the backend is ours.
    """

    def __init__(self, model: Model, side: str, dtype: torch.dtype, layout: str, device: str, exact: bool = False) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            network = model.make()
            images = torch.randn(model.batch, *model.image)
            self.labels = torch.randint(model.classes, (model.batch,))
        self.side, self.runs = side, model.runs
        self.network, (self.images,) = cast(network, [images], dtype, layout, exact)

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), self.labels)

    def forward(self, what: str) -> Callable[[], Tensor]:
        """Return the forward pass, in training up to the loss."""
        self.network.train(what == "training")
        return (lambda: self.loss(self.network(self.images))) if what == "training" else (lambda: self.network(self.images))

    def convert(self) -> None:
        if self.side == "ours":
            trinn.convert(self.network, fuse=True)
            trinn.convert(self.network, fuse=self.runs)

    def step(self, what: str, mode: str, machine: Machine) -> Call:
        """Return a training step with SGD, or an inference step."""
        if mode != "compiled":
            self.convert()
        forward = self.forward(what)
        if mode == "compiled":
            backend = trinn.compile_backend if self.side == "ours" else "inductor"
            forward = torch.compile(forward, backend=backend, mode="max-autotune", fullgraph=True, dynamic=False)
        if what == "inference":
            step: Call = torch.no_grad()(forward)
        else:
            optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

            def step() -> None:
                optimizer.zero_grad()
                forward().backward()
                optimizer.step()

        return machine.graphed(step) if mode == "graphed" else step

    def results(self) -> Results:
        """Return the logits and all gradients. Disable dropout: the two sides draw different masks."""
        self.convert()
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        logits = self.network(self.images)
        names, parameters = zip(*self.network.named_parameters(), strict=True)
        return {"logits": logits.detach()} | dict(zip(names, torch.autograd.grad(self.loss(logits), parameters), strict=True))


def check(model: Model, dtype: torch.dtype, layout: str, device: str) -> dict[str, Any]:
    """Compare logits and gradients with float64.

    Compare norms, because rounding can flip single elements at a ReLU or a maximum. The error of the gradients is the root mean
    square of the relative errors of all parameters, because the smallest parameters have only a few elements. Skip gradients
    that are zero up to rounding: they have no relative error.
    """
    got, expected = (Run(model, side, dtype, layout, device).results() for side in ("ours", "torch"))
    exact, truncated = exactly(Run(model, "torch", dtype, layout, device, exact=True).results, dtype)
    each = {name: errors_of(ours, expected[name], exact[name], (truncated or {}).get(name), 2) for name, ours in got.items()}
    errors = {"logits": each.pop("logits")}
    norms = {name: float(torch.linalg.vector_norm(exact[name])) for name in each}
    relative = [[e / norms[name] for e in each[name]] for name in each if norms[name] > 1e-12 * max(norms.values())]
    errors["gradients"] = Errors(*(math.hypot(*column) / math.sqrt(len(column)) for column in zip(*relative, strict=True)))
    return verdict(errors)


def rows_of(
    name: str, model: Model, arithmetic: str, machine: Machine, against: str = "eager", rounds: int = 9
) -> Iterator[dict[str, Any]]:
    """Yield a row for training and a row for inference.

    `against` is torch's mode: "eager" compares both sides in eager mode and as CUDA graphs, "compiled" compares both with
    torch.compile.
    """
    modes, layouts = (("eager", "graphed"), list(LAYOUTS)) if against == "eager" else (("compiled",), ["channels_last"])
    with using(arithmetic) as dtype:
        checked = {layout: check(model, dtype, layout, machine.device) for layout in layouts}
        contenders = right(list(starmap(Contender, product(("torch", "ours"), modes, layouts))), checked)

        def steps(contender: Contender, what: str) -> list[Call]:
            run = Run(model, contender.side, dtype, contender.layout, machine.device)
            return [run.step(what, contender.mode, machine)]

        for what in PASSES:
            calls = {c: partial(steps, c, what) for c in contenders}
            yield {
                "name": name, "op": "model", "pass": what, "arithmetic": arithmetic, "against": against, "bytes": 0, "flops": 0,
                "sets": 1, "checked": checked, **timed(calls, machine, False, rounds, 20e-3),
            }  # fmt: skip

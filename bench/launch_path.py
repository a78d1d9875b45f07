"""What a call costs before the GPU has anything to do: `python -m bench.launch_path`, in microseconds of Python, without a GPU;
with `--count` in calls of functions, Python's and C's, of which there are as many on every run and every machine.

Kernels are compiled for an H100 or H200 and started by a driver that does nothing. Printed are: an operator by its launcher
and Triton, and from the launch cache, each with what it takes to start the kernels alone; a functional without
gradients, over its operator; and forward and backward of a convolution of one pixel, whose operators do nothing.
"""

import gc
import json
import sys
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import still_gpu  # before trinn

import trinn.layers as tnn  # isort: skip
from trinn.kernels import launchers
from trinn.kernels.runtime import launch_cache
from trinn.kernels.runtime.observe import recorded

Cost = Callable[[Callable[[], Any]], float]


class Operator(NamedTuple):
    """The cost of an operator; the launches are for one kernel."""

    by_launcher: float
    triton_launch: float
    from_notes: float
    noted_launch: float


def microseconds(call: Callable[[], Any]) -> float:
    """The least of some repetitions: what else runs on the machine only ever adds."""
    call()
    return min(timeit.repeat(call, number=100, repeat=60)) * 1e4


def calls(call: Callable[[], Any]) -> float:
    """The number of functions called, Python's and C's, by a call that is not the first."""
    found = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    for _ in range(3):
        call()
    gc.disable()  # which may call functions at any time
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found - 1  # the last call of sys.setprofile


X, Y, W = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8), torch.randn(64, 64, 3, 3)
B, MEAN, VAR, SCALE = (torch.randn(64) for _ in range(4))
FLAT, DENSE = torch.randn(4, 64), torch.randn(64, 64)
FUNCTION = "torch's Function"
PAIRS = (4, 4), (2, 2), (2, 2), (0, 0), (1, 1)
OPERATORS: dict[str, tuple[Any, ...]] = {
    "relu_forward": (X,),
    "max_pool2d_forward": (X, *PAIRS),
    "batchnorm2d_forward": (X, MEAN, VAR, SCALE, B, None, False, 1e-5),
    "linear_fprop": (FLAT, DENSE, B, False),
    "conv2d_fprop": (X, W, B, (8, 8), (1, 1), (1, 1), (1, 1), 1),
    "conv2d_wgrad": (X, Y, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}
FUNCTIONALS: dict[str, Callable[[], Any]] = {
    "relu_forward": lambda: tnn.relu(X),
    "max_pool2d_forward": lambda: tnn.max_pool2d(X, 2),
    "batchnorm2d_forward": lambda: tnn.batch_norm(X, MEAN, VAR, SCALE, B),
    "linear_fprop": lambda: tnn.linear(FLAT, DENSE, B),
    "conv2d_fprop": lambda: tnn.conv2d(X, W, B, padding=1),
}


def operator(name: str, cost: Cost) -> Operator:
    args = [list(arg) if isinstance(arg, tuple) else arg for arg in OPERATORS[name]]  # as the dispatcher hands them on
    launcher = getattr(launchers, name)
    noted = launch_cache.cached(launcher)
    for _ in range(2):
        noted(*args)
    with recorded() as launches:
        launcher(*args)
    _, notes = launch_cache.record_call(launcher, tuple(args), [arg for arg in args if isinstance(arg, Tensor)])
    assert isinstance(notes, launch_cache.CachedCall)
    addresses = [0] * 9

    def triton() -> None:
        for kernel, _, programs, positional, constants in launches:
            kernel[(programs,)](*positional, **constants)

    return Operator(
        cost(lambda: launcher(*args)),
        cost(triton) / len(launches),
        cost(lambda: noted(*args)),
        cost(lambda: launch_cache.start(notes.starts, addresses, 0)) / len(launches),
    )


def functionals(cost: Cost) -> dict[str, tuple[float, float]]:
    """Without gradients: the operator from notes, and the functional that leads to it."""
    found = {}
    with torch.no_grad():
        for name, call in FUNCTIONALS.items():
            args = [list(arg) if isinstance(arg, tuple) else arg for arg in OPERATORS[name]]
            noted = launch_cache.cached(getattr(launchers, name))
            for _ in range(3):
                noted(*args)
                call()
            found[name] = cost(lambda noted=noted, args=args: noted(*args)), cost(call)  # type: ignore[misc]
    return found


class Bare(torch.autograd.Function):
    """What a Function costs in torch that takes what a convolution takes, and does nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        return ONE.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        _, _ = ctx.saved_tensors
        return ONE, ONE, ONE[0, 0, 0], None, None, None, None, None


ONE = torch.ones(1, 1, 1, 1)


def autograd(cost: Cost) -> dict[str, float]:
    """Forward and backward of a convolution of one pixel: torch's own, a Function that does nothing, ours on such operators."""
    x, w, b = ONE.clone().requires_grad_(), ONE.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    geometry = (1, 1), (1, 1), (0, 0), (1, 1), 1

    def both(function: Callable[[], Tensor]) -> float:
        def call() -> None:
            function().backward(ONE)
            x.grad = w.grad = b.grad = None

        return cost(call)

    still = SimpleNamespace(
        conv2d_fprop=lambda *_: ONE.detach(),
        conv2d_dgrad=lambda *_: ONE,
        conv2d_wgrad=lambda *_: ONE,
        channel_sum=lambda _: ONE[0, 0, 0],
    )
    found = {
        "torch's convolution": both(lambda: torch.nn.functional.conv2d(x, w, b)),
        FUNCTION: both(lambda: Bare.apply(x, w, b, *geometry)),
    }
    modules: list[Any] = [sys.modules["trinn.layers.conv2d"], sys.modules["trinn.layers.reduce"]]
    before = [module.ops for module in modules]
    try:
        for module in modules:
            module.ops = still
        return found | {"ours": both(lambda: tnn.conv2d(x, w, b))}
    finally:
        for module, ops in zip(modules, before, strict=True):
            module.ops = ops


def main() -> int:
    torch.set_num_threads(1)
    still_gpu.stand_in()
    cost = calls if "--count" in sys.argv else microseconds
    operators, over, both = {name: operator(name, cost) for name in OPERATORS}, functionals(cost), autograd(cost)
    if "--json" in sys.argv:
        print(json.dumps({"operators": operators, "functionals": over, "autograd": both}))
        return 0
    print(f"{'operator':24}{'launcher':>12}{'its launches':>15}{'from notes':>12}{'its launches':>15}")
    for name, (launcher, triton, notes, start) in operators.items():
        print(f"{name:24}{launcher:12.1f}{triton:15.1f}{notes:12.1f}{start:15.1f}")
    print(f"\n{'functional, no gradients':24}{'operator':>12}{'whole':>15}{'over it':>12}")
    for name, (body, whole) in over.items():
        print(f"{name:24}{body:12.1f}{whole:15.1f}{whole - body:12.1f}")
    print(f"\n{'forward and backward':24}{'':12}{'whole':>15}{'of the Function':>18}")
    for name, whole in both.items():
        print(f"{name:24}{'':12}{whole:15.1f}{whole / both[FUNCTION]:18.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

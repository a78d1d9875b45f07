"""Measure the host cost of a call, without a GPU: `python -m bench.launch_path`, in microseconds of Python.

`--count` counts calls of Python and C functions instead of microseconds. The counts are the same on every run and machine.
`--json` prints JSON instead of tables.

Kernels are compiled for an H100 or H200 and launched by a stub driver. The output has three tables: operators, through the
launcher and through the launch cache, each with the cost per kernel launch; functionals without gradients, compared with their
operator; and forward and backward of a one-pixel convolution with empty operators.
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

from bench import stub_gpu  # before trinn

import trinn.layers as tnn  # isort: skip
from trinn.kernels import launchers
from trinn.kernels.runtime import launch_cache, triton_internals
from trinn.kernels.runtime.launch import start_plan
from trinn.kernels.runtime.plan import make_plan

Cost = Callable[[Callable[[], Any]], float]


class Operator(NamedTuple):
    """Costs of an operator, through its launcher and through the launch cache."""

    by_launcher: float  # of the whole call
    triton_launch: float  # per kernel launch, in Triton alone
    cached_call: float  # of the whole call
    cached_launch: float  # per kernel launch


def microseconds(call: Callable[[], Any]) -> float:
    """Return the minimum over repetitions, because other load on the machine can only add time."""
    call()
    return min(timeit.repeat(call, number=100, repeat=60)) * 1e4


def calls(call: Callable[[], Any]) -> float:
    """Return the number of Python and C functions called by a warm call."""
    found = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    for _ in range(3):
        call()
    gc.disable()  # a collection could call functions
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
FUNCTION = "empty torch Function"
# Of a 2 x 2 max pooling: output size, kernel size, stride, padding, dilation.
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
    args = [list(arg) if isinstance(arg, tuple) else arg for arg in OPERATORS[name]]  # the dispatcher passes lists
    launcher = getattr(launchers, name)
    cached = launch_cache.cached(launcher)
    cached(*args)
    plan = make_plan(launcher, tuple(args))
    entry = launch_cache.without_tensors(plan, start_plan(plan), [arg for arg in args if isinstance(arg, Tensor)])
    assert entry is not None
    addresses = [0] * 9

    def triton() -> None:
        for kernel, programs, positional, constants, _ in plan.launches:
            kernel[(programs,)](*positional, **constants)

    return Operator(
        cost(lambda: launcher(*args)),
        cost(triton) / len(plan.launches),
        cost(lambda: cached(*args)),
        cost(lambda: triton_internals.start(entry.launches, addresses, 0)) / len(plan.launches),
    )


def functionals(cost: Cost) -> dict[str, tuple[float, float]]:
    """Return the costs of the operator through the launch cache, and of its functional, both without gradients."""
    found = {}
    with torch.no_grad():
        for name, call in FUNCTIONALS.items():
            args = [list(arg) if isinstance(arg, tuple) else arg for arg in OPERATORS[name]]
            cached = launch_cache.cached(getattr(launchers, name))
            for _ in range(3):
                cached(*args)
                call()
            found[name] = cost(lambda cached=cached, args=args: cached(*args)), cost(call)  # type: ignore[misc]
    return found


class Bare(torch.autograd.Function):
    """An empty torch Function with the arguments of a convolution: the minimum cost of a Function."""

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
    """Return the cost of forward and backward of a one-pixel convolution: torch, an empty Function, ours with empty ops."""
    x, w, b = ONE.clone().requires_grad_(), ONE.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    geometry = (1, 1), (1, 1), (0, 0), (1, 1), 1

    def both(function: Callable[[], Tensor]) -> float:
        def call() -> None:
            function().backward(ONE)
            x.grad = w.grad = b.grad = None

        return cost(call)

    empty = SimpleNamespace(
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
            module.ops = empty
        return found | {"ours": both(lambda: tnn.conv2d(x, w, b))}
    finally:
        for module, ops in zip(modules, before, strict=True):
            module.ops = ops


def main() -> int:
    torch.set_num_threads(1)
    stub_gpu.stand_in()
    cost = calls if "--count" in sys.argv else microseconds
    operators, over, both = {name: operator(name, cost) for name in OPERATORS}, functionals(cost), autograd(cost)
    if "--json" in sys.argv:
        print(json.dumps({"operators": operators, "functionals": over, "autograd": both}))
        return 0
    print(f"{'operator':24}{'launcher':>12}{'per launch':>15}{'cached call':>12}{'per launch':>15}")
    for name, (launcher, triton, cached, start) in operators.items():
        print(f"{name:24}{launcher:12.1f}{triton:15.1f}{cached:12.1f}{start:15.1f}")
    print(f"\n{'functional, no gradients':24}{'operator':>12}{'functional':>15}{'difference':>12}")
    for name, (body, whole) in over.items():
        print(f"{name:24}{body:12.1f}{whole:15.1f}{whole - body:12.1f}")
    print(f"\n{'forward and backward':24}{'':12}{'total':>15}{'/ empty Function':>18}")
    for name, whole in both.items():
        print(f"{name:24}{'':12}{whole:15.1f}{whole / both[FUNCTION]:18.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure the host cost of a call, without a GPU: `python -m bench.launch_path`, in microseconds of Python.

`--count` counts calls of Python and C functions instead: the same numbers on every run and machine. `--json` prints JSON.

Kernels are compiled for an H100 or H200 and launched by a stub driver. For each operator the output has the costs of its
launcher, of the launch cache and of the functional without gradients. Then it has the costs of forward and backward of a
one-pixel convolution: of an empty torch Function, and of ours with empty operators.
"""

import gc
import json
import sys
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import stub_gpu  # before trinn

import trinn.layers as tnn  # isort: skip
from trinn.kernels import launchers
from trinn.kernels.runtime import launch_cache, triton_internals
from trinn.kernels.runtime.launch import start_plan
from trinn.kernels.runtime.plan import make_plan

Cost = Callable[[Callable[[], Any]], float]

X, Y, W = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8), torch.randn(64, 64, 3, 3)
B, MEAN, VAR, SCALE = (torch.randn(64) for _ in range(4))
FLAT, DENSE, GATE = torch.randn(4, 64), torch.randn(64, 64), torch.randn(2, 64)
ONE = torch.ones(1, 1, 1, 1)
# The arguments of each operator, with lists as the dispatcher passes them.
OPERATORS: dict[str, tuple[Any, ...]] = {
    "activation_forward": (X, "relu"),
    "add_forward": (X, Y, ""),
    "channel_scale_forward": (X, GATE, None, "", 1),
    "max_pool2d_forward": (X, [4, 4], [2, 2], [2, 2], [0, 0], [1, 1]),
    "batchnorm2d_forward": (X, MEAN, VAR, SCALE, B, None, None, "", 1e-5, False),
    "linear_fprop": (FLAT, DENSE, B, None, ""),
    "conv2d_fprop": (X, W, B, [8, 8], [1, 1], [1, 1], [1, 1], 1),
    "conv2d_wgrad": (X, Y, [3, 3], [1, 1], [1, 1], [1, 1], 1),
}
FUNCTIONALS: dict[str, Callable[[], Any]] = {
    "activation_forward": lambda: tnn.relu(X),
    "add_forward": lambda: tnn.add(X, Y),
    "channel_scale_forward": lambda: tnn.channel_scale(X, GATE[:, :, None, None]),
    "max_pool2d_forward": lambda: tnn.max_pool2d(X, 2),
    "batchnorm2d_forward": lambda: tnn.batch_norm(X, MEAN, VAR, SCALE, B),
    "linear_fprop": lambda: tnn.linear(FLAT, DENSE, B),
    "conv2d_fprop": lambda: tnn.conv2d(X, W, B, padding=1),
}


def microseconds(call: Callable[[], Any]) -> float:
    """Return the minimum over repetitions, because other load on the machine can only add time."""
    call()
    return min(timeit.repeat(call, number=100, repeat=60)) * 1e4


def calls(call: Callable[[], Any]) -> float:
    """Return the number of Python and C functions called by a warm call."""
    found = 0

    def count(frame: Any, event: str, arg: Any) -> None:  # a list of events would change the addresses of allocated tensors
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


def operator(name: str, cost: Cost) -> tuple[float, float, float, float]:
    """Return the costs of the launcher, of its launch in Triton, of the cached call and of its launch."""
    args, launcher = OPERATORS[name], getattr(launchers, name)
    cached = launch_cache.cached(launcher)
    cached(*args)
    plan = make_plan(launcher, args)
    entry = launch_cache.without_tensors(plan, start_plan(plan), [arg for arg in args if isinstance(arg, Tensor)])
    assert entry is not None
    addresses = [0] * 9

    def triton() -> None:
        for kernel, programs, positional, constants, _ in plan.launches:
            kernel[(programs,)](*positional, **constants)

    return (
        cost(lambda: launcher(*args)),
        cost(triton) / len(plan.launches),
        cost(lambda: cached(*args)),
        cost(lambda: triton_internals.start(entry.launches, addresses, 0)) / len(plan.launches),
    )


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


def autograd(cost: Cost) -> dict[str, float]:
    """Return the cost of forward and backward of a one-pixel convolution: an empty Function, and ours with empty operators."""
    x, w, b = ONE.clone().requires_grad_(), ONE.clone().requires_grad_(), torch.ones(1, requires_grad=True)

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
    conv2d, reduce = (sys.modules[f"trinn.layers.{name}"] for name in ("conv2d", "reduce"))
    with mock.patch.object(conv2d, "ops", empty), mock.patch.object(reduce, "ops", empty):
        ours = both(lambda: tnn.conv2d(x, w, b))
    return {"empty torch Function": both(lambda: Bare.apply(x, w, b, (1, 1), (1, 1), (0, 0), (1, 1), 1)), "ours": ours}


def main() -> int:
    torch.set_num_threads(1)
    stub_gpu.stand_in()
    cost = calls if "--count" in sys.argv else microseconds
    operators = {name: operator(name, cost) for name in OPERATORS}
    with torch.no_grad():
        functionals = {name: (operators[name][2], cost(call)) for name, call in FUNCTIONALS.items()}
    both = autograd(cost)
    if "--json" in sys.argv:
        print(json.dumps({"operators": operators, "functionals": functionals, "autograd": both}))
        return 0
    print(f"{'operator':24}{'launcher':>12}{'per launch':>12}{'cached call':>14}{'per launch':>12}{'functional':>12}")
    for name, (launcher, triton, cached, start) in operators.items():
        functional = f"{functionals[name][1]:12.1f}" if name in functionals else ""
        print(f"{name:24}{launcher:12.1f}{triton:12.1f}{cached:14.1f}{start:12.1f}{functional}")
    print(*(f"forward and backward, {name:24}{whole:12.1f}" for name, whole in both.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

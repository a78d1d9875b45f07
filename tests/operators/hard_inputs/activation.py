"""Rows 70-74: ReLU. Rows 109-115: the other activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import trinn.layers as tnn
from tests.operators.activation import IN_PLACE
from tests.operators.hard_inputs import FLOATS, INF, NAN, grads, holds, integers, large_tiles, like_torch, outcome, refusal

VALUES = [NAN, -INF, INF, -0.0, 0.0, 1e-40, -1e-40, -1.0, 2.0]


@like_torch(70, "NaN, infinities and both zeros")
def _(nn: Any) -> Any:
    results = [nn.relu(torch.tensor(VALUES, dtype=dtype)) for dtype in FLOATS]
    return results, [y.signbit()[1:] for y in results]


@like_torch(71, "the gradient at 0 is 0, even for a NaN upstream; at NaN it is the upstream gradient")
def _(nn: Any) -> Any:
    results = []
    for dtype in FLOATS:
        for above in (1.0, NAN, INF, -0.0):
            x = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
            dx = torch.autograd.grad(nn.relu(x), x, torch.full_like(x, above))[0]
            results += [dx, dx.nan_to_num(0).signbit()]
    return results


@like_torch(72, "in place: leaves, views, expanded tensors, versions")
def _(nn: Any) -> Any:
    x = integers(4, 6)
    version = x._version
    results = [
        refusal(nn.relu, integers(3).requires_grad_(), inplace=True, words="a leaf Variable that requires grad"),
        refusal(nn.relu, integers(3, 1).expand(3, 4), inplace=True, words="single memory location"),
        nn.relu(x[:, ::2], inplace=True),
        nn.relu_(x.T[1:3]),
        x,
        x._version - version,
    ]
    leaf = integers(4, 6).requires_grad_()
    base = leaf * 1
    nn.relu(base[1:, ::2], inplace=True)
    base.square().sum().backward()
    saved = integers(3).requires_grad_() * 1
    square = saved * saved
    nn.relu_(saved)
    return [*results, leaf.grad, refusal(square.sum().backward, words="modified by an inplace operation")]


@like_torch(73, "integers, bool, complex numbers")
def _(nn: Any) -> Any:
    x = torch.arange(-4, 4)
    taken = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    return [nn.relu(x.to(dtype)) for dtype in taken] + [
        refusal(nn.relu, x.to(dtype)) for dtype in (torch.bool, torch.complex64)
    ]


@like_torch(74, "a dense tensor keeps its strides; no axes, no elements")
def _(nn: Any) -> Any:
    views = (
        integers(3, 4, 5).permute(2, 0, 1),
        integers(2, 3, 4, 5).to(memory_format=torch.channels_last),
        integers(2, 1, 4, 5).transpose(2, 3),
        integers(4, 9)[:, ::2],
        integers(3, 1, 4).expand(3, 5, 4),
        integers(),
        integers(2, 0, 3),
    )
    return [(y, y.stride()) for y in map(nn.relu, views)]


# The other activations, with usual and unusual parameters.
CALLS: list[tuple[str, tuple[float, ...]]] = [
    ("relu6", ()), ("selu", ()), ("silu", ()), ("mish", ()), ("sigmoid", ()), ("tanh", ()), ("hardsigmoid", ()), ("hardswish", ()),
    ("hardtanh", ()), ("hardtanh", (-0.75, 0.5)), ("hardtanh", (2, 5)), ("hardtanh", (0.0, 0.0)), ("hardtanh", (-INF, INF)),
    *(("leaky_relu", (slope,)) for slope in (0.01, 0.0, -0.3, 1.0, -1, 3, INF, NAN)),
    *(("elu", (alpha,)) for alpha in (1.0, 1.3, 0.0, -0.5, INF, -INF)),
    *(("celu", (alpha,)) for alpha in (1.0, 0.5, -0.5, 4)),
    ("gelu", ()), ("gelu_tanh", ()),
    *(("softplus", each) for each in ((), (2, 3), (0, 20), (-1, 20), (1, -5), (1, INF), (NAN, 1))),
]  # fmt: skip
# Results of these are compared within some units in the last place of the largest,
MODERATE = [-20.0, -6.0, -3.0, -2.5, -1.0, -0.75, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 6.0, 6.5, 11.0, 20.0, 20.5]
# and of these, where exp overflows or rounds to 0, each on its own.
EXTREME = [NAN, -INF, INF, -0.0, 0.0, 60000.0, -60000.0, 88.0, 89.0, -87.0, -110.0, 709.0, 710.0, -700.0, -800.0, 1e300, -1e300]
UPSTREAM = (1.0, NAN, INF, -0.0)
# At NaN the gradient of torch's CPU kernels depends on the number of elements.
AMBIGUOUS = ("hardtanh", "relu6", "hardswish", "elu", "celu", "selu")


def inputs(dtype: torch.dtype) -> Tensor:
    small = torch.finfo(dtype).tiny / 8  # subnormal
    return torch.tensor([*MODERATE, *EXTREME, small, -small], dtype=dtype)


def activated(nn: Any, name: str, x: Tensor, *parameters: float, **options: bool) -> Tensor:
    return nn.gelu(x, approximate="tanh") if name == "gelu_tanh" else getattr(nn, name)(x, *parameters, **options)


def parts(results: Tensor) -> list[Any]:
    moderate, extreme = results.split([len(MODERATE), len(results) - len(MODERATE)])
    return [moderate, *extreme.unbind()]


@like_torch(109, "activations at NaN, infinities, zeros, subnormals, ends of pieces, and where exp overflows", ulps=8)
def _(nn: Any) -> Any:
    results: list[Any] = []
    for dtype in FLOATS:
        for name, parameters in CALLS:
            x = inputs(dtype)
            if name == "gelu":
                x[x == INF] = 0  # torch has NaN on a CPU and inf on a GPU
            with large_tiles():
                y = activated(nn, name, x, *parameters)
            signed = name not in ("relu6", "hardtanh", "gelu")  # torch's signs of 0 depend on the device or the kernel
            results += [*parts(y), y.nan_to_num()[(x == 0) & signed].signbit()]
    return results


@like_torch(110, "gradients of activations at the same inputs, for upstream gradients of 1, NaN, infinity and -0", ulps=8)
def _(nn: Any) -> Any:
    results: list[Any] = []
    for dtype in FLOATS:
        for name, parameters in CALLS:
            if name == "hardsigmoid" and dtype == torch.float64:
                continue  # torch rounds 1/6 to float32
            elus = name in ("elu", "celu", "selu") and min(parameters, default=0) >= 0
            x = inputs(dtype)
            if name in AMBIGUOUS:
                x[x.isnan()] = 0
            if name == "gelu":
                x[x == INF] = 0
            leaf = x.repeat(len(UPSTREAM)).requires_grad_()
            # In place, torch keeps their output, as trinn always does.
            with large_tiles():
                y = activated(nn, name, leaf * 1, *parameters, **({"inplace": True} if elus else {}))
                dx = torch.autograd.grad(y, leaf, torch.tensor(UPSTREAM, dtype=dtype).repeat_interleave(len(x)))[0]
            first, *others = dx.split(len(x))
            results += [*parts(first), *others]
    return results


@holds(111, "where torch's kernels disagree: gradients at NaN, gelu of infinity, the gradient of mish far below 0")
def _() -> None:
    for dtype in FLOATS:
        for name in AMBIGUOUS:
            for count in (1, 33):
                y, dx = grads(getattr(tnn, name), torch.full((count,), NAN, dtype=dtype), upstream=2.0)
                scale = 1.0507009873554805 if name == "selu" else 1
                assert y.isnan().all() and (dx == torch.tensor(2 * scale, dtype=dtype)).all()
        y, dx = grads(tnn.gelu, torch.tensor([INF, -INF, NAN], dtype=dtype), upstream=1.0)
        assert y[0] == INF and y[2].isnan() and dx[2].isnan()
    for dtype, far in ((torch.float32, -89.0), (torch.float64, -710.0)):
        x = torch.tensor([far], dtype=dtype)
        _, dx = grads(tnn.mish, x, upstream=1.0)
        torch.testing.assert_close(dx, x.exp() * (1 + x), rtol=1e-4, atol=0)


@like_torch(112, "activations in place: leaves, views, expanded tensors, versions, tensors saved by others", ulps=8)
def _(nn: Any) -> Any:
    results: list[Any] = []
    for name in IN_PLACE:
        function = getattr(nn, name)
        x = integers(4, 6)
        version = x._version
        results += [
            refusal(function, integers(3).requires_grad_(), inplace=True, words="a leaf Variable that requires grad"),
            refusal(function, integers(3, 1).expand(3, 4), inplace=True, words="single memory location"),
            function(x[:, ::2], inplace=True), function(x.T[1:3], inplace=True), x, x._version - version,
        ]  # fmt: skip
        leaf = integers(4, 6).requires_grad_()
        base = leaf * 1
        function(base[1:, ::2], inplace=True)
        base.square().sum().backward()
        saved = integers(3).requires_grad_() * 1
        square = saved * saved
        function(saved, inplace=True)
        results += [leaf.grad, refusal(square.sum().backward, words="modified by an inplace operation")]
    return results


@holds(113, "writes between forward and backward raise, to the input or to the output: the tensor that is kept")
def _() -> None:
    kept = {name: "x" for name in ("silu", "mish", "gelu", "softplus", "hardsigmoid", "hardswish")}
    kept |= {name: "y" for name in ("relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "sigmoid", "tanh")}
    for name, which in kept.items():
        for written in "xy":
            x = integers(3).requires_grad_() * 1
            y = getattr(tnn, name)(x)
            {"x": x, "y": y}[written].add_(1)
            assert outcome(y.sum().backward) == ("RuntimeError" if written == which else None), (name, written)


@like_torch(114, "PReLU: special values and slopes, one slope, no channels, no elements, one to five axes", ulps=1)
def _(nn: Any) -> Any:
    results: list[Any] = []
    slopes = NAN, INF, -INF, -0.0, 0.0, 1.0, -2.0
    for dtype in FLOATS:
        for upstream in UPSTREAM:
            x, weight = torch.tensor(VALUES, dtype=dtype), torch.tensor(slopes, dtype=dtype)
            with large_tiles():
                found = grads(nn.prelu, x.expand(2, len(slopes), len(VALUES)), weight, upstream=upstream)
                found += grads(nn.prelu, x, weight[-1], upstream=upstream)
            results += [*found, *(each.nan_to_num().signbit() for each in found)]
    shapes = (), (5,), (4, 3), (2, 3, 4), (2, 3, 4, 1, 2), (2, 0, 3), (0, 5), (0,), (3, 0), (2, 3, 0, 4)
    for shape in shapes:
        for count in {1, shape[1] if len(shape) > 1 else 1}:
            results += grads(nn.prelu, integers(*shape), integers(count, seed=1))
    refused: tuple[tuple[Tensor, Tensor], ...] = (
        (integers(5), integers(5)), (integers(), integers(2)), (integers(2, 3), integers(0)), (integers(2, 3), integers(2)),
        (integers(2, 3), integers(1, 1)), (integers(2, 3), integers(3).double()),
    )  # fmt: skip
    return [*results, *(refusal(nn.prelu, *each) for each in refused)]


@holds(115, "parameters too large for the dtype, where torch raises an error")
def _() -> None:
    x = torch.tensor([-INF, -60000.0, 60000.0, INF, NAN])
    cases: tuple[tuple[Callable[..., Tensor], tuple[float, ...], tuple[float, ...]], ...] = (
        (tnn.hardtanh, (-1e300, 1e300), (-INF, INF)), (tnn.leaky_relu, (1e300,), (INF,)), (tnn.elu, (1e300,), (INF,)),
    )  # fmt: skip
    for function, large, infinite in cases:
        torch.testing.assert_close(function(x, *large), function(x, *infinite), rtol=0, atol=0, equal_nan=True)
    half = tnn.hardtanh(x.half(), -70000, 70000)
    torch.testing.assert_close(half, x.clamp(-70000, 70000).half(), rtol=0, atol=0, equal_nan=True)

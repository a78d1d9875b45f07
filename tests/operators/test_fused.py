"""Fused layers compared with torch's layers called one by one, and the kernels that they launch."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.operators.activation import exact_hardsigmoid
from tests.support.check import DEVICE, DTYPES, check, randn, run
from tests.support.record import called
from trinn.kernels import ops
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.layers.activation import MODULES, described
from trinn.layers.batchnorm2d import norm_arguments
from trinn.layers.fused import call_sequence
from trinn.layers.fused_functional import (
    add_activation,
    batch_norm_activation,
    channel_scale_activation,
    conv2d_activation,
    conv2d_batch_norm,
    conv_transpose2d_activation,
)

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 5, 9, 8), {"out_channels": 6, "kernel_size": 3, "padding": 1}),
    "more channels than a tile, no bias": ((2, 3, 6, 7), {"out_channels": 20, "kernel_size": 3, "bias": False}),
    "stride, dilation, groups": (
        (2, 4, 7, 8),
        {"out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2, "padding": 2},
    ),
    "depthwise": ((2, 4, 8, 8), {"out_channels": 8, "kernel_size": 3, "padding": 1, "groups": 4}),
    "reflected border": ((2, 3, 7, 8), {"out_channels": 4, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
}
WINDOWS: dict[str, dict[str, Any]] = {
    "adjacent": {"kernel_size": 2},
    "one row": {"kernel_size": (1, 4)},
    "8 pixels": {"kernel_size": (4, 2)},
    "3 pixels": {"kernel_size": (3, 1)},
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1},
    "padding too small for another window": {"kernel_size": 4, "padding": 1},
    "overhanging": {"kernel_size": 2, "ceil_mode": True},
    "dilated": {"kernel_size": 2, "dilation": 2},
}
TRAINING = {"training": True, "evaluation": False}


def twins(fused: type[nn.Module], *layers: nn.Module, training: bool = True) -> tuple[nn.Module, nn.Sequential]:
    """Our fused layer, and torch's layers in an nn.Sequential, with the same parameters."""
    theirs = nn.Sequential(*layers).to(DEVICE).train(training)
    return fused(*(ours_of(layer) for layer in copy.deepcopy(theirs))).train(training), theirs


def ours_of(layer: nn.Module) -> nn.Module:
    layer.__class__ = getattr(tnn, type(layer).__name__)
    return layer


def conv(name: str) -> tuple[tuple[int, ...], nn.Conv2d]:
    shape, options = CONVOLUTIONS[name]
    return shape, nn.Conv2d(shape[1], **options)


def compared(ours: nn.Module, theirs: nn.Module, dtype: torch.dtype, *shapes: tuple[int, ...], channels_last: bool) -> None:
    """`check` of two modules as functions of random inputs and parameters."""
    parameters = [tuple(p.shape) for p in theirs.parameters()]
    tensors = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate((*shapes, *parameters))]
    if channels_last:
        tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    if dtype == torch.float64:  # after several operators, torch's float64 is no more exact than ours
        for got, expected in zip(*(run(following(m), tuple(tensors), {}, dtype).values() for m in (ours, theirs)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    else:
        check(following(ours), following(theirs), *tensors)


def following(module: nn.Module) -> Callable[..., Any]:
    """A module as a function of its inputs and parameters, with buffers in their dtype and on their device."""
    return lambda *tensors: called(copy.deepcopy(module).to(tensors[0].device, tensors[0].dtype))(*tensors)


layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# All convolutions in float32; one in the other dtypes.
convolutions = pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float32) for name in CONVOLUTIONS] + [("3x3", dtype) for dtype in DTYPES[1:]]
)


@layouts
@convolutions
def test_conv_relu(name: str, dtype: torch.dtype, channels_last: bool, full_float32: None) -> None:
    shape, layer = conv(name)
    compared(*twins(tnn.ConvActivation2d, layer, nn.ReLU()), dtype, shape, channels_last=channels_last)


# All windows in float32; one in the other dtypes.
@layouts
@pytest.mark.parametrize(
    ("window", "dtype"), [(name, torch.float32) for name in WINDOWS] + [("adjacent", dtype) for dtype in DTYPES[1:]]
)
def test_conv_relu_max_pool(window: str, dtype: torch.dtype, channels_last: bool, full_float32: None) -> None:
    shape, layer = conv("3x3")
    pair = twins(tnn.ConvActivationMaxPool2d, layer, nn.ReLU(), nn.MaxPool2d(**WINDOWS[window]))
    compared(*pair, dtype, shape, channels_last=channels_last)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_pooled_convolutions(name: str, full_float32: None) -> None:
    shape, layer = conv(name)
    compared(*twins(tnn.ConvActivationMaxPool2d, layer, nn.ReLU(), nn.MaxPool2d(2)), torch.float32, shape, channels_last=False)


@layouts
@convolutions
@pytest.mark.parametrize("training", TRAINING)
def test_conv_bn_relu(training: str, name: str, dtype: torch.dtype, channels_last: bool, full_float32: None) -> None:
    if dtype == torch.bfloat16 and INTERPRETED:
        pytest.skip("the interpreter truncates to bfloat16 and a GPU rounds, so other pixels pass the ReLU than in torch")
    shape, layer = conv(name)
    if TRAINING[training]:
        layer.bias = None  # its gradient is a rounding error of 0
    norm = nn.BatchNorm2d(layer.out_channels)
    pair = twins(tnn.ConvBNActivation2d, layer, norm, nn.ReLU(), training=TRAINING[training])
    compared(*pair, dtype, shape, channels_last=channels_last)


@layouts
@dtypes
@pytest.mark.parametrize("training", TRAINING)
def test_bn_relu(training: str, dtype: torch.dtype, channels_last: bool) -> None:
    pair = twins(tnn.BNActivation2d, nn.BatchNorm2d(5), nn.ReLU(), training=TRAINING[training])
    compared(*pair, dtype, (3, 5, 7, 6), channels_last=channels_last)


@layouts
@dtypes
@pytest.mark.parametrize("training", TRAINING)
def test_bn_add_relu(training: str, dtype: torch.dtype, channels_last: bool) -> None:
    class Tail(nn.Sequential):
        def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
            return F.relu(self[0](input) + residual)

    ours, theirs = twins(tnn.BNAddActivation2d, nn.BatchNorm2d(5), nn.ReLU(), training=TRAINING[training])
    compared(ours, Tail(*theirs), dtype, (3, 5, 7, 6), (3, 5, 7, 6), channels_last=channels_last)


@dtypes
@pytest.mark.parametrize("shape", [(5, 37), (37,), (2, 3, 4, 37), (3, 700)])
def test_linear_relu(shape: tuple[int, ...], dtype: torch.dtype, full_float32: None) -> None:
    pair = twins(tnn.LinearActivation, nn.Linear(shape[-1], 19), nn.ReLU())
    compared(*pair, dtype, shape, channels_last=False)


class Hardsigmoid(nn.Hardsigmoid):
    """torch's gradient in float64 has the error of a 1/6 in float32."""

    def forward(self, input: Tensor) -> Tensor:
        return exact_hardsigmoid(input)


# One of each activation, and PReLU with a weight per channel of the results below.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {module.__name__: module for module in MODULES}
ACTIVATIONS |= {"Hardsigmoid": Hardsigmoid, "PReLU, 6 weights": lambda: nn.PReLU(6)}
# Each mechanism in `make test`: backward keeps the output or the input, has parameters or a weight. All others are long.
SHORT = "ReLU", "Hardtanh", "LeakyReLU", "SiLU", "GELU", "Sigmoid", "PReLU", "PReLU, 6 weights"
activations = pytest.mark.parametrize(
    "activation", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ACTIVATIONS]
)
GEOMETRIES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "conv": ((2, 5, 9, 8), lambda: nn.Conv2d(5, 6, 3, padding=1)),
    "depthwise": ((2, 6, 8, 8), lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6)),
    "depthwise, strided, two filters": ((2, 3, 8, 8), lambda: nn.Conv2d(3, 6, 3, dilation=2, padding=2, groups=3)),
    "transposed": ((2, 5, 4, 3), lambda: nn.ConvTranspose2d(5, 6, 4, 2, 1)),
    "transposed, depthwise": ((2, 6, 5, 4), lambda: nn.ConvTranspose2d(6, 6, 3, 2, 1, 1, groups=6)),
}


@activations
def test_conv_activation(activation: str) -> None:
    shape, conv = GEOMETRIES["conv"]
    compared(*twins(tnn.ConvActivation2d, conv(), ACTIVATIONS[activation]()), torch.float64, shape, channels_last=False)


@activations
def test_transposed_conv_activation(activation: str) -> None:
    shape, conv = GEOMETRIES["transposed"]
    pair = twins(tnn.ConvTransposeActivation2d, conv(), ACTIVATIONS[activation]())
    compared(*pair, torch.float64, shape, channels_last=False)


# All kernels in float32; one in the other dtypes.
@layouts
@pytest.mark.parametrize("activation", ["SiLU", "PReLU, 6 weights", "LeakyReLU"])
@pytest.mark.parametrize(
    ("geometry", "dtype"), [(name, torch.float32) for name in GEOMETRIES] + [("conv", dtype) for dtype in DTYPES[1:]]
)
def test_kernels_with_an_activation(
    geometry: str, activation: str, dtype: torch.dtype, channels_last: bool, full_float32: None
) -> None:
    """Each kernel stores the activation's input too, if its gradient needs it."""
    shape, conv = GEOMETRIES[geometry]
    fused = tnn.ConvTransposeActivation2d if "transposed" in geometry else tnn.ConvActivation2d
    compared(*twins(fused, conv(), ACTIVATIONS[activation]()), dtype, shape, channels_last=channels_last)


def added(geometry: str, activation: str = "", fused: bool = True) -> Callable[..., Tensor]:
    """f(conv(x) + residual) of x, residual, weight and bias, in one kernel or by torch's operators."""
    conv: Any = GEOMETRIES[geometry][1]()
    transposed = isinstance(conv, nn.ConvTranspose2d)
    groups = (conv.output_padding, conv.groups, conv.dilation) if transposed else (conv.dilation, conv.groups)
    options = conv.stride, conv.padding, *groups
    if fused:
        call = conv_transpose2d_activation if transposed else conv2d_activation
        f = (activation, None) if activation else None
        return lambda x, residual, w, b: call(x, (w, b, *options), f, residual)
    plain, function = (F.conv_transpose2d if transposed else F.conv2d), getattr(F, activation or "dropout")
    return lambda x, residual, w, b: function(plain(x, w, b, *options) + residual, **({} if activation else {"p": 0.0}))


def operands(geometry: str, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> list[Tensor]:
    """An image, a residual, filters and a bias."""
    shape, make = GEOMETRIES[geometry]
    conv = make()
    result = conv(torch.empty(shape)).shape
    tensors = [randn(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, result, conv.weight.shape, (6,)))]
    return [t.to(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t for t in tensors]


# All kernels with SiLU, whose gradient needs a second result; one in the other dtypes, and without a second result.
@pytest.mark.parametrize(
    ("geometry", "activation", "dtype", "channels_last"),
    [(name, "silu", torch.float32, order) for name in GEOMETRIES for order in (False, True)]
    + [("conv", "silu", dtype, True) for dtype in DTYPES[1:]]
    + [("conv", "relu", torch.float32, False), ("conv", "", torch.float32, True), ("transposed", "", torch.float32, False)],
)
def test_kernels_with_a_residual(
    geometry: str, activation: str, dtype: torch.dtype, channels_last: bool, full_float32: None
) -> None:
    check(added(geometry, activation), added(geometry, activation, False), *operands(geometry, dtype, channels_last))


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("geometry", ["conv", "depthwise", "transposed, depthwise"])
def test_strides_of_a_residual(geometry: str) -> None:
    """A residual with other strides than the result gives the same bits."""
    x, residual, *filters = operands(geometry)
    call, wide = added(geometry, "relu"), residual.repeat_interleave(2, 3)
    for other in (residual.to(memory_format=torch.channels_last), residual.mT.contiguous().mT, wide[..., 1::2]):
        assert torch.equal(call(x, other, *filters), call(x, residual, *filters))
    row = residual[:1, :, :1].expand_as(residual)
    assert torch.equal(call(x, row, *filters), call(x, row.contiguous(), *filters))


@pytest.mark.usefixtures("large_tiles")
def test_launches_with_a_residual() -> None:
    """One kernel for a residual of the result's shape and dtype, in evaluation after a batch norm too; else it is added alone."""
    x, residual, w, b = operands("conv")
    conv, relu, silu = (w, b, 1, 1, 1, 1), ("relu", None), ("silu", None)
    vectors = torch.zeros(6, device=DEVICE), torch.ones(6, device=DEVICE), None, torch.zeros(6, device=DEVICE)
    norm = *vectors, False, 0.1, 1e-5

    def call(f: Any, residual: Tensor) -> Tensor:
        return conv2d_activation(x, conv, f, residual)

    def normalized(residual: Tensor) -> Tensor:
        return conv2d_batch_norm(x, conv, norm, relu, residual)

    for f, name in ((relu, "conv2d_affine"), (None, "conv2d_affine"), (silu, "conv2d_activation")):
        assert launches(lambda f=f: call(f, residual))[0] == ["conv2d_affine"]  # type: ignore[misc]
        wanted = residual.detach().requires_grad_()
        backward = [] if f is None else ["activation_backward"]
        assert launches(lambda f=f, wanted=wanted: call(f, wanted)) == ([name], backward)  # type: ignore[misc]
    assert launches(lambda: normalized(residual))[0] == ["batchnorm2d_fold", "conv2d_affine"]
    assert launches(lambda: normalized(wanted))[0] == ["conv2d_fprop", "batchnorm2d_forward"]
    torch.testing.assert_close(normalized(residual), normalized(wanted).detach())
    for other in (residual[:1], residual[:, :, :1, :1], residual[0, 0, 0, 0], residual.double()):
        alone = ["add_forward", "activation_forward"] if other.shape == residual.shape else ["activation_forward"]
        assert launches(lambda other=other: call(silu, other))[0] == ["conv2d_fprop", *alone]  # type: ignore[misc]
        names = ["conv2d_fprop", "batchnorm2d_forward", *alone]
        assert launches(lambda other=other: normalized(other))[0] == names  # type: ignore[misc]
        assert torch.equal(call(None, other), tnn.conv2d(x, *conv) + other)
    with torch.inference_mode():
        constant = residual.clone()
    w.requires_grad_()
    for f in (relu, None, silu):
        torch.testing.assert_close(*(torch.autograd.grad(call(f, r).square().sum(), w) for r in (constant, residual)))


@activations
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", TRAINING)
def test_bn_activation(training: str, residual: bool, activation: str) -> None:
    class Tail(nn.Sequential):
        def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
            return self[1](self[0](input) + residual)

    fused = tnn.BNAddActivation2d if residual else tnn.BNActivation2d
    ours, theirs = twins(fused, nn.BatchNorm2d(6), ACTIVATIONS[activation](), training=TRAINING[training])
    shapes = [(3, 6, 7, 5)] * (2 if residual else 1)
    compared(ours, Tail(*theirs) if residual else theirs, torch.float64, *shapes, channels_last=False)


@layouts
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("activation", ["ReLU", "SiLU", "PReLU, 6 weights", "PReLU"])
def test_bn_activation_in_other_dtypes(activation: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Backward computes the activation's input again."""
    pair = twins(tnn.BNActivation2d, nn.BatchNorm2d(6), ACTIVATIONS[activation]())
    compared(*pair, dtype, (3, 6, 7, 5), channels_last=channels_last)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU"])
def test_backward_of_a_batch_norm_with_an_activation_does_not_keep_its_output(activation: str, conv: bool) -> None:
    """Then `out += x` behind them, as in Darknet, gives the right gradients."""
    layers = [nn.Conv2d(6, 6, 3, padding=1)] * conv + [nn.BatchNorm2d(6), ACTIVATIONS[activation]()]
    x = randn(3, 6, 7, 5, dtype=torch.float64)
    ours, theirs = twins(tnn.ConvBNActivation2d if conv else tnn.BNActivation2d, *layers)
    results = []
    for model, add in ((ours.double(), Tensor.add_), (theirs.double(), Tensor.add)):
        y = model(x)
        results.append(torch.autograd.grad(add(y, x).square().sum(), list(model.parameters())))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


KINDS = "ReLU", "SiLU", "Sigmoid", "PReLU"  # backward keeps the output or the input; without and with a weight


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("training", TRAINING)
def test_bn_activation_add(training: str, activation: str) -> None:
    """f(bn(x)) + addend, in one kernel."""

    class Head(nn.Sequential):
        def forward(self, input: Tensor, addend: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input) + addend

    class Joined(nn.Sequential):
        def forward(self, input: Tensor, addend: Tensor) -> Tensor:  # type: ignore[override]
            norm: Any = self[0]
            return batch_norm_activation(input, norm_arguments(norm), described(self[1]), addend=addend)

    ours, theirs = twins(Joined, nn.BatchNorm2d(6), ACTIVATIONS[activation](), training=TRAINING[training])
    shapes = [(3, 6, 7, 5)] * 2
    for dtype, channels_last in ((torch.float64, False), (torch.float32, True)):
        compared(ours, Head(*theirs), dtype, *shapes, channels_last=channels_last)
    x = randn(3, 6, 7, 5)
    assert launches(lambda: ours.eval()(x, x))[0] == ["batchnorm2d_forward"]


TEXTS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda z: z, "relu": F.relu, "silu": F.silu, "sigmoid": torch.sigmoid}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("scale", "channels_last"), [((3, 6, 1, 1), False), ((6, 1, 1), True)])
def test_channel_scale_activation(scale: tuple[int, ...], residual: bool, text: str, channels_last: bool) -> None:
    """f(x * scale + residual), in one kernel."""

    def ours(x: Tensor, s: Tensor, *r: Tensor) -> Tensor:
        return channel_scale_activation(x, (s,), (text, None) if text else None, *r)

    def theirs(x: Tensor, s: Tensor, *r: Tensor) -> Tensor:
        return TEXTS[text](x * s + r[0] if r else x * s)

    shapes = (3, 6, 7, 5), scale, *([(3, 6, 7, 5)] if residual else [])
    tensors = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    if channels_last:
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    check(ours, theirs, *tensors)
    back = "channel_scale_activation_backward" if text else "channel_scale_backward"
    summed = ["channel_sum"] if len(scale) == 3 else []
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert launches(lambda: ours(*leaves)) == (["channel_scale_forward"], [back, *summed])


@pytest.mark.parametrize("text", ["relu", "silu"])
def test_add_activation(text: str) -> None:
    """f(x + residual), in one kernel; if backward needs the sum, in two."""
    tensors = [randn(3, 6, 7, 5, seed=i) for i in range(2)]
    check(lambda x, r: add_activation(x, (text, None), r), lambda x, r: TEXTS[text](x + r), *tensors)
    assert launches(lambda: add_activation(tensors[0], (text, None), tensors[1]))[0] == ["add_forward"]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    forward, backward = launches(lambda: add_activation(leaves[0], (text, None), leaves[1]))
    assert forward == (["add_forward"] if text == "relu" else ["add_forward", "activation_forward"])
    assert backward == ["activation_backward"]


def test_prelu_behind_an_addition_runs_alone() -> None:
    x, w = randn(3, 6, 7, 5), randn(6)
    torch.testing.assert_close(add_activation(x, ("prelu", w), x), F.prelu(x + x, w))
    torch.testing.assert_close(channel_scale_activation(x, (x[:, :, :1, :1],), ("prelu", w)), F.prelu(x * x[:, :, :1, :1], w))


@activations
def test_conv_bn_activation(activation: str, full_float32: None) -> None:
    """In training with all gradients; in evaluation without, in one kernel."""
    layers = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), ACTIVATIONS[activation]()
    ours, theirs = twins(tnn.ConvBNActivation2d, *layers)
    compared(ours, theirs, torch.float64, (2, 5, 9, 8), channels_last=False)
    x = randn(2, 5, 9, 8)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        assert launches(lambda: ours(x))[0] == ["batchnorm2d_fold", "conv2d_affine"]


@activations
@pytest.mark.parametrize("shape", [(5, 37), (3, 700), (2, 3, 37)])
def test_linear_activation(shape: tuple[int, ...], activation: str) -> None:
    """Also with a split sum, whose second kernel applies the activation; PReLU's channels are axis 1."""
    outputs = 6
    if activation == "PReLU, 6 weights" and len(shape) == 3:
        shape = 2, 6, 37
    pair = twins(tnn.LinearActivation, nn.Linear(shape[-1], outputs), ACTIVATIONS[activation]())
    compared(*pair, torch.float64, shape, channels_last=False)


@pytest.mark.parametrize(
    "activation",
    [name if name in ("SiLU", "PReLU") else pytest.param(name, marks=pytest.mark.long) for name in ACTIVATIONS],
)
def test_second_derivatives(activation: str) -> None:
    torch.manual_seed(0)
    f = ours_of(ACTIVATIONS[activation]().double().to(DEVICE))
    x, wide = randn(2, 2, 4, 4, dtype=torch.float64), randn(2, 6, 3, 3, dtype=torch.float64)
    options: Any = {"dtype": torch.float64, "device": DEVICE}
    norm, residual, w = tnn.BatchNorm2d(6, **options), wide.flip(0), randn(6, 2, 3, 3, dtype=torch.float64)
    calls: dict[Callable[..., Tensor], Tensor] = {
        tnn.ConvActivation2d(tnn.Conv2d(2, 6, 3, **options), f): x,
        tnn.ConvTransposeActivation2d(tnn.ConvTranspose2d(2, 6, 2, **options), f): x,
        tnn.ConvBNActivation2d(tnn.Conv2d(2, 6, 3, bias=False, **options), norm, f): x,
        lambda x: tnn.BNAddActivation2d(norm, f)(x, residual): wide,
        lambda x: batch_norm_activation(x, norm_arguments(norm), described(f), addend=residual): wide,
        lambda x: channel_scale_activation(x, (x[:, :, :1, :1],), described(f), residual): wide,
        lambda x: conv2d_activation(
            x[:, :, 1:], (w, None, 1, (1, 0), 1, 1), described(f), x.repeat(1, 3, 1, 1)[..., 1:, 1:3]
        ): x,
        tnn.LinearActivation(tnn.Linear(4, 6, **options), f): randn(3, 4, dtype=torch.float64),
    }
    for call, input in calls.items():
        input.requires_grad_()
        assert torch.autograd.gradcheck(call, input, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, input, fast_mode=True)


def test_launches_with_a_kept_input() -> None:
    """An activation whose gradient needs its input: the kernel before it stores both; after a batch norm none is stored."""
    x, f, slopes = randn(2, 4, 8, 8).requires_grad_(), tnn.SiLU(), tnn.PReLU(6).to(DEVICE)
    conv, norm, up = filters(), tnn.BatchNorm2d(6, device=DEVICE), tnn.ConvTranspose2d(4, 6, 2, device=DEVICE)
    linear = tnn.Linear(8, 6, device=DEVICE)
    backward = ["activation_backward", *GRADIENTS]
    assert launches(lambda: tnn.ConvActivation2d(conv, f)(x)) == (["conv2d_activation"], backward)
    transposed = ["activation_backward", "conv2d_fprop", *GRADIENTS[1:]]
    assert launches(lambda: tnn.ConvTransposeActivation2d(up, f)(x)) == (["conv2d_activation"], transposed)
    prelu = ["prelu_backward", *GRADIENTS]
    assert launches(lambda: tnn.ConvActivation2d(conv, slopes)(x)) == (["conv2d_activation"], prelu)
    tail = ["batchnorm2d_activation_sums", "batchnorm2d_backward", *GRADIENTS]
    for each in (f, slopes):
        forward = ["conv2d_statistics", "batchnorm2d_forward"]
        assert launches(lambda each=each: tnn.ConvBNActivation2d(conv, norm, each)(x)) == (forward, tail)  # type: ignore[misc]
    assert launches(lambda: tnn.LinearActivation(linear, f)(x)) == (
        ["linear_activation"], ["activation_backward", "linear_dgrad", "linear_wgrad", "channel_sum"]
    )  # fmt: skip
    with torch.no_grad():
        for layers in ((conv, f), (up, f), (conv, slopes), (linear, f)):
            (name,), _ = launches(lambda layers=layers: call_sequence(layers, x))  # type: ignore[misc]
            assert name in ("conv2d_affine", "linear_fprop")


def test_a_wrong_weight_of_prelu() -> None:
    """torch's exception, from each fused function."""
    for layers, x in (
        ((filters(), tnn.PReLU(5)), randn(2, 4, 8, 8)),
        ((tnn.BatchNorm2d(4), tnn.PReLU(5)), randn(2, 4, 8, 8)),
        ((tnn.Linear(8, 6), tnn.PReLU(5)), randn(3, 8)),
    ):
        with pytest.raises(RuntimeError, match="Mismatch of parameter numbers and input channel size"):
            call_sequence([layer.to(DEVICE) for layer in layers], x)


class Launched(TorchDispatchMode):
    """Records the names of trinn's operators in its context, except the updates of running statistics."""

    def __enter__(self) -> list[str]:  # type: ignore[override]
        self.names: list[str] = []
        super().__enter__()
        return self.names

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "trinn" and function._opname != "batchnorm2d_update":
            self.names.append(function._opname)
        return function(*args, **kwargs or {})


def launches(call: Callable[[], Tensor]) -> tuple[list[str], list[str]]:
    """The operators called by a forward and by its backward, if there is a gradient."""
    with Launched() as forward:
        y = call()
    with Launched() as backward:
        if y.requires_grad:
            y.backward(torch.ones_like(y))
    return forward, backward


def filters() -> tnn.Conv2d:
    return tnn.Conv2d(4, 6, 3, padding=1, device=DEVICE)


GRADIENTS = ["conv2d_dgrad", "conv2d_wgrad", "channel_sum"]


def test_launches() -> None:
    """The fused operators of the table in layers/fused_functional.py."""
    x, y = randn(2, 4, 8, 8).requires_grad_(), randn(2, 6, 8, 8).requires_grad_()
    relu, norm, linear = tnn.ReLU(), tnn.BatchNorm2d(6, device=DEVICE), tnn.Linear(8, 5, device=DEVICE)
    affine, pooled = ["conv2d_affine"], ["conv2d_activation_max_pool2d"]
    back = ["activation_backward"], ["batchnorm2d_activation_sums", "batchnorm2d_backward"]
    conv = filters()
    assert launches(lambda: tnn.ConvActivation2d(conv, relu)(x)) == (affine, [*back[0], *GRADIENTS])
    for pool in (tnn.MaxPool2d(2), tnn.MaxPool2d(3, 2)):
        expected = pooled, [*back[0], "max_pool2d_backward", *GRADIENTS]
        assert launches(lambda pool=pool: tnn.ConvActivationMaxPool2d(conv, relu, pool)(x)) == expected  # type: ignore[misc]
    expected = ["conv2d_statistics", "batchnorm2d_forward"], [*back[1], *GRADIENTS]
    assert launches(lambda: tnn.ConvBNActivation2d(conv, norm, relu)(x)) == expected
    expected = ["conv2d_statistics", "batchnorm2d_forward"], ["batchnorm2d_sums", "batchnorm2d_backward", *GRADIENTS]
    assert launches(lambda: call_sequence((conv, norm), x)) == expected
    expected = ["batchnorm2d_statistics", "batchnorm2d_forward"], back[1]
    assert launches(lambda: tnn.BNActivation2d(norm, relu)(y)) == expected
    assert launches(lambda: tnn.BNAddActivation2d(norm, relu)(y, x.new_ones(y.shape))) == expected
    assert launches(lambda: tnn.LinearActivation(linear, relu)(x)) == (
        ["linear_fprop"], [*back[0], "linear_dgrad", "linear_wgrad", "channel_sum"]
    )  # fmt: skip
    norm.eval()
    with torch.no_grad():
        assert launches(lambda: tnn.ConvBNActivation2d(conv, norm, relu)(x))[0] == ["batchnorm2d_fold", "conv2d_affine"]
    expected = ["conv2d_fprop", "batchnorm2d_forward"], [*back[1], *GRADIENTS]
    assert launches(lambda: tnn.ConvBNActivation2d(conv, norm, relu)(x)) == expected
    norm.requires_grad_(False)
    expected = ["conv2d_fprop", "batchnorm2d_forward"], [*back[0], "batchnorm2d_backward", *GRADIENTS]
    assert launches(lambda: tnn.ConvBNActivation2d(conv, norm, relu)(x)) == expected


@pytest.mark.usefixtures("rowwise_products")
@pytest.mark.parametrize("window", [(2, 2), (1, 4), (4, 4), (2, 1), (3, 3)])
def test_pooled_tile(window: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adjacent windows of 2, 4, 8 or 16 pixels are pooled before the convolution is stored, with the same bits."""
    x, w, b = randn(2, 3, 9, 13), randn(5, 3, 3, 3), randn(5)
    geometry = (7, 11), (1, 1), (0, 0), (1, 1), 1
    pooled = 7 // window[0], 11 // window[1]
    y = ops.conv2d_affine(x, w, None, b, None, None, "relu", *geometry, False)
    expected = ops.max_pool2d_forward(y, pooled, window, window, (0, 0), (1, 1))
    with Launched() as names:
        got = ops.conv2d_activation_max_pool2d(x, w, b, "relu", *geometry, pooled, window, window, (0, 0), (1, 1))
    assert names == ["conv2d_activation_max_pool2d"]
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_nan_wins_in_a_tile(full_float32: None) -> None:
    """The last NaN of a window wins and ties go to the first maximum, as in max_pool2d."""
    x = randn(1, 1, 6, 8).bfloat16().float()  # exact in every product
    x[0, 0, 1, 1] = x[0, 0, 0, 0] = x[0, 0, 4, 5] = float("nan")
    x[0, 0, 2:4, 2:4] = 1.5
    x[0, 0, 2:4, 4:6] = -1.0
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    geometry = (6, 8), (1, 1), (0, 0), (1, 1), 1
    window = (3, 4), (2, 2), (2, 2), (0, 0), (1, 1)
    got = ops.conv2d_activation_max_pool2d(x, one, None, "relu", *geometry, *window)
    for ours, theirs in zip(got, ops.max_pool2d_forward(F.relu(x), *window), strict=True):
        assert ours.allclose(theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics(momentum: float | None, full_float32: None) -> None:
    shape, layer = conv("3x3")
    ours, theirs = twins(tnn.ConvBNActivation2d, layer, nn.BatchNorm2d(6, momentum=momentum), nn.ReLU())
    for seed in range(3):
        x = randn(*shape, seed=seed) + 100
        ours(x), theirs(x)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_statistics_of_the_rounded_result() -> None:
    """Also for a channel with a large mean: the error of the deviation is at most an ulp of the mean."""
    x, w = randn(4, 3, 9, 9), randn(5, 3, 3, 3)
    b = torch.tensor([1e4, -1e5, 1e6, 0.0, 3.0], device=DEVICE)
    y, mean, var = ops.conv2d_statistics(x, w, b, (7, 7), (1, 1), (0, 0), (1, 1), 1)
    exact = y.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    deviation = exact.var((0, 2, 3), correction=0).sqrt()
    assert ((var.double().sqrt() - deviation).abs() <= torch.finfo(torch.float32).eps * (mean.abs() + 4 * deviation)).all()


def test_other_inputs() -> None:
    """An image without a batch, a broadcast residual, return_indices: results equal those of the layers one by one."""
    x = randn(4, 8, 8)
    conv, relu, norm = filters(), tnn.ReLU(), tnn.BatchNorm2d(4, device=DEVICE)
    assert torch.equal(tnn.ConvActivation2d(conv, relu)(x), relu(conv(x)))
    pool = tnn.MaxPool2d(2, return_indices=True)
    values, indices = tnn.ConvActivationMaxPool2d(conv, relu, pool)(x[None])
    assert torch.equal(values, pool(relu(conv(x[None])))[0]) and indices.dtype == torch.int64
    residual = randn(4, 1, 1)
    torch.testing.assert_close(tnn.BNAddActivation2d(norm, relu)(x[None], residual), relu(norm(x[None]) + residual))
    assert torch.equal(call_sequence((tnn.BatchNorm1d(8, device=DEVICE), relu), x), relu(tnn.BatchNorm1d(8, device=DEVICE)(x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    x = randn(2, 4, 8, 8)
    conv, relu, norm, linear = filters(), tnn.ReLU(), tnn.BatchNorm2d(6, device=DEVICE), tnn.Linear(8, 3, device=DEVICE)
    with torch.autocast(DEVICE, dtype):
        y = tnn.ConvBNActivation2d(conv, norm, relu)(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, relu(norm(conv(x))))
        assert tnn.LinearActivation(linear, relu)(x).dtype == tnn.ConvActivation2d(conv, relu)(x).dtype == dtype
        norm.eval()
        with torch.no_grad():
            torch.testing.assert_close(tnn.ConvBNActivation2d(conv, norm, relu)(x), relu(norm(conv(x))), atol=0.02, rtol=0.02)


def test_gradients_of_gradients() -> None:
    x = randn(2, 2, 4, 4, dtype=torch.float64).requires_grad_()
    conv, relu = tnn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64, device=DEVICE), tnn.ReLU()
    norm, residual = tnn.BatchNorm2d(2, dtype=torch.float64, device=DEVICE), x.detach().flip(0)
    linear = tnn.Linear(4, 2, dtype=torch.float64, device=DEVICE)
    for call in (
        tnn.ConvActivation2d(conv, relu), tnn.ConvActivationMaxPool2d(conv, relu, tnn.MaxPool2d(2)), tnn.ConvBNActivation2d(conv, norm, relu),
        lambda x: tnn.BNAddActivation2d(norm, relu)(x, residual), tnn.LinearActivation(linear, relu),
        lambda x: conv2d_activation(x, (conv.weight, None, 1, 1, 1, 1), ("relu", None), x),
        lambda x: conv_transpose2d_activation(x, (conv.weight, conv.bias, 1, 1, 0, 1, 1), None, x.square()),
    ):  # fmt: skip
        assert torch.autograd.gradcheck(call, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


def test_modules_hold_the_originals() -> None:
    torch.manual_seed(0)
    ours, theirs = twins(tnn.ConvBNActivation2d, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = randn(2, 4, 6, 6)
    expected = ours(x)
    assert torch.equal(copy.deepcopy(ours)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), expected)
    fresh = twins(tnn.ConvBNActivation2d, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())[0]
    fresh.load_state_dict(theirs.state_dict())
    assert torch.equal(fresh(x), expected)
    assert "(1): BatchNorm2d(6" in repr(ours)


@pytest.mark.parametrize(
    "modules", [(), (nn.Conv2d(1, 1, 1), nn.ReLU()), (tnn.ReLU(), tnn.Conv2d(1, 1, 1)), (tnn.Conv2d(1, 1, 1),)]
)
def test_wrong_modules(modules: tuple[nn.Module, ...]) -> None:
    with pytest.raises(TypeError, match="ConvActivation2d: expected trinn's Conv2d, activation, but got "):
        tnn.ConvActivation2d(*modules)


@pytest.mark.parametrize("training", TRAINING)
def test_errors_are_those_of_the_layers(training: str) -> None:
    conv, relu, norm = filters(), tnn.ReLU(), tnn.BatchNorm2d(5, device=DEVICE).train(TRAINING[training])
    with torch.no_grad(), pytest.raises(RuntimeError, match="should contain 6 elements not 5"):
        tnn.ConvBNActivation2d(conv, norm, relu)(randn(2, 4, 6, 6))
    with pytest.raises(RuntimeError, match="to have 4 channels, but got 3"):
        tnn.ConvActivation2d(conv, relu)(randn(2, 3, 6, 6))
    with pytest.raises(RuntimeError, match="Output size is too small"):
        tnn.ConvActivationMaxPool2d(conv, relu, tnn.MaxPool2d(9))(randn(2, 4, 6, 6))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        tnn.LinearActivation(tnn.Linear(3, 4, device=DEVICE), relu)(randn(2, 5))
